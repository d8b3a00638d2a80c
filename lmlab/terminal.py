"""What a person sees: a progress bar and tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Terminal:
    """Says things on stdout, and again in `log`."""

    def __init__(self, log: Path, max_steps: int) -> None:
        plain = {"markup": False, "highlight": False, "emoji": False, "soft_wrap": True}
        self.console = Console(**plain)
        self.log = Console(file=open(log, "a", buffering=1), width=120, **plain)
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s "),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=4,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=max_steps, loss=float("nan"), speed=0.0)

    def say(self, *things: Any) -> None:
        self.console.print(*things)
        self.log.print(*things)

    def advance(self, step: int, loss: float, speed: float) -> None:
        """Moves the progress bar; it draws itself a few times a second."""
        self.progress.update(self.task, completed=step, loss=loss, speed=speed)


def grid(rows: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> Table:
    """A table of text without lines, the first column named, the others aligned left."""
    table = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, 3, 0, 0))
    for name in header or rows[0]:
        table.add_column(name if header else "")
    for row in rows:
        table.add_row(*row)
    return table


def one_line(text: str, length: int = 60) -> str:
    """The beginning of a text, its line ends shown as ↵."""
    return text.replace("\n", "↵")[:length]
