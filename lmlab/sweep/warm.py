"""What the server imports before it is forked: all that a cell needs, so that no cell has to."""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's, also while this imports

import importlib  # noqa: E402

from lmlab.registry import importing  # noqa: E402

with importing():  # what is there is left alone from here on, so that its memory stays shared
    from PIL import Image

    for name in ("lmlab.training.experiment", "lmlab.sweep.plan", "lmlab.sweep.study"):
        importlib.import_module(name)
    Image.preinit()  # its formats are modules of their own
