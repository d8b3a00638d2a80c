"""Passes the numbers of a run to its folder, to TensorBoard and to the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmlab.errors import reason_of
from lmlab.inference import evaluations
from lmlab.inference.pictures import changes_picture
from lmlab.numbers import EXCERPT_LOSS, EXCERPT_TOKENS, OF_EXCERPTS, UPDATE_RATIO, decimal, losses
from lmlab.runs.code import short
from lmlab.runs.folder import AnyDirectory

BEST = "best/"  # before the names of the numbers of the best evaluation


class Results:
    """Writes the points, evaluations and hyper-parameters of a run.

    `boards` are TensorBoard's `Board` and whatever else has its methods.
    `best` is the lowest val/loss so far, of the excerpt if there is one, infinity before the first
    evaluation.
    """

    def __init__(
        self, directory: AnyDirectory, boards: Sequence[Any], best: float = math.inf
    ) -> None:
        self.directory = directory
        self.boards = boards
        self.best = best
        self.not_finite: set[str] = set()  # the numbers of which that was said

    def describe(self, keys: Mapping[str, Any], step: int) -> None:
        """Shows the configuration and the origin of the run from `step` on in TensorBoard."""
        origin = {
            key: value
            for key, value in self.directory.metrics.items()
            if key != "status" and ("/" not in key or key.startswith("resumed/"))
        }
        for board in self.boards:
            board.show_table("config", keys, step)
            board.show_table("provenance", origin, step)

    def add_point(
        self, step: int, numbers: Mapping[str, float], others: Mapping[str, float]
    ) -> None:
        """Writes a point of the training curves. `others` are written to history.jsonl only."""
        self.directory.record(step=step, **numbers, **others)
        self.show(numbers, step)

    def show(self, values: Mapping[str, evaluations.Value], step: int) -> None:
        """Shows values in TensorBoard, and passes them to all loggers."""
        for board in self.boards:
            board.show(values, step)

    def flush(self) -> None:
        """Lets TensorBoard and loggers write what they have."""
        for board in self.boards:
            board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file and ends the loggers."""
        for board in self.boards:
            board.close()

    def add_evaluation(
        self,
        step: int,
        values: Mapping[str, evaluations.Value],
        totals: Mapping[str, float],
        train_loss: float | None,
        save_best: Callable[[], object],
    ) -> dict[str, float]:
        """Writes the values of an evaluation, and returns the numbers among them.

        `save_best` is called if val/loss is the lowest so far, on the same tokens: at the end that
        is EXCERPT_LOSS, if there is one. `train_loss` is None before the first step. Names of `values`
        that begin with best/ are for metrics.json alone.
        """
        numbers = evaluations.numbers_of(values)
        best_on_whole = {name: numbers.pop(name) for name in [*numbers] if name.startswith(BEST)}
        texts = evaluations.texts_of(values)
        ratios = {
            name: float(value) for name, value in values.items() if name.startswith(UPDATE_RATIO)
        }
        self.warn_of_infinite(numbers)
        self.directory.record(step=step, **numbers, **texts, **ratios)
        hidden = {*OF_EXCERPTS, *best_on_whole}
        self.show({name: value for name, value in values.items() if name not in hidden}, step)
        self.show(self.picture_of(ratios), step)
        as_best: dict[str, float | None] = {**best_on_whole}
        if best_on_whole:
            as_best[f"{BEST}{EXCERPT_TOKENS}"] = None
        judged = numbers.get(EXCERPT_LOSS, numbers.get("val/loss", math.inf))
        if judged < self.best:
            self.best = judged
            save_best()
            as_best = {f"{BEST}{name}": value for name, value in numbers.items()}
            as_best |= self.missing(as_best, BEST)
            as_best[f"{BEST}step"] = step
        if "val/loss" in numbers:
            best = self.directory.metrics | as_best
            self.show({"best/val/loss": best.get("best/val/loss", self.best)}, step)
        self.directory.update(**totals, **numbers, **self.missing(numbers), **as_best)
        measured = dict(numbers)
        if train_loss is not None:
            measured["train/loss"] = train_loss
        self.directory.say(line(step, measured, texts.get("sample", "")))
        return numbers

    def picture_of(self, ratios: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Returns the picture of how much each matrix changed. A failure is only a warning."""
        if not ratios or not self.boards:
            return {}
        try:
            named = {name.removeprefix(UPDATE_RATIO): ratio for name, ratio in ratios.items()}
            return {"update_ratio": changes_picture(named)}
        except Exception as error:
            self.directory.warn(f"no picture of update_ratio: {reason_of(error)}")
            return {}

    def missing(self, numbers: Mapping[str, float | None], prefix: str = "") -> dict[str, None]:
        """Returns null for each number that metrics.json has of an earlier evaluation alone."""
        measured = (f"{prefix}val/", f"{prefix}sample/")
        earlier = [name for name in self.directory.metrics if name.startswith(measured)]
        return {name: None for name in earlier if name not in numbers}

    def warn_of_infinite(self, numbers: Mapping[str, float]) -> None:
        """Says of each number, at the first time, that it is nan or infinite, and how it is kept."""
        for name, value in numbers.items():
            if not math.isfinite(value) and name not in self.not_finite:
                self.not_finite.add(name)
                self.directory.warn(f"{name} is {value}, which history.jsonl keeps as null")

    def end(self, status: str, keys: Mapping[str, Any], step: int) -> None:
        """Writes the hyper-parameters of a run that has ended, and closes TensorBoard's file.

        Cells of a sweep that differ in their seed alone are one group of TensorBoard's.
        """
        group = self.directory.metrics.get("group")  # only a sweep's cell has one
        if group is None:
            path = self.directory.path
            name = f"{path.parent.name} {path.name}"
        else:
            name = f"{group} {short(self.directory.metrics.get('code_sha256'))}"
        if status != "interrupted":
            for board in self.boards:
                board.show_hparams(name, keys, status, step)
        self.close()


def line(step: int, numbers: Mapping[str, float], sample: str) -> str:
    """Returns the line that the terminal shows for an evaluation."""
    pairs = "".join(f"{name} {decimal(numbers[name])}  " for name in losses() if name in numbers)
    sample = sample.replace("\n", "↵")
    return f"step {step:>5}  {pairs}{sample}"
