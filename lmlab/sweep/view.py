"""What a sweep shows while it runs: a table that is kept up to date on a terminal, a line a cell
elsewhere.
"""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmlab.sweep.cells import Cell
from lmlab.sweep.labels import common_parts, without

LAST = 6  # cells that have ended and are still shown


class View:
    """A context in which it is shown."""

    def __init__(self, total: int, labels: Iterable[str]) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.total, self.counts, self.last = total, Counter(), deque(maxlen=LAST)
        self.common = common_parts(labels)
        self.live = (
            Live(console=self.console, auto_refresh=False, transient=True)
            if self.console.is_terminal
            else None
        )
        self.drawn = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def name(self, cell: Cell) -> str:
        """What of its label is not the same for all."""
        return without(cell.label, self.common)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def ended(self, cell: Cell, status: str, how: str) -> None:
        metrics = cell.metrics()
        self.counts[status] += 1
        loss, why = metrics.get("val/loss"), metrics.get("reason")
        said = f"{status} {how}".strip() + (f": {why}" if why else "")
        if status in ("finished", "pruned") and loss is not None:
            said += f", val/loss {loss:.4f}"
        self.last.append((self.name(cell), said))
        if not self.live and how != "already":
            of = f" of {self.total}" if self.total else ""
            self.say(f"{self.counts.total():>3}{of}  {self.name(cell)}: {said}")

    def refused(self, overrides: Iterable[str], why: str) -> None:
        """A proposal of a search that is no run."""
        self.counts["failed"] += 1
        self.say(f"{','.join(overrides)[:100]}: {why}")

    def show(self, running: list[Cell], elsewhere: list[Cell]) -> None:
        """Draws the table, if there is one and it's time."""
        if not self.live or time.monotonic() - self.drawn < 0.5:
            return
        self.drawn, table = time.monotonic(), Table(box=None, pad_edge=False)
        for name in ("cell", "state", "step", "loss", "time left"):
            table.add_column(
                name, justify="left" if name in ("cell", "state") else "right", overflow="fold"
            )
        for name, said in self.last:
            table.add_row(name, said, style="dim")
        for state, shown in (("running", running), ("elsewhere", elsewhere[:LAST])):
            for cell in shown:
                point, steps = progress(cell), cell.config.run.max_steps
                step, loss, seconds = (
                    point.get(key) for key in ("step", "train/loss", "train_seconds")
                )
                table.add_row(
                    self.name(cell),
                    state,
                    f"{step or 0:,} / {steps:,}",
                    f"{loss:.4f}" if loss is not None else "",
                    f"{(steps - step) * seconds / step:,.0f} s" if step and seconds else "",
                )
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items())
        left = (
            f"{self.counts.total()} of {self.total} cells"
            if self.total
            else f"{self.counts.total()} cells"
        )
        self.live.update(Group(table, Text(f"{left}: {counts}" if counts else left)), refresh=True)


def progress(cell: Cell) -> dict[str, Any]:
    """The last point that the cell has noted; of its file only the end is read."""
    try:
        with open(cell.path / "history.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = [line for line in file.read().split(b"\n")[:-1] if b'"train/loss":' in line]
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):  # not there yet, or only half
        return {}
