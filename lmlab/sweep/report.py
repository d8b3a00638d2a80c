"""What a sweep ends with: the leaderboard in the terminal, as CSV, Markdown, and one HTML page that
needs no other.
"""

import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lmlab import files
from lmlab.catalogue import NUMBERS, REFERENCES, numbers_where
from lmlab.inference.page import fill_page
from lmlab.runs.folder import read_history
from lmlab.sweep import table as tables
from lmlab.sweep.cells import ENDED, Sweep
from lmlab.sweep.planner import planner

PAGE = Path(__file__).with_name("report.html")
POINTS = 200  # of a curve
SAMPLES = 40


def finish(sweep: Sweep, launcher: str) -> bool:
    """Shows and writes what came of the sweep; whether all of its cells have come to an end of
    their own.
    """
    table = tables.load_runs(sweep.folder)
    board = tables.leaderboard(table)
    winner = table[(table["group"] == board["group"][0]) & (table["status"] == "finished")]
    winner = winner[winner["test_fraction"] > 0]
    todo = [path for path in winner["path"] if "test/loss" not in tables.load_run(Path(path))[1]]
    if todo:  # the winner was chosen on the validation split, which flatters it
        planner(launcher).evaluate_test_splits(todo)
        table = tables.load_runs(sweep.folder)
    show(table)
    write(table, sweep.folder, sweep.name)
    return bool(table["status"].isin(ENDED).all()) and not table.attrs["faults"]


def show(table: pd.DataFrame) -> None:
    """The leaderboard, and what isn't finished with its reason, in the terminal."""
    board, keys = tables.leaderboard(table), tables.varied(table)
    shown = columns(board, keys)
    rich = Table(
        caption=footnote(table, board), caption_justify="left", box=None, header_style="bold"
    )
    textual = (*keys, "like the best", "not finished")
    for name in shown.columns:
        rich.add_column(name, justify="left" if name in textual else "right", overflow="fold")
    for n, row in enumerate(shown.itertuples(index=False)):
        rich.add_row(*map(str, row), style="bold" if n == 0 else None)
    console = Console(
        width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False
    )
    console.print()
    console.print(rich)
    failed = list(tables.unfinished(table))
    if failed:
        rows = Table(box=None, header_style="bold")
        for name in ("not finished", "status", "why"):
            rows.add_column(name, overflow="fold")
        for row in failed:
            rows.add_row(*row)
        console.print()
        console.print(rows)
    for fault in table.attrs["faults"]:
        console.print(f"left out      {fault}", soft_wrap=True)


def columns(board: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The leaderboard as people read it, all of it text. The last column alone is about time."""
    loss, rows = tables.objective(board), []
    for n, row in board.iterrows():
        ranked = not math.isnan(row[loss])
        p, like = row["p"], row["like_best"]
        rows.append(
            {
                "": str(n + 1) if ranked else "–",
                loss: number(row[loss]),
                "±": number(row["se"]),
                "n": str(row["n"]),
                "like the best": "best"
                if n == 0 and ranked
                else ""
                if not ranked
                else "too few seeds"
                if like is None
                else f"{'yes' if like else 'no'} (p {p:.2g})",
                **{key: value(row[key]) for key in keys},
                **{
                    NUMBERS[key].label or key: number(row[key])
                    for key in numbers_where("in_report")
                    if key in board and board[key].notna().any()
                },
                "parameters": f"{row['n_params']:,.0f}"
                if row.get("n_params") == row.get("n_params")
                else "",
                "not finished": row["not_finished"],
                "seconds": number(row.get("train_seconds", math.nan), 1),
            }
        )
    shown = pd.DataFrame(rows)
    return shown if board["not_finished"].any() else shown.drop(columns="not finished")


def number(x: float, digits: int = 4) -> str:
    return "" if x is None or math.isnan(x) else f"{x:.{digits}f}"


def value(x: Any) -> str:
    if isinstance(x, float | np.floating):
        return "" if math.isnan(x) else f"{x:.6g}"
    return "null" if x is None else str(x)


def footnote(table: pd.DataFrame, board: pd.DataFrame) -> str:
    text = (
        f"{tables.objective(board)} at the end: mean over n seeds, ± its standard error. Like the best: not to be "
        f"told from it ({tables.TEST}; a p is after correction)."
    )
    if table["data_sha256"].nunique() > 1 or table["val_fraction"].nunique() > 1:
        text += " Not all were validated on the same text: their losses are no ranking."
    ranked = int(board[tables.objective(board)].notna().sum())
    if "test/loss" in board and board["test/loss"].notna().any():
        return f"{text} test/loss is that of the best alone, on text that chose nothing."
    if ranked > 1:
        return (
            f"{text} The best of {ranked} on one split flatters; with test_fraction=0.1 the best is measured on "
            "another."
        )
    return text


def write(table: pd.DataFrame, folder: Path, title: str) -> None:
    """leaderboard.csv (numbers as they are), leaderboard.md and report.html into `folder`."""
    board = tables.leaderboard(table)
    shown = columns(board, tables.varied(table))
    lines = [
        "| " + " | ".join(map(str, row)) + " |"
        for row in (shown.columns, ["---"] * len(shown.columns), *shown.itertuples(index=False))
    ]
    rows = [
        f"- {label}: {status}" + f", {why}" * bool(why)
        for label, status, why in tables.unfinished(table)
    ]
    markdown = "\n".join([*lines, "", footnote(table, board), *(["", *rows] if rows else []), ""])
    files.write(folder / "leaderboard.csv", board.to_csv(index=False).encode())
    files.write(folder / "leaderboard.md", markdown.encode())
    files.write(folder / "report.html", fill_page(PAGE, title, page_data(table, board, title)))
    print(f"\nreport        {folder / 'report.html'}\ncurves        tensorboard --logdir {folder}")


def page_data(table: pd.DataFrame, board: pd.DataFrame, title: str) -> dict[str, Any]:
    """All that the page draws."""
    keys, loss = tables.varied(table), tables.objective(table)
    shown = columns(board, keys)
    configuration = [
        key
        for key in table.columns[: table.columns.get_loc("reason")]
        if key not in ("seed", "name")
    ]
    rows = []
    for n, row in board.iterrows():
        members = table[table["group"] == row["group"]]
        first = members.iloc[0]
        rows.append(
            {
                "name": ", ".join(f"{key}={value(row[key])}" for key in keys)
                or str(first["model"]),
                "cells": list(shown.iloc[n]),
                "values": {key: row[key] for key in keys},
                "loss": row[loss],
                "se": row["se"],
                "like_best": row["like_best"],
                "config": {key: value(first[key]) for key in configuration},
                "curves": curves(members),
                "runs": [
                    {
                        "seed": run["seed"],
                        "status": run["status"],
                        "loss": run[loss] if run["status"] == "finished" else None,
                        "label": run["label"],
                    }
                    for _, run in members.iterrows()
                ],
            }
        )
    made = {
        key: sorted({str(run) for run in table[key].dropna()})
        for key in ("torch", "git_commit", "machine", "command")
        if key in table
    }
    return {
        "title": title,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "columns": list(shown.columns),
        "references": references(table),
        "keys": keys,
        "loss": loss,
        "footnote": footnote(table, board),
        "rows": rows,
        "from": made,
        "samples": samples(table[table["group"] == board["group"][0]]),
        "unfinished": [list(one) for one in tables.unfinished(table)],
    }


def references(table: pd.DataFrame) -> list[list[Any]]:
    """What counting reaches, name and loss, if all runs were validated on the same text."""
    wanted = [*REFERENCES, "reference/order"]
    known = table[[name for name in wanted if name in table]].dropna().drop_duplicates()
    if known.shape != (1, len(wanted)):
        return []
    (losses,) = known.to_dict("records")
    order = losses["reference/order"]
    return [[words.format(order=order), losses[name]] for name, words in REFERENCES.items()]


def curves(members: pd.DataFrame) -> dict[str, Any]:
    """Of the finished seeds, at the steps that all have: the mean of each loss and its standard
    error. Of what diverged, where. A step's tokens and FLOPs are fixed, its seconds a mean.
    """
    done, marks, per_step = [], [], {}
    begun = members[members["step"] > 0]
    members = members[~((members["status"] == "finished") & members.duplicated(["status", "seed"]))]
    for _, run in members.iterrows():
        lines = (
            read_history(Path(run["path"]))
            if (Path(run["path"]) / "history.jsonl").exists()
            else []
        )
        if run["status"] == "finished":
            done.append(lines)
        elif run["status"] == "diverged":
            last = [line["val/loss"] for line in lines if line.get("val/loss") is not None]
            marks.append(
                {"step": run["step"], "seed": run["seed"], "loss": last[-1] if last else None}
            )
    for key in ("tokens", "flops"):
        known = begun[begun[key].notna()] if key in begun else begun[:0]
        per_step[key] = known[key].iloc[0] / known["step"].iloc[0] if len(known) else None
    answer = {"marks": marks, "per_step": per_step}
    for key in numbers_where("ranks"):
        found = [
            {line["step"]: line[key] for line in lines if line.get(key) is not None}
            for lines in done
        ]
        steps = sorted(set.intersection(*map(set, found))) if found else []
        steps = [
            steps[i]
            for i in sorted(
                set(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))
            )
        ]
        values = (
            np.array([[one[step] for step in steps] for one in found])
            if steps
            else np.zeros((1, 0))
        )
        spread = (
            values.std(axis=0, ddof=1) / math.sqrt(len(values))
            if len(values) > 1
            else np.zeros(len(steps))
        )
        timed = [
            [
                (0, 0.0),
                *(
                    (line["step"], line["train_seconds"])
                    for line in lines
                    if "train_seconds" in line
                ),
            ]
            for lines in done
        ]
        clocks = [np.interp(steps, *zip(*points, strict=True)) for points in timed]
        answer[key] = {
            "step": steps,
            "mean": values.mean(axis=0),
            "se": spread,
            "seconds": np.mean(clocks, axis=0) if steps else [],
        }
    return answer


def samples(members: pd.DataFrame) -> dict[str, Any] | None:
    """What the first of the finished seeds wrote at its evaluations, the first and the last among
    those shown; None where none did.
    """
    for _, run in members[members["status"] == "finished"].sort_values("seed").iterrows():
        name = Path(run["path"]) / "history.jsonl"
        lines = [
            line
            for line in (read_history(name.parent) if name.exists() else [])
            if "sample" in line
        ]
        if lines:
            shown = sorted(
                set(np.linspace(0, len(lines) - 1, min(SAMPLES, len(lines))).astype(int))
            )
            return {
                "seed": run["seed"],
                "lines": [
                    {
                        "step": lines[i]["step"],
                        "loss": lines[i].get("val/loss"),
                        "text": str(lines[i]["sample"]),
                    }
                    for i in shown
                ],
            }
    return None
