"""Hydra's launcher for this machine: runs several cells at a time, each in a new process.

The processes are forked from a server that has imported torch. The launcher itself does not.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmlab.errors import UserError, one_line_errors
from lmlab.processes import server
from lmlab.runs.typed import command
from lmlab.signals import StopSignals
from lmlab.sweeps import cells, worker
from lmlab.sweeps.cells import Cell, Sweep
from lmlab.sweeps.survey import Survey
from lmlab.sweeps.view import View

POLL = 0.2  # seconds between two looks at the cells
WAITING = 10_000  # cells that may wait for another process at a time
STOPPING = "stopping the cells as soon as all is saved; once more stops at once"

Request = tuple[Any, Sequence[str]]  # a handle of the caller's own, and the overrides of a cell


@dataclass
class Job:
    """A cell that waits or runs. `handle` is any object by which the caller knows it."""

    cell: Cell
    handle: Any
    retries: int  # how many times more the cell is tried if it fails
    changed_at: int  # when its metrics.json was last written, as far as the launcher knows
    process: Any = None
    gpus: list[str] = field(default_factory=list)
    started: float = 0.0
    asked_to_stop: float | None = None  # when
    out_of_time: bool = False

    @property
    def processes(self) -> int:
        """How many processes train the cell, on as many cores or GPUs."""
        return self.cell.config.device.processes


def changed_at(cell: Cell) -> int:
    """Returns when the cell's metrics.json last changed, in ns, or 0 if there is none."""
    try:
        return (cell.find() / "metrics.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def has_failed_since(job: Job) -> bool:
    """Returns whether the cell has written a failure since its process started."""
    return job.cell.status() == "failed" and changed_at(job.cell) != job.changed_at


class LocalLauncher(Launcher):
    """Hydra's launcher, hydra/launcher=local."""

    def __init__(self, n_jobs: int | None, time_limit: float | None) -> None:
        self.n_jobs = n_jobs
        self.time_limit = time_limit  # minutes
        self.jobs: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.next_one: Job | None = None  # for which there is no room yet
        self.unmarked = 0  # cells that failed, and whose folder could not say so
        self.ended_here: set[str] = set()  # hashes; a search may propose the same values again

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Gets the sweep and the survey from the command's `Task`. Hydra calls this method."""
        task: Any = task_function
        self.faults: list[str] = task.faults
        self.notes: list[str] = task.notes
        self.sweep: Sweep = task.sweep
        self.survey: Survey = task.survey

    @one_line_errors()
    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs all cells, in any order. The error of a cell is written to its folder."""
        requests = deque(enumerate(job_overrides))
        ended: dict[int, Cell | None] = {}

        def next_request() -> Request | None:
            return requests.popleft() if requests else None

        self.stream(next_request, ended.__setitem__, len(requests))
        results = []
        for number, overrides in enumerate(job_overrides):
            result = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            result._return_value = ended.get(number)
            results.append(result)
        return results

    def stream(
        self,
        next_request: Callable[[], Request | None],
        on_end: Callable[[Any, Cell | None], None],
        total: int,
    ) -> None:
        """Runs the cells that `next_request` returns, until it returns None.

        It asks for a cell whenever one more can run. `on_end` is called with each handle and its
        cell, or None if the cell cannot be run. If another process runs a cell, the cell waits.
        """
        self.survey.announce()  # waits for the survey, which raises for a cell that cannot run
        self.jobs = []
        self.waiting = deque()
        self.unmarked = 0
        self.stop = StopSignals(STOPPING, self.kill_all)
        self.on_end = on_end
        self.view = View(total, [cell.label for cell in self.survey.cells.values()])
        n_jobs = self.survey.slots(self.n_jobs)
        with self.stop, self.view:
            try:
                self.run_all(next_request, n_jobs)
            finally:
                self.kill_all()  # only if the launcher itself failed
        if self.unmarked:
            self.notes.append(
                f"cells that failed, and whose folders could not be marked so: {self.unmarked}; the table "
                "above calls them interrupted, or does not know of them"
            )
        if self.stop.number is not None:
            print(
                "stopped; the same command continues the sweep. Results so far: "
                f"{command('compare')} {self.sweep.folder}"
            )
            raise SystemExit(128 + self.stop.number)

    def run_all(self, next_request: Callable[[], Request | None], n_jobs: int) -> None:
        """Runs cells until there are no more. After a signal only waits for the running cells.

        `n_jobs` processes run at a time. A cell of more processes than that runs alone.
        """
        while True:
            while not self.stop.came and self.busy() < n_jobs:
                job = self.next_one or self.next_job(next_request)
                self.next_one = None
                if job is None:
                    break
                if self.jobs and self.busy() + job.processes > n_jobs:
                    self.next_one = job
                    break
                self.start(job)
            if not self.jobs and (self.stop.came or not self.waiting):
                return
            connection.wait([job.process.sentinel for job in self.jobs], timeout=POLL)
            if not self.jobs:
                time.sleep(POLL)
            for job in list(self.jobs):
                self.poll(job)
            running = [job.cell for job in self.jobs]
            elsewhere = [job.cell for job in self.waiting]
            self.view.show(running, elsewhere)

    def busy(self) -> int:
        """Returns how many processes train cells now."""
        return sum(job.processes for job in self.jobs)

    def next_job(self, next_request: Callable[[], Request | None]) -> Job | None:
        """Returns the next job that can start now. It reports jobs that are already over."""
        for _ in range(len(self.waiting)):
            job = self.waiting.popleft()
            job.cell = cells.of_this_code(job.cell)
            if self.runs_here(job.cell) or cells.is_busy(job.cell):
                self.waiting.append(job)
            elif job.cell.is_done() or has_failed_since(job):
                self.end(job, self.twice(job, "by another process"))
            else:
                return job
        while len(self.waiting) < WAITING:
            request = next_request()
            if request is None:
                return None
            handle, overrides = request
            try:
                cell = cells.of_this_code(self.survey.cell(overrides))
            except UserError as error:  # a search has proposed what cannot be run
                self.view.refused(overrides, str(error))
                self.on_end(handle, None)
                continue
            # The launcher itself tries again, so that each try has a fresh process.
            job = Job(cell.with_retries(0), handle, cell.retries, changed_at(cell))
            if self.runs_here(job.cell):
                self.waiting.append(job)
            elif job.cell.is_done():
                self.end(job, self.twice(job, "already"))
            elif cells.is_busy(job.cell):
                self.waiting.append(job)
            else:
                return job
        return None

    def runs_here(self, cell: Cell) -> bool:
        """Returns whether a job of this launcher runs a cell, or has ended it a moment ago."""
        return any(job.cell.hash == cell.hash for job in self.jobs)

    def start(self, job: Job) -> None:
        """Starts the process of a job, on the GPUs with the fewest jobs if it needs any."""
        if job.cell.config.choices["device"] == "cuda":
            all_gpus = ",".join(str(number) for number in range(self.survey.gpus))
            gpus = os.environ.get("CUDA_VISIBLE_DEVICES", all_gpus).split(",")
            taken = [gpu for other in self.jobs for gpu in other.gpus]
            job.gpus = sorted(gpus, key=taken.count)[: job.processes]
        job.started = time.monotonic()
        job.asked_to_stop = None
        job.out_of_time = False
        job.changed_at = changed_at(job.cell)
        job.process = server.start(worker.run_cell, (job.cell, job.gpus))
        self.jobs.append(job)

    def poll(self, job: Job) -> None:
        """Stops a job that runs too long; reports, retries or delays one that has ended."""
        exit_status = job.process.exitcode
        if exit_status is None:
            self.stop_if_due(job)
            return
        self.jobs.remove(job)
        job.process.close()
        if job.cell.is_over():
            self.end(job)
        elif exit_status == worker.EXIT_BUSY:
            self.waiting.append(job)
        elif not self.stop.came or job.out_of_time:
            self.fail(job, exit_status)

    def stop_if_due(self, job: Job) -> None:
        """Asks a job to stop if a signal came or its time limit is over.

        Kills the job if it does not stop in time."""
        now = time.monotonic()
        if job.asked_to_stop is not None:
            if now - job.asked_to_stop > server.GRACE:
                job.process.kill()
            return
        late = self.time_limit is not None and now - job.started > 60 * self.time_limit
        if late or self.stop.came:
            job.asked_to_stop = now
            job.out_of_time = late
            job.process.terminate()

    def fail(self, job: Job, exit_status: int) -> None:
        """Writes down why a job failed, if the cell did not. Then it retries or ends the job."""
        if not has_failed_since(job) or exit_status < 0 or job.out_of_time:
            try:
                with cells.locked(job.cell):
                    cells.fail(job.cell, self.reason(job, exit_status))
            except cells.Busy:
                self.waiting.append(job)
                return
            except UserError as error:  # a full disk, on which not even that can be noted
                self.faults.append(f"{self.view.name(job.cell)}: failed, and {error}")
                self.unmarked += 1
                self.view.ended(job.cell, "failed", "without a note of it")
                self.on_end(job.handle, job.cell)
                return
        if job.retries == 0:
            self.end(job)
            return
        job.retries -= 1
        reason = job.cell.metrics().get("reason")
        self.view.warn(f"warning: {self.view.name(job.cell)}: {reason}; trying again")
        job.changed_at = changed_at(job.cell)
        self.waiting.appendleft(job)

    def reason(self, job: Job, exit_status: int) -> str:
        """Returns why a process has ended without a message, in one line."""
        if job.out_of_time:
            return f"took longer than its time limit of {self.time_limit:g} minutes"
        names = {number.value: number.name for number in signal.Signals}
        if exit_status == -signal.SIGKILL:
            return "killed by SIGKILL; the system does so if memory runs out"
        if -exit_status in names:
            return f"killed by {names[-exit_status]}"
        if exit_status - 128 in names:
            return f"stopped by {names[exit_status - 128]} from outside"
        if exit_status == server.UNKNOWN:
            return (
                "its process was lost: the server that starts processes has ended; the system ends it if "
                "memory runs out"
            )
        log = job.cell.log_path()
        return f"its process ended with exit status {exit_status}; its output is in {log}"

    def twice(self, job: Job, how: str) -> str:
        """Returns how the cell of a job ended: `how`, or here, as an equal one was asked for before."""
        return "with an equal cell" if job.cell.hash in self.ended_here else how

    def end(self, job: Job, how: str = "") -> None:
        """Reports a job that is over to the view and to the caller."""
        self.ended_here.add(job.cell.hash)
        self.view.ended(job.cell, job.cell.status(), how)
        self.on_end(job.handle, job.cell)

    def kill_all(self, number: int = 0) -> None:
        """Kills the processes of the cells, after a second signal or an error of the launcher."""
        for job in self.jobs:
            job.process.kill()
