"""Separates a run from the program that starts it: neither changes the other's settings of torch.

The import of a plug-in is separated, too.
"""

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from lmlab.registry import folder_kept, variables_kept

DEVICES = ("cpu", "cuda")  # those for which a program can switch mixed precision on


@contextmanager
def left_as_before() -> Iterator[None]:
    """A context after which what other people's code may have changed is as before.

    These are torch's settings, gradients and device, the random numbers, the working folder and
    the arguments of the process.
    """
    arguments, values = sys.argv, [*sys.argv]
    device = torch.get_default_device()
    with ExitStack() as stack:
        stack.callback(restore_settings, torch_settings())
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.enter_context(random_numbers_kept())
        stack.enter_context(folder_kept())
        try:
            yield
        finally:
            sys.argv = arguments
            sys.argv[:] = values
            if torch.get_default_device() != device:
                torch.set_default_device(None if device.type == "cpu" else device)


@contextmanager
def isolated() -> Iterator[None]:
    """A context, or a decorator, in which torch has its usual settings.

    A program can have changed them: the default type and device, gradients, mixed precision, the
    precision of matrix products. Afterwards these, the threads, the deterministic mode, the random
    numbers, the filters of warnings, the environment's variables and the working folder are as the
    program left them.
    """
    with ExitStack() as stack:
        stack.callback(restore_settings, torch_settings())
        stack.enter_context(random_numbers_kept())
        stack.enter_context(variables_kept())
        stack.enter_context(folder_kept())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # else the context would only cost time
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        if torch.get_float32_matmul_precision() != "highest":
            torch.set_float32_matmul_precision("highest")
        for device in DEVICES:
            torch.set_autocast_enabled(device, False)
        yield


def torch_settings() -> dict[str, Any]:
    """Returns the settings of torch for the whole process that a run changes."""
    settings: Any = torch.utils.deterministic  # torch makes its attributes by a module class
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": settings.fill_uninitialized_memory,
        "benchmark": torch.backends.cudnn.benchmark,
        "dtype": torch.get_default_dtype(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "autocast": {device: torch.is_autocast_enabled(device) for device in DEVICES},
    }


def restore_settings(before: dict[str, Any]) -> None:
    """Restores what `torch_settings` returned."""
    settings: Any = torch.utils.deterministic
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    settings.fill_uninitialized_memory = before["fill"]
    torch.backends.cudnn.benchmark = before["benchmark"]
    torch.set_default_dtype(before["dtype"])
    if torch.get_float32_matmul_precision() != before["matmul_precision"]:
        torch.set_float32_matmul_precision(before["matmul_precision"])
    for device, is_enabled in before["autocast"].items():
        torch.set_autocast_enabled(device, is_enabled)


def random_state(device: str) -> dict[str, Any]:
    """Returns the states of all random generators that a step could use, as plain data."""
    _, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [np.asarray(keys).tolist(), *others],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device == "mps" else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the random states that `random_state` returned."""
    random.setstate(state["python"])
    keys, *others = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *others))
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)
    for mps_state in state["mps"]:
        torch.mps.set_rng_state(mps_state)


def seed_batch(seed: int, t: int, rank: int) -> None:
    """Sets all random generators for batch t, so that they are a function of these three numbers.

    So ranks go on alike after a stop, and none needs the states of the others.
    """
    number = int(np.random.SeedSequence((seed, t, rank)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def used_device() -> str:
    """Returns the device whose random numbers a program can have used, besides the CPU's."""
    if torch.cuda.is_initialized():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """A context after which all random generators are as they were."""
    before = random_state(used_device())
    try:
        yield
    finally:
        set_random_state(before)
