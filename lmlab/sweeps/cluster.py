"""The jobs of a Slurm cluster, which submitit submits: what is said of them, and of errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from lmlab.errors import UserError, one_line_errors
from lmlab.sweeps.cells import Sweep
from lmlab.terminal import tell


@contextmanager
def submission_errors() -> Iterator[None]:
    """A context in which the refusal of a cluster, such as sbatch's, is one line of error."""
    with one_line_errors():
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith("submitit."):
                raise
            raise UserError(
                f"hydra/launcher: the cluster takes no jobs of this kind: {' '.join(str(error).split())}; "
                "hydra.launcher.… sets what it is asked for"
            ) from None


@contextmanager
def telling_of_jobs(sweep: Sweep, launcher: str) -> Iterator[None]:
    """A context that says, if a signal ends it, that the jobs of a cluster go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        is_signal = not isinstance(stop, SystemExit) or (
            isinstance(stop.code, int) and stop.code > 128
        )
        folders = [
            path.name for path in (sweep.own / ".submitit").glob("*") if path.name.isdecimal()
        ]
        if is_signal and launcher not in ("local", "basic") and folders:
            job = max(folders, key=int)
            tell(
                f"the jobs of the cluster go on; scancel {job} ends them, and each saves; the same command "
                "waits for them again"
            )
        raise
