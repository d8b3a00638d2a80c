"""Chooses device, precision, threads and compilation for this machine."""

import os
import sys
import sysconfig
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from lmlab import ranks
from lmlab.catalogue import DeviceConfig
from lmlab.config.check import Config
from lmlab.config.conf_files import read_file
from lmlab.cores import cpu_quota, thread_limit, usable_cores
from lmlab.errors import UserError

Precision = Literal["32-true", "bf16-mixed"]

# torch's own choice, before a run sets another number. It does not see the quota of a container.
CORES = torch.get_num_threads()
if cpu_quota() is not None:
    CORES = min(CORES, usable_cores())
LIMIT = thread_limit()
if LIMIT is not None:  # if torch was imported before the lab, it does not know it
    CORES = min(CORES, LIMIT)

OFF = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")  # variables that switch torch.compile off


def pick(choice: str) -> torch.device:
    """Returns the device with this name, or the fastest one for "auto". Raises UserError."""
    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usable = [name for name, there in is_there.items() if there]
    if choice not in ("auto", *usable):
        raise UserError(
            f"device={choice}: this machine has none; allowed here are auto, {', '.join(usable)}"
        )
    return torch.device(usable[0] if choice == "auto" else choice)


@lru_cache
def has_bf16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 faster than other types."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # newer torch has it
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def precisions(device: torch.device) -> list[Precision]:
    """Returns the precisions that the device supports, the default first."""
    if has_bf16(device):
        return ["bf16-mixed", "32-true"]
    if device.type == "cpu":  # slowly, but it can
        return ["32-true", "bf16-mixed"]
    return ["32-true"]


@lru_cache
def has_compiler(device: torch.device) -> bool:
    """Returns whether torch.compile finds what it needs for the device.

    It needs a C++ compiler and Python's headers, and on a GPU also Triton, which needs compute
    capability 7.0.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return False
    if device.type != "cuda":
        return True
    return find_spec("triton") is not None and torch.cuda.get_device_capability() >= (7, 0)


def resolve(config: Config) -> Config:
    """Returns `config` with the device, precision, threads and compilation for this machine.

    Raises UserError for a device or a precision that this machine lacks, or more threads than it may
    have.
    """
    device = pick(config.base("device"))
    usual = read_file("device", device.type)  # for what device=auto leaves open
    precision = config.device.precision
    if precision == "auto":
        precision = usual["precision"]
    compiles = config.run.compile
    if compiles is None:
        compiles = usual["compile"]
    processes = devices_of(config)
    threads = config.run.threads or usual["threads"] or max(1, CORES // processes.per_node)
    if LIMIT is not None and threads > LIMIT:
        raise UserError(
            f"threads={threads}: the variable OMP_THREAD_LIMIT={LIMIT} allows this process no more"
        )
    return replace(
        config,
        choices=config.choices | {"device": device.type},
        device=replace(processes, precision=pick_precision(device, precision)),
        run=replace(config.run, threads=threads, compile=pick_compile(device, compiles)),
    )


def devices_of(config: Config) -> DeviceConfig:
    """Returns the keys of the device with the number of processes that train a run.

    Raises UserError for more than this machine has, for another number than were started, or if they
    cannot share a batch equally.
    """
    keys = pick_devices(pick(config.base("device")), config.device)
    check_share(config, keys.processes)
    return keys


def pick_devices(device: torch.device, keys: DeviceConfig) -> DeviceConfig:
    """Returns the keys of the device with a number in the place of devices=auto and null."""
    own = ranks.place()
    started = own.size if own and own.starter == "torchrun" else None
    number = keys.devices
    if number == "auto":
        number = torch.cuda.device_count() if device.type == "cuda" else 1
    if number is None:
        number = 1 if started is None else started // keys.nodes
    keys = replace(keys, devices=number)
    n = keys.processes
    typed = f"devices={number}" if keys.nodes == 1 else f"devices={number} nodes={keys.nodes}"
    if device.type == "mps" and n > 1:
        raise UserError(f"{typed}: device=mps has one; allowed is 1")
    if device.type == "cuda" and keys.per_node > torch.cuda.device_count():
        raise UserError(
            f"{typed}: this machine has {torch.cuda.device_count()} GPUs; allowed are as many"
        )
    if own and (started or n > 1) and own.size != n:
        raise UserError(
            f"{typed}: needs {n} processes, and {own.starter} has started {own.size}; both must be equal"
        )
    if own is None and keys.nodes > 1:
        raise UserError(
            f"{typed}: several machines need torchrun on each of them, or hydra/launcher=slurm "
            "(docs/scale.md)"
        )
    return keys


def check_share(config: Config, n: int) -> None:
    """Raises UserError if a batch cannot be divided equally among `n` processes."""
    rows = config.run.batch_size
    if rows % n == 0:
        return
    fitting = [size for size in (rows - rows % n, rows - rows % n + n) if size > 0]
    fewer = max(size for size in range(1, n) if rows % size == 0)
    more = [size for size in range(n, rows + 1) if rows % size == 0][:1]
    raise UserError(
        f"batch_size={rows} devices={n}: each process takes as many rows of a batch; the nearest "
        f"that fit are batch_size={' or '.join(map(str, fitting))}, and "
        f"devices={' or '.join(map(str, [fewer, *more]))}"
    )


def pick_precision(device: torch.device, choice: str) -> Precision:
    """Returns the chosen precision, or the device's default for "auto". Raises UserError."""
    allowed = precisions(device)
    for precision in allowed:
        if choice in ("auto", precision):
            return precision
    raise UserError(
        f"precision={choice}: not possible on {device.type}; allowed are auto, {', '.join(allowed)}"
    )


def pick_compile(device: torch.device, choice: bool) -> bool:
    """Returns `choice`, or False with a warning if there is no compiler, or torch may not use it."""
    for name in OFF:
        if choice and os.environ.get(name) == "1":
            print(
                f"warning: compile=true: has no effect, since {name}=1 is set, with which torch compiles "
                "nothing",
                file=sys.stderr,
            )
            return False
    if choice and not has_compiler(device):
        print(
            "warning: compile=true: needs a C++ compiler, Python's headers and, for CUDA, Triton; "
            "without them the model is not compiled, which is slower",
            file=sys.stderr,
        )
        return False
    return choice


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Returns the context for every forward pass, in training and in evaluation."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed")


def memory() -> int:
    """Returns the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
