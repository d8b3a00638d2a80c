"""A figure of matplotlib that a notebook shows by itself."""

import base64
import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that needs no pyplot, whose settings belong to the whole process."""

    def _repr_html_(self) -> str:
        """Returns the figure as an <img>; a notebook calls this."""
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=100)
        data = base64.b64encode(content.getvalue()).decode()
        return f'<img alt="curves" src="data:image/png;base64,{data}">'
