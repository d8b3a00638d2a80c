"""Compares runs: a leaderboard of configurations, averaged over their seeds, or what you ask.

  python scripts/compare.py outputs/sweeps/depth outputs/sweeps/width
  python scripts/compare.py outputs/sweeps/depth vary=n_layer best=lr
  python scripts/compare.py outputs/sweeps/depth figure=depth.pdf x=n_layer best=lr

Its arguments are folders; it reads every run in them. The options, as key=value:

out  folder for leaderboard.csv, leaderboard.md and report.html (the given folder; for several
     folders, the one that contains all of them); another's file there is not replaced
vary       keys whose levels are compared, with commas between them, instead of all rows (null)
within     keys: they are compared within each level of these (null)
best       keys of which each level has its best value, such as lr (null)
record     a number, to which every row is compared (null)
table      a file for the table that is printed: .csv, in full precision, or .tex (null); like that
           of figure, it is replaced if it is there
figure     a picture with error bars, .pdf, .svg or .png (null)
x          the key along the figure (null)
hue        keys that make a line of the figure each (null)
plugin     the files or modules with which the runs were made, as for train.py (null)
same_code  true: it does not matter that different code of the lab made the runs (false)

Configurations are ranked by val/loss at the end of training, as a mean over seeds.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lmlab import files
from lmlab.commands.options import check_file, check_out, parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.commands.picture import check_picture, save_picture
from lmlab.errors import UserError
from lmlab.markers import PathText
from lmlab.runs.typed import program

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIGURES = (".pdf", ".svg", ".png")
TABLES = (".csv", ".tex")
DOTS = 300  # of a PNG, for an inch


@dataclass(frozen=True)
class Options:
    """The options after the folders; --help explains them."""

    out: PathText | None = None
    vary: str | None = None
    within: str | None = None
    best: str | None = None
    record: Annotated[float, "[-1e100, 1e100]"] | None = None
    table: PathText | None = None
    figure: PathText | None = None
    x: str | None = None
    hue: str | None = None
    plugin: PathText | None = None
    same_code: bool = False


@with_own_choices
def main(argv: list[str]) -> None:
    """Prints the comparison and writes its files. Raises UserError."""
    folders = [argument for argument in argv if is_folder(argument)]
    others = [argument for argument in argv if argument not in folders]
    if {"-h", "--help"} & set(others):
        others = argv  # none of them has an effect
    options: Options = parse_script(Options, __doc__, others)
    if not all(folders):
        raise UserError("'': is empty; needs the name of a folder")
    if not folders:
        raise UserError(
            f"{program('compare')} needs a folder of runs, such as outputs/sweeps/depth"
        )
    check_together(options)
    folders = without_files(folders)
    from lmlab.sweeps import load_runs, planned, report
    from lmlab.sweeps import table as tables

    out = Path(options.out or common_folder(folders))
    report.check_places(out)
    runs = load_runs(*folders, same_code=options.same_code)
    comparisons = None
    if options.vary is not None:
        comparisons = planned.comparisons(
            runs, options.vary, options.within, options.best, options.record
        )
    figure = None if options.figure is None else drawn(runs, options)
    loss = tables.objective(runs)
    obstacle = None
    try:  # before anything is shown, which may be cut short
        report.write(runs, out, ", ".join(Path(folder).name for folder in folders))
    except UserError as error:  # but the table is shown in any case
        obstacle = error
    doubts = [*report.doubts(runs, loss), *tables.unreadable(runs)]
    if options.table is not None and comparisons is None:
        board = tables.leaderboard(runs, options.record)
        write_table(board, tables.varied(runs), loss, doubts, options.table)
    elif options.table is not None and comparisons is not None:
        write_table(comparisons, planned.keys_of(comparisons), loss, doubts, options.table)
    if figure is not None and options.figure is not None:
        save_picture(figure, options.figure, DOTS)
    if comparisons is None:
        report.show(runs, options.record)
    else:
        report.show_planned(runs, comparisons, options.best, loss)
    if obstacle is None:
        is_common = out == common_folder(folders)
        report.show_places(out, str(out) if is_common else " ".join(map(str, folders)))
    elif options.out is not None:
        raise obstacle
    else:  # such as the folder of somebody else
        print(f"warning: {obstacle}; out= names another folder for the report", file=sys.stderr)
    for name in ("table", "figure"):
        if getattr(options, name):
            print(f"{name:<14}{getattr(options, name)}")


def without_files(names: list[str]) -> list[str]:
    """Returns the folders among names, and says what it leaves out.

    The pattern of a shell, such as outputs/sweeps/depth/*, also names files that the lab has written
    there. Returns all names if all are files.
    """
    files_named = [name for name in names if Path(name).is_file()]
    if len(files_named) == len(names):
        return names
    for name in files_named:
        print(f"left out: {name}: is a file, no folder of runs", file=sys.stderr)
    return [name for name in names if name not in files_named]


def check_together(options: Options) -> None:
    """Raises UserError for options that would have no effect, and names of files that do not fit."""
    needs = (
        ("within", options.within, "vary=", options.vary),
        ("x", options.x, "figure=", options.figure),
        ("hue", options.hue, "figure=", options.figure),
        ("best", options.best, "vary= or figure=", options.vary or options.figure),
        ("figure", options.figure, "x=, the key along it", options.x),
    )
    for name, value, needed, given in needs:
        if value is not None and given is None:
            raise UserError(f"{name}={value}: needs {needed}")
    if options.figure is not None:
        check_picture(options.figure, "figure", "figure.pdf", FIGURES)
        check_out(Path(options.figure), "figure")
    if options.table is not None:
        check_file(options.table, "table")
        if Path(options.table).suffix.lower() not in TABLES:
            raise UserError(
                f"table={options.table}: needs the name of a table; its ending is one of "
                f"{', '.join(TABLES)}"
            )
        check_out(Path(options.table), "table")


def drawn(runs: pd.DataFrame, options: Options) -> Figure:
    """Returns the figure, and prints what makes it doubtful. Raises UserError."""
    from lmlab.commands.error_bars import error_bars

    assert options.x is not None  # `check_together` has looked
    figure, warnings = error_bars(runs, options.x, options.hue, options.best)
    if options.vary is None:  # else the comparisons say them
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr)
    return figure


def write_table(
    table: pd.DataFrame, keys: list[str], loss: str, doubts: list[str], path: str
) -> None:
    """Writes a table as CSV, in full precision, or for LaTeX, with doubts. Raises UserError."""
    from lmlab.sweeps import latex

    content = table.to_csv(index=False)
    if Path(path).suffix.lower() == ".tex":
        content = latex.tabular(table, keys, loss, doubts)
    files.write(Path(path), content)


def common_folder(folders: list[str]) -> str:
    """Returns the folder that contains all of `folders`, absolute if one of them is."""
    if any(Path(folder).is_absolute() for folder in folders):
        folders = [os.path.abspath(folder) for folder in folders]
    return os.path.commonpath(folders) or "."


def is_folder(argument: str) -> bool:
    """Returns whether an argument names a folder. If it contains "=", the folder must exist."""
    if argument.startswith("-"):
        return False
    return "=" not in argument or os.path.exists(argument)
