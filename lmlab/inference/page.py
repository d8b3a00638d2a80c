"""HTML pages that need no other: a template, a title, and the data that its script draws."""

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np


def fill_page(template: Path, title: str, data: dict[str, Any]) -> bytes:
    """The page of `template` with the title and the data in their places. Neither can become markup
    or code.
    """
    content = json.dumps(plain(data), allow_nan=False).replace(
        "<", "\\u003c"
    )  # so no mark for the title is in it
    page = (
        template.read_text()
        .replace("/*data*/", content)
        .replace("<!--title-->", html.escape(title))
    )
    return page.encode(
        errors="xmlcharrefreplace"
    )  # half a character in a name is none that UTF-8 has


def plain(x: Any) -> Any:
    """JSON's own types; numbers of six digits, null for those that aren't finite."""
    if isinstance(x, dict):
        return {str(key): plain(item) for key, item in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [plain(item) for item in x]
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x if isinstance(x, str | int | bool | None) else str(x)
