"""Writes the notebook twin of LEARN.md: the same words and pictures, and each command as a cell that runs.

  python scripts/learn_notebook.py
  python scripts/learn_notebook.py page=LEARN.md out=examples/learn.ipynb

page  the page, whose links and pictures are found from the notebook's folder, too (LEARN.md)
out   the notebook (examples/learn.ipynb)

Do not edit the notebook: edit the page, and write it again. Its cells have no outputs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab import files
    from lmlab.commands.door import run_command
    from lmlab.commands.options import check_file, parse_script
    from lmlab.errors import UserError
    from lmlab.markers import PathText

ROOT = Path(__file__).resolve().parents[1]
BEGINNING = """# All commands run in the folder of the checkout, with the Python of this notebook.
import os
import sys

if not os.path.exists("lmlab"):  # as in the folder examples
    os.chdir("..")
if not (os.path.exists("lmlab") and os.path.exists("train.py")):
    raise FileNotFoundError("this notebook belongs in the folder examples of a checkout of lmlab")
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]"""

COMMANDS = re.compile(r"^```sh\n(.*?)^```\n", re.M | re.S)
# A link to a file: not to an address, nor to a place in the page.
LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    page: PathText = str(ROOT / "LEARN.md")
    out: PathText = str(ROOT / "examples/learn.ipynb")


def main(argv: list[str]) -> None:
    """Writes the notebook and prints its path. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_file(options.out)
    if Path(options.out).suffix != ".ipynb":
        raise UserError(f"out={options.out}: needs the name of a notebook, such as learn.ipynb")
    text = text_of_page(Path(options.page))
    page, out = Path(options.page).resolve(), Path(options.out).resolve()
    files.write(out, notebook(text, page, out.parent).encode())
    print(options.out)


def text_of_page(page: Path) -> str:
    """Returns the text of a page that has a title. Raises UserError."""
    text = files.read_text(page, 2**24, f"page={page}")
    if "\n\n" not in text:
        raise UserError(f"page={page}: needs a title, an empty line, and more")
    return text


def notebook(text: str, page: Path, folder: Path) -> str:
    """Returns the notebook of a page with the text `text`, for a folder, as JSON."""
    to_page = os.path.relpath(page.parent, folder)
    linked = LINK.sub(lambda link: f"]({to_page}/{link[1]})", text)
    cells = [cell(n, *kind_and_source) for n, kind_and_source in enumerate(parts(linked))]
    content = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def parts(text: str) -> Iterator[tuple[str, str]]:
    """Yields the kind and the source of each cell: the words, and the commands between them."""
    title, rest = text.split("\n\n", 1)
    yield "markdown", title
    yield "code", BEGINNING
    pieces = COMMANDS.split(rest)
    for n, piece in enumerate(pieces):
        if n % 2 == 0:
            for section in re.split(r"\n(?=## )", piece):
                if section.strip():
                    yield "markdown", section.strip()
        else:
            yield "code", "\n".join(f"!{command}" for command in piece.splitlines())


def cell(n: int, kind: str, source: str) -> dict[str, Any]:
    """Returns cell number n. The source of a cell of words or of code is a list of lines."""
    about: dict[str, Any] = {"cell_type": kind, "id": f"cell-{n:02}", "metadata": {}}
    if kind == "code":
        about |= {"execution_count": None, "outputs": []}
    return about | {"source": source.splitlines(keepends=True)}


if __name__ == "__main__":
    run_command(main)
