"""What a process of the local launcher does: it runs one cell, and nothing else."""

import os
import sys

from lmlab import files
from lmlab.processes.server import end_with_starter, leave_terminal, redirected
from lmlab.sweeps.cells import Busy, Cell

EXIT_FAILED = 1  # exit status of a process whose cell has failed
EXIT_BUSY = 75  # exit status of a process whose cell is being run by another process


def run_cell(cell: Cell, gpus: list[str]) -> None:
    """Runs a cell, on the GPUs that `gpus` names, if any.

    The cell's output goes to its log. The exit status is 0, EXIT_FAILED or EXIT_BUSY.
    """
    log = cell.log_path()
    log.parent.mkdir(parents=True, exist_ok=True)
    leave_terminal()
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    sys.stdout = redirected(1, descriptor, "utf-8", files.HALVES)
    sys.stderr = redirected(2, descriptor, "utf-8", files.HALVES)
    end_with_starter()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    from lmlab.sweeps import cells, study

    try:
        status = cells.run(cell, study.watch_of(cell.trial))
    except Busy:
        raise SystemExit(EXIT_BUSY) from None
    raise SystemExit(EXIT_FAILED if status == "failed" else 0)
