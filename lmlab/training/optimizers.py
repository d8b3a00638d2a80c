"""From gradients to weights: the optimizers, and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from lmlab.catalogue import AdamWConfig, MuonConfig, SGDConfig
from lmlab.config.keys import RunConfig
from lmlab.training.muon import Muon

OPTIMIZERS = {
    SGDConfig: lambda groups, c, _: torch.optim.SGD(
        groups, lr=c.lr, momentum=c.momentum, fused=True
    ),
    AdamWConfig: lambda groups, c, _: torch.optim.AdamW(
        groups, lr=c.lr, betas=(c.beta1, c.beta2), fused=True
    ),
    MuonConfig: lambda groups, c, p: Muon(
        groups, c.lr, (c.beta1, c.beta2), c.momentum, c.ns_steps, p == "bf16-mixed"
    ),
}


def build_optimizer(
    model: nn.Module, config: Any, precision: str = "32-true"
) -> torch.optim.Optimizer:
    """Weight decay pulls on matrices and embeddings only, not on gains and biases (Brown et al.
    2020). With Muon the matrices between embedding and head are a group of their own.
    """
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if isinstance(config, MuonConfig):
        outer = {
            id(weight)
            for name, part in model.named_modules()
            for weight in part.parameters(recurse=False)
            if isinstance(part, nn.Embedding) or name == "head"
        }
        scale = config.adam_lr / config.lr
        groups = [
            {**group, "params": weights, "hidden": hidden, "lr_scale": 1.0 if hidden else scale}
            for group in groups
            for hidden in (True, False)
            if (
                weights := [
                    w for w in group["params"] if (w.dim() >= 2 and id(w) not in outer) is hidden
                ]
            )
        ]
    return OPTIMIZERS[type(config)](groups, config, precision)


def learning_rate(step: int, lr: float, run: RunConfig) -> float:
    """The rate of update `step`, counted from 0: linear warm-up to `lr`, `hold_steps` of it, then
    constant, or a straight line or half a cosine (Loshchilov and Hutter 2017, one cycle) down to
    `min_lr` at `decay_steps`, where it stays.
    """
    if step < run.warmup_steps:
        return lr * (step + 1) / (run.warmup_steps + 1)
    start = run.warmup_steps + run.hold_steps
    if run.schedule == "constant" or step < start:
        return lr
    if step >= run.decay_steps:
        return run.min_lr
    done = (step - start) / (run.decay_steps - start)
    left = 1 - done if run.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return run.min_lr + (lr - run.min_lr) * left
