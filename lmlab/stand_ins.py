"""Stand-ins for modules that torchmetrics imports, and that no run uses: a quarter of all imports.

Lightning imports torchmetrics. That imports matplotlib.pyplot, since it can draw metrics, and
scipy.signal, to which it adds a function for a library of audio. While torchmetrics is imported,
each of these modules has a stand-in: the real one is imported when something of it is used.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGE = "torchmetrics"
PRESENT: dict[str, ModuleType] = {}  # the stand-ins, while torchmetrics is being imported


class StandIn(ModuleType):
    """Stands for a module until something of it is used that it does not have itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # who asks whether there is such a module gets it

    def __getattr__(self, name: str) -> Any:
        """Returns what the real module has under this name. Python calls this method."""
        take_out()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def drawn_in_style(*arguments: Any, **keywords: Any) -> Iterator[None]:
    """A context, or a decorator, as matplotlib.pyplot.style.context."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    with pyplot.style.context(*arguments, **keywords):
        yield


def put_in() -> None:
    """Puts stand-ins in the place of modules that are installed, and not imported yet.

    What they have is all that torchmetrics uses while it is imported.
    """
    signal = StandIn("scipy.signal")
    vars(signal).update(hamming=None)
    axes = StandIn("matplotlib.axes")
    vars(axes).update(Axes=object)
    pyplot = StandIn("matplotlib.pyplot")
    vars(pyplot).update(Figure=object, style=SimpleNamespace(context=drawn_in_style))
    matplotlib = StandIn("matplotlib")
    colors = SimpleNamespace(Colormap=object)
    vars(matplotlib).update(axes=axes, pyplot=pyplot, colors=colors)
    for first, *others in ([signal], [matplotlib, axes, pyplot]):
        package = first.__name__.partition(".")[0]
        is_installed = PathFinder.find_spec(package) is not None
        if is_installed and first.__name__ not in sys.modules:
            PRESENT.update({one.__name__: one for one in (first, *others)})
    sys.modules.update(PRESENT)


def take_out() -> None:
    """Lets the real modules be imported from now on."""
    for name in PRESENT:
        if sys.modules.get(name) is PRESENT[name]:
            del sys.modules[name]
    PRESENT.clear()


class QuickLoader(Loader):
    """Executes torchmetrics while the stand-ins are there."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Returns what the usual loader does."""
        created: ModuleType | None = self.usual.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Executes the package, which afterwards is as if the usual loader had done so."""
        put_in()
        try:
            self.usual.exec_module(module)
        finally:
            take_out()
        module.__loader__ = self.usual
        if module.__spec__ is not None:
            module.__spec__.loader = self.usual


class QuickFinder(MetaPathFinder):
    """Finds torchmetrics, and nothing else, for a QuickLoader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the place of torchmetrics, or None for any other module."""
        if fullname != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = QuickLoader(spec.loader)
        return spec


@contextmanager
def quick_torchmetrics() -> Iterator[None]:
    """A context in which torchmetrics, if it is imported, is imported with stand-ins."""
    finder = QuickFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
