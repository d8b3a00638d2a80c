"""Draws loss against learning rate, a curve for each size, and finds each size's best rate.

  python scripts/transfer.py sweep=outputs/sweeps/transfer out=transfer.png
  python scripts/transfer.py sweep=outputs/sweeps/depths over=n_layer

sweep   the folder of a sweep over a size, lr and seed (outputs/sweeps/transfer)
over    the key whose values are the sizes: n_embd, n_layer or another key of numbers (n_embd)
out     the picture, .png, .svg, .pdf, .eps or .jpg (transfer.png)
plugin  the files or modules with which the runs were made, as for train.py (null)

The best rate of a seed is the lowest point of a parabola, loss over the logarithm of lr, through
its lowest loss and the two beside it. The runs of one size and rate may differ in their seed alone.
A size's best rate is the geometric mean over its seeds, with its 95 % interval (Student's t). A
size whose lowest loss is at an end of its rates has none; seeds with fewer than three finished
rates are left out.
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
    from lmlab.markers import PathText

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

KIND = ["model", "optimizer", "parametrization"]  # what a panel of the picture is about
DEPTH = 0.05  # of a loss: how far below it a parabola may lie without a word


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    sweep: PathText = "outputs/sweeps/transfer"
    over: str = "n_embd"
    out: PathText = "transfer.png"
    plugin: PathText | None = None


@dataclass(frozen=True)
class Best:
    """The best rate of a size, between the ends of its interval, and the loss there.

    The ends are nan for a single seed. `is_bent` says that the parabola of a seed lies far below all
    of its losses, since a rate beside the best one has a far larger loss.
    """

    seeds: int
    lr: float
    low: float
    high: float
    loss: float
    is_bent: bool


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the picture and prints the table. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    from lmlab.sweeps import table as tables

    runs = tables.load_runs(options.sweep)
    number = tables.objective(runs)
    if not {"lr", *KIND} <= {*runs}:
        raise UserError(f"sweep={options.sweep}: has no runs with lr and parametrization")
    check_sizes(runs, options)
    left_out = tables.left_out(runs, number)
    runs = tables.counted(runs, number).rename(columns={number: "loss"})
    tables.check_alike(runs, [*KIND, options.over, "lr"], f"sweep={options.sweep}")
    kinds = list(runs.groupby(KIND))
    if not kinds:
        raise UserError(f"sweep={options.sweep}: has no finished run of gpt or modern with a loss")
    figure = new_figure(width=4 * len(kinds), height=4)
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    heads = [*KIND, options.over, "best lr", "95 % interval", "loss there", "seeds"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    verdicts = []
    bent: list[str] = []
    lowest = highest = runs["loss"].min()
    for axes, (values, members) in zip(panels, kinds, strict=True):
        kind = [str(value) for value in values]
        found: dict[str, float] = {}
        for n, (size, of_size) in enumerate(members.groupby(options.over)):
            of_size = run_through(of_size)
            best = best_of(of_size)
            draw(axes, of_size, best, f"C{n}", f"{size:g}")
            row = f"| {' | '.join(kind)} | {size:g} |"
            if best is None:
                why = "not enclosed by its rates"
                if of_size.empty:
                    why = "fewer than three finished rates"
                print(f"{row} {why} | | | |")
                continue
            found[f"{size:g}"] = best.lr
            if best.is_bent:
                bent.append(
                    f"{', '.join(kind)}, {options.over}={size:g}: the parabola lies more than "
                    f"{DEPTH:.0%} below every loss, since a rate beside the best one has a far larger "
                    "one; its lowest point means little without rates that are closer"
                )
            highest = max(highest, best.loss)
            interval = "of one seed" if best.seeds == 1 else f"{best.low:.2e} to {best.high:.2e}"
            print(f"{row} {best.lr:.2e} | {interval} | {best.loss:.3f} | {best.seeds} |")
        axes.set(xscale="log", xlabel="lr", title=", ".join(kind))
        axes.grid(alpha=0.3)
        verdicts.append(f"{', '.join(kind)}: {verdict(options.over, found)}")
    panels[0].set(ylabel=f"{number}, nats", ylim=(lowest - 0.05, highest + 0.25))
    panels[0].legend(frameon=False, title=options.over, fontsize="small")
    save_picture(figure, options.out)
    print("\n" + "\n".join([*verdicts, *bent, *tables.other_texts(runs), *left_out]))
    print(f"\n{options.out}")


def check_sizes(runs: pd.DataFrame, options: Options) -> None:
    """Raises UserError unless `over` names a key of numbers by which the runs can be told apart."""
    from pandas.api.types import is_numeric_dtype

    from lmlab.sweeps.table import configuration_keys

    numbers = [key for key in configuration_keys(runs) if is_numeric_dtype(runs[key])]
    allowed = sorted(key for key in {*numbers} - {"lr", "seed"} if runs[key].notna().any())
    if options.over not in allowed:
        raise UserError(f"over={options.over}: allowed are {', '.join(allowed)}")


def run_through(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of seeds that have at least three rates; a sweep may not be over."""
    rates = runs.groupby("seed")["lr"].transform("nunique")
    return runs[rates >= 3]


def best_of(runs: pd.DataFrame) -> Best | None:
    """Returns the best rate of the runs of one size, or None if its rates do not enclose it."""
    import numpy as np
    from scipy import stats

    if runs.empty:
        return None
    points = []
    is_bent = False
    for _, of_seed in runs.groupby("seed"):
        losses = of_seed.groupby("lr")["loss"].mean()
        lowest = int(losses.to_numpy().argmin())
        if not 0 < lowest < len(losses) - 1:
            return None
        near = losses.iloc[lowest - 1 : lowest + 2]
        points.append(vertex(np.log(near.index.to_numpy(float)), near.to_numpy(float)))
        is_bent |= points[-1][1] < (1 - DEPTH) * near.min()
    places, bottoms = np.transpose(points)
    mean = places.mean()
    half = float("nan")
    if len(places) > 1:
        half = stats.sem(places) * stats.t.ppf(0.975, len(places) - 1)
    low, middle, high = np.exp([mean - half, mean, mean + half]).tolist()
    return Best(len(points), middle, low, high, float(bottoms.mean()), is_bent)


def vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns the lowest point of the parabola through three points, of which the second is lowest."""
    import numpy as np

    a, b, c = np.polyfit(x - x[1], y, 2)  # from the middle, for numbers of moderate size
    return float(x[1] - b / (2 * a)), float(c - b * b / (4 * a))


def draw(axes: Axes, runs: pd.DataFrame, best: Best | None, color: str, label: str) -> None:
    """Draws the losses of one size, means over its seeds, and marks its best rate."""
    losses = runs.groupby("lr")["loss"].mean()
    axes.plot(losses.index, losses, color=color, marker="o", ms=3, lw=1, label=label)
    if best is not None:
        axes.plot([best.low, best.high], [best.loss, best.loss], color=color, lw=3, alpha=0.4)
        axes.plot([best.lr], [best.loss], color=color, marker="*", ms=11)


def verdict(over: str, found: dict[str, float]) -> str:
    """Returns in words how far the best rate moves over the sizes, which are in ascending order."""
    if len(found) < 2:
        return f"fewer than two values of {over} have a best rate"
    rates = list(found.values())
    sizes = list(found)
    return (
        f"from {over}={sizes[0]} to {sizes[-1]} the best rate changes {rates[-1] / rates[0]:.2f} times; its highest is "
        f"{max(rates) / min(rates):.2f} times its lowest"
    )


if __name__ == "__main__":
    run_command(main)
