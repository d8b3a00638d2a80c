"""Draws with matplotlib into files, without a display."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab import files
from lmlab.errors import UserError
from lmlab.registry import importing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf", ".eps", ".jpg")


def new_figure(width: float = 8, height: float = 4.5) -> Figure:
    """Returns an empty figure, which belongs to no window; the sizes are in inches."""
    with importing():
        from lmlab.commands.figure import ShownFigure
    return ShownFigure(figsize=(width, height), layout="constrained")


def check_picture(out: str) -> None:
    """Raises UserError if `out` is not the name of a picture."""
    if Path(out).is_dir() or Path(out).suffix.lower() not in FORMATS:
        raise UserError(
            f"out={out}: needs the name of a picture, such as curves.png; its ending is one of "
            f"{', '.join(FORMATS)}"
        )


def save_picture(figure: Figure, out: str) -> None:
    """Writes a figure to the file `out`, whose ending names the format: all of it or nothing.

    Raises UserError.
    """
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format=Path(out).suffix.lower().removeprefix("."))
    files.write(Path(out), content.getvalue())
