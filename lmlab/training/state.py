"""The state of training in addition to the weights: sums, random states, the optimizer."""

import math
from pathlib import Path
from typing import Any

import torch

from lmlab.errors import UserError
from lmlab.isolation import random_state
from lmlab.models.base import alike
from lmlab.runs.folder import AnyDirectory

# how far a run is before its first checkpoint
UNTRAINED: dict[str, Any] = {
    "step": 0,
    "best": math.inf,
    "train_seconds": 0.0,
    "train_loss": math.nan,
    "history_bytes": 0,
    "events": {},  # all that TensorBoard has is from before the first checkpoint
}


def entry(
    identity: dict[str, Any], directory: AnyDirectory, device: str, **progress: Any
) -> dict[str, Any]:
    """Returns the entry `lmlab` of a checkpoint.

    `identity` tells which run the checkpoint belongs to; `progress` holds the step and the sums, and
    `waiting` if a signal ended the evaluation of this step: the ratios that only the step itself
    could measure.
    After the call all lines of history.jsonl are on disk.
    """
    return {
        **identity,
        "metrics": directory.metrics,
        **directory.settle(),
        **progress,
        "random_state": random_state(device),
    }


def first_new_step(saved: dict[str, Any] | None) -> int:
    """Returns the first step that is not yet written: the one after the checkpoint, or 0."""
    return 0 if saved is None else saved["step"] + 1


def move_step_count(checkpoint: dict[str, Any]) -> None:
    """Moves the number of steps to where Lightning now counts them.

    Version 0.1 of the lab let Lightning make the steps by itself (automatic optimization).
    """
    loop = checkpoint["loops"]["fit_loop"]
    automatic = loop["epoch_loop.automatic_optimization.optim_progress"]
    total = automatic["optimizer"]["step"]["total"]
    if total["completed"]:
        loop["epoch_loop.manual_optimization.optim_step_progress"] = {
            "total": total,
            "current": dict(total),
        }


def check_optimizer(
    checkpoint: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    examples: list[dict[str, Any]],
    path: Path,
    is_own: bool = False,
    may_be_set: bool = False,
) -> None:
    """Raises UserError if the optimizer's state in the checkpoint at `path` does not fit it."""
    found = misfit(checkpoint, optimizer, examples, is_own, may_be_set)
    if found:
        raise UserError(f"{path}: the optimizer's state does not fit config.yaml: {found}")


def misfit(
    checkpoint: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    examples: list[dict[str, Any]],
    is_own: bool,
    may_be_set: bool,
) -> str:
    """Returns which part of the optimizer's state in a checkpoint does not fit, or "".

    `examples` holds, for each weight, a state that the optimizer itself has made. The check is
    needed, since fused optimizers would read beyond the end of a tensor of the wrong size. If
    `may_be_set`, somebody's own code, numbers in its groups may change. If `is_own`, somebody's own
    optimizer, its state may come later than at the first step.
    """
    try:
        (saved,) = checkpoint["optimizer_states"]
        groups = optimizer.state_dict()["param_groups"]
        if len(groups) != len(saved["param_groups"]):
            return "its groups"
        for group, wanted in zip(saved["param_groups"], groups, strict=True):
            if settings_of(group, may_be_set) != settings_of(wanted, may_be_set):
                return "the settings of a group"
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, values in saved["state"].items():
            if is_own and isinstance(number, str):
                if not is_restored(values):
                    return number
                continue
            for name, value in values.items():
                example = examples[number].get(name)
                known = value is None or fits_example(value, example)
                is_free = is_own and not isinstance(example, torch.Tensor)
                if not known and not (is_free and is_restored(value)):
                    return str(name)
                if is_own and name != "step" and not keeps_type(value, weights[number]):
                    return f"{name}, whose numbers have another type than the weight's,"
    except Exception:  # the file may hold anything
        return "its form"
    return ""


def settings_of(group: dict[str, Any], may_be_set: bool) -> str:
    """Returns the settings of a group as text, without the learning rate, which each step sets.

    If somebody's own optimizer or callback may set them, the names of those that are numbers alone.
    """
    if not may_be_set:
        return repr(group | {"lr": 0})
    numbers = {name: 0 for name, value in group.items() if isinstance(value, int | float)}
    tensors = {name: 0 for name, value in group.items() if isinstance(value, torch.Tensor)}
    return repr(group | {"lr": 0} | numbers | tensors)


def fits_example(value: Any, example: Any) -> bool:
    """Returns whether `value` is like `example`: a tensor of its shape, or a number of its type."""
    if isinstance(example, torch.Tensor):
        return alike(value, example)
    return type(value) is type(example) and isinstance(example, int | float)


def is_restored(value: Any) -> bool:
    """Returns whether torch gives a value of an optimizer's state back as it was.

    It takes texts apart, so they are not.
    """
    if isinstance(value, dict):
        return all(is_restored(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(is_restored(one) for one in value)
    if isinstance(value, torch.Tensor):
        return alike(value, value)
    return value is None or isinstance(value, bool | int | float)


def keeps_type(value: Any, weight: torch.Tensor) -> bool:
    """Returns whether torch leaves the numbers of a state as they are; it makes them the weight's."""
    if isinstance(value, list | tuple):
        return all(keeps_type(one, weight) for one in value)
    return not isinstance(value, torch.Tensor) or value.dtype == weight.dtype
