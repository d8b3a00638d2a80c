"""Imports what a choice of the catalogue names, at the moment when it is needed."""

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def importing() -> Iterator[None]:
    """For large imports: what they make stays, and to look for garbage in it takes a fifth of their
    time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load(builder: str) -> Any:
    """Returns the class or function that a row of the catalogue names, as "module:name"."""
    module, _, name = builder.partition(":")
    return getattr(importlib.import_module(module), name)
