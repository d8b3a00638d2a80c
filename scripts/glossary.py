"""Brings the line numbers in docs/glossary.md up to date: each link names the line that has its code.

  python scripts/glossary.py

page  the glossary, with links such as [`code`](../lmlab/models/gpt.py#L35) (docs/glossary.md)
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab import files
    from lmlab.commands.door import run_command
    from lmlab.commands.options import parse_script
    from lmlab.errors import UserError
    from lmlab.markers import PathText

LARGEST = 2**24  # bytes of a file that is read
LINK = re.compile(r"\[`(.+)`\]\((\S+)#L(\d+)\)")


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    page: PathText = str(Path(__file__).resolve().parents[1] / "docs/glossary.md")


def main(argv: list[str]) -> None:
    """Writes the page and prints its path. Raises UserError."""
    page = Path(parse_script(Options, __doc__, argv).page)
    text = files.read_text(page, LARGEST, f"page={page}")
    files.write(page, numbered(text, page.parent).encode())
    print(page)


def numbered(text: str, folder: Path) -> str:
    """Returns the text of a page in `folder` with the numbers of the lines as they are now.

    Raises UserError if a file does not have the code of its link in exactly one line.
    """

    def renew(link: re.Match[str]) -> str:
        code, path, _ = link.groups()
        lines = files.read_text(folder / path, LARGEST, path).splitlines()
        found = [n for n, line in enumerate(lines, start=1) if code in line]
        if len(found) != 1:
            raise UserError(f"{path}: `{code}` stands in {len(found)} of its lines, not in one")
        return f"[`{code}`]({path}#L{found[0]})"

    return LINK.sub(renew, text)


if __name__ == "__main__":
    run_command(main)
