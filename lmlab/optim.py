"""From gradients to weights: the optimizers, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from lmlab.config import AdamWConfig, RunConfig, SGDConfig

OPTIMIZERS = {
    SGDConfig: lambda groups, c: torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, fused=True),
    AdamWConfig: lambda groups, c: torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), fused=True),
}

def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """Weight decay pulls on matrices and embeddings only, not on gains and biases (Brown et al. 2020)."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return OPTIMIZERS[type(config)](groups, config)

def learning_rate(step: int, lr: float, run: RunConfig) -> float:
    """The rate of update `step`, counted from 0: linear warm-up to `lr`, then constant, or half a cosine
    down to `min_lr` at `decay_steps`, where it stays (Loshchilov and Hutter 2017, one cycle).
    """
    if step < run.warmup_steps:
        return lr * (step + 1) / (run.warmup_steps + 1)
    if run.schedule == "constant":
        return lr
    if step >= run.decay_steps:
        return run.min_lr
    done = (step - run.warmup_steps) / (run.decay_steps - run.warmup_steps)
    return run.min_lr + (lr - run.min_lr) * (1 + math.cos(math.pi * done)) / 2
