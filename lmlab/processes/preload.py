"""Imports everything that a cell needs. The server runs this, so its child processes need not."""

import os
import signal
from contextlib import suppress

# Ctrl-C, a terminal that closes, and signals to all processes of a group are the launcher's business,
# also while this imports.
with suppress(PermissionError):  # of a group of its own already
    os.setsid()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))  # since its start

import importlib  # noqa: E402
import sys  # noqa: E402

from lmlab.errors import UserError  # noqa: E402
from lmlab.registry import importing  # noqa: E402

MODULES = (
    "lmlab.training.experiment",
    "lmlab.sweeps.plan",
    "lmlab.sweeps.costs",
    "lmlab.sweeps.study",
)

# Nothing of it is touched from here on, so that its memory stays shared.
try:
    with importing(shown=False):
        from PIL import Image

        for module in MODULES:
            importlib.import_module(module)
        Image.preinit()  # PIL imports its formats one by one, when they are first needed
except UserError as error:  # the launcher then says that there is no server
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(2)
except MemoryError:  # not even for a message of its own
    os.write(2, b"error: too little memory to import the libraries\n")
    os._exit(2)
