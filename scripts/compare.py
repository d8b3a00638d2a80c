"""Runs side by side, configurations ranked over their seeds:

  python scripts/compare.py outputs/sweeps/depth outputs/sweeps/width

Folders of runs; of every run below them. Then, as key=value:

out  where leaderboard.csv, leaderboard.md and report.html are written (the folder; of several the
one they lie in)

Ranked by val/loss at the end of training, the mean over seeds. Only what stands in the runs'
folders is read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lmlab.commands.options import parse_script
from lmlab.errors import UserError, one_line_errors


@dataclass(frozen=True)
class Options:
    out: str | None = None


def main(argv: list[str]) -> None:
    folders = [
        argument
        for argument in argv  # the name of one may contain "="
        if argument[:1] != "-" and ("=" not in argument or Path(argument).exists())
    ]
    options = parse_script(
        Options, __doc__, [argument for argument in argv if argument not in folders]
    )
    if not folders:
        raise UserError("compare.py needs a folder of runs, as outputs/sweeps/depth")
    from lmlab.sweep import load_runs, report

    table = load_runs(*folders)
    report.show(table)
    out = Path(options.out or os.path.commonpath(folders))
    report.write(table, out, ", ".join(Path(folder).name for folder in folders))


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
