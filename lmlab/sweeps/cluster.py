"""The jobs of a Slurm cluster, which submitit submits: how they are, and what is said of them."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from lmlab.errors import UserError, one_line_errors
from lmlab.sweeps.cells import Sweep
from lmlab.terminal import tell

LOCAL = ("local", "basic")  # launchers of this machine
SECONDS = 20  # between two questions how jobs are, at most
PATIENCE = 20  # seconds to wait for an answer
DIED = re.compile(
    r"Job (\S+) .*has not produced any output \(state: (\w+)\)", re.DOTALL
)  # submitit's words
ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "REVOKED",
        "TIMEOUT",
    ]
)  # the states of jobs that are over
QUEUE = ("squeue", "--me", "--array", "--noheader", "--format=%i|%T")


def queue() -> dict[str, str] | None:
    """Returns the states of the user's jobs by their ids, or None if the cluster does not say."""
    try:
        done = subprocess.run(QUEUE, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return states(done.stdout)


def states(answer: str) -> dict[str, str]:
    """Returns the states of jobs in the lines that squeue has written, by their ids."""
    pairs = (line.strip().partition("|") for line in answer.splitlines())
    return {job: state for job, _, state in pairs if state}


def ask_the_queue() -> None:
    """Lets submitit ask squeue how jobs are, as not every Slurm keeps accounts (sacct).

    So a job that was cancelled, or that died without a word, is not waited for.
    """
    from submitit.slurm import slurm

    class QueueWatcher(slurm.SlurmInfoWatcher):
        """Knows the states of jobs from squeue."""

        def _make_command(self) -> list[str] | None:
            """Returns the question, or None if no job is left to ask for."""
            return [*QUEUE, "--states=all"] if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            """Returns what submitit wants to know, from the answer."""
            text = string if isinstance(string, str) else string.decode()
            known = states(text).items()
            return {job: {"State": state if state in ENDED else "RUNNING"} for job, state in known}

    slurm.SlurmJob.watcher = QueueWatcher(delay_s=SECONDS)


def launch(
    launcher: Any, cells: Sequence[Sequence[str]], first: int, faults: list[str]
) -> dict[int, Any]:
    """Returns what the jobs of cells have returned, by the places of the cells.

    `first` is the number of the first cell. The reasons of jobs that gave up are added to `faults`. If
    one has died, nothing is returned: Hydra's launchers then wait for no other. Raises UserError if
    the cluster takes no job.
    """
    if "submitit" in type(launcher).__module__:
        ask_the_queue()
    results: Sequence[JobReturn] = []
    with one_line_errors():
        try:
            results = launcher.launch(cells, initial_job_idx=first)
        except Exception as error:
            if not is_clusters(error):
                raise
            died = DIED.match(str(error))
            if died is None:
                raise UserError(
                    f"hydra/launcher: the cluster takes no jobs of this kind: {in_a_line(error)}; "
                    "hydra.launcher.… sets what it is asked for"
                ) from None
            faults.append(
                f"job {died[1]} has ended without a result (state: {died[2]}); others may still run; the "
                "same command waits for them and continues what is left"
            )
    given_up = {
        n: in_a_line(result._return_value)
        for n, result in enumerate(results)
        if result.status == JobStatus.FAILED and is_clusters(result._return_value)
    }
    for why in dict.fromkeys(given_up.values()):
        faults.append(
            f"a job has given up before its run was over: {why} The same command continues the run; "
            "hydra.launcher.max_num_timeout= is how often a job may use up its time"
        )
    # return_value raises what the job has raised
    return {n: one.return_value for n, one in enumerate(results) if n not in given_up}


def is_clusters(error: BaseException) -> bool:
    """Returns whether an error is one of submitit's, about a job or its submission."""
    return type(error).__module__.startswith("submitit.")


def in_a_line(error: BaseException) -> str:
    """Returns the text of an error without the ends of its lines."""
    return " ".join(str(error).split())


@contextmanager
def telling_of_jobs(sweep: Sweep, launcher: str) -> Iterator[None]:
    """A context that says, if a signal ends it, whether jobs of a cluster go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        is_signal = not isinstance(stop, SystemExit) or (
            isinstance(stop.code, int) and stop.code > 128
        )
        folders = [
            path.name for path in (sweep.own / ".submitit").glob("*") if path.name.isdecimal()
        ]
        if is_signal and launcher not in LOCAL and folders:
            tell(what_goes_on(max(folders, key=int)))
        raise


def what_goes_on(array: str) -> str:
    """Returns what to say of the jobs of an array when their command is stopped."""
    found = queue()
    if found is not None and not any(job.partition("_")[0] == array for job in found):
        return f"no job of {array} is in the cluster's queue; the same command continues the sweep"
    return (
        f"the jobs of the cluster go on; scancel {array} ends them, and each saves; the same command "
        "waits for them again"
    )
