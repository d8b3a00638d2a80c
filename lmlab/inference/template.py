"""Fills a template with a title and data: an HTML page that needs no other file."""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

# What the pages of the lab have in common.
SHARED = {
    name: Path(__file__).with_name(file).read_text(encoding="utf-8").rstrip()
    for name, file in (("look", "look.css"), ("signs", "signs.js"))
}
# Shown in the place of the page by a browser that runs no scripts.
SHARED["noscript"] = (
    "<noscript><style>body > :not(noscript) { display: none; }</style>"
    "<p>This page needs JavaScript, which this browser does not run.</p></noscript>"
)
MARK = re.compile(r"/\*(look|signs|code|data)\*/|<!--(title|unit|Unit|noscript)-->")


def fill_page(
    template: Path, title: str, data: dict[str, Any], unit: str = "", code: str = ""
) -> bytes:
    """Returns `template` with the title and the data, escaped so that they cannot act as HTML.

    `unit` is what the page calls a token. `code` is JavaScript that the page takes as it is.
    """
    content = json.dumps(plain(data), allow_nan=False)
    content = content.replace("<", "\\u003c")  # so the data cannot end its element
    parts = SHARED | {
        "data": content,
        "code": code,
        "title": html.escape(title),
        "unit": unit,
        "Unit": unit.capitalize(),
    }
    page = template.read_text(encoding="utf-8")
    # In one go, so that nothing that is filled in can hold a mark.
    page = MARK.sub(lambda mark: parts[mark[1] or mark[2]], page)
    return page.encode(errors="xmlcharrefreplace")  # a name may hold half a character


def plain(x: Any) -> Any:
    """Returns `x` in the types of JSON. Numbers have six digits; NaN and infinity become None."""
    if isinstance(x, dict):
        return {str(key): plain(item) for key, item in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [plain(item) for item in x]
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float):
        if not math.isfinite(x):
            return None
        return float(f"{x:.6g}")
    if isinstance(x, str | int | bool | None):
        return x
    return str(x)
