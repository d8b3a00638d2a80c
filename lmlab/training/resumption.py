"""Resumes a run: checks its state, restores it, and writes down changed versions."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmlab import plugins
from lmlab.config.check import Config, spelled
from lmlab.config.keys import RunConfig, marked
from lmlab.errors import UserError, reason_of
from lmlab.isolation import random_numbers_kept
from lmlab.markers import LAST_BITS
from lmlab.models.base import LanguageModel, alike, build_model
from lmlab.runs.checkpoints import weights_of
from lmlab.runs.code import codes_in, last_provenance, short
from lmlab.runs.folder import RunDirectory, read_config
from lmlab.runs.provenance import differences
from lmlab.training import state
from lmlab.training.optimizers import build_optimizer, example_states
from lmlab.training.preparation import Prepared

CODES = ("code_sha256", "plugin_sha256")  # which code has made a run


def check_resumable(path: Path, metrics: dict[str, Any], saved: dict[str, Any] | None) -> None:
    """Raises UserError if the run has no checkpoint to continue from, or has diverged."""
    if saved is None and metrics.get("step"):
        raise UserError(f"{path / 'checkpoints/last.ckpt'}: is missing, and so is previous.ckpt")
    if metrics.get("status") == "diverged":
        raise UserError(
            f"resume={path}: the run diverged and would diverge again; start a new run with a smaller lr"
        )


def check_plugins(path: Path, metrics: dict[str, Any]) -> None:
    """Raises UserError if a run was made with plug-ins and none is active, or the other way.

    A package that was installed since then is no reason: it cannot be left out.
    """
    if metrics.get("plugin_sha256") and plugins.sha256() is None:
        named = metrics.get("config/plugin") or "the installed one"
        raise UserError(
            f"resume={path}: the run was made with plugin={named}, which takes part in it; name it"
        )
    if not metrics.get("plugin_sha256") and plugins.names() is not None:
        raise UserError(
            f"plugin={plugins.names()}: the run at {path} was made without it, and cannot change"
        )


def is_over(saved: dict[str, Any], config: Config, has_steps: bool) -> bool:
    """Returns whether the checkpoint was saved at the end of the run."""
    run = config.run
    all_steps_made = not has_steps or saved["step"] == run.max_steps
    if not saved["last"] or "waiting" in saved:
        return False
    return bool(
        all_steps_made
        or is_out_of_time(saved, run.max_minutes)
        or (saved.get("ended_by_callback") and has_same_companions(saved, config))
    )


def has_same_companions(saved: dict[str, Any], config: Config) -> bool:
    """Returns whether the keys of callbacks, such as patience, are as they were at a checkpoint."""
    values: dict[str, Any] = {}
    for keys in config.companions.values():
        values |= asdict(keys)
    return all(saved["config"].get(key) == value for key, value in values.items())


def is_out_of_time(saved: dict[str, Any], max_minutes: float | None) -> bool:
    """Returns whether the time for training was over when the checkpoint was saved."""
    return max_minutes is not None and saved["train_seconds"] >= 60 * max_minutes


def finished_already(
    path: Path,
    saved: dict[str, Any],
    run: RunConfig,
    can_go_on: bool,
    asked: dict[str, Any],
) -> str:
    """Returns the message for a finished run, with the keys that would continue it.

    `asked` are the keys that got other values, which have no effect any more.
    """
    step = saved["step"]
    line = f"{path}: finished already"
    if step > 0:
        line += f", at step {step}"
    needed: list[str] = []
    if can_go_on:
        needed = what_continues(saved, run)
        ended = "patience=, or another callback, ended it; another value of its key"
        line += f"; {' '.join(needed) or ended} would continue it"
    values = [f"{key}={spelled(value)}" for key, value in asked.items()]
    idle = [text for text in values if text not in needed]
    if idle:
        line += f"; {', '.join(idle)}: without effect here"
    return line


def what_continues(saved: dict[str, Any], run: RunConfig) -> list[str]:
    """Returns the keys with which a finished run goes on, with values that would do, or nothing.

    A key that was typed with such a value is among them: alone the others would not do.
    """
    step, before = saved["step"], saved["config"]
    too_short = step >= run.max_steps
    is_late = is_out_of_time(saved, run.max_minutes)
    needed = []
    if too_short:
        needed.append(f"max_steps={2 * step}")
    elif is_late and step >= before.get("max_steps", 0):
        needed.append(f"max_steps={run.max_steps}")
    if is_late:
        made = saved["train_seconds"] / 60
        needed.append(f"max_minutes={2 * max(made, run.max_minutes or 0):.4g}")
    elif too_short and is_out_of_time(saved, before.get("max_minutes")):
        needed.append(f"max_minutes={spelled(run.max_minutes)}")
    return needed


def other_values(path: Path, config: Config) -> dict[str, Any]:
    """Returns the keys in which `config` differs from the configuration of the run at `path`."""
    before = read_config(path).flat()
    return {key: value for key, value in config.flat().items() if before.get(key) != value}


def check_callbacks(
    checkpoint: dict[str, Any], prepared: Prepared, config: Config, path: Path
) -> None:
    """Raises UserError if the checkpoint at `path` has a state that none of the callbacks takes.

    It is no fault if the keys of callbacks were changed, which can switch one off.
    """
    taken = {callback.state_key for callback in prepared.callbacks}
    left = [str(name) for name in checkpoint.get("callbacks", {}) if name not in taken]
    if left and has_same_companions(checkpoint["lmlab"], config):
        raise UserError(
            f"{path}: holds the state of the callback {', '.join(left)}, which the resumed run does "
            "not have; it needs the plug-in as it was"
        )


def restore(checkpoint: dict[str, Any], prepared: Prepared, over: bool, path: Path) -> None:
    """Loads the weights of a run that is `over`. Otherwise Lightning loads them after a check.

    Raises UserError if the state of the optimizer in the checkpoint at `path` does not fit.
    """
    if over:
        prepared.model.load_state_dict(weights_of(checkpoint))
    else:
        parts = prepared.model, prepared.optimizer, prepared.precision
        state.check_optimizer(
            checkpoint,
            build_optimizer(*parts),
            example_states(*parts),
            path,
            prepared.has_own_optimizer,
            prepared.may_set_optimizer,
        )


class Resumable:
    """Checks whether a run with somebody's own code could be resumed from what it will write.

    Raises UserError if it could not: at once, not after an interruption.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.empty = empty_model(prepared)
        for name, value in self.empty.state_dict().items():
            if not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{name}: the model's state_dict may hold tensors alone, which a file can be checked "
                    "for; a buffer (register_buffer) can hold numbers, too"
                )
        self.example: tuple[torch.optim.Optimizer, list[dict[str, Any]]] | None = None

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        """Checks a checkpoint's weights and the state of an optimizer that own code may change."""
        self.check_weights(weights_of(checkpoint))
        if self.prepared.may_set_optimizer:
            self.check_optimizer(checkpoint)

    def check_weights(self, weights: dict[str, Any]) -> None:
        """Raises UserError if weights do not fit a new model of this configuration."""
        if self.empty.accepts(weights):
            return
        wanted = self.empty.state_dict()
        wrong = sorted({*wanted} ^ {*weights}) or [
            name for name, weight in wanted.items() if not alike(weights[name], weight)
        ]
        raise UserError(
            f"{', '.join(map(str, wrong[:3]))}: the model's state_dict does not fit a new model with "
            "the same keys, so no checkpoint could be loaded; needs the same names, shapes and types, "
            "and tensors in which each number has a place of its own"
        )

    def check_optimizer(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if the optimizer's state could not be given back to it."""
        if self.example is None:
            parts = self.prepared.model, self.prepared.optimizer, self.prepared.precision
            with random_numbers_kept():
                self.example = build_optimizer(*parts), example_states(*parts)
        optimizer, states = self.example
        is_own = self.prepared.has_own_optimizer
        found = state.misfit(checkpoint, optimizer, states, is_own, may_be_set=True)
        if found and not is_own:
            raise UserError(
                f"{plugins.named_plugins()}a callback has changed the optimizer's state: {found} could not be "
                "given back to a resumed run; numbers in its groups may change, but not what groups there are"
            )
        if found:
            raise UserError(
                f"{type(optimizer).__name__}: {found} of its state could not be given back to a "
                "resumed run; needs numbers and tensors of the weight's type in state and param_groups"
            )


def empty_model(prepared: Prepared) -> LanguageModel:
    """Returns a model without numbers, as it is built when a checkpoint is read.

    Raises UserError if somebody's own cannot be built so.
    """
    try:
        with torch.device("meta"):
            return build_model(prepared.model.config, prepared.text.tokenizer.vocab_size)
    except Exception as error:
        name = type(prepared.model).__name__
        plugins.show_once(f"model {name}", error)
        raise UserError(
            f"{name}: cannot be built without numbers, on torch's meta device, as it is to be read "
            f"from a checkpoint ({reason_of(error)})"
        ) from None


def note_resumption(
    directory: RunDirectory, config: dict[str, Any], now: dict[str, Any], step: int
) -> str:
    """Writes the provenance of a run that is resumed after `step`; returns its changes, or "".

    `now` is the provenance of the process.
    """
    directory.metrics.pop("reason", None)
    changes = differences(last_provenance(directory.metrics), now)
    codes = {"earlier_code": " ".join(str(code) for code in codes_in(directory.metrics) if code)}
    keys = sorted(marked(LAST_BITS))
    before = {key: directory.metrics.get(f"config/{key}", config.get(key)) for key in keys}
    other = [f"{key}={before[key]}" for key in keys if before[key] != config.get(key)]
    if other:
        earlier = [directory.metrics["changed"]] if "changed" in directory.metrics else []
        changed = "; ".join([*earlier, f"until step {step} it had {' '.join(other)}"])
        directory.metrics["changed"] = changed
    directory.update(
        status="running", **with_prefix("config/", config), **with_prefix("resumed/", now | codes)
    )
    of_code = [text for text in changes if text.startswith(CODES)]
    others = [text for text in changes if text not in of_code]
    warning = ""
    if of_code:
        shortened = re.sub(r"\b[0-9a-f]{64}\b", lambda found: short(found[0]), "; ".join(of_code))
        warning += f"; by other code, so what it computes may be another: {shortened}"
    if others:
        warning += "; the last bits may come out differently, since something changed: "
        warning += "; ".join(others)
    return warning


def with_prefix(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with longer names, as metrics.json holds them."""
    return {prefix + key: value for key, value in values.items()}
