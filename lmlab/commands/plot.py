"""Draws the loss curves of some runs in one picture.

  python scripts/plot.py runs="outputs/bigram outputs/gpt" out=curves.png

runs  folders of runs, with spaces between them; it draws the newest run of each (outputs)
out   the picture, .png or .svg (curves.png)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.catalogue import PathText
from lmlab.commands.options import parse_script
from lmlab.errors import UserError
from lmlab.runs.folder import newest, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES: dict[str, dict[str, Any]] = {
    "train/loss": {"alpha": 0.35, "lw": 1},
    "val/loss": {"marker": "o", "ms": 4},
}


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    runs: PathText = "outputs"
    out: PathText = "curves.png"


def main(argv: list[str]) -> None:
    """Writes the picture and prints its path. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    import matplotlib

    matplotlib.use("Agg")  # draws to files, and needs no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for n, folder in enumerate(options.runs.split()):
        draw(axes, newest(Path(folder)), color=f"C{n}")
    axes.set(xlabel="step", ylabel="loss, nats per character", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(options.out, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"out={options.out}: {error}") from None
    print(options.out)


def draw(axes: Axes, run: Path, color: str) -> None:
    """Draws the curves of one run, one for each loss in its history."""
    lines = read_history(run)
    for key, style in STYLES.items():
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            label = f"{run.parent.name}/{run.name}  {key}"
            axes.plot(*zip(*points, strict=True), color=color, label=label, **style)
