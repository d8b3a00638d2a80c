"""Builds what takes part in a run beside the model: the callbacks and loggers that are registered."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from lmlab import plugins
from lmlab.calls import check_call, own_call
from lmlab.catalogue import CALLBACKS, LOGGERS, Choice
from lmlab.errors import UserError, nearest
from lmlab.register import is_own
from lmlab.registry import load
from lmlab.training.step import no_early_end

LIGHTNING = ("pytorch_lightning.", "lightning.")
MEAN = "ema= keeps a mean of the weights, which is evaluated and saved"
LOGGER = ("log_hyperparams", "log_metrics", "save", "finalize")  # what the lab calls of a logger
NEVER_CALLED = ("on_validation_batch_start", "on_validation_batch_end")  # hooks
WITHOUT_EFFECT = {  # the classes of Lightning whose work the lab does itself, and how
    "WeightAveraging": MEAN,
    "StochasticWeightAveraging": MEAN,
    "Checkpoint": "the lab saves last.ckpt and best.ckpt itself, every checkpoint_interval= steps",
    "ProgressBar": "the lab has a bar of its own",
    "LearningRateMonitor": "history.jsonl and TensorBoard have lr at each log_interval=",
    "BatchSizeFinder": "batch_size= is what a run is trained with; a sweep compares several",
    "LearningRateFinder": "lr= is what a run is trained with; hydra/sweeper=search finds one",
    "ThroughputMonitor": "history.jsonl and TensorBoard have tokens_per_second",
    "DeviceStatsMonitor": "the lab's Trainer has no logger of Lightning's",
    "GradientAccumulationScheduler": "grad_accumulation= says how many batches a step has",
    "Timer": 'a run has no epochs; max_minutes= ends it, or interval="step"',
    "ModelPruning": "a run has no epochs, at whose end it prunes",
    "EarlyStopping": "a run has no epochs; patience= ends it, or check_on_train_epoch_end=False",
}


def callbacks(keys: Mapping[str, Any]) -> list[Callback]:
    """Returns the callbacks of a run. `keys` are the values of their keys, by their names."""
    built = []
    for name, row in CALLBACKS.items():
        callback = called(name, row, keys[name])
        if callback is None:
            continue
        if not isinstance(callback, Callback):
            raise UserError(
                f"callback {name}: is {callback!r}; needs a Callback of Lightning's, or None"
            )
        check_effect(name, callback)
        check_hooks(name, callback)
        without_early_end(callback)
        built.append(callback)
    check_state_keys(built)
    return built


def called(name: str, row: Choice, keys: Any) -> Any:
    """Returns what the builder of a callback returns. Raises UserError if it has no such call."""
    about = f"callback {name}"
    form = f"{name}({', '.join('keys' for _ in arguments(row, keys))})"
    builder = load(row.builder)
    if not is_own("callback", name):
        return builder(*arguments(row, keys))
    check_call(about, builder, form)
    with own_call(about, form):
        return builder(*arguments(row, keys))


def never_called(callbacks: list[Callback]) -> str:
    """Returns a warning of methods that look like hooks and are none of Lightning's, or ""."""
    hooks = [name for name in vars(Callback) if name.startswith("on_")]
    warnings = []
    for callback in callbacks:
        for kind in inspect.getmro(type(callback)):
            if kind.__module__.startswith(LIGHTNING):
                continue
            for name, method in vars(kind).items():
                if name.startswith("on_") and inspect.isfunction(method) and name not in hooks:
                    warnings.append(
                        f"callback {type(callback).__name__}: {name} is no hook of Lightning's, which "
                        f"does not call it{nearest(name, hooks)}"
                    )
    return "; ".join(warnings)


def check_hooks(name: str, callback: Callback) -> None:
    """Raises UserError if a hook of a callback cannot be called as Lightning calls it."""
    for hook in own_hooks(callback):
        taken = [*inspect.signature(getattr(Callback, hook)).parameters][1:]
        taken = ["stage=stage" if one == "stage" else one for one in taken]
        check_call(f"callback {name}", getattr(callback, hook), f"{hook}({', '.join(taken)})")


def own_hooks(callback: Callback) -> list[str]:
    """Returns the names of Lightning's hooks that the class of a callback defines anew."""
    return [
        name
        for name, usual in vars(Callback).items()
        if inspect.isfunction(usual) and getattr(type(callback), name, usual) is not usual
    ]


def without_early_end(callback: Callback) -> None:
    """Makes StopIteration in a hook of a callback an error like any other."""
    for name in own_hooks(callback):
        setattr(callback, name, no_early_end()(getattr(callback, name)))


def check_effect(name: str, callback: Any) -> None:
    """Raises UserError if a callback is one of Lightning's that would have no effect in a run."""
    for kind in inspect.getmro(type(callback)):
        if not kind.__module__.startswith(LIGHTNING) or kind.__name__ not in WITHOUT_EFFECT:
            continue
        if kind.__name__ == "EarlyStopping" and callback._check_on_train_epoch_end is False:
            continue
        if kind.__name__ == "Timer" and callback._interval == "step":
            continue
        raise UserError(
            f"callback {name}: {type(callback).__name__} has no effect here: "
            f"{WITHOUT_EFFECT[kind.__name__]}"
        )
    for hook in NEVER_CALLED:
        owner = next(kind for kind in inspect.getmro(type(callback)) if hook in vars(kind))
        if not owner.__module__.startswith(LIGHTNING):
            raise UserError(
                f"callback {name}: {hook} is never called here, since the lab evaluates by itself; "
                "on_validation_end has the numbers in trainer.callback_metrics"
            )


def failed_one(error: BaseException, callbacks: list[Callback]) -> str:
    """Returns the class of the callback of Lightning's in whose code an error arose, or ""."""
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    for callback in callbacks:
        kind = type(callback)
        if kind.__module__.startswith(LIGHTNING) and inspect.getfile(kind) in files:
            return kind.__name__
    return ""


def check_state_keys(callbacks: list[Callback]) -> None:
    """Raises UserError if the states of two callbacks would have one name in a checkpoint."""
    keys = [one.state_key for one in callbacks if type(one).state_dict is not Callback.state_dict]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(
                f"callback {key}: there are two with a state and this name of their class; rename one, "
                "or let its state_key be another"
            )


def arguments(row: Choice, keys: Any) -> tuple[Any, ...]:
    """Returns what a builder takes: the values of its keys, or nothing if it has none."""
    return (keys,) if fields(row.config) else ()


class Hooks:
    """Calls hooks of all callbacks around an evaluation, for which Lightning has no loop here."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.callbacks = callbacks

    def before(self, trainer: Trainer, module: Any) -> None:
        """Says that an evaluation begins."""
        for callback in self.callbacks:
            callback.on_validation_start(trainer, module)
            callback.on_validation_epoch_start(trainer, module)

    def after(self, trainer: Trainer, module: Any, numbers: Mapping[str, float]) -> None:
        """Says that an evaluation has ended, with these numbers."""
        trainer.callback_metrics.update(
            {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}
        )
        for callback in self.callbacks:
            callback.on_validation_epoch_end(trainer, module)
            callback.on_validation_end(trainer, module)

    def broken_off(self, trainer: Trainer, module: Any, error: BaseException) -> None:
        """Says that an evaluation was broken off; the resumed run repeats it."""
        for callback in self.callbacks:
            callback.on_exception(trainer, module, error)


def loggers(
    path: Path, keys: Mapping[str, Any], warn: Callable[[str], object]
) -> list["LoggerBoard"]:
    """Returns the loggers of the run at `path`. One that cannot be made is only a warning."""
    boards = []
    for name, row in LOGGERS.items():
        try:
            with plugins.exits_as_errors():
                logger = load(row.builder)(path, *arguments(row, keys[name]))
            check_logger(logger)
        except Exception as error:
            why = plugins.explained(name, error)
            warn(f"the logger {name} cannot be made, and is left out: {why}")
            continue
        if logger is not None:
            boards.append(LoggerBoard(name, logger, warn))
    return boards


def check_loggers(keys: Mapping[str, Any]) -> None:
    """Raises UserError if the function of a logger cannot be called as the lab does."""
    for name, row in LOGGERS.items():
        taken = ", ".join(["path", *("keys" for _ in arguments(row, keys[name]))])
        check_call(f"logger {name}", load(row.builder), f"{name}({taken})")


def check_logger(logger: Any) -> None:
    """Raises UserError if what a builder returned is neither None nor has what Lightning's loggers have.

    Not its class is asked for, since Lightning has two packages with the same loggers.
    """
    if inspect.isclass(logger):
        raise UserError(
            f"is the class {logger.__name__}; needs one of Lightning's loggers, such as "
            f"{logger.__name__}(path), or None"
        )
    missing = [name for name in LOGGER if not callable(getattr(logger, name, None))]
    if logger is not None and missing:
        raise UserError(
            f"is {logger!r}, without {', '.join(missing)}; needs one of Lightning's loggers, or None"
        )


class LoggerBoard:
    """Gives a Lightning logger what TensorBoard gets. If it fails, the run goes on without it."""

    def __init__(self, name: str, logger: Logger, warn: Callable[[str], object]) -> None:
        self.name = name
        self.logger: Any = logger
        self.warn = warn

    def call(self, method: str, *values: Any) -> None:
        """Calls a method of the logger, unless it has failed before."""
        if self.logger is None:
            return
        try:
            with plugins.exits_as_errors():
                getattr(self.logger, method)(*values)
        except Exception as error:
            self.logger = None
            why = plugins.explained(self.name, error)
            self.warn(f"the logger {self.name} failed and ends here: {why}")

    def show(self, values: Mapping[str, float | str | np.ndarray], step: int) -> None:
        """Passes the numbers among `values`."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if numbers:
            self.call("log_metrics", numbers, step)

    def show_table(self, name: str, values: Mapping[str, Any], step: int) -> None:
        """Passes the configuration at the start of the run; some loggers take it only once."""
        if name == "config" and step == 0:
            self.call("log_hyperparams", dict(values))

    def show_hparams(self, *_: object) -> None:
        """Does nothing: the configuration was passed at the start."""

    def flush(self) -> None:
        """Lets the logger write what it has."""
        self.call("save")

    def close(self) -> None:
        """Ends the logger."""
        self.call("save")
        self.call("finalize", "success")
