"""What is known of a sweep's cells before the first of them runs."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from rich.console import Console

from lmlab.config.overrides import Asked, resolved
from lmlab.sweep.cells import Cell, Sweep
from lmlab.sweep.server import answer


class Survey:
    """Each cell as it will be run here: its text, its device, its size. With the local launcher it
    comes by while the caller goes on, until something is asked of it. Raises UserError for the
    first cell that can't be run.
    """

    def __init__(self, asked: Asked, sweep: Sweep) -> None:
        self.asked, self.sweep, self.coming, self.announced = asked, sweep, None, False
        self.elsewhere = asked.launcher not in ("local", "basic")
        if asked.launcher == "local":
            pool = ThreadPoolExecutor(1)
            self.coming = pool.submit(self.ask)
            pool.shutdown(wait=False)
        else:
            _ = self.cells  # now, since it may raise

    def ask(self) -> tuple[list[Cell], int]:
        return answer(self.asked.launcher)(
            "identify_all", self.asked.runs, self.sweep, self.elsewhere
        )

    @cached_property
    def found(self) -> tuple[list[Cell], int]:
        return self.coming.result() if self.coming else self.ask()

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """By configuration."""
        return {
            repr(config): cell
            for (config, _), cell in zip(self.asked.runs, self.found[0], strict=True)
        }

    @property
    def gpus(self) -> int:
        return self.found[1]

    def cell(self, overrides: Sequence[str]) -> Cell:
        config, _ = resolved(overrides)
        known = self.cells.get(repr(config))
        return known or answer(self.asked.launcher)("identify", config, list(overrides), self.sweep)

    def announce(self) -> None:
        """One line, once: how many cells there are, and what is done already."""
        if self.announced:
            return
        self.announced = True
        unique = {cell.hash: cell for cell in self.cells.values()}
        n, done = len(unique), sum(cell.over() for cell in unique.values())
        what = "a search" if self.asked.sweeper == "search" else f"{n} cell{'s' * (n > 1)}"
        print(
            f"{self.sweep.folder}: {what}" + f", {done} of them done already" * bool(done),
            flush=True,
        )

    def show(self) -> None:
        """What dry_run=true asks for."""
        found = list(self.cells.values())
        n_jobs = (
            self.slots(self.asked.hydra["launcher"].get("n_jobs"))
            if self.asked.launcher == "local"
            else 1
        )
        table = answer(self.asked.launcher)("table", found, n_jobs, self.elsewhere)
        if self.asked.sweeper == "search":
            table.title = f"{self.sweep.folder}: {self.asked.hydra['sweeper']['n_trials']} trials between these ends"
        Console(width=None if sys.stdout.isatty() else 200).print(table)

    def slots(self, n_jobs: int | None) -> int:
        """How many cells run at a time: as many as were asked for, one a GPU, or what the cores
        have room for.
        """
        found = self.cells.values()
        threads = max(cell.config.run.threads for cell in found)
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        on_gpu = any(cell.config.choices["device"] == "cuda" for cell in found)
        return n_jobs or (on_gpu and self.gpus) or max(1, cores // threads)
