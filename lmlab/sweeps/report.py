"""Writes the leaderboard of a sweep: on the terminal, as CSV, as Markdown, and as a page.

The page, report.html, needs no other file.
"""

import io
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from lmlab import files
from lmlab.config.check import derived
from lmlab.errors import UserError, reason_of
from lmlab.inference.template import fill_page
from lmlab.notebook import plain_console
from lmlab.numbers import NUMBERS, REFERENCES, numbers_where
from lmlab.runs.code import UNKNOWN, SameCode, own_code
from lmlab.runs.folder import warnings_of
from lmlab.runs.typed import board_command
from lmlab.sweeps import planned
from lmlab.sweeps import table as tables
from lmlab.sweeps.cells import ENDED, Sweep
from lmlab.sweeps.curves import POINTS, Curves
from lmlab.sweeps.planner import planner
from lmlab.sweeps.words import (
    SEEDS,
    TO_BEST,
    TO_RECORD,
    decimal,
    explained,
    interval,
    needed,
    plain,
    whole,
)

PAGE = Path(__file__).with_name("report.html")
MARKS = {  # what every version of the lab has written into each file of `write`
    "leaderboard.csv": rb"\A[^\n]*\bgroup\b[^\n]*,n,[^\n]*\bse\b",
    "leaderboard.md": rb" at the end(: mean over n seeds|, of one seed each)",
    "report.html": rb"lmlab</title>",
}
ALL_POINTS = 30_000  # of the curves of one kind, so that a page of many rows opens fast
FEW_POINTS = 20  # that a curve has in any case
SAMPLED = 8  # rows that have texts, the best
WARNINGS = 5  # kinds of them, at most
WIDTH = 160  # characters of the printed leaderboard where there is no terminal

NAMED = 3  # of different versions or machines, those that are named
TOGETHER = "which"  # the column of all keys, where they have no room of their own
SPARSE = ("±", SEEDS, "not finished")  # columns that are there if they have a text


def finish(sweep: Sweep, launcher: str) -> bool:
    """Prints and writes the leaderboard of a sweep; returns whether all of its cells have ended.

    Cells of other code of the lab need not have ended, since this code will not continue them.
    Before that, it evaluates the best configuration on its test split, since the loss on the
    validation split was used to choose it and is partly luck.
    """
    table = tables.load_runs(sweep.folder)
    board = tables.leaderboard(table)
    bests = board["group"][tables.are_best(board)]
    winner = table[table["group"].isin(bests) & (table["status"] == "finished")]
    winner = winner[winner["test_fraction"] > 0]
    untested = [path for path in winner["path"] if not is_tested(path)]
    if untested:
        planner(launcher).evaluate_test_splits(untested)
        table = tables.load_runs(sweep.folder)
    show(table)
    try:
        write(table, sweep.folder, sweep.name)
        show_places(sweep.folder, str(sweep.folder))
    except Exception as error:  # the runs are done, whatever becomes of their page
        print(
            f"warning: the leaderboard's files were not written: {reason_of(error)}",
            file=sys.stderr,
        )
    equal = SameCode(sweep.own).equal_to(own_code()) | {UNKNOWN}
    mine = table[[not equal.isdisjoint(re.split("[+=]", code)) for code in table["code"]]]
    return bool(mine["status"].isin(ENDED).all()) and not table.attrs["faults"]


def is_tested(path: str) -> bool:
    """Returns whether the run's loss on its test split is known."""
    _, row = tables.load_run(Path(path))
    return "test/loss" in row


def show(table: pd.DataFrame, record: float | None = None) -> None:
    """Prints the leaderboard, the runs that are not finished, and those that cannot be read."""
    board = tables.leaderboard(table, record)
    keys = tables.varied(table)
    console = plain_console(WIDTH)
    console.print()
    console.print(fitted(console, columns(board, keys), keys, footnote(table, board)))
    show_others(console, table)


def show_planned(
    table: pd.DataFrame, comparisons: pd.DataFrame, best: str | None, loss: str
) -> None:
    """Prints planned comparisons, what is not finished, and warns of values at the edge."""
    console = plain_console(WIDTH)
    console.print()
    texts = planned.texts_of(comparisons, loss)
    note = planned.footnote_of(comparisons, loss, best)
    notes = [note, *doubts(table, loss)]
    console.print(fitted(console, texts, planned.keys_of(comparisons), " ".join(notes)))
    show_others(console, table)
    for line in planned.warnings_of(comparisons):
        print(f"warning: {line}", file=sys.stderr)


def show_others(console: Console, table: pd.DataFrame) -> None:
    """Prints the runs that are not finished, and those that cannot be read."""
    unfinished = list(tables.unfinished(table))
    if unfinished:
        rows = Table(box=None, header_style="bold")
        for name in ("not finished", "status", "why"):
            rows.add_column(name, overflow="fold")
        for row in unfinished:
            rows.add_row(*row)
        console.print()
        console.print(rows)
    for fault in table.attrs["faults"]:
        console.print(f"left out      {fault}", soft_wrap=True)


def fitted(console: Console, texts: pd.DataFrame, keys: Sequence[str], caption: str) -> Table:
    """Returns a table of texts for the terminal, without its least columns if it is too wide.

    If that is not enough, one column holds the values of all keys, and what is long, in several lines.
    """
    left_out: list[str] = []
    bests = [name for name in texts.columns if name.startswith("best ")]
    least = [name for name in ("seconds", "parameters", *bests, "p", "±", SEEDS) if name in texts]
    notes = [caption]
    shown = texts
    printed = printed_board(shown, keys, caption)
    for name in least:
        if width_of(printed) <= console.width:
            break
        left_out.append(name)
        notes = [caption, f"Not shown, for want of width: {', '.join(left_out)}."]
        shown = texts.drop(columns=left_out)
        printed = printed_board(shown, keys, " ".join(notes))
    if width_of(printed) > console.width and len(keys) > 1:
        notes.append("report.html has a column for each key.")
        printed = printed_board(with_keys_together(shown, keys), [TOGETHER], " ".join(notes))
    return printed


def with_keys_together(texts: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Returns a table of texts in which one column has what those of `keys` had, with their names."""
    named = []
    for row in tables.records(texts):
        named.append(", ".join(f"{key}={row[key]}" for key in keys if row[key]))
    others = [name for name in texts.columns if name not in keys]
    place = list(texts.columns).index(keys[0])
    without = texts[others]
    without.insert(min(place, len(others)), TOGETHER, named)
    return without


def width_of(printed: Table) -> int:
    """Returns the characters of the lines of a table that nothing cuts."""
    endless = Console(file=io.StringIO(), width=10_000)
    return endless.measure(printed).maximum


def printed_board(texts: pd.DataFrame, keys: Sequence[str], caption: str) -> Table:
    """Returns a table of texts for the terminal; the row of the best is bold."""
    printed = Table(
        caption=caption, caption_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for name in texts.columns:
        heading = name
        if name not in keys:
            heading = name.replace(" ", "\n")
        if name in (TO_BEST, TO_RECORD):
            printed.add_column(name, justify="left", overflow="fold")
        elif name in (*keys, "not finished"):
            printed.add_column(heading, justify="left", overflow="fold")
        else:
            printed.add_column(heading, justify="right", no_wrap=True)
    for row in texts.itertuples(index=False):
        printed.add_row(*map(str, row), style="bold" if "best" in row else None)
    return printed


def columns(board: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Returns the leaderboard with readable names and values: all are texts."""
    loss = tables.objective(board)
    means = [name for name in numbers_where("in_report") if name in board]
    means = [name for name in means if board[name].notna().any()]
    rows = []
    n = 0  # of a row among those of its text
    for row, is_best in zip(tables.records(board), tables.are_best(board), strict=True):
        n = 1 if is_best else n + 1
        texts = {
            "": place(row[loss], n),
            loss: decimal(row[loss]),
            "±": decimal(row["se"]),
            "n": str(row["n"]),
            TO_BEST: interval(row),
            SEEDS: needed(row),
        }
        if is_best:
            texts[TO_BEST] = "best"
        if "record_difference" in row:
            texts[TO_RECORD] = interval(row, "record_")
        for key in keys:
            texts[key] = plain(row[key])
        for name in means:
            texts[heading(name, loss)] = decimal(row[name])
        texts["parameters"] = whole(row.get("n_params"))
        texts["not finished"] = row["not_finished"]
        texts["seconds"] = decimal(row.get("train_seconds"), 1)
        rows.append(texts)
    board_of_texts = pd.DataFrame(rows)
    return board_of_texts.drop(columns=[name for name in SPARSE if not any(board_of_texts[name])])


def heading(name: str, loss: str) -> str:
    """Returns the heading of a column; `loss` ranks the runs, by bytes if their tokens differ."""
    text = NUMBERS[name].label or name
    if loss == tables.BITS and name in ("best/val/loss", "test/loss"):
        return f"{text} per token"
    return text


def place(loss: float, n: int) -> str:
    """Returns the rank n as text, or a dash if the row has no loss."""
    if math.isnan(loss):
        return "–"
    return str(n)


def footnote(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Returns the explanation of the columns of the leaderboard."""
    loss = tables.objective(board)
    sentences = [f"{loss} at the end: mean over n seeds, ± its standard error."]
    if board["n"].max() <= 1:
        sentences = [f"{loss} at the end, of one seed each."]
    sentences += explained(tables.records(board), lambda _: "all rows")
    sentences += doubts(table, loss)
    n_texts = int(tables.are_best(board).sum())
    if n_texts > 1:
        sentences.append("Each text has a ranking of its own.")
    n_ranked = int(board[loss].notna().sum())
    if "test/loss" in board and board["test/loss"].notna().any():
        sentences.append(
            "test/loss is measured for the best only, on text that was not used to choose it."
        )
    elif n_ranked > max(1, n_texts):  # else nothing was chosen
        best = f"best of {n_ranked}" if n_texts <= 1 else "best of a text"
        sentences.append(
            f"The loss of the {best} is partly luck, since it was chosen by that loss; with "
            "test_fraction=0.1 it is also measured on other text."
        )
    return " ".join(sentences)


def whole_footnote(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Returns the footnote of a file, which also names the runs that cannot be read."""
    return " ".join([footnote(table, board), *tables.unreadable(table)])


def doubts(table: pd.DataFrame, loss: str) -> list[str]:
    """Returns sentences about what makes the losses of a table hard to compare."""
    sentences = tables.other_texts(table)
    if loss == tables.BITS:
        sentences.append(
            "The tokenizers differ, so bits per byte are compared: a loss is that of a token."
        )
    elif tables.differ_in_tokens(table):
        sentences.append(
            f"The tokenizers differ, and {loss} is that of a token, so these losses cannot be compared; "
            "a text with a part for validation has bits per byte, which can."
        )
    sentences += tables.without_loss(table, loss)
    sentences += tables.partly_measured(table, loss)
    sentences += tables.ended_early(table)
    sentences += tables.tested_by_others(table)
    if {*table["code"]} == {UNKNOWN}:
        sentences.append(
            "They do not say which code of the lab made them: versions before 0.2 did not."
        )
    if table["code"].nunique() > 1:
        sentences.append(
            f"Different code, the lab's or a plug-in's, made these runs (column code; now {own_code()}); "
            "same_code=true calls all of it equal."
        )
    if table.attrs.get("called_equal"):
        sentences.append(
            "Different code made these runs, and was called equal by same_code=true: "
            f"{', '.join(table.attrs['called_equal'])}."
        )
    for name, of in (("torch", "versions of torch"), ("machine", "machines")):
        if name in table and table[name].nunique() > 1:
            values = sorted({str(value) for value in table[name].dropna()})
            more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
            sentences.append(f"Different {of} made these runs: {'; '.join(values[:NAMED])}{more}.")
    sentences += warned(table)
    return [*sentences, *tables.doubled(table, loss)]


def warned(table: pd.DataFrame) -> list[str]:
    """Returns sentences about what the runs have warned of, the most frequent first."""
    runs = [warnings_of(run) for run in tables.records(table)]
    counts = Counter(text for texts in runs for text in texts)
    sentences = [
        f"{n} of {len(runs)} {'run' if len(runs) == 1 else 'runs'} warned: {text}."
        for text, n in counts.most_common(WARNINGS)
    ]
    others = len(counts) - len(sentences)
    if others:
        sentences.append(f"Their train.log has {others:,} other warnings.")
    return sentences


def write(table: pd.DataFrame, folder: Path, title: str) -> None:
    """Writes leaderboard.csv (numbers in full), leaderboard.md and report.html into `folder`."""
    board = tables.leaderboard(table)
    files.write(folder / "leaderboard.csv", board.to_csv(index=False))
    files.write(folder / "leaderboard.md", markdown(table, board))
    curves = Curves()
    files.write(folder / "report.html", page(table, board, title, curves))
    for fault in curves.faults:
        print(f"warning: a curve is left out: {fault}", file=sys.stderr)


def page(
    table: pd.DataFrame,
    board: pd.DataFrame,
    title: str,
    curves: Curves,
    progress: dict[str, Any] | None = None,
) -> bytes:
    """Returns report.html. `progress` says how far the sweep is, if it still runs."""
    data = page_data(table, board, title, curves) | {"progress": progress}
    return fill_page(PAGE, title, data)


def check_places(folder: Path) -> None:
    """Raises UserError if `write` would replace a file in `folder` that the lab has not written.

    The folder of a sweep is the lab's own.
    """
    if (folder / ".sweep").is_dir():
        return
    for name, mark in MARKS.items():
        path = folder / name
        if path.is_file() and not re.search(mark, path.read_bytes()):
            raise UserError(
                f"{path}: is there and was not written by lmlab; out= names another folder for the "
                "report"
            )


def show_places(folder: Path, runs: str) -> None:
    """Prints where the files of `write` are, and the command that shows the curves of `runs`.

    These are folders with spaces between them.
    """
    print(f"\nreport        {folder / 'report.html'}")
    print(f"curves        {board_command(runs)}")


def markdown(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Returns the leaderboard, its footnote and the runs that are not finished, as Markdown."""
    texts = columns(board, tables.varied(table))
    rows = [list(texts.columns), ["---"] * len(texts.columns), *texts.to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", whole_footnote(table, board)]
    unfinished = []
    for label, *reasons in tables.unfinished(table):
        unfinished.append(f"- {label}: {', '.join(filter(None, reasons))}")
    if unfinished:
        lines += ["", *unfinished]
    return "\n".join([*lines, ""])


def page_data(
    table: pd.DataFrame, board: pd.DataFrame, title: str, curves: Curves
) -> dict[str, Any]:
    """Returns all data that the script of the page draws."""
    keys = tables.varied(table)
    loss = tables.objective(table)
    texts = columns(board, keys)
    names = [name for name in texts.columns if name not in keys]
    texts = texts[[*names[:2], *keys, *names[2:]]]  # what tells the rows apart is seen on a phone
    members = tables.by_group(table)
    counts = tables.by_group(tables.counted(table, loss))
    curves.limit = max(FEW_POINTS, min(POINTS, ALL_POINTS // len(board)))
    configs = [used_keys(members[group][0], table) for group in board["group"]]
    shared = common_items(configs)
    rows = []
    for n, (row, cells) in enumerate(
        zip(tables.records(board), texts.itertuples(index=False), strict=True)
    ):
        group = row["group"]
        drawn = page_row(row, list(cells), members[group], keys, loss)
        drawn["config"] = {key: text for key, text in configs[n].items() if key not in shared}
        drawn["curves"] = curves.of(group, members[group], counts.get(group, []), loss)
        drawn["samples"] = curves.samples_of(members[group]) if n < SAMPLED else None
        rows.append(drawn)
    now = datetime.now().astimezone()
    return {
        "title": title,
        "made": now.strftime("%Y-%m-%d %H:%M:%S"),
        "made_at": int(now.timestamp()),
        "columns": list(texts.columns),
        "references": [] if loss == tables.BITS else references(table),
        "keys": keys,
        "loss": loss,
        "unit": "bits per byte" if loss == tables.BITS else "nats per token",
        "footnote": whole_footnote(table, board),
        "config": shared,
        "rows": rows,
        "from": origins(table),
        "unfinished": list(tables.unfinished(table)),
    }


def page_row(
    row: dict[str, Any],
    texts: list[str],
    members: Sequence[dict[str, Any]],
    keys: Sequence[str],
    loss: str,
) -> dict[str, Any]:
    """Returns the data that the page shows for one configuration, without its curves.

    `texts` holds the text of each column in its row of the table."""
    model = str(members[0]["model"])
    unused = tables.unused_keys(model)
    named = [f"{key}={plain(row[key])}" for key in keys if key not in unused and plain(row[key])]
    return {
        "id": row["group"],
        "name": ", ".join(named) or model,
        "cells": texts,
        "values": {key: None if key in unused else row[key] for key in keys},
        "loss": row[loss],
        "runs": [dot(run, loss) for run in members],
    }


def dot(run: dict[str, Any], loss: str) -> list[Any]:
    """Returns the seed, status and loss of a run. Only a finished run has a loss."""
    return [run["seed"], run["status"], run[loss] if run["status"] == "finished" else None]


def used_keys(run: dict[str, Any], table: pd.DataFrame) -> dict[str, str]:
    """Returns the configuration of a run as texts, without what follows from other keys."""
    usual = derived(run)
    unused = tables.unused_keys(str(run["model"]))
    texts = {}
    for key in tables.configuration_keys(table):
        follows = key in usual and run[key] == usual[key]
        if key in ("seed", "name") or key in unused or follows:
            continue
        text = plain(run[key])
        if text:
            texts[key] = text
    return texts


def common_items(configs: Sequence[dict[str, str]]) -> dict[str, str]:
    """Returns the keys that have the same value in all of `configs`, with that value."""
    if not configs:
        return {}
    return dict(set.intersection(*(set(config.items()) for config in configs)))


def origins(table: pd.DataFrame) -> dict[str, list[str]]:
    """Returns the versions, commits, machines and commands of the runs."""
    names = [name for name in ("torch", "git_commit", "machine", "command") if name in table]
    return {name: sorted(set(table[name].dropna().map(str))) for name in names}


def references(table: pd.DataFrame) -> list[list[Any]]:
    """Returns the losses of the counting models by name, or none if the validation texts differ."""
    wanted = [*REFERENCES, "reference/order"]
    known = table[[name for name in wanted if name in table]].dropna().drop_duplicates()
    if known.shape != (1, len(wanted)):
        return []
    (losses,) = tables.records(known)
    order = losses["reference/order"]
    unit = "character" if (table["tokenizer"] == "char").all() else "token"
    return [
        [words.format(order=order, unit=unit), losses[name]] for name, words in REFERENCES.items()
    ]
