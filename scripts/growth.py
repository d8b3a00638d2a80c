"""Draws the loss of one run, and beside it what the model wrote at the evaluations on the way.

  python scripts/growth.py run=outputs/gpt out=growth.png

run   the folder of a run, or a folder of runs, of which it draws the newest (outputs)
out   the picture, .png, .svg, .pdf, .eps or .jpg (growth.png)
rows  at how many of the evaluations what it wrote is shown; the first and the last are among them (7)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands.door import run_command
    from lmlab.commands.options import parse_script
    from lmlab.commands.picture import check_picture, new_figure, save_picture
    from lmlab.errors import UserError, printable
    from lmlab.markers import PathText
    from lmlab.runs.folder import newest, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 60  # characters of a sample that are shown


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    run: PathText = "outputs"
    out: PathText = "growth.png"
    rows: Annotated[int, "[2, 10]"] = 7


def main(argv: list[str]) -> None:
    """Writes the picture and prints its path. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    run = newest(Path(options.run), "run", ["history.jsonl"])
    history = read_history(run)
    evaluations = [point for point in history if can_be_shown(point)]
    if len(evaluations) < 2:
        raise UserError(f"{run}/history.jsonl: has fewer than two evaluations with a sample")
    figure = new_figure(width=9.2, height=3.4)
    curve, texts = figure.subplots(1, 2, width_ratios=(5, 6))
    draw_curve(curve, history, evaluations)
    write_samples(texts, spread(evaluations, options.rows))
    save_picture(figure, options.out, dpi=100)
    print(options.out)


def can_be_shown(point: dict[str, Any]) -> bool:
    """Returns whether a line of history is an evaluation with a loss and a text."""
    return isinstance(point.get("val/loss"), float) and isinstance(point.get("sample"), str)


def spread(points: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Returns at most `n` of the points, evenly spread from the first to the last."""
    if len(points) <= n:
        return points
    return [points[round(i * (len(points) - 1) / (n - 1))] for i in range(n)]


def draw_curve(
    axes: Axes, history: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> None:
    """Draws the loss on the text that is learnt from, and on the text that is kept apart."""
    learnt = [
        (point["step"], point["train/loss"])
        for point in history
        if isinstance(point.get("train/loss"), float)
    ]
    judged = [(point["step"], point["val/loss"]) for point in evaluations]
    if learnt:
        axes.plot(*zip(*learnt, strict=True), color="C0", alpha=0.35, lw=1, label="train/loss")
    axes.plot(*zip(*judged, strict=True), color="C0", marker="o", ms=4, label="val/loss")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


def write_samples(axes: Axes, evaluations: list[dict[str, Any]]) -> None:
    """Writes a row for each evaluation: its step, its loss, and what the model wrote then."""
    axes.set_axis_off()
    axes.set_title("what it writes", loc="left", fontsize="medium")
    height = 1 / len(evaluations)  # of a row; all of the panel is 1
    for n, point in enumerate(evaluations):
        top = 1 - n * height
        about = f"step {point['step']:,}, val/loss {point['val/loss']:.2f}"
        written = one_line(point["sample"])
        axes.text(0, top - 0.3 * height, about, color="C0", fontsize=8, va="center")
        axes.text(0, top - 0.7 * height, written, family="monospace", fontsize=8, va="center")


def one_line(sample: str) -> str:
    """Returns the beginning of a sample in one line; matplotlib would read a $ as mathematics."""
    return printable(" ".join(sample.split()))[:WIDTH].replace("$", r"\$")


if __name__ == "__main__":
    run_command(main)
