"""Imports the classes and functions of the catalogue when they are first needed.

Functions whose result depends on the choices that exist are `remembered`: a plug-in can add
choices, and `forget` then drops their results.
"""

import gc
import importlib
import logging
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from lmlab import ranks
from lmlab.errors import UserError, reason_of
from lmlab.own_code import LIBRARY, is_own_file
from lmlab.signals import unbroken
from lmlab.stand_ins import quick_torchmetrics
from lmlab.terminal import showing

Function = TypeVar("Function", bound=Callable[..., Any])
CLEARERS: list[Callable[[], None]] = []  # each drops the results of a remembered function


@contextmanager
def importing(shown: bool = True, own_code: bool = False) -> Iterator[None]:
    """Switches the garbage collector off during large imports, which saves a fifth of their time.

    Afterwards the garbage collector skips the imported objects for good. What torchmetrics imports
    for nothing is put off. Matplotlib does not say where it keeps its own cache. Unless `shown` is
    false, a terminal says what happens. No signal breaks the imports off, unless `own_code`, that of a
    person, is among them. Raises UserError if a library is broken, if there is too little memory to
    import it, or if a variable that Lightning reads holds no number.
    """
    ranks.check_variables()
    matplotlib = logging.getLogger("matplotlib")
    level = matplotlib.level
    matplotlib.setLevel(logging.ERROR)
    is_first = "torch" not in sys.modules
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        held = nullcontext() if own_code else unbroken()
        with held, quick_torchmetrics(), showing("importing the libraries …" if shown else ""):
            yield
    except ModuleNotFoundError:
        raise
    except (ImportError, MemoryError, SystemError, OSError) as error:
        why = f"a library cannot be imported: {reason_of(error)}{memory_limit()}"
        raise UserError(why) from error
    except UnicodeDecodeError as error:
        why = f"a library cannot be imported: {reason_of(error)}; matplotlib reads a file matplotlibrc"
        raise UserError(why) from error
    except ValueError as error:
        backend = os.environ.get("MPLBACKEND")
        if backend is not None and "backend" in str(error):
            raise UserError(
                f"MPLBACKEND={backend}: matplotlib has no such backend; allowed is agg, for example, or "
                "no such variable"
            ) from None
        *_, last = traceback.extract_tb(error.__traceback__)
        if is_own_file(last.filename) or Path(last.filename).is_relative_to(LIBRARY):
            raise
        raise UserError(f"a library cannot be imported: {reason_of(error)}") from error
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()
        matplotlib.setLevel(level)


def memory_limit() -> str:
    """Returns a hint to the limit of this process's memory, or "" if there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"; ulimit -v allows {limit / 1e9:.1f} GB of memory, and torch alone needs more than one"


@contextmanager
def variables_kept() -> Iterator[None]:
    """A context after which the environment's variables are as before; Lightning and torch add some."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*os.environ} - {*before}:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def variables_hidden(beginning: str) -> Iterator[list[str]]:
    """A context without the environment's variables whose names begin so; its value are their names."""
    hidden = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(beginning)}
    for name in hidden:
        del os.environ[name]
    try:
        yield [*hidden]
    finally:
        os.environ.update(hidden)


@contextmanager
def folder_kept() -> Iterator[None]:
    """A context after which the working folder is as before, unless it is deleted.

    Other people's code may change it.
    """
    before = None
    with suppress(FileNotFoundError):
        before = os.getcwd()
    try:
        yield
    finally:
        if before is not None:
            with suppress(FileNotFoundError):
                os.chdir(before)


def load(builder: str | Callable[..., Any]) -> Any:
    """Returns the class or function that a row of the catalogue names as "module:name".

    A plug-in gives the class or function itself.
    """
    if not isinstance(builder, str):
        return builder
    module, _, name = builder.partition(":")
    return getattr(importlib.import_module(module), name)


def remembered(function: Function) -> Function:
    """Lets a function compute each result only once, until the next call of `forget`."""
    cached = lru_cache(maxsize=None)(function)
    CLEARERS.append(cached.cache_clear)
    return cast(Function, cached)


def forget() -> None:
    """Drops all results of remembered functions, because choices were added or removed."""
    for clear in CLEARERS:
        clear()
