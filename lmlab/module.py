"""The training step: predict the next token, measure the loss, nudge the weights. Lightning repeats it."""

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.optim import build_optimizer, learning_rate

class LanguageModule(LightningModule):
    """Wraps any model from token ids (B, T) to logits (B, T, V) for Lightning's Trainer. Losses add up on the device,
    so that no step waits for a number; `take_loss` reads them.
    """
    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.losses = 0
        self.grad_norm = torch.zeros(())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch, nats per token."""
        idx, targets = batch
        loss = F.cross_entropy(self.model(idx).flatten(0, 1), targets.flatten())
        self.loss_sum += loss.detach()
        self.losses += 1
        return loss

    def take_loss(self, begin_anew: bool) -> float:
        """Mean loss since it last began anew. The one place where training waits for the device."""
        mean = (self.loss_sum / self.losses).item()
        if begin_anew:
            self.loss_sum.zero_()
            self.losses = 0
        return mean

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optimizer)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **_: object) -> None:
        """Clips, and keeps the gradient's length from before."""
        self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.run.grad_clip or float("inf"))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer, closure: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.global_step, self.config.optimizer.lr, self.config.run)
        optimizer.step(closure=closure)
