"""Compares runs: a leaderboard of configurations, averaged over their seeds.

  python scripts/compare.py outputs/sweeps/depth outputs/sweeps/width

Takes folders of runs, and reads every run below them. Then, as key=value:

out  where leaderboard.csv, leaderboard.md and report.html are written (the given folder; of
     several the one that they lie in)

Configurations are ranked by val/loss at the end of training, the mean over seeds. Only the runs'
folders are read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lmlab.commands.options import parse_script
from lmlab.errors import UserError


@dataclass(frozen=True)
class Options:
    """The options after the folders; --help explains them."""

    out: str | None = None


def main(argv: list[str]) -> None:
    """Prints the leaderboard and writes it. Raises UserError."""
    folders = [argument for argument in argv if is_folder(argument)]
    others = [argument for argument in argv if argument not in folders]
    options = parse_script(Options, __doc__, others)
    if not folders:
        raise UserError("compare.py needs a folder of runs, such as outputs/sweeps/depth")
    from lmlab.sweep import load_runs, report

    table = load_runs(*folders)
    report.show(table)
    out = Path(options.out or os.path.commonpath(folders))
    report.write(table, out, ", ".join(Path(folder).name for folder in folders))


def is_folder(argument: str) -> bool:
    """Returns whether an argument names a folder: its name may contain "=" only if it exists."""
    if argument.startswith("-"):
        return False
    return "=" not in argument or Path(argument).exists()
