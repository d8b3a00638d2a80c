"""Figures of matplotlib: one that a notebook shows by itself, one that is ready for a paper."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

STYLE: dict[Any, Any] = {  # of a paper
    "font.size": 8,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # letters stay letters in the file
    "ps.fonttype": 42,
    "svg.fonttype": "path",  # a page need not have the font
    "svg.hashsalt": "lmlab",
}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which matplotlib has the settings of a figure for a paper."""
    with matplotlib.rc_context(STYLE):
        yield


class ShownFigure(Figure):
    """A figure that needs no pyplot, whose settings belong to the whole process.

    Its texts, such as n_layer=2, are no LaTeX, whatever a person's matplotlibrc says.
    """

    def draw(self, renderer: Any) -> None:
        """Draws the figure; matplotlib calls this."""
        with matplotlib.rc_context({"text.usetex": False}):
            for text in self.findobj(Text):
                text.set_usetex(False)
            super().draw(renderer)

    def _repr_html_(self) -> str:
        """Returns the figure as an <img>; a notebook calls this."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        data = base64.b64encode(content.getvalue()).decode()
        return f'<img alt="curves" src="data:image/png;base64,{data}">'


class PaperFigure(ShownFigure):
    """A figure whose file is ready for a paper: small, with its font in it."""

    def savefig(self, *arguments: Any, **options: Any) -> None:
        """Writes the figure as matplotlib does, with the settings of a paper."""
        with styled():
            super().savefig(*arguments, **options)
