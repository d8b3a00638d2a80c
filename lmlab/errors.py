"""Errors that a user can put right: one line on stderr, exit status 2."""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException

EXTRAS = ("pandas", "scipy", "optuna", "matplotlib")  # what training does without


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A UserError, or a package of an extra that isn't there, becomes its line and exit status 2; a
    UserError with HYDRA_FULL_ERROR=1 its trace.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(
            f"error: {error.name} is missing; it comes with: pip install -e '.[sweeps]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except (UserError, HydraException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(2) from None


class UserError(Exception):
    """What the user can put right, in one line: the key, the value, what is allowed."""


def nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def printable(text: str) -> str:
    """`text` without power over the terminal: control characters but newline and tab become their
    names.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
