"""Imports the plug-ins that a person names: files or modules that register their own choices.

A plug-in is imported because it was typed (plugin=my_lab.py), or because it is installed with an
entry point of the group lmlab.plugins. The folder of a run only notes its name: it is never
imported because of a file that the lab reads.
"""

import atexit
import builtins
import hashlib
import importlib
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from importlib.util import find_spec, spec_from_file_location
from itertools import combinations
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from lmlab import files, register
from lmlab.errors import (
    OwnCodeError,
    UserError,
    is_out_of_memory,
    nearest,
    printable,
    reason_of,
)
from lmlab.own_code import LIBRARY, is_own_file
from lmlab.register import Addition

GROUP = "lmlab.plugins"  # of entry points
NAMING = "a file is named with its ending, plugin=my_lab.py"


@dataclass(frozen=True)
class Source:
    """A plug-in as it was typed, and its code.

    `files` are the paths and contents of its Python files. They are executed as they were read
    here: processes that start later run the same code, even if a file was edited meanwhile. However
    it was typed, it is the same plug-in.
    """

    typed: str = field(compare=False)
    module: str
    files: tuple[tuple[str, bytes], ...]
    is_file: bool = False
    is_installed: bool = field(default=False, compare=False)
    """Whether nobody typed it: a package has it as an entry point."""

    @property
    def sha256(self) -> str:
        """A hash of the code, whatever the folder in which it is."""
        digest = hashlib.sha256()
        for path, content in self.files:
            name = Path(path).name  # which may be no UTF-8
            digest.update(f"{name} {len(content)}\n".encode(errors="surrogateescape"))
            digest.update(content)
        return digest.hexdigest()


class Watch(MetaPathFinder):
    """Finds no module, but refuses a file beside a plug-in that the plug-in's own code imports.

    Also by importlib.import_module(…), of which `watched` knows nothing.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raises UserError if the plug-in looks for such a module."""
        if not is_called_by(self.source):
            return
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and is_file_beside(spec.origin or "", self.source):
            raise not_noticed(self.source, str(spec.origin))


class AsRead(MetaPathFinder, Loader):
    """Finds and loads the modules of a plug-in from the contents that were read at the start."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.contents = {Path(path): content for path, content in source.files}
        self.module = source.module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the place of a module of the plug-in, or None for any other module."""
        if fullname != self.module and not fullname.startswith(f"{self.module}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or Path(spec.origin) not in self.contents:
            return None
        return spec_from_file_location(
            fullname,
            spec.origin,
            loader=self,
            submodule_search_locations=spec.submodule_search_locations,
        )

    def exec_module(self, module: ModuleType) -> None:
        """Executes a module as it was read."""
        path = str(module.__file__)
        module.__dict__["__builtins__"] = watched(self.source)
        exec(compile(self.contents[Path(path)], path, "exec"), module.__dict__)


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was imported, and what it registers."""

    source: Source
    additions: list[Addition] = field(default_factory=list)


IMPORTED: dict[str, Plugin] = {}  # by the name of the module
ACTIVE: list[Plugin] = []
SHOWN: dict[str, str] = {}  # the last error of each function whose traceback was shown
LASTING = ExitStack()  # those that are active until the process ends
atexit.register(LASTING.close)  # else Python would end it when half of its modules are gone


def sources(typed: str | None) -> list[Source]:
    """Returns the plug-ins that a value of plugin= names, with commas between them, or null.

    Those that are installed come first. Raises UserError if there is no such file or module.
    """
    found = []
    for entry in entry_points(group=GROUP):
        found.append(replace(module_source(entry.name, entry.module), is_installed=True))
    names = typed.split(",") if typed else []
    if not all(name.strip() for name in names):
        raise UserError(f"plugin={typed}: a name is missing before or after a comma")
    for name in names:
        with commas_named(str(typed)):
            found.append(source_of(name.strip()))
    distinct: dict[str, Source] = {}
    for source in found:
        other = distinct.setdefault(source.module, source)
        if other.files[0][0] != source.files[0][0]:
            raise UserError(
                f"plugin={typed}: {other.typed} and {source.typed} have the same name; rename one"
            )
    return list(distinct.values())


@contextmanager
def commas_named(typed: str) -> Iterator[None]:
    """A context in which a UserError says if there is a file whose name has a comma of `typed`."""
    try:
        yield
    except UserError:
        names = typed.split(",")
        for start, end in combinations(range(len(names) + 1), 2):
            name = ",".join(names[start:end]).strip()
            if end - start > 1 and files.expanded(name).is_file():
                raise UserError(
                    f"plugin={name}: a comma stands between two plug-ins, so the path of one may "
                    "have none; rename it"
                ) from None
        raise


def source_of(typed: str) -> Source:
    """Returns the plug-in that is typed: a file, if its name ends with .py, or else a module."""
    if not typed.endswith(".py"):
        return module_source(typed, typed)
    path = files.expanded(typed)
    if path.name == "__init__.py":
        raise package_named(typed, path.parent)
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise UserError(f"plugin={typed}: is no file; {NAMING}")
        content = path.read_bytes()
    except OSError as error:
        similar = nearest(path.name, [other.name for other in path.parent.glob("*.py")])
        raise UserError(f"plugin={typed}: cannot be read ({error.strerror}){similar}") from None
    return Source(typed, f"plugin_{path.stem}", ((str(path), content),), is_file=True)


def module_source(typed: str, module: str) -> Source:
    """Returns a plug-in that is a module or a package. Raises UserError if there is none.

    It is the one that would be imported now, also if a program has imported another one of its name.
    """
    earlier = taken_out(module)
    registered: list[Addition] = []
    try:
        with searching_here(), register.collecting(registered):  # by the package that it is in
            spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        spec = None
    finally:
        sys.modules.update(earlier)
    if module.partition(".")[0] in {*sys.stdlib_module_names, "lmlab"}:
        owner = "the lab" if module.startswith("lmlab") else "Python"
        raise UserError(
            f"plugin={typed}: is a module of {owner} itself, and registers nothing; {NAMING}"
        )
    package = files.expanded(typed)
    if (spec is None or not spec.origin) and (package / "__init__.py").is_file():
        raise package_named(typed, package)
    if spec is None or not spec.origin:
        raise UserError(f"plugin={typed}: there is no module {module}; {NAMING}")
    paths = [Path(spec.origin)]
    if paths[0].suffix != ".py":
        raise UserError(f"plugin={typed}: {spec.origin} is no Python file; {NAMING}")
    for folder in spec.submodule_search_locations or ():
        paths = sorted(path for path in Path(folder).rglob("*.py") if path.is_file())
    own = [f"{path}: " for path in paths]
    others = [one.place for one in registered if not one.place.startswith(tuple(own))]
    if others:
        raise UserError(
            f"plugin={typed}: the package that it is in registers something, too ({others[0]}); needs "
            f"the package, plugin={module.partition('.')[0]}"
        )
    contents = tuple((str(path), path.read_bytes()) for path in paths)
    if not is_own_file(spec.origin) and not any(b"lmlab" in content for _, content in contents):
        raise UserError(f"plugin={typed}: is a library, and registers nothing; {NAMING}")
    return Source(typed, module, contents)


def package_named(typed: str, folder: Path) -> UserError:
    """Returns the error for a package of which the folder was typed, or its first file."""
    place = folder.absolute()
    return UserError(
        f"plugin={typed}: a package is named as a module, plugin={place.name}, in the folder "
        f"{place.parent}, or with that folder in PYTHONPATH"
    )


@contextmanager
def searching_here() -> Iterator[None]:
    """A context in which modules are also looked for in the working folder, in the last place."""
    here = str(Path.cwd())
    importlib.invalidate_caches()  # a file that was made a moment ago is found, too
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:  # the last one: the program may have the folder itself
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


@contextmanager
def active(named: Sequence[Source]) -> Iterator[None]:
    """A context in which what the plug-ins register exists. They are imported if they were not.

    Raises UserError if one of them cannot be imported, or registers what is registered already.
    """
    with ExitStack() as undo:
        undo.enter_context(searching_here())
        for source in named:
            if any(plugin.source == source for plugin in ACTIVE):
                continue
            finders = [Watch(source)] if source.is_file else [AsRead(source), Watch(source)]
            sys.meta_path[:0] = finders  # also for modules that are imported later
            for finder in finders:
                undo.callback(sys.meta_path.remove, finder)
            plugin = imported(source)
            for addition in plugin.additions:
                addition.put()
                undo.callback(addition.take_out)
            ACTIVE.append(plugin)
            undo.callback(ACTIVE.remove, plugin)
        yield


def activate(named: Sequence[Source]) -> None:
    """Makes the plug-ins active for as long as this process lives."""
    LASTING.enter_context(active(named))


def imported(source: Source) -> Plugin:
    """Returns an imported plug-in. It is imported again if its code has changed since.

    What its code changes outside of itself, such as torch's settings, is as before afterwards.
    """
    known = IMPORTED.get(source.module)
    if known and known.source == source:
        return replace(known, source=source)
    plugin = Plugin(source)
    earlier = taken_out(source.module)
    before = {*sys.modules}
    try:
        execute(source, plugin.additions)
        check_neighbours(source, {*sys.modules} - before)
        if not plugin.additions:
            raise UserError(
                f"plugin={source.typed}: {source.files[0][0]} registers nothing; a plug-in calls the "
                "functions of lmlab.register"
            )
    except BaseException as error:
        taken_out(source.module)
        for name in {*sys.modules} - before:
            if is_beside(sys.modules[name], source):  # so that the next import notices it, too
                del sys.modules[name]
        sys.modules.update(earlier)
        if isinstance(error, UserError):
            raise
        if is_exit_of_own_code(error, source):
            raise UserError(f"plugin={source.typed}: {exit_of(error)}") from None
        if not isinstance(error, Exception):
            raise
        show(error)
        raise UserError(
            f"plugin={source.typed}: cannot be imported ({reason_of(error)}){hint(error, source)}"
        ) from None
    IMPORTED[source.module] = plugin
    return plugin


def execute(source: Source, additions: list[Addition]) -> None:
    """Imports a plug-in, and adds what it registers to a list."""
    from lmlab.isolation import left_as_before  # which imports torch

    with left_as_before(), register.collecting(additions):
        if not source.is_file:
            importlib.import_module(source.module)
            return
        path, content = source.files[0]
        module = ModuleType(source.module)
        module.__file__ = path
        sys.modules[source.module] = module
        module.__dict__["__builtins__"] = watched(source)
        exec(compile(content, path, "exec"), module.__dict__)


def watched(source: Source) -> dict[str, Any]:
    """Returns Python's built-in names for the code of a plug-in, of which each import is checked.

    Also one in a function, which may be called long after the plug-in was imported, and one of a
    module that something else has imported before.
    """

    def importing(name: str, *rest: Any, **named: Any) -> Any:
        found = builtins.__import__(name, *rest, **named)
        listed = named.get("fromlist", rest[2] if len(rest) > 2 else ()) or ()
        check_neighbours(source, [name, *(f"{name}.{one}" for one in listed)])
        return found

    return vars(builtins) | {"__import__": importing}


def check_neighbours(source: Source, modules: Iterable[str]) -> None:
    """Raises UserError if one of the imported `modules` is a file beside a plug-in.

    That is a file in its folder or in the working folder, which would be no part of its hash.
    """
    for module in [sys.modules[name] for name in modules if name in sys.modules]:
        if is_beside(module, source):
            raise not_noticed(source, file_of(module))


def not_noticed(source: Source, file: str) -> UserError:
    """Returns the error about a file that a plug-in imports, and that is no part of its hash."""
    return UserError(
        f"plugin={source.typed}: imports {file}, whose changes would not be noticed; a plug-in of "
        "several files is a package, plugin=my_package, with all of them in it"
    )


def is_called_by(source: Source) -> bool:
    """Returns whether code of a plug-in is among the functions that are being called just now."""
    own = [path for path, _ in source.files]
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename in own:
            return True
        frame = frame.f_back
    return False


def is_beside(module: ModuleType | None, source: Source) -> bool:
    """Returns whether a module is of a file beside the plug-in's own that belongs to no plug-in."""
    return module is not sys.modules.get("__main__") and is_file_beside(file_of(module), source)


def is_file_beside(file: str, source: Source) -> bool:
    """Returns whether a file is beside the plug-in's own, and belongs to no plug-in."""
    known = [path for one in (source, *active_sources()) for path, _ in one.files]
    if not file or file in known:
        return False
    beside = Path(source.files[0][0]).parent, Path.cwd()
    return any(Path(file).is_relative_to(folder) for folder in beside) and is_own_file(file)


def file_of(module: ModuleType | None) -> str:
    """Returns the file of a module, or "" if it has none."""
    return str(getattr(module, "__file__", None) or "")


def taken_out(name: str) -> dict[str, ModuleType]:
    """Removes a module, and the modules in it, from those that are imported; returns them."""
    found = {
        module: sys.modules[module]
        for module in [*sys.modules]
        if module == name or module.startswith(f"{name}.")
    }
    for module in found:
        del sys.modules[module]
    return found


def hint(error: Exception, source: Source) -> str:
    """Returns what to do if a plug-in that is a file imports a file beside it."""
    folder = Path(source.files[0][0]).parent
    if isinstance(error, ModuleNotFoundError) and (folder / f"{error.name}.py").exists():
        return "; a plug-in of several files is a package, plugin=my_package"
    return ""


def is_exit_of_own_code(error: BaseException, *importing: Source) -> bool:
    """Returns whether a person's own code raised what would end the program, such as sys.exit(…).

    It is not the lab's, nor that of a signal. Own code is also that of plug-ins that are being
    imported.
    """
    if isinstance(error, Exception | GeneratorExit):
        return False
    if isinstance(error, KeyboardInterrupt) and is_handled_by_python(signal.SIGINT):
        return False
    if is_of_handler(error):
        return False
    places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if Path(places[-1]).is_relative_to(LIBRARY):
        return False
    known = [path for one in (*importing, *active_sources()) for path, _ in one.files]
    return any(is_own_file(place) or place in known for place in places)


def is_of_handler(error: BaseException) -> bool:
    """Returns whether a handler of signals has raised an error, such as that of submitit's.

    It runs between two instructions of any code, which has no part in it.
    """
    running = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        function = getattr(handler, "__func__", handler)  # of a method
        if getattr(function, "__code__", None) in running:
            return True
    return False


def is_handled_by_python(number: signal.Signals) -> bool:
    """Returns whether this signal raises Python's own KeyboardInterrupt, wherever it comes."""
    return signal.getsignal(number) is signal.default_int_handler


def exit_of(error: BaseException) -> str:
    """Returns what would end the program, in words: a call, or an error that is no Exception."""
    if not isinstance(error, SystemExit):
        return f"raises {reason_of(error)}".rstrip(": ")
    code = error.code
    return f"calls sys.exit({'' if code is None else repr(code)})"


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """A context in which a sys.exit(…) in a person's own code is an error like any other of it.

    So is an error of its own that is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not is_exit_of_own_code(error):
            raise
        raise RuntimeError(exit_of(error)).with_traceback(error.__traceback__) from None


@contextmanager
def own_errors(about: str = "") -> Iterator[None]:
    """A context in which an error of a person's own code is an OwnCodeError; so is a sys.exit(…).

    Its text begins with what it is `about`, if that is given.

    An error of the lab itself stays as it is, and so does one of memory, which others explain. Code
    that a program has registered itself is no plug-in: the program gets its own error.
    """
    try:
        with exits_as_errors():
            yield
    except OwnCodeError as error:
        if not about:
            raise
        raise OwnCodeError(f"{about}: {error}", error.frames) from error.__cause__
    except UserError:
        raise
    except Exception as error:
        frames = own_frames(error)
        if not frames or not active_sources() or is_out_of_memory(error):
            raise
        why = f"{place_of(frames)}: {reason_of(error)}"
        if about:
            why = f"{about}: {why}"
        raise OwnCodeError(why, traceback_of(error, frames)) from error


def traceback_of(error: Exception, frames: list[traceback.FrameSummary]) -> str:
    """Returns the traceback of an error with some of its frames alone."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join([*lines, *traceback.format_exception_only(error)])


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Returns the part of an error's traceback that lies in a person's own code, if any does.

    If none does, it is that of the error's cause: as of a StopIteration, which Python turns into a
    RuntimeError. Without a plug-in, it is the code of a program that has registered something itself.
    """
    known = [path for source in active_sources() for path, _ in source.files]
    if not known and not register.unlisted():
        return []
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in known or is_own_file(frame.filename)]
    if not own and error.__cause__ is not None:
        return own_frames(error.__cause__)
    return own


def place_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """Returns which plug-in, which of its functions and which line the frames of an error are of."""
    first, last = frames[0], frames[-1]
    return f"{named_in(frames)}{first.name} failed at {Path(last.filename).name}:{last.lineno}"


def named_in(frames: Iterable[traceback.FrameSummary]) -> str:
    """Returns "plugin=name: " of the plug-in that some frames are of, or "" for a program's own."""
    for frame in frames:
        for source in active_sources():
            if frame.filename in [path for path, _ in source.files]:
                return f"plugin={source.typed}: "
    return ""


def show(error: Exception) -> None:
    """Prints the traceback of an error, from the plug-in's own code on, to stderr."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(frame.filename).is_relative_to(LIBRARY)]
    while own and own[0].filename.startswith("<frozen importlib"):
        own = own[1:]
    print(printable(traceback_of(error, own)), end="", file=sys.stderr)


def show_once(title: str, error: Exception) -> None:
    """Prints the traceback of an error in a plug-in's function, unless it was that function's last."""
    text = f"{title}: {error!r}"
    frames = traceback.extract_tb(error.__traceback__)
    if not any(is_own_file(frame.filename) for frame in frames):
        return  # it is an error of use, which its message explains
    if SHOWN.get(title) != text:
        SHOWN[title] = text
        show(error)


def explained(title: str, error: Exception) -> str:
    """Returns the reason of an error with which the run goes on.

    If it comes from a plug-in's own code, its traceback is printed first, once for each `title`, and
    the place is named.
    """
    show_once(title, error)
    frames = own_frames(error)
    if not frames:
        return reason_of(error)
    return f"{reason_of(error)} ({place_of(frames)})"


def active_sources() -> list[Source]:
    """Returns the active plug-ins, for other processes."""
    return [plugin.source for plugin in ACTIVE]


def sha256() -> str | None:
    """Returns a hash of the code of all active plug-ins, in any order, or None without any.

    What a program has registered itself is part of it.
    """
    own = [hashlib.sha256(code).hexdigest() for code in register.unlisted_code()]
    hashes = sorted([*(plugin.source.sha256 for plugin in ACTIVE), *own])
    if not hashes:
        return None
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def names() -> str | None:
    """Returns the active plug-ins that were typed, as plugin= takes them, or None without any."""
    typed = [plugin.source.typed for plugin in ACTIVE if not plugin.source.is_installed]
    return ",".join(typed) or None


def named_plugins() -> str:
    """Returns the active plug-ins as the beginning of a message, or "" without any."""
    return f"plugin={names()}: " if names() else ""
