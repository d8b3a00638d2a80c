"""Draws with matplotlib into files, without a display."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab import files
from lmlab.errors import UserError, printable
from lmlab.registry import importing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf", ".eps", ".jpg")
SHOWN = 5  # characters that a font lacks
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
    """Raises UserError if `out`, the value of `key`, is not the name of a picture.

    Raises ModuleNotFoundError if what draws it is not installed.
    """
    if Path(out).is_dir() or Path(out).suffix.lower() not in formats:
        raise UserError(
            f"{key}={out}: needs the name of a picture, such as {example}; its ending is one of "
            f"{', '.join(formats)}"
        )
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(name="matplotlib")


def save_picture(figure: Figure, out: str, dpi: int = 120) -> None:
    """Writes a figure to the file `out`, whose ending names the format: all of it or nothing.

    Raises UserError.
    """
    content = io.BytesIO()
    format_ = Path(out).suffix.lower().removeprefix(".")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        figure.savefig(content, dpi=dpi, format=format_, metadata=UNDATED.get(format_))
    files.write(Path(out), content.getvalue())
    for line in in_words([str(warning.message) for warning in found]):
        print(f"warning: {out}: {line}", file=sys.stderr)


def in_words(messages: Sequence[str]) -> list[str]:
    """Returns what matplotlib warns of, each once; characters that its fonts lack in one line."""
    lacking = [match for text in messages if (match := re.match(r"Glyph (\d+) ", text))]
    codes = [int(match[1]) for match in lacking]
    lines = [" ".join(text.split()) for text in messages if not text.startswith("Glyph ")]
    if codes:
        shown = "".join(chr(code) for code in [*dict.fromkeys(codes)][:SHOWN])
        lines.append(
            f"the font lacks some characters, such as {shown}; boxes stand in their places"
        )
    return [printable(line) for line in dict.fromkeys(lines)]
