"""Imports what a trial of a search needs besides, so that each of its processes need not."""

import contextlib

from lmlab.errors import UserError
from lmlab.sweeps.study import open_study

MEMORY = "sqlite:///:memory:"  # a study that is forgotten: opening it imports everything

with contextlib.suppress(ImportError, UserError):  # the search itself says what is missing
    open_study(
        {
            "study": "",
            "storage": MEMORY,
            "direction": "minimize",
            "pruner": "median",
            "steps": (1, 2),
        }
    )
