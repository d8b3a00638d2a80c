"""Compares runs: a leaderboard of configurations, averaged over their seeds.

  python scripts/compare.py outputs/sweeps/depth outputs/sweeps/width

Its arguments are folders; it reads every run in them. The options, as key=value:

out  folder for leaderboard.csv, leaderboard.md and report.html (the given folder; for several
     folders, the one that contains all of them)
plugin     the files or modules with which the runs were made, as for train.py (null)
same_code  true: it does not matter that different code of the lab made the runs (false)

Configurations are ranked by val/loss at the end of training, as a mean over seeds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lmlab.catalogue import PathText
from lmlab.commands.options import parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.errors import UserError
from lmlab.runs.typed import program


@dataclass(frozen=True)
class Options:
    """The options after the folders; --help explains them."""

    out: PathText | None = None
    plugin: PathText | None = None
    same_code: bool = False


@with_own_choices
def main(argv: list[str]) -> None:
    """Prints the leaderboard and writes it. Raises UserError."""
    folders = [argument for argument in argv if is_folder(argument)]
    others = [argument for argument in argv if argument not in folders]
    if {"-h", "--help"} & set(others):
        others = argv  # none of them has an effect
    options = parse_script(Options, __doc__, others)
    if not all(folders):
        raise UserError("'': is empty; needs the name of a folder")
    if not folders:
        raise UserError(
            f"{program('compare')} needs a folder of runs, such as outputs/sweeps/depth"
        )
    from lmlab.sweeps import load_runs, report

    table = load_runs(*folders, same_code=options.same_code)
    out = Path(options.out or common_folder(folders))
    report.write(table, out, ", ".join(Path(folder).name for folder in folders))
    report.show(table)
    report.show_places(out)


def common_folder(folders: list[str]) -> str:
    """Returns the folder that contains all of `folders`, absolute if one of them is."""
    if any(Path(folder).is_absolute() for folder in folders):
        folders = [os.path.abspath(folder) for folder in folders]
    return os.path.commonpath(folders) or "."


def is_folder(argument: str) -> bool:
    """Returns whether an argument names a folder. If it contains "=", the folder must exist."""
    if argument.startswith("-"):
        return False
    return "=" not in argument or Path(argument).exists()
