"""Shows a sweep while it runs: as a live table on a terminal, else with a line for each cell."""

import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmlab.errors import printable
from lmlab.notebook import Display, in_notebook, plain_console
from lmlab.numbers import decimal
from lmlab.sweeps.cells import Cell
from lmlab.sweeps.labels import common_parts, without

RECENT = 6  # cells that have ended, or that run elsewhere, in the table
REDRAW = 0.5  # seconds between two drawings of the table
TAIL = 4096  # bytes at the end of history.jsonl that hold the last point


class View:
    """Shows the cells of a sweep while its `with` block runs.

    `total` is the number of cells, or 0 if it is unknown. `labels` are the labels of the known
    cells. An override is not shown if all labels have it.
    """

    def __init__(self, total: int, labels: Iterable[str]) -> None:
        self.console = plain_console()
        self.total = total
        self.counts: Counter[str] = Counter()  # cells that have ended, by status
        self.recent: deque[tuple[str, str]] = deque(maxlen=RECENT)
        self.common = common_parts(labels)
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # a file gets its own lines
            )
        self.drawn_at = 0.0
        self.display = Display() if in_notebook() else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        if self.display:
            self.display.clear()

    def name(self, cell: Cell) -> str:
        """Returns the part of a cell's label that other cells do not have."""
        return without(cell.label, self.common)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a line about something that went wrong, to stderr."""
        print(printable(text), file=sys.stderr)

    def ended(self, cell: Cell, status: str, how: str) -> None:
        """Shows that a cell has ended. `how` says so if it was not this job."""
        self.counts[status] += 1
        result = result_of(cell, status, how)
        self.recent.append((self.name(cell), result))
        if self.live or self.display or how == "already":
            return
        count = f"{self.counts.total():>3}"
        if self.total:
            count += f" of {self.total}"
        tell = self.warn if status == "failed" else self.say
        tell(f"{count}  {self.name(cell)}: {result}")

    def refused(self, overrides: Iterable[str], why: str) -> None:
        """Shows that a search has proposed values that cannot be run."""
        self.counts["failed"] += 1
        self.warn(f"warning: {','.join(overrides)[:100]}: {why}")

    def show(self, running: list[Cell], elsewhere: list[Cell]) -> None:
        """Draws the table, on a terminal or in a notebook, unless it was drawn a moment ago."""
        if not (self.live or self.display) or time.monotonic() - self.drawn_at < REDRAW:
            return
        self.drawn_at = time.monotonic()
        table = Table(box=None, pad_edge=False)
        for name in ("cell", "state"):
            table.add_column(name, justify="left", overflow="fold")
        for name in ("step", "loss", "time left"):
            table.add_column(name, justify="right", overflow="fold")
        for name, result in self.recent:
            table.add_row(name, result, style="dim")
        for cell in running:
            table.add_row(self.name(cell), "running", *progress_columns(cell))
        for cell in elsewhere[:RECENT]:
            table.add_row(self.name(cell), "elsewhere", *progress_columns(cell))
        drawing = Group(table, Text(self.summary()))
        if self.live:
            self.live.update(drawing, refresh=True)
        if self.display:
            self.display.show(drawing)

    def summary(self) -> str:
        """Returns the line below the table: how many cells have ended, and with what status."""
        summary = f"{self.counts.total()} cells"
        if self.total:
            summary = f"{self.counts.total()} of {self.total} cells"
        if self.counts:
            counts = ", ".join(f"{n} {status}" for status, n in self.counts.items())
            summary += f": {counts}"
        return summary


def result_of(cell: Cell, status: str, how: str) -> str:
    """Returns the result of a cell, in one line."""
    metrics = cell.metrics()
    result = f"{status} {how}".strip()
    if metrics.get("reason"):
        result += f": {metrics['reason']}"
    if status not in ("finished", "pruned"):
        return result
    loss = metrics.get("val/loss")
    if loss is not None:
        result += f", val/loss {decimal(loss)}"
    objective = json.loads(cell.trial)["objective"] if cell.trial else "val/loss"
    if objective == "val/loss":
        return result
    value = metrics.get(objective)
    if value is None:
        return f"{result}, no {objective}"
    return f"{result}, {objective} {decimal(value)}"


def progress_columns(cell: Cell) -> tuple[str, str, str]:
    """Returns the progress of a cell as texts: step, loss, time left. Unknown ones are empty."""
    point = last_point(cell)
    steps = cell.config.run.max_steps
    step = point.get("step") or 0
    shown_loss = ""
    if point.get("train/loss") is not None:
        shown_loss = decimal(point["train/loss"])
    time_left = ""
    if step and point.get("train_seconds"):
        time_left = f"{(steps - step) * point['train_seconds'] / step:,.0f} s"
    progress = f"{step:,} / {steps:,}" if point else ""
    return progress, shown_loss, time_left


def last_point(cell: Cell) -> dict[str, Any]:
    """Returns the last point in the cell's history. It reads only the end of the file."""
    try:
        with open(cell.find() / "history.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = [line for line in file.read().split(b"\n")[:-1] if b'"train/loss":' in line]
        if not lines:
            return {}
        point: dict[str, Any] = json.loads(lines[-1])
        return point
    except (OSError, ValueError):  # not there yet, or half a line
        return {}
