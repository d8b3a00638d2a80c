"""The machine that a run gets: which device, how precise, how many threads."""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from lmlab.config import Config, UserError

CORES = torch.get_num_threads()  # torch's own count, before anybody sets another

def pick(choice: str) -> torch.device:
    """The device of a choice. Raises UserError where there is none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name in there if there[name]]
    if choice not in ("auto", *usable):
        raise UserError(f"device={choice}: there is none on this machine; usable here are auto, {', '.join(usable)}")
    return torch.device(usable[0] if choice == "auto" else choice)

def precisions(device: torch.device) -> list[str]:
    """What the device can do, the one to take by default first."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return ["bf16-mixed", "32-true"]
    return ["32-true", "bf16-mixed"] if device.type == "cpu" else ["32-true"]

def resolve(config: Config) -> Config:
    """`config` with the device, precision and threads that it gets here. Raises UserError."""
    device, precision, threads = pick(config.choices["device"]), config.device.precision, config.run.threads
    allowed = precisions(device)
    if precision not in ("auto", *allowed):
        raise UserError(f"precision={precision}: {device.type} can't do it; allowed are auto, {', '.join(allowed)}")
    run, precision = replace(config.run, threads=threads or CORES), allowed[0] if precision == "auto" else precision
    choices, own = config.choices | {"device": device.type}, replace(config.device, precision=precision)
    return replace(config, choices=choices, run=run, device=own)

def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """What Lightning wraps training steps in, for forward passes outside of them."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
