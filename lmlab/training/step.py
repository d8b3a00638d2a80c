"""The training loop: one step, and what Lightning runs around it.

A step predicts the next token, measures the loss and improves the weights. The loop amounts to:

    recorder.on_train_start()               # evaluates the untrained model, or restores the sums
    for batch in batches.stream(first):     # data/batches.py: idx and targets, (B, T) each
        module.training_step(batch)         # below: loss, gradients, now and then a gradient step
        recorder.on_train_batch_end()       # training/recorder.py: points, evaluations, checkpoints
        if recorder asked to stop or max_steps are made:
            break
    recorder.on_train_end()

Lightning also moves the model to the device, writes and reads checkpoints, and takes Ctrl-C.
"""

import math
import reprlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.config.keys import RunConfig
from lmlab.data.batches import IGNORED
from lmlab.errors import UserError, reason_of
from lmlab.isolation import seed_batch
from lmlab.machine import autocast
from lmlab.models.base import LanguageModel
from lmlab.numbers import NUMBERS
from lmlab.ranks import ALONE, Ranks
from lmlab.training.optimizers import build_optimizer, learning_rate, set_learning_rate
from lmlab.training.overhead import PlainHookName

ENDED = "StopIteration was raised, which Python keeps for iterators"


def cross_entropy(model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean loss over all B x T predictions, in nats. torch.compile compiles it."""
    return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())


def masked_cross_entropy(model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean loss over the targets that are not IGNORED, or 0 if all are."""
    logits = model(idx).flatten(0, 1)
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / n_scored(targets).clamp(min=1)


def n_scored(targets: Tensor) -> Tensor:
    """Returns how many targets are not IGNORED."""
    return (targets != IGNORED).sum()


def compiled(
    loss: Callable[..., Tensor], device: str, is_whole_step: bool
) -> Callable[..., Tensor]:
    """Returns the function `loss` compiled for a device.

    On CUDA a step runs as one CUDA graph, in a third of the time. This is not possible unless it
    `is_whole_step`: the graph would overwrite the gradients of the batch before, or those that other
    ranks still read.
    """
    torch.compiler.reset()  # an earlier run of this process would decide what is compiled, and how
    graphs = device == "cuda" and is_whole_step
    mode = "reduce-overhead" if graphs else "default"
    return torch.compile(loss, dynamic=False, mode=mode)


@contextmanager
def compile_errors() -> Iterator[None]:
    """A context in which an error of torch.compile, such as of a full disk, becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        dynamo: Any = sys.modules.get("torch._dynamo.exc")  # to import it would take a second
        if dynamo is None or not isinstance(error, dynamo.TorchDynamoException):
            raise
        why = reason_of(getattr(error, "inner_exception", error))
        raise UserError(
            f"compile=true: torch cannot compile the step ({why}); it needs room in {tempfile.gettempdir()}, "
            "or in the folder that TORCHINDUCTOR_CACHE_DIR names; compile=false does without"
        ) from error


@contextmanager
def no_early_end() -> Iterator[None]:
    """A context in which StopIteration is an error; Lightning would take it for the text's end."""
    try:
        yield
    except StopIteration as error:
        # Not "from error": contextlib would raise that again, as if this generator had ended.
        raise RuntimeError(ENDED).with_traceback(error.__traceback__) from None


def is_one_number(value: object) -> bool:
    """Returns whether a value is a real number, also one of numpy's or a tensor of one element."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        float(value)  # type: ignore[arg-type]  # it says whether it can
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, str | bytes)


class LanguageModule(PlainHookName):
    """Wraps a model from token ids (B, T) to logits (B, T, V) for Lightning's Trainer.

    The losses are added on the device, so that no step waits for its loss to be copied to the CPU;
    `take_loss` reads the sum. `optimizer` holds the optimizer's keys. Of several `ranks` each takes
    its rows of a batch, and their gradients are averaged before a gradient step; `first` is the
    number of the first batch.
    """

    # By hand it takes half as long. The price: Lightning's own clipping, accumulation, schedulers
    # and weight averaging have no effect.
    automatic_optimization = False

    loss_sum: Tensor
    # Each rank adds up its own.
    _ddp_params_and_buffers_to_ignore = ("loss_sum",)

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Any,
        run: RunConfig,
        precision: str,
        device: str,
        ranks: Ranks = ALONE,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_config = optimizer
        self.run = run
        self.precision = precision
        self.cross_entropy = masked_cross_entropy if run.score_after else cross_entropy
        if run.compile:
            is_whole_step = ranks.size == 1 and run.grad_accumulation == 1
            self.cross_entropy = compiled(self.cross_entropy, device, is_whole_step)
        self.weights = list(model.parameters())
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.losses = 0  # that `loss_sum` adds up
        self.ranks = ranks
        self.batches = first
        self.grad_norm = torch.zeros(())
        self.rate: float | None = None  # that of the last step, in the first group
        self.rate_was_changed = False  # between two steps; the next one has set its own
        self.rate_in_step: float | None = None  # that the optimizer itself has set, after schedule=
        self.logged: dict[str, Any] = {}  # numbers of callbacks at this step
        self.end_reason = "a callback ended the run"  # which can say more, if it does so

    @no_early_end()
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch's gradients. After `grad_accumulation` batches it makes a gradient step."""
        with compile_errors() if self.run.compile else nullcontext():
            self.add_batch(batch)

    def add_batch(self, batch: tuple[Tensor, Tensor]) -> None:
        """Adds a batch's gradients, and makes a gradient step if it is the last of one."""
        if self.ranks.size > 1:
            seed_batch(self.run.seed, self.batches, self.ranks.rank)
        with autocast(self.device, self.precision):
            loss = self.cross_entropy(self.model, *batch)
        if not loss.requires_grad:
            raise UserError(
                "no weight is left to train: requires_grad is false for all of them, which the model "
                "or a callback has set"
            )
        has_targets = True
        if self.run.score_after:
            loss, has_targets = self.weighted(loss, batch[1])
        self.batches += 1
        is_last = self.batches % self.run.grad_accumulation == 0
        self.add_gradients(loss, is_last)
        if has_targets:
            self.loss_sum.add_(loss.detach())
            self.losses += 1
        if is_last:
            self.gradient_step()

    def weighted(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, bool]:
        """Returns the loss of this rank's rows, of whose `targets` some do not count.

        It is weighted so that the mean over all ranks is the mean over all targets that count. Also
        returns whether there are any.
        """
        counted = n_scored(targets)
        if self.ranks.size == 1:
            return loss, bool(counted > 0)
        of_all = counted.clone()
        self.ranks.add_up(of_all)
        share = counted * self.ranks.size / of_all.clamp(min=1)
        return loss * share, bool(of_all > 0)

    def add_gradients(self, loss: Tensor, is_last: bool) -> None:
        """Adds the gradients of a batch. With the last one of a step, ranks take their mean."""
        accumulation = self.run.grad_accumulation
        if accumulation > 1:
            loss = loss / accumulation
        alone: AbstractContextManager[Any] = nullcontext()
        if self.ranks.size > 1 and not is_last:
            wrapped: Any = self.trainer.strategy.model  # DDP's
            alone = wrapped.no_sync()
        with alone:
            self.manual_backward(loss)

    def gradient_step(self) -> None:
        """Clips the gradients, sets the learning rate, and changes the weights."""
        optimizer: Any = self.optimizers()  # the only one
        largest = self.run.grad_clip or float("inf")
        self.grad_norm = nn.utils.clip_grad_norm_(self.weights, largest)  # that before clipping
        first = optimizer.param_groups[0]
        if self.rate is not None and first["lr"] != self.rate:
            self.rate_was_changed = True
        lr = learning_rate(self.global_step, self.optimizer_config.lr, self.run)
        set_learning_rate(optimizer, lr)
        scheduled = first["lr"]  # which a group can have scaled
        optimizer.step()
        self.rate = first["lr"]
        if self.rate != scheduled:
            self.rate_in_step = self.rate
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning has it
            callback.on_before_zero_grad(self.trainer, self, optimizer)
        optimizer.zero_grad()

    def log(self, name: str, value: Any) -> None:  # type: ignore[override]  # no more is needed
        """Notes a number of this step, for history.jsonl, TensorBoard and loggers.

        Callbacks call it. Raises ValueError for what is no name or no single number, and for the
        name of one of the lab's own numbers.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ValueError(
                f"{name!r}: the name of a number must be a text of one line, not empty"
            )
        if not is_one_number(value):
            raise ValueError(f"{name}: must be one number, and is {reprlib.repr(value)}")
        if name in NUMBERS or name in ("step", "lr", "grad_norm", "steps", "sample"):
            raise ValueError(f"{name}: is a number of the lab; a callback needs another name")
        self.logged[name] = value.detach() if isinstance(value, Tensor) else value

    def log_dict(self, values: Mapping[str, Any]) -> None:  # type: ignore[override]  # no more is needed
        """Notes several numbers of this step, as `log` does."""
        for name, value in values.items():
            self.log(name, value)

    def take_loss(self, restart: bool) -> float:
        """Returns the mean loss since the last call with `restart`. It waits for the device.

        It is nan if no token of these batches was scored. All ranks get the same mean.
        """
        mean = float(self.loss_sum / self.losses) if self.losses else math.nan
        mean = sum(self.ranks.gather(mean)) / self.ranks.size
        if restart:
            self.loss_sum.zero_()
            self.losses = 0
        return mean

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_config, self.precision)
