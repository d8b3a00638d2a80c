"""The training step: predict the next token, measure the loss, nudge the weights. Lightning repeats
it.
"""

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lmlab.config.check import Config
from lmlab.machine import autocast
from lmlab.training.optimizers import build_optimizer, learning_rate


def cross_entropy(model: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
    """Mean over all B x T predictions, nats per token. What torch.compile compiles."""
    return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())


class LanguageModule(LightningModule):
    """Wraps any model from token ids (B, T) to logits (B, T, V) for Lightning's Trainer. Losses add
    up on the device, so that no step waits for a number; `take_loss` reads them.
    """

    automatic_optimization = False  # what Lightning does by itself takes twice as long

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.cross_entropy = cross_entropy
        if config.run.compile:
            # an earlier run of this process would decide what is compiled, and how
            torch.compiler.reset()
            # On CUDA a step's kernels as one launch, in a third of the time; gradients that add up
            # it would write over.
            graphs = config.choices["device"] == "cuda" and config.run.grad_accumulation == 1
            mode = "reduce-overhead" if graphs else "default"
            self.cross_entropy = torch.compile(cross_entropy, dynamic=False, mode=mode)
        self.weights = list(model.parameters())
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.losses = self.batches = 0
        self.grad_norm = torch.zeros(())

    def __setattr__(self, name: str, value: object) -> None:
        """Lightning notes each hook's name here, thirty times a step; torch would ask each time if
        it is a weight.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Gradients of the mean cross-entropy of a batch; after `grad_accumulation` batches the
        weights' update.
        """
        run, optimizer = self.config.run, self.optimizers()
        with autocast(self.device, self.config.device.precision):
            loss = self.cross_entropy(self.model, *batch)
        self.manual_backward(loss / run.grad_accumulation if run.grad_accumulation > 1 else loss)
        self.loss_sum.add_(loss.detach())
        self.losses += 1
        self.batches += 1
        if self.batches % run.grad_accumulation == 0:
            self.grad_norm = nn.utils.clip_grad_norm_(
                self.weights, run.grad_clip or float("inf")
            )  # from before
            lr = learning_rate(self.global_step, self.config.optimizer.lr, run)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def take_loss(self, begin_anew: bool) -> float:
        """Mean loss since it last began anew. Here training waits for the device."""
        mean = (self.loss_sum / self.losses).item()
        if begin_anew:
            self.loss_sum.zero_()
            self.losses = 0
        return mean

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optimizer, self.config.device.precision)
