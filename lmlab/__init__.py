"""A laboratory for small language models. CONTRIBUTING.md says in which order to read it.

For programs and plug-ins it has the names below. Each is imported when it is first used, so
`import lmlab` takes no time.
"""

import importlib
import os
from typing import Any

__version__ = "0.2.0"

# Where numpy isn't loaded yet: its threads and torch's would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

NAMES = {
    "LanguageModel": "lmlab.models.base",
    "ModelConfig": "lmlab.catalogue",
    "CorpusConfig": "lmlab.catalogue",
    "OptimizerConfig": "lmlab.catalogue",
    "Subject": "lmlab.inference.evaluations",
    "Weights": "lmlab.training.optimizers",
    "UserError": "lmlab.errors",
    "load_runs": "lmlab.sweeps.table",
}


def __getattr__(name: str) -> Any:
    """Returns one of the public names. Raises AttributeError."""
    if name == "register":
        return importlib.import_module("lmlab.register")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module 'lmlab' has no attribute {name!r}")
