"""Separates a run from the program that starts it: neither changes the other's settings of torch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lmlab.machine import random_numbers_kept
from lmlab.registry import restore_variables

DEVICES = ("cpu", "cuda")  # those for which a program can switch mixed precision on


@contextmanager
def isolated() -> Iterator[None]:
    """A context, or a decorator, in which torch has its usual settings.

    A program can have changed them: the default type and device, gradients, mixed precision, the
    precision of matrix products. Afterwards these, the threads, the deterministic mode, the random
    numbers, the filters of warnings and the environment's variables are as the program left them.
    """
    with ExitStack() as stack:
        stack.callback(restore_settings, torch_settings())
        stack.enter_context(random_numbers_kept())
        stack.callback(restore_variables, dict(os.environ))
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
