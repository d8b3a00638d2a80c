"""Draws how many answers models have right: against the number of pairs, and against the distance.

  python scripts/recall.py sweep=outputs/sweeps/recall out=recall.png

sweep   the folder of a sweep of data=recall over n_pairs (outputs/sweeps/recall)
out     the picture, .png, .svg, .pdf, .eps or .jpg (recall.png)
pairs   the number of pairs in the second panel (4)
plugin  the files or modules with which the runs were made, as for train.py (null)

The distance is how many characters before the answer the letter that is asked stood last. Points are
means over the finished seeds, bars reach from the worst seed to the best. The dotted line is a guess
among the letters that end the pairs of an example.
"""

from __future__ import annotations

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
    from lmlab.markers import Count, PathText

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.axes import Axes

ACCURACY = "val/answer_accuracy"
DISTANCE = "accuracy_by_distance/"  # before the smallest distance of a range, in history.jsonl


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    sweep: PathText = "outputs/sweeps/recall"
    out: PathText = "recall.png"
    pairs: Count = 4
    plugin: PathText | None = None


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the picture and prints the table behind it. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    from lmlab.sweeps import table as tables

    runs = tables.load_runs(options.sweep)
    if not {"n_pairs", ACCURACY} <= {*runs}:
        raise UserError(f"sweep={options.sweep}: has no run of data=recall that has given answers")
    left_out = tables.left_out(runs, ACCURACY)
    runs = named(tables.counted(runs, ACCURACY).dropna(subset="n_pairs"))
    tables.check_alike(runs, ["kind", "n_pairs"], f"sweep={options.sweep}")
    known = sorted({int(n) for n in runs["n_pairs"]})
    if options.pairs not in known:
        raise UserError(
            f"pairs={options.pairs}: the finished runs have {', '.join(map(str, known)) or 'none'}"
        )
    figure = new_figure(width=10)
    by_pairs, by_distance = figure.subplots(1, 2, sharey=True)
    draw_pairs(by_pairs, runs, known)
    draw_distances(by_distance, runs[runs["n_pairs"] == options.pairs], options.pairs)
    for axes in (by_pairs, by_distance):
        axes.grid(alpha=0.3)
    save_picture(figure, options.out)
    print_table(runs)
    print("\n" + "\n".join([*left_out, str(options.out)]))


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs with a column `kind`: the model, and its layers where several were tried.

    The kind with most right answers is the first of the column's categories.
    """
    import pandas as pd

    kinds = runs["model"].astype(str)
    if "n_layer" in runs:
        tried = runs.groupby("model")["n_layer"].transform("nunique")
        layers = runs["n_layer"].fillna(0).astype(int).astype(str)
        layers = layers + layers.map(lambda n: " layer" if n == "1" else " layers")
        kinds = kinds.where(tried < 2, kinds + ", " + layers)
    means = runs.groupby(kinds)[ACCURACY].mean().sort_values(ascending=False)
    return runs.assign(kind=kinds.astype(pd.CategoricalDtype(means.index)))


def kinds_of(runs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yields each kind with its color and its runs, in the order of the kinds."""
    for n, kind in enumerate(runs["kind"].cat.categories):
        yield str(kind), f"C{n}", runs[runs["kind"] == kind]


def draw_pairs(axes: Axes, runs: pd.DataFrame, pairs: list[int]) -> None:
    """Draws the share of right answers against the number of pairs, a line for each kind."""
    for kind, color, members in kinds_of(runs):
        line(axes, members.groupby("n_pairs")[ACCURACY].agg(["mean", "min", "max"]), color, kind)
    axes.plot(pairs, [1 / n for n in pairs], color="0.5", ls=":", label="a guess among the pairs")
    axes.set(xlabel="pairs in an example", ylabel="share of right answers", xticks=pairs)
    axes.figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize="small")


def draw_distances(axes: Axes, runs: pd.DataFrame, pairs: int) -> None:
    """Draws the share of right answers against the distance, of runs with so many pairs."""
    import pandas as pd

    from lmlab.runs.folder import read_history

    for kind, color, members in kinds_of(runs):
        rows = []
        for path in members["path"]:
            for last in [line for line in read_history(Path(path)) if ACCURACY in line][-1:]:
                found = {name: value for name, value in last.items() if name.startswith(DISTANCE)}
                rows += [(int(name.removeprefix(DISTANCE)), value) for name, value in found.items()]
        shares = pd.DataFrame(rows, columns=["distance", "share"]).groupby("distance")["share"]
        line(axes, shares.agg(["mean", "min", "max"]), color, kind)
    axes.axhline(1 / pairs, color="0.5", ls=":")
    axes.set_xscale("log", base=2)
    axes.set(xlabel=f"distance in characters, at least ({pairs} pairs)")
    axes.xaxis.set_major_formatter("{x:.0f}")


def line(axes: Axes, shares: pd.DataFrame, color: str, label: str) -> None:
    """Draws means with bars from the worst to the best."""
    bars = [(shares["mean"] - shares["min"]).clip(0), (shares["max"] - shares["mean"]).clip(0)]
    axes.errorbar(shares.index, shares["mean"], bars, color=color, marker="o", ms=4, label=label)


def print_table(runs: pd.DataFrame) -> None:
    """Prints a row for each kind and number of pairs, with the accuracy of each seed."""
    print("| model | parameters | pairs | right answers | of seeds |")
    print("|---|---|---|---|---|")
    for kind, _, members in kinds_of(runs):
        for n, row in members.groupby("n_pairs"):
            shares = ", ".join(f"{share:.2%}" for share in row.sort_values("seed")[ACCURACY])
            seeds = ", ".join(str(seed) for seed in sorted(row["seed"]))
            print(f"| {kind} | {row['n_params'].max():,.0f} | {n:.0f} | {shares} | {seeds} |")


if __name__ == "__main__":
    run_command(main)
