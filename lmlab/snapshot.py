"""The code of the lab as this process runs it: its files are read before the first is imported.

A file that is edited later is imported as it was, and Python's cache of compiled files is used only
for the same content (Python itself looks at time and size). So the hash in a run's folder is always
that of the code which ran. A module that is reloaded is taken as it is then.
"""

# A Python that is too old reads this file before environment.py, which says so.
from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

LIBRARY = Path(__file__).parent  # the folder lmlab/ that this process has imported
PACKAGE = __name__.partition(".")[0]


class Snapshot(MetaPathFinder):
    """All Python files of a package as they were, by their paths; it finds the package's modules.

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
        if spec.origin not in self.files or fullname in sys.modules:  # it is new, or reloaded
            self.files[spec.origin] = content_of(spec.origin)
            for forget in self.on_change:
                forget()
        return spec_from_file_location(
            fullname,
            spec.origin,
            loader=LoaderOf(self.files[spec.origin], fullname, spec.origin),
            submodule_search_locations=spec.submodule_search_locations,
        )


class LoaderOf(SourceFileLoader):
    """Loads the module `name` with a given content, whatever is in its file at `path` by now."""

    def __init__(self, content: bytes, name: str, path: str) -> None:
        super().__init__(name, path)
        self.content = content

    def get_data(self, path: str) -> bytes:
        """Returns the content of the module, or that of another file, such as the compiled one."""
        return self.content if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> dict[str, Any]:
        """Returns a checksum in the place of the time, which Python compares with its cache's."""
        return {"mtime": zlib.crc32(self.content), "size": len(self.content)}


def content_of(path: str) -> bytes:
    """Returns the content of a file."""
    with open(path, "rb") as file:
        return file.read()


LAB = Snapshot(PACKAGE, LIBRARY)
sys.meta_path.insert(0, LAB)
