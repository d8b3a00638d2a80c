"""What a person sees: a progress bar on a terminal, lines anywhere; the lines again in train.log."""

import math
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

NUMBERS = "loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s  left"


class Terminal:
    def __init__(self, log: Path, max_steps: int) -> None:
        self.log, console = open(log, "a", buffering=1), Console(markup=False, highlight=False, soft_wrap=True)
        columns = TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn(NUMBERS), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=max_steps, loss=math.nan, speed=0.0)

    def say(self, text: str) -> None:
        self.bar.console.print(text)
        self.log.write(text + "\n")

    def close(self) -> None:
        self.bar.stop()
        self.log.close()


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
