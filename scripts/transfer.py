"""Draws loss against learning rate, a curve for each width, and finds each width's best rate.

  python scripts/transfer.py sweep=outputs/sweeps/transfer out=transfer.png

sweep  the folder of a sweep over n_embd, lr and seed (outputs/sweeps/transfer)
out    the picture, .png, .svg or .pdf (transfer.png)

The best rate of a seed is the lowest point of a parabola, loss over the logarithm of lr, through
its lowest loss and the two beside it. The runs of one width and rate may differ in their seed alone.
A width's best rate is the geometric mean over its seeds, with
its 95 % interval (Student's t). A width whose lowest loss is at an end of its rates has none; seeds
with fewer than three finished rates are left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.commands.door import run_command
from lmlab.commands.options import parse_script
from lmlab.commands.picture import check_picture, new_figure, save_picture
from lmlab.errors import UserError
from lmlab.markers import PathText

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

KIND = ["model", "optimizer", "parametrization"]  # what a panel of the picture is about


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    sweep: PathText = "outputs/sweeps/transfer"
    out: PathText = "transfer.png"


@dataclass(frozen=True)
class Best:
    """The best rate of a width, between the ends of its interval, and the loss there.

    The ends are nan for a single seed.
    """

    seeds: int
    lr: float
    low: float
    high: float
    loss: float


def main(argv: list[str]) -> None:
    """Writes the picture and prints the table. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    from lmlab.sweeps import table as tables

    runs = tables.load_runs(options.sweep)
    number = tables.objective(runs)
    if not {"n_embd", "lr", *KIND} <= {*runs}:
        raise UserError(f"sweep={options.sweep}: has no runs with n_embd, lr and parametrization")
    left_out = tables.left_out(runs, number)
    runs = tables.counted(runs, number).rename(columns={number: "loss"})
    tables.check_alike(runs, [*KIND, "n_embd", "lr"], f"sweep={options.sweep}")
    kinds = list(runs.groupby(KIND))
    if not kinds:
        raise UserError(f"sweep={options.sweep}: has no finished run of gpt or modern with a loss")
    figure = new_figure(width=4 * len(kinds), height=4)
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    print(
        "| model | optimizer | parametrization | n_embd | best lr | 95 % interval | loss there | seeds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    verdicts = []
    lowest = highest = runs["loss"].min()
    for axes, (values, members) in zip(panels, kinds, strict=True):
        kind = [str(value) for value in values]
        found: dict[int, float] = {}
        for n, (width, of_width) in enumerate(members.groupby("n_embd")):
            of_width = run_through(of_width)
            best = best_of(of_width)
            draw(axes, of_width, best, f"C{n}", str(width))
            row = f"| {' | '.join(kind)} | {width} |"
            if best is None:
                print(f"{row} not enclosed by its rates | | | |")
                continue
            found[int(of_width["n_embd"].iloc[0])] = best.lr
            highest = max(highest, best.loss)
            interval = "of one seed" if best.seeds == 1 else f"{best.low:.2e} to {best.high:.2e}"
            print(f"{row} {best.lr:.2e} | {interval} | {best.loss:.3f} | {best.seeds} |")
        axes.set(xscale="log", xlabel="lr", title=", ".join(kind))
        axes.grid(alpha=0.3)
        verdicts.append(f"{', '.join(kind)}: {verdict(found)}")
    panels[0].set(ylabel=f"{number}, nats", ylim=(lowest - 0.05, highest + 0.25))
    panels[0].legend(frameon=False, title="n_embd", fontsize="small")
    save_picture(figure, options.out)
    print("\n" + "\n".join([*verdicts, *tables.other_texts(runs), *left_out]))
    print(f"\n{options.out}")


def run_through(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the runs of seeds that have at least three rates; a sweep may not be over."""
    rates = runs.groupby("seed")["lr"].transform("nunique")
    return runs[rates >= 3]


def best_of(runs: pd.DataFrame) -> Best | None:
    """Returns the best rate of the runs of one width, or None if its rates do not enclose it."""
    import numpy as np
    from scipy import stats

    if runs.empty:
        return None
    points = []
    for _, of_seed in runs.groupby("seed"):
        losses = of_seed.groupby("lr")["loss"].mean()
        lowest = int(losses.to_numpy().argmin())
        if not 0 < lowest < len(losses) - 1:
            return None
        near = losses.iloc[lowest - 1 : lowest + 2]
        points.append(vertex(np.log(near.index.to_numpy(float)), near.to_numpy(float)))
    places, bottoms = np.transpose(points)
    mean = places.mean()
    half = float("nan")
    if len(places) > 1:
        half = stats.sem(places) * stats.t.ppf(0.975, len(places) - 1)
    low, middle, high = np.exp([mean - half, mean, mean + half]).tolist()
    return Best(len(points), middle, low, high, float(bottoms.mean()))


def vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Returns the lowest point of the parabola through three points, of which the second is lowest."""
    import numpy as np

    a, b, c = np.polyfit(x - x[1], y, 2)  # from the middle, for numbers of moderate size
    return float(x[1] - b / (2 * a)), float(c - b * b / (4 * a))


def draw(axes: Axes, runs: pd.DataFrame, best: Best | None, color: str, label: str) -> None:
    """Draws the losses of one width, means over its seeds, and marks its best rate."""
    losses = runs.groupby("lr")["loss"].mean()
    axes.plot(losses.index, losses, color=color, marker="o", ms=3, lw=1, label=label)
    if best is not None:
        axes.plot([best.low, best.high], [best.loss, best.loss], color=color, lw=3, alpha=0.4)
        axes.plot([best.lr], [best.loss], color=color, marker="*", ms=11)


def verdict(found: dict[int, float]) -> str:
    """Returns in words how far the best rate moves over the widths."""
    if len(found) < 2:
        return "fewer than two widths have a best rate"
    rates = list(found.values())
    widths = f"from n_embd={min(found)} to {max(found)}"
    return (
        f"{widths} the best rate changes {rates[-1] / rates[0]:.2f} times; its highest is "
        f"{max(rates) / min(rates):.2f} times its lowest"
    )


if __name__ == "__main__":
    run_command(main)
