"""What the runs of sweeps say of scaling: a law with its intervals, and what it cannot say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmlab.config.keys import VALIDATED, choices_of, config_class, keys_of, marked_in
from lmlab.errors import UserError
from lmlab.markers import SHAPELESS
from lmlab.sweeps import law as laws
from lmlab.sweeps import table as tables
from lmlab.sweeps.law import FLOPS, Floats, Law, Points

FEWEST = 3  # different sizes, and lengths of training, without which there is nothing to fit
FEW = 5  # below so many sizes or lengths the intervals are hardly to be believed
LENGTHS = ("max_steps", "warmup_steps", "hold_steps", "decay_steps", "eval_interval")  # of training
SETTLED = 0.1  # the share of lr at the end, above which a run was cut off in mid-fall
LOST = 0.025  # the share of the drawn laws, beyond which an interval cannot do without them
UNCOUNTED = 0.2  # of the operations, that 6 N D may have too few or too many


@dataclass(frozen=True)
class Scaling:
    """A law that was fitted to runs, and many that were fitted to runs drawn from them."""

    points: Points
    groups: np.ndarray
    law: Law
    drawn: list[Law]
    doubts: list[str]
    """What makes the law hard to believe, in words."""

    def interval_of(self, name: str) -> tuple[float, float]:
        """Returns the interval of a number of the law, such as alpha."""
        return laws.interval(np.array([getattr(law, name) for law in self.drawn]))

    def best(self, flops: float) -> dict[str, tuple[float, float, float]]:
        """Returns the best N and D for a budget, and the loss there: each with its interval.

        Raises UserError if the law, or too many of those that were drawn, have no best size.
        """
        able = [law for law in (self.law, *self.drawn) if law.has_best]
        if able[:1] != [self.law] or len(able) <= (1 - LOST) * len(self.drawn):
            raise UserError(
                f"budget={flops:g}: has no best size, since by "
                f"{1 + len(self.drawn) - len(able):,} of {1 + len(self.drawn):,} laws that fit such "
                "runs a larger model or more text does not help; it needs more sizes and lengths"
            )
        found = np.array([(*law.best(flops), law.loss(*law.best(flops))) for law in able[1:]])
        found = self.with_numbers(found, f"budget={flops:g}")
        N, D = self.law.best(flops)
        values = {"N": N, "D": D, "loss": float(self.law.loss(N, D))}
        best = {
            name: (value, *laws.interval(found[:, i]))
            for i, (name, value) in enumerate(values.items())
        }
        if not np.isfinite([*best.values()]).all():
            raise UserError(f"budget={flops:g}: lies so far from the runs that it has no interval")
        return best

    def predicted(self, N: float, D: float, seed: int = 0) -> tuple[float, float, float]:
        """Returns the loss of one new run, and its interval.

        The interval holds both what the law does not know and what the law leaves open: the
        residuals of single runs, drawn at random. Raises UserError if the law has no number there.
        """
        generator = np.random.default_rng(seed)
        expected = np.array([law.loss(N, D) for law in self.drawn])
        n = len(self.points.loss)
        spread = np.sqrt(n / max(1, n - 5))  # five numbers were fitted to the residuals
        ones = generator.choice(self.residuals(), size=len(expected)) * spread
        drawn = self.with_numbers((expected * np.exp(ones))[:, None], f"predict={N:g},{D:g}")
        loss = float(self.law.loss(N, D)), *laws.interval(drawn[:, 0])
        if not np.isfinite(loss).all():
            raise UserError(
                f"predict={N:g},{D:g}: lies so far from the runs that it has no interval"
            )
        return loss

    def with_numbers(self, found: Floats, asked: str) -> Floats:
        """Returns the rows of what drawn laws say, (n, …), without those that are no numbers.

        Raises UserError if an interval of the rest would no longer be one of 95 %.
        """
        finite = found[np.isfinite(found).all(1)]
        lost = len(self.drawn) - len(finite)
        if lost > LOST * len(self.drawn):
            raise UserError(
                f"{asked}: {lost:,} of {len(self.drawn):,} laws that fit such runs have no number there; "
                "it needs more sizes and lengths, or a place nearer to the runs"
            )
        return finite

    def residuals(self) -> Floats:
        """Returns ln L of each run, less what the law expects."""
        expected = self.law.loss(self.points.N, self.points.D)
        return np.asarray(np.log(self.points.loss) - np.log(expected))

    def reach(self, N: float, D: float) -> float:
        """Returns how many times the largest training of the runs this one is, in 6 N D."""
        return float(N * D / (self.points.N * self.points.D).max())


def scaling_of(table: pd.DataFrame, bootstraps: int, seed: int = 0) -> Scaling:
    """Returns the law of the finished runs in a table of runs.

    Raises UserError if they have too few sizes or lengths, or different texts or tokens.
    """
    check_losses(table)
    runs = tables.counted(table, "val/loss")
    runs = runs[(runs["n_params"] > 0) & (runs["tokens"] > 0)]
    check_alike(runs)
    N, D, loss = (runs[name].to_numpy(float) for name in ("n_params", "tokens", "val/loss"))
    for name, values in (("sizes", N), ("lengths of training", D)):
        if len(np.unique(values)) < FEWEST:
            raise UserError(
                f"sweeps: {len(runs)} finished runs have {len(np.unique(values))} different {name}; "
                f"a law needs {FEWEST} at least, better {FEW}"
            )
    groups = pd.factorize(runs["group"])[0]
    points = Points(N, D, loss)
    law = laws.fit(points)
    drawn = [law for law in laws.bootstrap(points, groups, bootstraps, seed) if law.is_finite]
    if not law.is_finite or len(drawn) < (1 - LOST) * bootstraps:
        raise UserError(
            f"sweeps: {bootstraps - len(drawn)} of {bootstraps} laws, each fitted to runs drawn from "
            f"these {len(runs)}, have no end; a law needs more sizes and lengths"
        )
    doubts = [*doubts_of(runs), *tables.left_out(table, "val/loss")]
    return Scaling(points, groups, law, drawn, doubts)


def check_losses(table: pd.DataFrame) -> None:
    """Raises UserError if finished runs have no val/loss, and no other is there for a law."""
    finished = table[table["status"] == "finished"]
    if len(finished) and finished["val/loss"].isna().all():
        raise UserError(
            f"sweeps: {len(finished)} finished runs have no val/loss, to which a law is fitted; it "
            "needs runs with val_fraction above 0"
        )


def check_alike(runs: pd.DataFrame) -> None:
    """Raises UserError if losses of the runs cannot be compared: of other texts or other tokens."""
    if tables.differ_in_tokens(runs):
        raise UserError("sweeps: the runs have different tokenizers; a law is of one")
    for key in tables.differing(runs, ("data_sha256", *VALIDATED, "model")):
        named = ", ".join(sorted({str(value)[:8] for value in runs[key]}))
        raise UserError(f"sweeps: the runs differ in {key} ({named}); a law is of one")


def doubts_of(runs: pd.DataFrame) -> list[str]:
    """Returns what makes a law of these runs hard to believe, in words."""
    doubts = []
    for name, key in (("sizes", "n_params"), ("lengths of training", "tokens")):
        n = runs[key].nunique()
        if n < FEW:
            doubts.append(f"only {n} different {name}; {FEW} or more make the intervals credible")
    if runs.groupby("group")["seed"].nunique().max() < 2:
        doubts.append("one seed each: what luck does is unknown, and the intervals too narrow")
    others = keys_beside_size(runs)
    if others:
        doubts.append(
            f"the runs differ in {', '.join(others)} as well; what that does is taken for an effect of "
            "size or of length"
        )
    shares = runs["flops"] / (FLOPS * runs["n_params"] * runs["tokens"])
    low, high = shares.min(), shares.max()
    if not 1 - UNCOUNTED < low <= high < 1 + UNCOUNTED:
        doubts.append(
            "N counts embeddings, which multiply nothing, and leaves out attention, which does: the "
            f"operations of these runs are {low:.2f} to {high:.2f} times 6 N D"
        )
    cut = [run for run in tables.records(runs) if left_over(run) > SETTLED]
    if cut:
        doubts.append(
            f"{len(cut)} of {len(runs)} runs ended before their learning rate had fallen; a run of "
            "each length needs a fall of its own (decay_steps=null)"
        )
    steady = (runs["schedule"] == "constant").sum()
    if steady:
        doubts.append(
            f"{steady} of {len(runs)} runs have schedule=constant: their learning rate never fell, and "
            "a fall would have given them a lower loss"
        )
    return doubts


def keys_beside_size(runs: pd.DataFrame) -> list[str]:
    """Returns the keys in which the runs differ, beside those of size and of length of training."""
    model = runs["model"].iloc[0]
    if model not in choices_of("model"):  # a preset that is missing here
        return []
    kind = config_class("model", model)
    sizes = {*keys_of(kind)} - marked_in(kind, SHAPELESS) - {"block_size", "parametrization"}
    return [key for key in tables.varied(runs) if key not in {*sizes, *LENGTHS}]


def left_over(run: dict[str, Any]) -> float:
    """Returns the share of the fall of the learning rate that a run did not reach."""
    if run["schedule"] == "constant" or not run["decay_steps"]:
        return 0.0
    start = run["warmup_steps"] + run["hold_steps"]
    return 1.0 - min(1.0, (run["step"] - start) / max(1, run["decay_steps"] - start))


def flops(N: float, D: float) -> float:
    """Returns the operations of a training, as 6 N D counts them."""
    return FLOPS * N * D
