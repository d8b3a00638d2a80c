"""The code of a function or class that a program wrote itself, with all of its own that it uses.

A plug-in is hashed file by file. What a notebook or a script registers has no file that could be
hashed, so its bytecode is read, and that of the functions, classes and values that it names.
"""

import dis
import hashlib
import inspect
import marshal
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

LIBRARY = Path(__file__).parent  # the folder lmlab/ that this process has imported
INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
INSTALLED.append(site.getusersitepackages())
PLAIN = bool | int | float | complex | str | bytes | None


@cache
def sha256_of(*names: str) -> str:
    """Returns a hash of files of the library, as they were at the first call.

    It is part of the name of what is kept in the cache, so that other code computes it anew.
    """
    content = b"".join((LIBRARY / name).read_bytes() for name in names)
    return hashlib.sha256(content).hexdigest()


def code_of(thing: Any) -> bytes:
    """Returns the code of a function or class, and of what it uses, as bytes.

    The names of its file and lines are not part of it, so it may move within a notebook.
    """
    seen: set[int] = set()
    return b"".join(parts_of(thing, seen))


def parts_of(thing: Any, seen: set[int]) -> Iterator[bytes]:
    """Yields the code of an object and of what it uses; `seen` are the ids of those yielded."""
    if isinstance(thing, PLAIN):
        yield repr(thing).encode()
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    function = getattr(thing, "__func__", thing)  # of a class method
    if inspect.isfunction(function):
        yield from parts_of_function(function, seen)
    elif inspect.isclass(thing):
        yield from parts_of_class(thing, seen)
    elif inspect.ismodule(thing):
        if thing.__file__:
            yield Path(thing.__file__).read_bytes()
    elif isinstance(thing, list | tuple | set | frozenset):
        for one in sorted(thing, key=repr) if isinstance(thing, set | frozenset) else thing:
            yield from parts_of(one, seen)
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield repr(key).encode()
            yield from parts_of(value, seen)
    elif isinstance(thing, property):
        yield from parts_of(thing.fget, seen)


def parts_of_function(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    """Yields the bytecode of a function, its defaults, and what it names of its own."""
    yield marshal.dumps(without_place(function.__code__))
    yield repr((function.__defaults__, function.__kwdefaults__)).encode()
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        if is_of_program(value):
            yield from parts_of(value, seen)
    for name in sorted(names_in(function.__code__)):
        value = function.__globals__.get(name)
        if is_of_program(value):
            yield name.encode()
            yield from parts_of(value, seen)


def parts_of_class(kind: type, seen: set[int]) -> Iterator[bytes]:
    """Yields the code of a class: of its own bases, its functions, and its plain values."""
    for base in kind.__bases__:
        if is_of_program(base):
            yield b"base "
            yield from parts_of(base, seen)
    for name, value in sorted(vars(kind).items(), key=lambda item: item[0]):
        if name.startswith("__") and not inspect.isfunction(value):
            continue
        if is_of_program(value):
            yield name.encode()
            yield from parts_of(value, seen)


def names_in(code: CodeType) -> set[str]:
    """Returns the global names that code, and the functions in it, read."""
    names = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for value in code.co_consts:
        if inspect.iscode(value):
            names |= names_in(value)
    return names


def is_of_program(thing: Any) -> bool:
    """Returns whether a value was written by the program, not by Python, a library or the lab."""
    if inspect.ismodule(thing):
        return is_own_module(thing)
    thing = getattr(thing, "__func__", thing)
    if inspect.isfunction(thing) or inspect.isclass(thing):
        module = sys.modules.get(thing.__module__ or "")
        return module is None or is_own_module(module)
    return isinstance(thing, PLAIN | list | tuple | dict | set | frozenset | property)


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
    if file.startswith("<frozen"):
        return False
    return not any(Path(file).is_relative_to(folder) for folder in (str(LIBRARY), *INSTALLED))


def without_place(code: CodeType) -> CodeType:
    """Returns code that does not know the file and the line where it was written."""
    constants = []
    for value in code.co_consts:
        constants.append(without_place(value) if inspect.iscode(value) else value)
    return code.replace(co_filename="", co_firstlineno=1, co_consts=tuple(constants))
