"""What the next training step depends on in addition to the weights: random states, the optimizer."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab.errors import UserError
from lmlab.models.base import alike
from lmlab.runs.folder import RunDirectory


def entry(
    identity: dict[str, Any], directory: RunDirectory, device: str, **progress: Any
) -> dict[str, Any]:
    """Returns what a checkpoint holds under the key `lmlab`.

    `identity` says to which run it belongs, `progress` how far that run is. All that was noted so
    far is on disk afterwards.
    """
    return {
        **identity,
        "metrics": directory.metrics,
        "history_bytes": directory.settle(),
        **progress,
        "random_state": random_state(device),
    }


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
    checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """Raises UserError unless the optimizer's state in a checkpoint is one that it could have come
    to by itself. The fused ones trust what they are given, and would read beyond its end.
    """
    try:
        (there,), own = checkpoint["optimizer_states"], optimizer.state_dict()["param_groups"]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        same = [repr(group | {"lr": 0}) for group in there["param_groups"]] == [
            repr(g | {"lr": 0}) for g in own
        ]
        for number, state in there["state"].items():
            for name, value in state.items():
                same &= value is None or alike(
                    value, torch.zeros(()) if name == "step" else weights[number]
                )
    except Exception:  # whatever somebody has put there
        same = False
    if not same:
        raise UserError(f"{path}: its optimizer's state doesn't fit config.yaml")


def random_state(device: str) -> dict[str, Any]:
    """The state of every random generator that a training step could draw on, as plain data."""
    _, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [keys.tolist(), *others],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device == "cuda" else [],
        "mps": [torch.mps.get_rng_state()] if device == "mps" else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    keys, *others = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *others))
    torch.set_rng_state(state["torch"])
    for i, own in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(own, i)
    for own in state["mps"]:
        torch.mps.set_rng_state(own)
