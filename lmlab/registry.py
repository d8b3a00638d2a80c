"""Imports a class or function of the catalogue when it is first needed."""

import gc
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmlab.errors import UserError, reason_of
from lmlab.terminal import showing


@contextmanager
def importing(shown: bool = True) -> Iterator[None]:
    """Switches the garbage collector off during large imports, which saves a fifth of their time.

    Afterwards the garbage collector skips the imported objects for good. Matplotlib, which Lightning
    imports, does not say where it keeps its own cache. Unless `shown` is false, a terminal says what
    happens. Raises UserError if a library is broken, or if there is too little memory to import it.
    """
    matplotlib = logging.getLogger("matplotlib")
    level = matplotlib.level
    matplotlib.setLevel(logging.ERROR)
    is_first = "torch" not in sys.modules
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with showing("importing the libraries …" if shown else ""):
            yield
    except ModuleNotFoundError:
        raise
    except (ImportError, MemoryError, SystemError, OSError) as error:
        raise UserError(f"a library cannot be imported: {reason_of(error)}") from error
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()
        matplotlib.setLevel(level)


def load(builder: str) -> Any:
    """Returns the class or function that a catalogue row names as "module:name"."""
    module, _, name = builder.partition(":")
    return getattr(importlib.import_module(module), name)
