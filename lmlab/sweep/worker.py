"""What a process of the local launcher does: one cell, or one question; and how it ends when nobody
waits for it.
"""

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import connection, parent_process
from typing import Any

from lmlab.errors import UserError
from lmlab.sweep.cells import Busy, Cell

BUSY, FAILED = (
    75,
    1,
)  # exit statuses of a cell that somebody else is at work on, and of one that failed
GRACE = 15  # seconds that a cell has to end its step and save, once it was told to stop


def leave_with_launcher() -> None:
    """The launcher may be killed: then the cell saves and ends, as on SIGTERM, or is ended."""

    def watch() -> None:
        connection.wait([parent_process().sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def begin(log: int | None) -> None:
    """Away from the terminal: Ctrl-C reaches the launcher alone, which then tells its cells once."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if log is not None:
        os.dup2(log, 1), os.dup2(log, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", 1, closefd=False),
            os.fdopen(2, "w", 1, closefd=False),
        )
    leave_with_launcher()


def answer(pipe: connection.Connection, name: str, *arguments: Any) -> None:
    """Sends back what lmlab.sweep.plan's function of that name returns or raises."""
    begin(None)
    try:
        from lmlab.sweep import plan

        result = getattr(plan, name)(*arguments)
    except UserError as error:
        result = error
    except Exception:
        result = RuntimeError(traceback.format_exc())
    pipe.send(result)


def work(cell: Cell, gpu: str | None) -> None:
    """Runs the cell; everything that it prints goes to its log."""
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    begin(os.open(cell.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from lmlab.sweep import cells, study

    try:
        with study.watching(cell.config.sweep.trial) as watch:
            status = cells.run(cell, watch)
    except Busy:
        raise SystemExit(BUSY) from None
    raise SystemExit(FAILED if status == "failed" else 0)
