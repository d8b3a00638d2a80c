"""Four things that Lightning and torch do at every step for nothing, switched off for speed.

Together they take a quarter of a millisecond a step, a third of a small model's step. None of them
changes a number.
"""

import logging
import warnings
from contextlib import nullcontext

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.profilers import PassThroughProfiler


class NoProfiler(PassThroughProfiler):
    """Times nothing. Lightning's own makes a generator for each of the thirty hooks of a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]  # as good
        return self.nothing


class PlainHookName(LightningModule):
    """Notes the name of a hook, which Lightning does thirty times a step, as a plain attribute.

    torch would otherwise ask each time whether the name is a weight.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)  # type: ignore[arg-type]  # torch takes any object


def spare_memory_filling() -> None:
    """Stops deterministic algorithms from filling each new tensor: all of them are written to."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it by a module class


def mute_lightning() -> None:
    """Mutes advice on loaders, loggers and clusters, which is looked for again and again."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)
