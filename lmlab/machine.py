"""The machine that a run gets: which device, how precise, how many threads."""

import sys
import sysconfig
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

from lmlab.config.check import Config
from lmlab.errors import UserError

CORES = torch.get_num_threads()  # torch's own count, before anybody sets another


def pick(choice: str) -> torch.device:
    """The device of a choice. Raises UserError where there is none such."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usable = [name for name in there if there[name]]
    if choice not in ("auto", *usable):
        raise UserError(
            f"device={choice}: there is none on this machine; usable here are auto, {', '.join(usable)}"
        )
    return torch.device(usable[0] if choice == "auto" else choice)


@lru_cache
def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is what the device multiplies fastest."""
    if (
        device.type == "cpu"
    ):  # asked in newer versions of torch only; elsewhere it is taken not to have it
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precisions(device: torch.device) -> list[str]:
    """What the device can do, the one to take by default first."""
    allowed = ["bf16-mixed", "32-true"] if has_bf16(device) or device.type == "cpu" else ["32-true"]
    return allowed if has_bf16(device) else allowed[::-1]


@lru_cache
def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs for the device: a C++ compiler and Python's
    headers, and for a GPU Triton, which needs one of compute capability 7.0 or more.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    triton = device.type != "cuda" or (
        find_spec("triton") and torch.cuda.get_device_capability() >= (7, 0)
    )
    return headers and bool(triton)


def resolve(config: Config) -> Config:
    """`config` with the device, precision and threads that it gets here. Raises UserError."""
    device, precision, threads = (
        pick(config.choices["device"]),
        config.device.precision,
        config.run.threads,
    )
    allowed = precisions(device)
    if precision not in ("auto", *allowed):
        raise UserError(
            f"precision={precision}: {device.type} can't do it; allowed are auto, {', '.join(allowed)}"
        )
    compiled = config.run.compile if config.run.compile is not None else device.type == "cuda"
    if compiled and not has_compiler(device):
        print(
            "warning: compile=true: needs a C++ compiler, Python's headers and, for CUDA, Triton; without them the "
            "model is not compiled, which is slower",
            file=sys.stderr,
        )
        compiled = False
    run = replace(config.run, threads=threads or CORES, compile=compiled)
    precision = allowed[0] if precision == "auto" else precision
    choices, own = (
        config.choices | {"device": device.type},
        replace(config.device, precision=precision),
    )
    return replace(config, choices=choices, run=run, device=own)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """What forward passes are wrapped in, in training and outside of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")
