"""Draws means over seeds with their 95 % intervals, as a figure for a paper."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from lmlab.errors import UserError
from lmlab.registry import importing
from lmlab.sweeps import planned
from lmlab.sweeps import table as tables
from lmlab.sweeps.claims import half_width
from lmlab.sweeps.words import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lmlab.sweeps.planned import Chosen

WIDTH, HEIGHT = 3.4, 2.6  # inches: a column of most papers
SPAN = 8  # x is logarithmic if its largest value is more than so many times its smallest
FEW = 8  # values that are all named below the axis
SHORT = 12  # characters of a name, of which three fit beside each other
DODGE = 0.12  # between the lines, where x has no numbers
# Okabe and Ito (2008): told apart by people of all kinds of color vision; in grey by the markers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def error_bars(
    table: pd.DataFrame, x: str, hue: str | None = None, best: str | None = None
) -> tuple[Figure, list[str]]:
    """Returns a figure of the loss against `x`, a line for each value of `hue`; and warnings.

    Each point is the configuration with the lowest mean over the values of the keys in `best`, with
    the 95 % interval of its mean over seeds. Raises UserError.
    """
    entries = tables.configurations(table)
    board = tables.as_table([entry.row for entry in entries])
    axis = planned.keys_in("x", x, board)
    if len(axis) > 1:
        raise UserError(f"x={x}: needs one key")
    hues = planned.keys_in("hue", hue, board)
    chosen_by = planned.keys_in("best", best, board)
    planned.refuse_shared(x=axis, hue=hues, best=chosen_by)
    asked = planned.typed(x=x, hue=hue, best=best)
    points = planned.choose(entries, [*axis, *hues], chosen_by, asked)
    drawn = [point for point in points if point.entry.losses]
    if not drawn:
        raise UserError(f"{asked}: no run has finished, so there is nothing to draw")
    with importing():
        from lmlab.commands.figure import PaperFigure, styled
    with styled():
        figure = PaperFigure(figsize=(WIDTH, HEIGHT), layout="constrained")
        draw(figure.subplots(), drawn, axis[0], hues, tables.objective(table))
    warnings = tables.other_texts(table)
    warnings += planned.confounded(planned.unnamed([points], [*axis, *hues, *chosen_by]))
    for point in points:
        where = " ".join(f"{key}={plain(value)}" for key, value in point.levels.items())
        warnings += [f"{where}: {edge}; try values beyond it" for edge in point.edges]
    return figure, warnings


def draw(axes: Axes, points: list[Chosen], x: str, hues: list[str], loss: str) -> None:
    """Draws the points with their error bars, a line for each combination of the keys in `hues`."""
    points = sorted(points, key=lambda point: planned.place_of(point, [*hues, x]))
    values = sorted({point.levels[x] for point in points}, key=planned.order)
    has_numbers = all(map(planned.is_number, values))
    lines = itertools.groupby(points, key=lambda point: planned.values_of(point.entry, hues))
    grouped = [(name, list(members)) for name, members in lines]
    for n, (name, members) in enumerate(grouped):
        places = [point.levels[x] for point in members]
        if not has_numbers:
            shift = DODGE * (n - (len(grouped) - 1) / 2)
            places = [values.index(place) + shift for place in places]
        losses = [[*point.entry.losses.values()] for point in members]
        errors = [half_width(one) for one in losses]
        axes.errorbar(
            places,
            [sum(one) / len(one) for one in losses],
            [0.0 if math.isnan(error) else error for error in errors],
            color=COLORS[n % len(COLORS)],
            marker=MARKERS[n % len(MARKERS)],
            linestyle="-" if has_numbers else "none",
            ms=3.5,
            lw=1,
            capsize=2,
            label=", ".join(name),
        )
    name_places(axes, values, has_numbers)
    axes.set(xlabel=x, ylabel=loss)
    axes.grid(alpha=0.3, lw=0.4)
    if hues:
        name_lines(axes, ", ".join(hues))


def name_lines(axes: Axes, title: str) -> None:
    """Adds a legend above the axes, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    n_columns = 3 if max(map(len, labels)) <= SHORT else 2
    axes.figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=n_columns,
        frameon=False,
        fontsize=7,
        title=title,
        title_fontsize=7,
    )


def name_places(axes: Axes, values: list[object], has_numbers: bool) -> None:
    """Sets the scale of x, and names the values that were tried if they are few."""
    if not has_numbers:
        axes.set_xticks(range(len(values)), [plain(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    numbers = [float(str(value)) for value in values]
    if numbers[0] > 0 and numbers[-1] / numbers[0] > SPAN:
        axes.set_xscale("log")
    if len(numbers) <= FEW:
        axes.set_xticks(numbers, [plain(value) for value in values])
        axes.set_xticks([], minor=True)
