"""Reads what the page of a sweep draws from histories: curves over seeds, and samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmlab.errors import UserError
from lmlab.numbers import EXCERPT_TOKENS, numbers_where
from lmlab.runs.folder import read_history

POINTS = 200  # of a curve, at most
SAMPLES = 40  # texts of a row, at most

Item = TypeVar("Item")


@dataclass
class Curves:
    """Reads the curves and samples of configurations, each configuration once.

    What was read is kept as long as the same runs of it have ended. `limit` is the number of points
    of a curve, and `faults` are the errors of histories that could not be read.
    """

    limit: int = POINTS
    faults: list[str] = field(default_factory=list)
    known: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    known_samples: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def of(
        self,
        group: str,
        members: Sequence[dict[str, Any]],
        counted: Sequence[dict[str, Any]],
        loss: str,
    ) -> dict[str, Any]:
        """Returns the curves of a configuration: means over seeds that count, and what diverged.

        All runs of a configuration have the same tokens and FLOPs at the same step.
        """
        diverged = [run for run in members if run["status"] == "diverged"]
        signature = loss, self.limit, [(run["path"], run["step"]) for run in (*counted, *diverged)]
        noted, drawn = self.known.get(group, (None, {}))
        if noted != signature:
            drawn = self.read(members, counted, diverged, loss)
            self.known[group] = signature, drawn
        return drawn

    def read(
        self,
        members: Sequence[dict[str, Any]],
        counted: Sequence[dict[str, Any]],
        diverged: Sequence[dict[str, Any]],
        loss: str,
    ) -> dict[str, Any]:
        """Returns the curves of a configuration, from the histories of its runs."""
        histories = [self.history(run) for run in counted]
        drawn: dict[str, Any] = {
            "marks": [self.mark(run, loss) for run in diverged],
            "per_step": {name: per_step(members, name) for name in ("tokens", "flops")},
        }
        drawn["excerpt"] = excerpt_of(histories)
        for name in dict.fromkeys([*numbers_where("ranks"), loss]):
            drawn[name] = curve(histories, name, self.limit)
        return drawn

    def history(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the lines of a run's history.jsonl, or none if it is missing or unreadable."""
        path = Path(run["path"])
        try:
            lines = read_history(path)
            if not lines and run["step"] > 0:
                raise UserError(f"{path / 'history.jsonl'}: is empty")
            return lines
        except UserError as error:
            if str(error) not in self.faults:
                self.faults.append(str(error))
            return []

    def mark(self, run: dict[str, Any], loss: str) -> dict[str, Any]:
        """Returns the step at which a run diverged, and the last number `loss` before that step."""
        last = None
        for line in self.history(run):
            if line.get(loss) is not None:
                last = line[loss]
        return {"step": run["step"], "seed": run["seed"], "loss": last}

    def samples_of(self, members: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Returns the samples of the first finished seed, by step, or None without samples."""
        finished = [run for run in members if run["status"] == "finished"]
        for run in sorted(finished, key=itemgetter("seed")):
            if run["path"] not in self.known_samples:
                self.known_samples[run["path"]] = samples(self.history(run), run["seed"])
            found = self.known_samples[run["path"]]
            if found is not None:
                return found
        return None


def per_step(runs: Sequence[dict[str, Any]], name: str) -> float | None:
    """Returns the tokens or FLOPs of a step, or None if no run has them."""
    for run in runs:
        total = run.get(name)
        if run["step"] > 0 and total is not None and not math.isnan(total):
            return float(total / run["step"])
    return None


def excerpt_of(histories: list[list[dict[str, Any]]]) -> int | None:
    """Returns of how many tokens val/loss is before the end of the runs, or None if of all."""
    seen = [line.get(EXCERPT_TOKENS) for lines in histories for line in lines]
    return max(filter(None, seen), default=None)


def curve(histories: list[list[dict[str, Any]]], name: str, limit: int) -> dict[str, Any]:
    """Returns the mean and standard error of a number over seeds, at the steps that all seeds have.

    `seconds` is the mean training time until each step. There is no standard error for one seed.
    """
    by_step = [values_by_step(lines, name) for lines in histories]
    steps: list[int] = []
    if by_step:
        steps = thinned(sorted(set.intersection(*map(set, by_step))), limit)
    if not steps:
        return {"step": [], "mean": [], "se": None, "seconds": []}
    values = np.array([list(map(run.__getitem__, steps)) for run in by_step])
    spread = None
    if len(values) > 1:
        spread = [float(f"{se:.2g}") for se in values.std(axis=0, ddof=1) / math.sqrt(len(values))]
    seconds = np.mean([seconds_at(steps, lines) for lines in histories], axis=0)
    return {
        "step": steps,
        "mean": values.mean(axis=0),
        "se": spread,
        "seconds": [float(f"{second:.4g}") for second in seconds],
    }


def values_by_step(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Returns the finite values of a number in a history, by step."""
    return {line["step"]: line[name] for line in lines if line.get(name) is not None}


def seconds_at(steps: list[int], lines: list[dict[str, Any]]) -> np.ndarray:
    """Returns the seconds of training at `steps`, interpolated between the lines of a history."""
    timed = [line for line in lines if "train_seconds" in line]
    known_steps = [0, *(line["step"] for line in timed)]
    known_seconds = [0.0, *(line["train_seconds"] for line in timed)]
    return np.interp(steps, known_steps, known_seconds)


def samples(lines: list[dict[str, Any]], seed: int) -> dict[str, Any] | None:
    """Returns the samples in the lines of a history, by step, or None without samples."""
    sampled = [line for line in lines if "sample" in line]
    if not sampled:
        return None
    texts = []
    for line in thinned(sampled, SAMPLES):
        text = str(line["sample"])
        texts.append({"step": line["step"], "loss": line.get("val/loss"), "text": text})
    return {"seed": seed, "lines": texts}


def thinned(items: Sequence[Item], limit: int) -> list[Item]:
    """Returns at most `limit` items at equal distances, always with the first and the last."""
    indices = np.linspace(0, len(items) - 1, min(limit, len(items))).astype(int)
    return [items[i] for i in np.unique(indices)]
