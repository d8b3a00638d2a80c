"""What the server imports before it forks: all that a cell needs, so that no cell imports anything."""

import gc
import importlib

for name in ("lmlab.experiment", "lmlab.sweep.plan", "lmlab.sweep.search"):
    importlib.import_module(name)
gc.freeze()  # what is there already is left alone, so that its memory stays shared
