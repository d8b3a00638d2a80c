"""Draws validation loss from counting to attention on one chart, from the runs of a sweep.

  python scripts/ladder.py sweep=outputs/sweeps/ladder out=ladder.png

sweep   the folder of a sweep of the recipes experiment=ladder_… (outputs/sweeps/ladder)
out     the picture, .png, .svg, .pdf, .eps or .jpg (ladder.png)
plugin  the files or modules with which the runs were made, as for train.py (null)

Draws validation loss against the number of parameters, of runs that read as little text as any of
their kind; against the operations of training, during the runs; and, where runs of one size read
different amounts of text, against the text read. Bars and bands reach from the best seed to the
worst. Prints the table behind it: for each configuration the mean over its finished seeds, and the
standard error. Where tokenizers differ, it draws bits per byte, a line for each kind of tokenizer.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands.door import run_command
    from lmlab.commands.options import parse_script
    from lmlab.commands.own_choices import with_own_choices
    from lmlab.commands.picture import check_picture, new_figure, save_picture
    from lmlab.errors import UserError
    from lmlab.markers import PathText

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    sweep: PathText = "outputs/sweeps/ladder"
    out: PathText = "ladder.png"
    plugin: PathText | None = None


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the chart and prints the table. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    from lmlab.sweeps import table as tables

    runs = tables.load_runs(options.sweep)
    number = tables.objective(runs)
    left_out = tables.left_out(runs, number)
    runs = tables.counted(runs, number)
    left_out += tables.other_texts(runs)
    kind = "tokenizer" if number == tables.BITS else "model"
    rungs = summary(runs, kind, number)
    if rungs.empty:
        raise UserError(
            f"sweep={options.sweep}: has no finished run with a val/loss; the recipes "
            "experiment=ladder_… make such runs"
        )
    lengths = rungs.groupby(["kind", "n_params"])["tokens"].transform("nunique")
    longer = rungs[lengths > 1]
    figure = new_figure(width=10 if longer.empty else 14)
    panels = figure.subplots(1, 2 if longer.empty else 3, sharey=True)
    unit = "bits per byte" if kind == "tokenizer" else "nats per character"
    draw_sizes(panels[0], rungs, f"validation loss, {unit}")
    draw_compute(panels[1], rungs, runs, number)
    if not longer.empty:
        draw_lengths(panels[2], rungs, longer)
    for axes in panels:
        axes.grid(alpha=0.3)
    save_picture(figure, options.out)
    print(f"| {kind} | parameters | text read | {number} | seeds | seconds of training |")
    print("|---|---|---|---|---|---|")
    for row, error in zip(rungs.itertuples(), rungs["se"], strict=True):
        loss = f"{row.loss:.3f}"
        if not math.isnan(error):  # as that of one seed is
            loss += f" ± {error:.3f}"
        about = f"{row.kind} | {row.n_params:,} | {row.tokens:,}"
        print(f"| {about} | {loss} | {row.n} | {row.seconds:.1f} |")
    print("\n" + "\n".join([*left_out, str(options.out)]))


def kinds_of(rungs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yields each kind of model or tokenizer with its color and its rows, the smallest first."""
    for n, (kind, rows) in enumerate(rungs.groupby("kind", sort=False)):
        yield str(kind), f"C{n}", rows.sort_values("n_params")


def draw_sizes(axes: Axes, rungs: pd.DataFrame, title: str) -> None:
    """Draws loss against the number of parameters, with a line for each kind."""
    for kind, color, rows in kinds_of(rungs):
        rows = rows[rows["tokens"] == rows["tokens"].min()]
        axes.errorbar(
            rows["n_params"], rows["loss"], bars(rows), color=color, marker="o", ms=5, label=kind
        )
    axes.set(
        xscale="log",
        xlabel="parameters (of n-grams: counts)",
        ylabel=title,
    )
    axes.legend(frameon=False)


def draw_compute(axes: Axes, rungs: pd.DataFrame, runs: pd.DataFrame, number: str) -> None:
    """Draws `number` against the operations of training, with a curve for each configuration."""
    for _, color, rows in kinds_of(rungs):
        if not rows["flops"].gt(0).all():  # counting multiplies nothing
            axes.axhline(rows["loss"].min(), color=color, ls="--", lw=1)
            continue
        axes.errorbar(
            rows["flops"],
            rows["loss"],
            bars(rows),
            color=color,
            marker="o",
            ms=5,
            lw=0,
            elinewidth=1,
        )
        for group in rows["group"]:
            operations, losses = curve(runs[runs["group"] == group], number)
            axes.plot(operations, losses, color=color, lw=1, alpha=0.7)
    axes.set(xscale="log", xlabel="floating-point operations of training")
    axes.set_ylim(rungs["loss"].min() - 0.1, max(2.75, rungs["loss"].max()))


def draw_lengths(axes: Axes, rungs: pd.DataFrame, longer: pd.DataFrame) -> None:
    """Draws loss against the text read, with a band from the best seed to the worst.

    Kinds that read no text by steps, or one amount alone, are a line at their lowest loss.
    """
    for kind, color, rows in kinds_of(rungs):
        rows = longer[longer["kind"] == kind].sort_values("tokens")
        if rows.empty:
            lowest = rungs.loc[rungs["kind"] == kind, "loss"].min()
            axes.axhline(lowest, color=color, ls="--", lw=1)
            continue
        for _, of_size in rows.groupby("n_params"):
            axes.plot(of_size["tokens"], of_size["loss"], color=color, marker="o", ms=5)
            axes.fill_between(
                of_size["tokens"], of_size["low"], of_size["high"], color=color, alpha=0.25, lw=0
            )
    axes.set(xscale="log", xlabel="tokens of training text read")


def bars(rows: pd.DataFrame) -> list[pd.Series]:
    """Returns how far the best and the worst seed of each row lie from the mean.

    The mean of equal numbers may differ from them in its last digit.
    """
    return [(rows["loss"] - rows["low"]).clip(0), (rows["high"] - rows["loss"]).clip(0)]


def summary(runs: pd.DataFrame, kind: str, number: str) -> pd.DataFrame:
    """Returns a row for each configuration: the worst kind first, and its best row last.

    `kind` is the column that tells the kinds apart, `number` the loss that is averaged.
    """
    groups = runs.groupby("group", as_index=False).agg(
        kind=(kind, "first"),
        n_params=("n_params", "first"),
        flops=("flops", "first"),
        tokens=("tokens", "first"),
        loss=(number, "mean"),
        low=(number, "min"),
        high=(number, "max"),
        se=(number, "sem"),
        n=("seed", "nunique"),
        seconds=("train_seconds", "mean"),
    )
    best = groups.groupby("kind")["loss"].transform("min")
    return groups.assign(best=best).sort_values(["best", "loss"], ascending=False)


def curve(members: pd.DataFrame, number: str) -> tuple[list[float], list[float]]:
    """Returns the operations until each evaluation, and the mean of `number` there."""
    from lmlab.runs.folder import read_history

    losses: dict[int, list[float]] = {}  # by step, one of each member
    for path in members["path"]:
        for line in read_history(Path(path)):
            if line.get(number) is not None and line["step"]:
                losses.setdefault(line["step"], []).append(line[number])
    per_step = members["flops"].iloc[0] / members["step"].iloc[0]
    steps = [step for step in sorted(losses) if len(losses[step]) == len(members)]
    means = [sum(losses[step]) / len(members) for step in steps]
    return [step * per_step for step in steps], means


if __name__ == "__main__":
    run_command(main)
