"""A laboratory for small language models. CONTRIBUTING.md says in which order to read it.

For programs, notebooks and plug-ins it has the names below. Each is imported when it is first
used, so `import lmlab` takes no time.
"""

import lmlab.snapshot  # noqa: F401, I001  # before any other file of the lab is imported

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

from lmlab.cores import heed_thread_limit

if TYPE_CHECKING:  # for editors, which complete these names
    from lmlab import register as register
    from lmlab.api import Comparison as Comparison
    from lmlab.api import Run as Run
    from lmlab.api import compare as compare
    from lmlab.api import load_run as load_run
    from lmlab.api import load_runs as load_runs
    from lmlab.api import sweep as sweep
    from lmlab.api import train as train
    from lmlab.catalogue import CorpusConfig as CorpusConfig
    from lmlab.catalogue import ModelConfig as ModelConfig
    from lmlab.catalogue import OptimizerConfig as OptimizerConfig
    from lmlab.catalogue import TokenizerConfig as TokenizerConfig
    from lmlab.data.tokenizers import Tokenizer as Tokenizer
    from lmlab.errors import UserError as UserError
    from lmlab.inference.evaluations import Subject as Subject
    from lmlab.models.base import LanguageModel as LanguageModel
    from lmlab.models.page import PageModel as PageModel
    from lmlab.training.optimizers import Weights as Weights

__version__ = "0.2.0"

# Where numpy isn't loaded yet: its threads and torch's would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Threads that wait spin for a tenth of a millisecond, then they sleep. If they always slept, an idle
# machine would be half as fast; if they never did, one with other work several times slower.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

heed_thread_limit()

NAMES = {
    "train": "lmlab.api",
    "sweep": "lmlab.api",
    "compare": "lmlab.api",
    "load_run": "lmlab.api",
    "load_runs": "lmlab.api",
    "Run": "lmlab.api",
    "Comparison": "lmlab.api",
    "LanguageModel": "lmlab.models.base",
    "PageModel": "lmlab.models.page",
    "ModelConfig": "lmlab.catalogue",
    "CorpusConfig": "lmlab.catalogue",
    "OptimizerConfig": "lmlab.catalogue",
    "Tokenizer": "lmlab.data.tokenizers",
    "TokenizerConfig": "lmlab.catalogue",
    "Subject": "lmlab.inference.evaluations",
    "Weights": "lmlab.training.optimizers",
    "UserError": "lmlab.errors",
}


def __getattr__(name: str) -> Any:
    """Returns one of the public names. Raises AttributeError."""
    if name == "register":
        return imported("lmlab.register")
    if name in NAMES:
        return getattr(imported(NAMES[name]), name)
    raise AttributeError(f"module 'lmlab' has no attribute {name!r}")


def imported(module: str) -> Any:
    """Returns a module. Libraries add filters of warnings and draw random numbers when imported."""
    import random

    from lmlab.signals import unbroken

    state = random.getstate()
    try:
        with unbroken(), warnings.catch_warnings():
            return importlib.import_module(module)
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    """Returns the public names, for an editor that completes them."""
    return sorted([*NAMES, "register", "__version__"])
