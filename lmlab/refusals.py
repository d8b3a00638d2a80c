"""How what a user can put right is said: one line, exit status 2."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException

from lmlab.config import UserError
from lmlab.tokenizers import printable

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
