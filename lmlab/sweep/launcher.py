"""Cells on this machine: each in a fresh process forked from a server that has imported torch,
several at a time. The launcher itself never imports it.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmlab.errors import UserError, one_line_errors
from lmlab.sweep import cells, worker
from lmlab.sweep.cells import Cell, Sweep
from lmlab.sweep.server import server
from lmlab.sweep.survey import Survey
from lmlab.sweep.view import View

POLL = 0.2  # seconds between two looks at the cells


@dataclass
class Job:
    """A cell on its way. `handle` is the caller's own."""

    cell: Cell
    handle: Any
    tries: int  # how many more it has
    process: Any = None
    gpu: str | None = None
    begun: float = 0.0
    told: float | None = None  # when it was told to stop
    late: bool = False
    stamp: int = 0  # of its metrics.json, when this launcher saw it last


def stamp(cell: Cell) -> int:
    """Changes whenever something is noted about the cell."""
    try:
        return (cell.path / "metrics.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class LocalLauncher(Launcher):
    """Hydra's launcher, hydra/launcher=local."""

    def __init__(self, n_jobs: int | None, time_limit: float | None) -> None:
        self.n_jobs, self.time_limit = n_jobs, time_limit

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.sweep: Sweep = task_function.sweep
        self.survey: Survey = task_function.survey

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs them all, in any order; what goes wrong in a cell stands in its folder."""
        left, answers = deque(enumerate(job_overrides)), {}
        self.stream(lambda: left.popleft() if left else None, answers.__setitem__, len(left))
        return [
            JobReturn(overrides=list(own), status=JobStatus.COMPLETED, _return_value=answers.get(i))
            for i, own in enumerate(job_overrides)
        ]

    def stream(
        self,
        following: Callable[[], tuple[Any, Sequence[str]] | None],
        ended: Callable[[Any, Cell | None], None],
        total: int,
    ) -> None:
        """Runs what `following` hands out as (handle, overrides), one whenever there is room, until
        it has none and all are done; `ended` is told each handle and its cell, None if it can't be
        run. A cell that another process is at work on waits.
        """
        with one_line_errors():
            self.survey.announce()  # waits for it: here a cell that can't be run is told
        self.jobs, self.waiting, self.ended = [], deque(), ended
        self.signal, self.view = 0, View(total, [cell.label for cell in self.survey.cells.values()])
        n_jobs = self.survey.slots(self.n_jobs)
        with self.signals(), self.view:
            try:
                while True:
                    while (
                        not self.signal
                        and len(self.jobs) < n_jobs
                        and (job := self.ready(following))
                    ):
                        self.start(job)
                    if not self.jobs and (self.signal or not self.waiting):
                        break
                    connection.wait([job.process.sentinel for job in self.jobs], timeout=POLL)
                    if not self.jobs:
                        time.sleep(POLL)
                    for job in list(self.jobs):
                        self.attend(job)
                    self.view.show(
                        *([job.cell for job in some] for some in (self.jobs, self.waiting))
                    )
            finally:
                for job in self.jobs:  # only if the launcher itself failed
                    job.process.kill()
        if self.signal:
            print(
                f"stopped; the same command goes on. So far: python scripts/compare.py {self.sweep.folder}"
            )
            raise SystemExit(128 + self.signal)

    def ready(self, following: Callable[[], tuple[Any, Sequence[str]] | None]) -> Job | None:
        """The next job that can start now; those that need not are answered."""
        for _ in range(len(self.waiting)):
            job = self.waiting.popleft()
            if cells.is_busy(job.cell):
                self.waiting.append(job)
            elif job.cell.over() or (
                job.cell.status() == "failed" and stamp(job.cell) != job.stamp
            ):
                self.done(job, "by another process")
            else:
                return job
        while len(self.waiting) < 10_000 and (one := following()):
            try:
                cell = self.survey.cell(one[1])
            except UserError as error:  # what a search proposed can't be run
                self.view.refused(one[1], str(error))
                self.ended(one[0], None)
                continue
            settings = cell.config.sweep
            tries = settings.retries  # here, so that each try has a fresh process
            cell = replace(cell, config=replace(cell.config, sweep=replace(settings, retries=0)))
            job = Job(cell, one[0], tries, stamp=stamp(cell))
            if cell.over():
                self.done(job, "already")
            elif cells.is_busy(cell):
                self.waiting.append(job)
            else:
                return job
        return None

    def start(self, job: Job) -> None:
        if job.cell.config.choices["device"] == "cuda":
            ids = os.environ.get(
                "CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.survey.gpus)))
            ).split(",")
            job.gpu = min(ids, key=[other.gpu for other in self.jobs].count)
        job.process = server().Process(target=worker.work, args=(job.cell, job.gpu))
        job.process.start()
        job.begun, job.told, job.late, job.stamp = time.monotonic(), None, False, stamp(job.cell)
        self.jobs.append(job)

    def attend(self, job: Job) -> None:
        """Ends what takes too long, and takes note of what has ended."""
        now, code = time.monotonic(), job.process.exitcode
        if code is None:
            late = self.time_limit is not None and now - job.begun > 60 * self.time_limit
            if job.told is None and (late or self.signal):
                job.told, job.late = now, late
                job.process.terminate()
            elif job.told is not None and now - job.told > worker.GRACE:
                job.process.kill()
            return None
        self.jobs.remove(job)
        job.process.close()
        if job.cell.over():
            return self.done(job)
        if code == worker.BUSY:
            return self.waiting.append(job)
        if self.signal and not job.late:
            return None
        told = (
            job.cell.status() == "failed" and stamp(job.cell) != job.stamp
        )  # the cell itself said why
        if not told or code < 0 or job.late:
            try:
                with cells.locked(job.cell):
                    cells.fail(job.cell, self.why(job, code))
            except cells.Busy:
                return self.waiting.append(job)
            except UserError as error:  # a full disk, on which not even that can be noted
                self.view.say(f"{error}")
        if job.tries:
            job.tries -= 1
            self.view.say(
                f"{self.view.name(job.cell)}: {job.cell.metrics().get('reason')}; tried again"
            )
            job.stamp = stamp(job.cell)
            return self.waiting.appendleft(job)
        return self.done(job)

    def why(self, job: Job, code: int) -> str:
        if job.late:
            return f"took longer than its time limit of {self.time_limit:g} minutes"
        known = {number.value: number.name for number in signal.Signals}
        if -code in known:
            memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
            return f"killed by {known[-code]}{memory}"
        if code - 128 in known:
            return f"stopped by {known[code - 128]} from outside"
        return f"its process ended with exit status {code}; {job.cell.log} has what it said"

    def done(self, job: Job, how: str = "") -> None:
        status = job.cell.status()
        self.view.ended(job.cell, status, how)
        self.ended(job.handle, job.cell)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM lets every cell end its step and save, the second doesn't
        wait.
        """

        def on_signal(number: int, frame: object) -> None:
            if self.signal:
                for job in self.jobs:
                    job.process.kill()
            else:
                os.write(2, b"\nstopping the cells after their step; once more stops at once\n")
            self.signal = number

        before = {
            number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
