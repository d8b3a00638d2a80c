"""Shows what a trained model expects in a text, character by character, as a page for a browser.

  python scripts/explain.py run=outputs/gpt/2026-11-22_10-00-00 text="The cat sat." out=explain.html

run         the folder of a run, or a folder of runs, whose newest run is used (outputs)
text        2 to 2,000 characters (null: the beginning of the run's own validation text)
path        where the run's own text is now, if it was moved (null: where it was)
out         the page (explain.html)
plugin      the files or modules with which the run was made, as for train.py (null)
checkpoint  best | last (best)
device      auto | cpu | cuda | mps (auto)

The page shows how surprised the model was by each character and what it expected instead. Where
the model has them, it also shows its attention, its table next to the counts, and its embeddings.
The page needs no other file and no network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.commands.door import Device
from lmlab.commands.options import check_file, parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.errors import UserError, printable
from lmlab.markers import LinesText, PathText
from lmlab.registry import importing


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    run: PathText = "outputs"
    text: LinesText | None = None
    path: PathText | None = None
    out: PathText = "explain.html"
    plugin: PathText | None = None
    checkpoint: Literal["best", "last"] | None = None
    device: Device = "auto"


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the page and prints its path. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_file(options.out)
    if Path(options.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={options.out}: needs the name of a page, such as explain.html")
    with importing():  # torch: after the arguments hold
        from lmlab.inference import explain
        from lmlab.inference.loss import with_text_at
        from lmlab.runs import checkpoints

    run = checkpoints.load(Path(options.run), options.checkpoint, options.device)
    if options.path and options.text is not None and run.model.pair_scores() is None:
        raise UserError(
            f"path={options.path}: has no effect with text=… on this model, which has no table of pairs"
        )
    run = with_text_at(run, options.path)
    for key, value in explain.write(run, options.text, Path(options.out)).items():
        print(printable(f"{key:<21}{value}"), file=sys.stderr)
    print(options.out)
