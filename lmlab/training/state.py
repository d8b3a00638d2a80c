"""The state of training in addition to the weights: sums, random states, the optimizer."""

import math
from pathlib import Path
from typing import Any

import torch

from lmlab.errors import UserError
from lmlab.isolation import random_state
from lmlab.models.base import alike
from lmlab.runs.folder import RunDirectory

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
    identity: dict[str, Any], directory: RunDirectory, device: str, **progress: Any
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
) -> None:
    """Raises UserError if the optimizer's state in a checkpoint does not fit the optimizer.

    `examples` holds, for each weight, a state that the optimizer itself has made. The check is
    needed, since fused optimizers would read beyond the end of a tensor of the wrong size.
    """
    try:
        (saved,) = checkpoint["optimizer_states"]
        wanted_groups = [without_lr(group) for group in optimizer.state_dict()["param_groups"]]
        fits = [without_lr(group) for group in saved["param_groups"]] == wanted_groups
        for number, values in saved["state"].items():
            for name, value in values.items():
                fits &= value is None or fits_example(value, examples[number][name])
    except Exception:  # the file may hold anything
        fits = False
    if not fits:
        raise UserError(f"{path}: the optimizer's state does not fit config.yaml")


def without_lr(group: dict[str, Any]) -> str:
    """Returns the settings of a group as text, without the learning rate, which each step sets."""
    return repr(group | {"lr": 0})


def fits_example(value: Any, example: Any) -> bool:
    """Returns whether `value` is like `example`: a tensor of its shape, or a number of its type."""
    if isinstance(example, torch.Tensor):
        return alike(value, example)
    return type(value) is type(example) and isinstance(example, int | float)
