"""The machine a run happens on: which device, how precise, how many threads."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from lmlab.config import Config, UserError


def pick(choice: str) -> torch.device:
    """The device of a choice. Raises UserError where there is none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        choice = next(name for name in there if there[name])
    if choice not in there or not there[choice]:
        usable = ", ".join(["auto", *(name for name in there if there[name])])
        raise UserError(f"device={choice}: there is none on this machine; usable here: {usable}")
    return torch.device(choice)


def precisions(device: torch.device) -> list[str]:
    """What the device can do, the best for speed last."""
    if device.type == "mps":
        return ["32-true"]
    if device.type == "cuda":
        return ["32-true", "bf16-mixed"] if torch.cuda.is_bf16_supported() else ["32-true"]
    return ["bf16-mixed", "32-true"]


def resolve(config: Config) -> Config:
    """`config` with the device, precision and number of threads that it gets on this machine."""
    device = pick(config.choices["device"])
    precision = config.device.precision
    if precision == "auto":
        precision = precisions(device)[-1]
    elif precision not in precisions(device):
        raise UserError(
            f"precision={precision}: {device.type} can't do it here; "
            f"allowed are auto, {', '.join(precisions(device))}"
        )
    threads = config.run.threads or cores()
    return replace(
        config,
        choices=config.choices | {"device": device.type},
        device=replace(config.device, precision=precision),
        run=replace(config.run, threads=threads),
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """What Lightning wraps training steps in, for forward passes outside of them."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
