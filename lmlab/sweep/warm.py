"""What the server imports before it is forked: all that a cell needs, so that no cell has to."""

import gc
import importlib

from PIL import Image

for name in ("lmlab.experiment", "lmlab.sweep.plan", "lmlab.sweep.study"):
    importlib.import_module(name)
Image.preinit()  # its formats are modules of their own
gc.freeze()  # what is there is left alone from here on, so that its memory stays shared
