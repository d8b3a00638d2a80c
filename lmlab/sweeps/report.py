"""Writes the leaderboard of a sweep: on the terminal, as CSV, as Markdown, and as a page.

The page, report.html, needs no other file.
"""

import io
import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lmlab import files
from lmlab.errors import UserError, reason_of
from lmlab.inference.template import fill_page
from lmlab.notebook import plain_console
from lmlab.numbers import NUMBERS, REFERENCES, numbers_where
from lmlab.runs.code import UNKNOWN, SameCode, own_code
from lmlab.runs.folder import read_history, warnings_of
from lmlab.sweeps import planned
from lmlab.sweeps import table as tables
from lmlab.sweeps.cells import ENDED, Sweep
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
    "leaderboard.md": rb" at the end: mean over n seeds, ",
    "report.html": rb"lmlab</title>",
}
POINTS = 200  # of a curve, at most
SAMPLES = 40  # texts, at most
WARNINGS = 5  # kinds of them, at most
WIDTH = 160  # characters of the printed leaderboard where there is no terminal

NAMED = 3  # of different versions or machines, those that are named
SPARSE = (SEEDS, "not finished")  # columns that are there if they have a text

Item = TypeVar("Item")


def finish(sweep: Sweep, launcher: str) -> bool:
    """Prints and writes the leaderboard of a sweep; returns whether all of its cells have ended.

    Cells of other code of the lab need not have ended, since this code will not continue them.
    Before that, it evaluates the best configuration on its test split, since the loss on the
    validation split was used to choose it and is partly luck.
    """
    table = tables.load_runs(sweep.folder)
    best = tables.leaderboard(table)["group"][0]
    winner = table[(table["group"] == best) & (table["status"] == "finished")]
    winner = winner[winner["test_fraction"] > 0]
    untested = [path for path in winner["path"] if not is_tested(path)]
    if untested:
        planner(launcher).evaluate_test_splits(untested)
        table = tables.load_runs(sweep.folder)
    show(table)
    try:
        write(table, sweep.folder, sweep.name)
        show_places(sweep.folder)
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
    """Returns a table of texts for the terminal, without its least columns if it is too wide."""
    left_out: list[str] = []
    bests = [name for name in texts.columns if name.startswith("best ")]
    least = [name for name in ("seconds", "parameters", *bests, "p", "±", SEEDS) if name in texts]
    printed = printed_board(texts, keys, caption)
    for name in least:
        if width_of(printed) <= console.width:
            break
        left_out.append(name)
        note = f"Not shown, for want of width: {', '.join(left_out)}."
        printed = printed_board(texts.drop(columns=left_out), keys, f"{caption} {note}")
    return printed


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
            printed.add_column(name, justify="left", no_wrap=True)
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
    for n, row in enumerate(tables.records(board)):
        texts = {
            "": place(row[loss], n),
            loss: decimal(row[loss]),
            "±": decimal(row["se"]),
            "n": str(row["n"]),
            TO_BEST: interval(row),
            SEEDS: needed(row),
        }
        if n == 0 and not math.isnan(row[loss]):
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
    """Returns the rank n + 1 as text, or a dash if the row has no loss."""
    if math.isnan(loss):
        return "–"
    return str(n + 1)


def footnote(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Returns the explanation of the columns of the leaderboard."""
    loss = tables.objective(board)
    sentences = [
        f"{loss} at the end: mean over n seeds, ± its standard error.",
    ]
    if board["p"].notna().any():
        sentences += explained(tables.records(board), "all rows")
    sentences += doubts(table, loss)
    n_ranked = int(board[loss].notna().sum())
    if "test/loss" in board and board["test/loss"].notna().any():
        sentences.append(
            "test/loss is measured for the best only, on text that was not used to choose it."
        )
    elif n_ranked > 1:
        sentences.append(
            f"The loss of the best of {n_ranked} is partly luck, since it was chosen by that loss; "
            "with test_fraction=0.1 it is also measured on other text."
        )
    return " ".join(sentences)


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
    if table["code"].nunique() > 1:
        sentences.append(
            f"Different code of the lab made these runs (column code; now {own_code()}); "
            "same_code=true calls all of it equal."
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
    files.write(folder / "report.html", fill_page(PAGE, title, page_data(table, board, title)))


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


def show_places(folder: Path) -> None:
    """Prints where the files of `write` are, and the command that shows the curves."""
    print(f"\nreport        {folder / 'report.html'}")
    print(f"curves        tensorboard --logdir {shlex.quote(str(folder))}")


def markdown(table: pd.DataFrame, board: pd.DataFrame) -> str:
    """Returns the leaderboard, its footnote and the runs that are not finished, as Markdown."""
    texts = columns(board, tables.varied(table))
    rows = [list(texts.columns), ["---"] * len(texts.columns), *texts.to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", footnote(table, board)]
    unfinished = []
    for label, *reasons in tables.unfinished(table):
        unfinished.append(f"- {label}: {', '.join(filter(None, reasons))}")
    if unfinished:
        lines += ["", *unfinished]
    return "\n".join([*lines, ""])


def page_data(table: pd.DataFrame, board: pd.DataFrame, title: str) -> dict[str, Any]:
    """Returns all data that the script of the page draws."""
    keys = tables.varied(table)
    loss = tables.objective(table)
    texts = columns(board, keys)
    rows = []
    for row, cells in zip(tables.records(board), texts.itertuples(index=False), strict=True):
        members = table[table["group"] == row["group"]]
        rows.append(page_row(row, list(cells), members, keys, loss))
    return {
        "title": title,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "columns": list(texts.columns),
        "references": [] if loss == tables.BITS else references(table),
        "keys": keys,
        "loss": loss,
        "unit": "bits per byte" if loss == tables.BITS else "nats per token",
        "footnote": footnote(table, board),
        "rows": rows,
        "from": origins(table),
        "samples": samples(table[table["group"] == board["group"][0]]),
        "unfinished": list(tables.unfinished(table)),
    }


def page_row(
    row: dict[str, Any], texts: list[str], members: pd.DataFrame, keys: Sequence[str], loss: str
) -> dict[str, Any]:
    """Returns the data that the page shows for one configuration.

    `texts` holds the text of each column in its row of the table."""
    runs = tables.records(members)
    shown_keys = [key for key in tables.configuration_keys(members) if key not in ("seed", "name")]
    name = ", ".join(f"{key}={plain(row[key])}" for key in keys)
    return {
        "name": name or str(runs[0]["model"]),
        "cells": texts,
        "values": {key: row[key] for key in keys},
        "loss": row[loss],
        "se": row["se"],
        "like_best": row["like_best"],
        "config": {key: plain(runs[0][key]) for key in shown_keys},
        "curves": curves(members, loss),
        "runs": [dot(run, loss) for run in runs],
    }


def dot(run: dict[str, Any], loss: str) -> dict[str, Any]:
    """Returns the data that the page shows for one run. Only a finished run has a loss."""
    value = run[loss] if run["status"] == "finished" else None
    return {"seed": run["seed"], "status": run["status"], "loss": value, "label": run["label"]}


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


def curves(members: pd.DataFrame, loss: str) -> dict[str, Any]:
    """Returns the curves of a configuration: means over its finished seeds, and diverged runs.

    All runs of a configuration have the same tokens and FLOPs at the same step.
    """
    histories = [history(run) for run in tables.records(tables.counted(members, loss))]
    diverged = tables.records(members[members["status"] == "diverged"])
    drawn: dict[str, Any] = {
        "marks": [mark(run, loss) for run in diverged],
        "per_step": {name: per_step(members, name) for name in ("tokens", "flops")},
    }
    for name in dict.fromkeys([*numbers_where("ranks"), loss]):
        drawn[name] = curve(histories, name)
    return drawn


def history(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the lines of a run's history.jsonl, or none if the file is missing.

    If it cannot be read, a warning says so.
    """
    path = Path(run["path"])
    if not (path / "history.jsonl").exists():
        return []
    try:
        return read_history(path)
    except UserError as error:
        print(f"warning: its curve is left out: {error}", file=sys.stderr)
        return []


def mark(run: dict[str, Any], loss: str) -> dict[str, Any]:
    """Returns the step at which a run diverged, and the number `loss` last before that step."""
    last = None
    for line in history(run):
        if line.get(loss) is not None:
            last = line[loss]
    return {"step": run["step"], "seed": run["seed"], "loss": last}


def per_step(members: pd.DataFrame, name: str) -> float | None:
    """Returns the tokens or FLOPs of a step, or None if no run has them."""
    if name not in members:
        return None
    runs = tables.records(members[(members["step"] > 0) & members[name].notna()])
    if not runs:
        return None
    return runs[0][name] / runs[0]["step"]


def curve(histories: list[list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """Returns the mean and standard error of a number over seeds, at the steps that all seeds have.

    `seconds` is the mean training time until each step.
    """
    by_step = [values_by_step(lines, name) for lines in histories]
    steps: list[int] = []
    if by_step:
        steps = thinned(sorted(set.intersection(*map(set, by_step))), POINTS)
    if not steps:
        return {"step": [], "mean": [], "se": [], "seconds": []}
    values = np.array([list(map(run.__getitem__, steps)) for run in by_step])
    spread = np.zeros(len(steps))
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return {
        "step": steps,
        "mean": values.mean(axis=0),
        "se": spread,
        "seconds": np.mean([seconds_at(steps, lines) for lines in histories], axis=0),
    }


def values_by_step(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Returns the finite values of a number in a history, by step."""
    return {line["step"]: line[name] for line in lines if line.get(name) is not None}


def seconds_at(steps: list[int], lines: list[dict[str, Any]]) -> np.ndarray:
    """Returns the seconds of training at `steps`, interpolated between the lines of a history."""
    timed = [line for line in lines if "train_seconds" in line]
    known_steps = [0, *(line["step"] for line in timed)]
    known_seconds = [0.0, *(line["train_seconds"] for line in timed)]
    return np.interp(steps, known_steps, known_seconds)


def samples(members: pd.DataFrame) -> dict[str, Any] | None:
    """Returns the samples of the first finished seed, by step, or None without samples."""
    finished = members[members["status"] == "finished"].sort_values("seed")
    for run in tables.records(finished):
        lines = [line for line in history(run) if "sample" in line]
        if lines:
            texts = [
                {
                    "step": line["step"],
                    "loss": line.get("val/loss"),
                    "text": str(line["sample"]),
                }
                for line in thinned(lines, SAMPLES)
            ]
            return {"seed": run["seed"], "lines": texts}
    return None


def thinned(items: Sequence[Item], limit: int) -> list[Item]:
    """Returns at most `limit` items at equal distances, always with the first and the last."""
    indices = np.linspace(0, len(items) - 1, min(limit, len(items))).astype(int)
    return [items[i] for i in np.unique(indices)]
