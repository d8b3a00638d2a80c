"""Writes the page of a sweep again while its cells run, so that a reload shows how far it is."""

import threading
import time
from collections import Counter
from contextvars import copy_context
from pathlib import Path
from typing import Any, Self

import pandas as pd

from lmlab import files
from lmlab.sweeps import report
from lmlab.sweeps import table as tables
from lmlab.sweeps.cells import ENDED
from lmlab.sweeps.curves import Curves
from lmlab.sweeps.survey import Survey

SECONDS = 3.0  # between two looks at the folders of the cells
PATIENCE = 20  # the pause is as many times as long as the writing: 5 % of a core at most


class LivePage:
    """Keeps the report.html of a sweep new while its `with` block runs, in a thread of its own.

    It works with every launcher, since it looks at folders alone. `survey` knows the cells that the
    command asks for. A cell that has ended is read once. Whatever goes wrong here ends no sweep: the
    page is written in any case when all cells have ended.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.sweep = survey.sweep
        self.curves = Curves()
        self.ended: dict[Path, tuple[int, tables.Row]] = {}  # when its metrics changed; its row
        self.shown: Any = None  # the state of the cells that the page shows
        self.is_over = threading.Event()
        run = copy_context().run
        self.thread = threading.Thread(target=run, args=(self.watch,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.is_over.set()
        self.thread.join()
        if kind is not None:
            self.renew(stopped=True)

    def watch(self) -> None:
        """Writes the page whenever a cell has started or ended, but seldom enough to cost little."""
        pause = SECONDS
        while not self.is_over.wait(pause):
            began = time.thread_time()
            self.renew()
            pause = max(SECONDS, PATIENCE * (time.thread_time() - began))

    def renew(self, stopped: bool = False) -> None:
        """Writes the page if a cell has started or ended since it was written, or on `stopped`."""
        try:
            now = self.state(), stopped  # before the page: what changes meanwhile comes next time
            if now != self.shown:
                self.write(stopped)
                self.shown = now
        except Exception:  # a cell may just be writing; the next time, or the end, shows it
            self.shown = None

    def state(self) -> list[tuple[str, int]]:
        """Returns the folders of the cells and when each has last changed its metrics.json."""
        found = []
        for path in self.sweep.folder.glob("*-*/metrics.json"):
            found.append((path.parent.name, path.stat().st_mtime_ns))
        return sorted(found)

    def write(self, stopped: bool) -> None:
        """Writes the page of the runs that are there."""
        table = tables.load_runs(self.sweep.folder, read=self.read)
        progress = self.progress(table) | {"stopped": stopped}
        board = tables.leaderboard(table)
        page = report.page(table, board, self.sweep.name, self.curves, progress)
        files.write(self.sweep.folder / "report.html", page)

    def read(self, path: Path) -> tables.Row:
        """Returns the row of a run; one that has ended is read once."""
        changed = (path / "metrics.json").stat().st_mtime_ns
        known = self.ended.get(path)
        if known and known[0] == changed:
            return known[1]
        row = tables.load_run(path)
        if row[1]["status"] in ENDED:
            self.ended[path] = changed, row
        return row

    def progress(self, table: pd.DataFrame) -> dict[str, Any]:
        """Returns how many cells are done, running and failed, and how many wait, if it is known.

        The cells of a search are not known before they run.
        """
        statuses = dict(zip(table["path"], table["status"], strict=True))
        waiting = None
        if self.survey.asked.sweeper != "search" and "cells" in vars(self.survey):
            by_hash = {Path(path).name.rpartition("-")[2]: path for path in statuses}
            asked = {cell.hash for cell in self.survey.cells.values()}
            states = [statuses.get(by_hash.get(cell, "")) for cell in asked]
            waiting = states.count(None) + states.count("interrupted")
        counts = Counter(statuses.values())
        return {
            "done": sum(counts[status] for status in ENDED),
            "running": counts["running"],
            "failed": counts["failed"],
            "waiting": waiting,
        }
