"""Switches off what Lightning and torch do needlessly at every step.

Together it takes a quarter of a millisecond a step, a third of a small model's step. None of it
changes a number. Of several processes Lightning would in addition tell all of each signal, with every
batch; the Recorder does so with every step.
"""

import logging
import warnings
from contextlib import nullcontext

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.profilers import PassThroughProfiler


class NoProfiler(PassThroughProfiler):
    """Measures nothing. Lightning's own profiler makes thirty generators in each step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext[None]:  # type: ignore[override]  # as good
        return self.nothing


class PlainHookName(LightningModule):
    """Stores the name of the current hook as a plain attribute.

    Lightning sets it thirty times in a step, and torch would check each time if it is a weight.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)  # type: ignore[arg-type]  # torch takes any object


def leave_signals_alone(trainer: Trainer) -> None:
    """Lets a trainer neither take signals over nor tell other processes of them."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # its own
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]  # its own


def spare_memory_filling() -> None:
    """Stops torch from filling new tensors in deterministic mode; all are overwritten."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch sets it by a module class


def mute_lightning() -> None:
    """Mutes Lightning's advice on loaders, loggers and clusters, which it repeats for every run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)
