"""What a trained model makes of a text, character by character, as one page for the browser:

  python scripts/explain.py run=outputs/gpt/2026-11-22_10-00-00 text="The cat sat." out=explain.html

run         a run's folder, or a folder of runs, of which the newest is taken (outputs) text
2 to 2,000 characters (null: how the run's own validation text begins) out         the page
(explain.html) checkpoint  best | last (best) device      auto | cpu | cuda | mps (auto)

The page shows how surprised the model was by each character, what it expected instead, and as far
as it has them its attention, its table beside the counts, and its embeddings. It needs no other
file and no network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.commands.options import parse_script
from lmlab.errors import one_line_errors, printable
from lmlab.registry import importing


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    text: str | None = None
    out: str = "explain.html"
    checkpoint: Literal["best", "last"] = "best"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    with importing():  # torch: after the arguments hold
        from lmlab.inference import explain
        from lmlab.runs import checkpoints

    run = checkpoints.load(Path(options.run), options.checkpoint, options.device)
    for key, value in explain.write(run, options.text, Path(options.out)).items():
        print(printable(f"{key:<21}{value}"), file=sys.stderr)
    print(options.out)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
