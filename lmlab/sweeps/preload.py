"""Imports everything that a cell needs. The server runs this, so its child processes need not."""

import signal

# Ctrl-C and a terminal that closes are the launcher's business, also while this imports.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)

import importlib  # noqa: E402

from lmlab.registry import importing  # noqa: E402
from lmlab.runs.code import lab_sha256  # noqa: E402

MODULES = (
    "lmlab.training.experiment",
    "lmlab.sweeps.plan",
    "lmlab.sweeps.costs",
    "lmlab.sweeps.study",
)

# Nothing of it is touched from here on, so that its memory stays shared.
with importing(shown=False):
    from PIL import Image

    for module in MODULES:
        importlib.import_module(module)
    lab_sha256()  # of the files as they are now; they may change while the sweep runs
    Image.preinit()  # PIL imports its formats one by one, when they are first needed
