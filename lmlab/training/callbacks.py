"""The lab's own callbacks, each written as a plug-in would write it: patience, spikes, averages.

A callback is one of Lightning's. A function registers it: from the values of its keys it makes the
callback, or None for a run in which it takes no part. The lab calls Lightning's hooks of training
and of saving, and around each evaluation `on_validation_start` and `on_validation_end`; between
them `trainer.callback_metrics` gets the numbers of the evaluation. `module.log(name, number)`
writes a number at this step. What `state_dict` returns is part of each checkpoint.
"""

from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from lmlab.catalogue import AverageConfig, GradientsConfig, PatienceConfig, SpikesConfig


def patience(config: PatienceConfig) -> Callback | None:
    """Returns the callback that ends a run whose val/loss no longer falls."""
    return None if config.patience is None else Patience(config.patience)


class Patience(Callback):
    """Ends the run after so many evaluations in a row without a lower val/loss than before."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = float("inf")
        self.waited = 0

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if loss is None:
            return
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(self.best, float(loss))
        if self.waited >= self.patience:
            module.end_reason = f"patience={self.patience}: no lower val/loss since"
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.waited = state["waited"]


def skip_spikes(config: SpikesConfig) -> Callback | None:
    """Returns the callback that leaves out steps with a far too large gradient."""
    return None if config.skip_spikes is None else SkipSpikes(config.skip_spikes)


class SkipSpikes(Callback):
    """Leaves out a step whose gradient is so many times larger than usual.

    What is usual is the running mean of the gradients' norms, after twenty steps. After ten steps
    that were left out in a row, larger gradients are the usual ones, and the mean begins anew.
    """

    DECAY = 0.95  # of the running mean
    LONGEST = 10  # steps in a row

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.seen = 0
        self.mean = 0.0
        self.skipped = 0
        self.in_a_row = 0

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        norm = float(module.grad_norm)  # before clipping
        if self.in_a_row == self.LONGEST:
            self.seen = 0
        if self.seen >= SpikesConfig.begin and not norm <= self.factor * self.mean:
            self.skipped += 1
            self.in_a_row += 1
            for weight in module.parameters():
                weight.grad = None  # an optimizer leaves weights without gradient alone
        else:
            self.seen += 1
            self.in_a_row = 0
            decay = min(self.DECAY, 1 - 1 / self.seen)
            self.mean = decay * self.mean + (1 - decay) * norm
        if (trainer.global_step + 1) % module.run.log_interval == 0:
            module.log("skipped_steps", self.skipped)

    def lmlab_totals(self) -> dict[str, float]:
        """Returns how many steps were left out, for metrics.json. The Recorder asks the lab's own."""
        return {"skipped_steps": self.skipped}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seen", "mean", "skipped", "in_a_row")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def average(config: AverageConfig) -> Callback | None:
    """Returns the callback that averages the weights over the steps."""
    return None if config.ema is None else Average(config.ema)


class Average(Callback):
    """Keeps a running mean of the weights, which is what is evaluated, saved and sampled from.

    A checkpoint holds the mean as the model's weights, and in this callback's state the weights
    that training goes on with.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean: list[Tensor] = []
        self.trained: list[Tensor] = []  # the weights in training, where a checkpoint was read
        self.step = 0
        self.is_swapped = False

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.parameters = list(module.parameters())
        self.mean = [weight.clone() for weight in self.weights()]
        for weight, trained in zip(self.weights(), self.trained, strict=False):
            weight.copy_(trained)

    def weights(self) -> list[Tensor]:
        """Returns the weights as they are now; an optimizer may put other tensors in their place."""
        return [weight.data for weight in self.parameters]

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == self.step:
            return  # one of several batches of a step
        self.step = trainer.global_step
        decay = min(self.decay, AverageConfig.most_kept(self.step))
        torch._foreach_lerp_(self.mean, self.weights(), 1 - decay)

    def swap(self) -> None:
        """Exchanges the weights of the model with their mean."""
        for weight, mean in zip(self.weights(), self.mean, strict=True):
            before = weight.clone()
            weight.copy_(mean)
            mean.copy_(before)
        self.is_swapped = not self.is_swapped

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self.swap()

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.swap()

    def on_exception(self, trainer: Trainer, module: Any, error: BaseException) -> None:
        if self.is_swapped:
            self.swap()

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.swap()  # for the sample at the end

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        means = {
            weight.data_ptr(): mean for weight, mean in zip(self.weights(), self.mean, strict=True)
        }
        saved = checkpoint["state_dict"]  # one weight may have several names in it
        for name, tensor in saved.items():
            saved[name] = means.get(tensor.data_ptr(), tensor)

    def state_dict(self) -> dict[str, Any]:
        return {"trained": [weight.clone() for weight in self.weights()], "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trained = state["trained"]
        self.step = state["step"]


def gradients(config: GradientsConfig) -> Callback | None:
    """Returns the callback that notes the gradient of each matrix."""
    return Gradients() if config.gradient_norms else None


class Gradients(Callback):
    """Notes the norm of each matrix's gradient, after clipping, every `log_interval` steps."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        if (trainer.global_step + 1) % module.run.log_interval:
            return
        for name, weight in module.model.named_parameters():
            if weight.dim() >= 2 and weight.grad is not None:
                module.log(f"gradient/{name}", weight.grad.norm())
