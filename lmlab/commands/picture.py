"""Draws with matplotlib into files, without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab import files
from lmlab.errors import UserError
from lmlab.registry import importing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf", ".eps", ".jpg")
# The time of drawing is left out, so that the same numbers make the same file.
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def new_figure(width: float = 8, height: float = 4.5) -> Figure:
    """Returns an empty figure, which belongs to no window; the sizes are in inches."""
    with importing():
        from lmlab.commands.figure import ShownFigure
    return ShownFigure(figsize=(width, height), layout="constrained")


def check_picture(
    out: str, key: str = "out", example: str = "curves.png", formats: Sequence[str] = FORMATS
) -> None:
    """Raises UserError if `out`, the value of `key`, is not the name of a picture."""
    if Path(out).is_dir() or Path(out).suffix.lower() not in formats:
        raise UserError(
            f"{key}={out}: needs the name of a picture, such as {example}; its ending is one of "
            f"{', '.join(formats)}"
        )


def save_picture(figure: Figure, out: str, dpi: int = 120) -> None:
    """Writes a figure to the file `out`, whose ending names the format: all of it or nothing.

    Raises UserError.
    """
    content = io.BytesIO()
    format_ = Path(out).suffix.lower().removeprefix(".")
    figure.savefig(content, dpi=dpi, format=format_, metadata=UNDATED.get(format_))
    files.write(Path(out), content.getvalue())
