"""Writes one page with a trained model in it, which writes text in any browser, without Python.

  python scripts/page.py run=outputs/gpt/2026-11-22_10-00-00 out=model.html
  python scripts/page.py run=outputs/bigram,outputs/gpt out=two.html
  python scripts/page.py run=outputs/gpt before=true prompt="The cat"

run         the folder of a run, or a folder of runs, whose newest run is used (outputs); up to four
            with commas between them stand side by side, and write from one prompt
out         the page (model.html)
prompt      how the text on the page begins; whoever reads it can type another ("": a new line)
before      true shows the model beside itself as it was before its training (false)
weights     int16 | int8: how weights are rounded; int8 makes half the page, with a larger error
            (int16)
plugin      the files or modules with which the run was made, as for train.py (null)
checkpoint  best | last (best)

The page needs no other file, no network and no Python: send it to somebody. It shows the chances of
the next character, lets you choose another, and colours surprise and attention.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.commands.evaluate import run_folders
from lmlab.commands.options import check_file, parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.errors import UserError, printable
from lmlab.markers import LinesText, PathText
from lmlab.registry import importing

MOST = 4  # models that stand side by side


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    run: PathText = "outputs"
    out: PathText = "model.html"
    prompt: LinesText = ""
    before: bool = False
    weights: Literal["int16", "int8"] = "int16"
    plugin: PathText | None = None
    checkpoint: Literal["best", "last"] | None = None


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the page and prints its path. Raises UserError."""
    options: Options = parse_script(Options, __doc__, argv)
    for line in written(options):
        print(printable(line), file=sys.stderr)
    print("open it in any browser, or send it to somebody:", file=sys.stderr)
    print(options.out)


def written(options: Options) -> list[str]:
    """Writes the page, and returns a line about each model in it. Raises UserError."""
    check_file(options.out)
    if Path(options.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={options.out}: needs the name of a page, such as model.html")
    folders = run_folders(options.run)
    n = len(folders) + options.before
    if n > MOST:
        raise UserError(f"run={options.run}: makes {n} models; a page has at most {MOST}")
    with importing():  # torch: after the arguments hold
        from lmlab.inference import page
        from lmlab.runs import checkpoints

    runs = [checkpoints.load(folder, options.checkpoint, "cpu") for folder in folders]
    return page.write(runs, options.weights, options.before, options.prompt, Path(options.out))
