"""The code of a function or class that a program wrote itself, with all of its own that it uses.

A plug-in is hashed file by file. What a notebook or a script registers has no file that could be
hashed, so its bytecode is read, and that of the functions, classes and values that it names. Of a
module of its own it is the file. Of functions, classes and modules of libraries it is the name, of
their other objects the name of the class, but for arrays, tensors, ranges, patterns and namespaces.
Not seen is what another file imports, and what code reaches by a text, as by importlib or getattr.
"""

import dis
import functools
import hashlib
import inspect
import marshal
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from lmlab.snapshot import LAB, LIBRARY

INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
INSTALLED.append(site.getusersitepackages())
PLAIN = bool | int | float | complex | str | bytes | None
SHOWN = range | slice | re.Pattern  # whose text says all of them
HELD = list | tuple | dict | set | frozenset | property | functools.partial | SimpleNamespace
CACHED = type(functools.cache(len))  # what functools.cache and lru_cache make of a function


@functools.cache
def sha256_of(*names: str) -> str:
    """Returns a hash of files of the library, as this process runs them.

    It is part of the name of what is kept in the cache, so that other code computes it anew.
    """
    content = b"".join(LAB.files[str(LIBRARY / name)] for name in names)
    return hashlib.sha256(content).hexdigest()


def code_of(thing: Any) -> bytes:
    """Returns the code of a function or class, and of what it uses, as bytes.

    The names of its file and lines are not part of it, so it may move within a notebook.
    """
    seen: set[int] = set()
    return b"".join(parts_of(thing, seen))


def parts_of(thing: Any, seen: set[int]) -> Iterator[bytes]:
    """Yields the code of an object and of what it uses.

    `seen` are the ids of those yielded: of objects that live on, or another could get the same id.
    """
    if isinstance(thing, PLAIN | SHOWN):
        yield repr(thing).encode()
        return
    if not is_of_program(thing):
        yield name_of(thing).encode()
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    function = bare(thing)
    if inspect.isfunction(function):
        yield from parts_of_function(function, seen)
    elif inspect.isclass(thing):
        yield from parts_of_class(thing, seen)
    elif inspect.ismodule(thing):
        if thing.__file__:
            yield Path(thing.__file__).read_bytes()
    elif isinstance(thing, list | tuple | set | frozenset):
        for one in thing if isinstance(thing, list | tuple) else in_order(thing, seen):
            yield from parts_of(one, seen)
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield repr(key).encode()
            yield from parts_of(value, seen)
    elif isinstance(thing, property):
        yield from parts_of((thing.fget, thing.fset, thing.fdel), seen)
    elif isinstance(thing, SimpleNamespace):
        yield from parts_of(vars(thing), seen)
    elif isinstance(thing, functools.partial):
        for part in (thing.func, thing.args, thing.keywords):
            yield from parts_of(part, seen)
    elif is_a(thing, "numpy", "generic"):
        yield repr(thing).encode()
    elif is_a(thing, "numpy", "ndarray"):
        yield from parts_of_array(thing, seen)
    elif is_a(thing, "torch", "Tensor"):
        numbers = thing.detach().cpu().to_dense().contiguous()
        yield repr((thing.dtype, *thing.shape)).encode()
        yield numbers.flatten().view(sys.modules["torch"].uint8).numpy().tobytes()
    elif is_instance_of_program(thing):
        yield from parts_of(type(thing), seen)
        for name, value in values_of(thing).items():
            yield name.encode()
            yield from parts_of(value, seen)


def bare(thing: Any) -> Any:
    """Returns the function in a class method, a static one, a cached one or a cached property."""
    if isinstance(thing, functools.cached_property):
        return thing.func
    if isinstance(thing, CACHED):
        return thing.__wrapped__
    return getattr(thing, "__func__", thing)


def name_of(thing: Any) -> str:
    """Returns the name of a module, function or class of a library; of another object its class's."""
    if inspect.ismodule(thing):
        return thing.__name__
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


def in_order(things: Any, seen: set[int]) -> list[Any]:
    """Returns the elements of a set in an order that every process finds: of what they are made."""
    return sorted(things, key=lambda one: b"".join(parts_of(one, {*seen})))


def parts_of_array(array: Any, seen: set[int]) -> Iterator[bytes]:
    """Yields the type, the shape and the numbers of an array of numpy's, or the objects in it."""
    yield repr((array.dtype, array.shape)).encode()
    if array.dtype.hasobject:
        for thing in array.flat:
            yield from parts_of(thing, seen)
    else:
        yield array.tobytes()


def values_of(thing: Any) -> dict[str, Any]:
    """Returns the attributes of an instance of a class of the program, by name."""
    values = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            values |= {name: getattr(thing, name)} if name in dir(thing) else {}
    return values


def parts_of_function(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    """Yields the bytecode of a function, its defaults, and what it names of its own."""
    yield marshal.dumps(without_place(function.__code__))
    defaults = function.__defaults__, function.__kwdefaults__
    given = [*(defaults[0] or ()), *(defaults[1] or {}).values()]
    if all(isinstance(value, PLAIN) for value in given):
        yield repr(defaults).encode()
    else:  # whose text may be shortened, or hold an address
        for part in defaults:
            yield from parts_of(part, seen)
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        yield from parts_of(value, seen)
    for name in sorted(names_in(function.__code__)):
        yield name.encode()
        yield from parts_of(function.__globals__.get(name), seen)
    for name in sorted(names_in(function.__code__, ("IMPORT_NAME",))):
        for file in files_of_import(name):
            yield file.read_bytes()


def parts_of_class(kind: type, seen: set[int]) -> Iterator[bytes]:
    """Yields the code of a class: of its bases, its functions, and its values."""
    for base in kind.__bases__:
        yield b"base "
        yield from parts_of(base, seen)
    for name, value in sorted(vars(kind).items(), key=lambda item: item[0]):
        if name.startswith("__") and not inspect.isfunction(value):
            continue
        yield name.encode()
        yield from parts_of(value, seen)


def names_in(code: CodeType, reading: tuple[str, ...] = ("LOAD_GLOBAL", "LOAD_NAME")) -> set[str]:
    """Returns the names that code, and the functions in it, read: global ones, or of imports."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in reading}
    for value in code.co_consts:
        if inspect.iscode(value):
            names |= names_in(value, reading)
    return names


def files_of_import(name: str) -> list[Path]:
    """Returns the Python files of a module or package of the program that a function imports."""
    try:
        spec = find_spec(name.partition(".")[0])  # of a part it would import the whole
    except (ImportError, ValueError):  # the import itself, if it is ever made, raises the error
        return []
    if spec is None or not spec.has_location or not is_own_file(spec.origin or ""):
        return []
    paths = [Path(str(spec.origin))]
    for folder in spec.submodule_search_locations or ():
        paths = sorted(Path(folder).rglob("*.py"))
    return paths


def is_a(thing: Any, module: str, name: str) -> bool:
    """Returns whether a value is of a type of a library, which need not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(thing, kind)


def is_instance_of_program(thing: Any) -> bool:
    """Returns whether a value is an instance of a class that the program wrote."""
    return not inspect.isclass(thing) and is_of_program(type(thing))


def is_of_program(thing: Any) -> bool:
    """Returns whether a value was written by the program, not by Python, a library or the lab."""
    if inspect.ismodule(thing):
        return is_own_module(thing)
    thing = bare(thing)
    if inspect.isfunction(thing) or inspect.isclass(thing):
        module = sys.modules.get(thing.__module__ or "")
        return module is None or is_own_module(module)
    if isinstance(thing, PLAIN | SHOWN | HELD) or is_instance_of_program(thing):
        return True
    numbers = ("numpy", "generic"), ("numpy", "ndarray"), ("torch", "Tensor")
    return any(is_a(thing, *kind) for kind in numbers)


def is_own_module(module: ModuleType) -> bool:
    """Returns whether the file of a module is neither Python's, a library's, nor the lab's."""
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__":
        return True
    if not file:
        return False  # built in
    return is_own_file(file)


def is_own_file(file: str) -> bool:
    """Returns whether a file of code is neither Python's, a library's, nor the lab's."""
    if not file or file.startswith("<frozen") or is_installed(file):
        return False
    return not any(Path(file).is_relative_to(folder) for folder in (str(LIBRARY), *INSTALLED))


@functools.cache
def is_installed(file: str) -> bool:
    """Returns whether a file lies where pip has installed packages, as in a folder of PYTHONPATH."""
    folders = [Path(folder) for folder in sys.path if folder and Path(file).is_relative_to(folder)]
    return any(next(folder.glob("*.dist-info"), None) for folder in folders)


def without_place(code: CodeType) -> CodeType:
    """Returns code that does not know the file and the line where it was written."""
    constants = []
    for value in code.co_consts:
        constants.append(without_place(value) if inspect.iscode(value) else value)
    return code.replace(co_filename="", co_firstlineno=1, co_consts=tuple(constants))
