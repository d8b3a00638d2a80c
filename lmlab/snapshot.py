"""The code of the lab as this process runs it: its files are read before the first is imported.

A file that is edited later is imported as it was, so that the hash in a run's folder is always that
of the code which ran. A module that is reloaded is taken as it is then.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

LIBRARY = Path(__file__).parent  # the folder lmlab/ that this process has imported
PACKAGE = __name__.partition(".")[0]


class Snapshot(MetaPathFinder, Loader):
    """All Python files of a package as they were, by their paths; it finds and loads its modules.

    `on_change` is called after one of the files was read anew.
    """

    def __init__(self, package: str, folder: Path) -> None:
        self.package = package
        self.files: dict[str, bytes] = {}
        self.on_change: list[Callable[[], None]] = []
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(parent, name)
                    self.files[path] = content_of(path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the place of a module of the package, or None for any other module."""
        if not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not os.path.isfile(str(spec.origin)):
            return spec
        assert spec.origin is not None
        now = content_of(spec.origin)
        before = self.files.get(spec.origin)
        if now == before:
            return spec
        if before is None or fullname in sys.modules:  # it is new, or reloaded
            self.files[spec.origin] = now
            for forget in self.on_change:
                forget()
            return spec
        return spec_from_file_location(
            fullname,
            spec.origin,
            loader=self,
            submodule_search_locations=spec.submodule_search_locations,
        )

    def exec_module(self, module: ModuleType) -> None:
        """Executes a module as its file was."""
        path = str(module.__file__)
        exec(compile(self.files[path], path, "exec"), module.__dict__)


def content_of(path: str) -> bytes:
    """Returns the content of a file."""
    with open(path, "rb") as file:
        return file.read()


LAB = Snapshot(PACKAGE, LIBRARY)
sys.meta_path.insert(0, LAB)
