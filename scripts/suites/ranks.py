"""Measures two processes that share each batch against one with two threads, on a CPU."""

import subprocess
import tempfile
from pathlib import Path
from statistics import median

from lmlab.cores import usable_cores
from lmlab.errors import UserError
from lmlab.runs.folder import read_metrics
from suites.commands import TRAIN

COMMON = ["device=cpu", "eval_interval=100000", "checkpoint_interval=100000", "val_fraction=0.01"]
# The default GPT, and one of 10.7 million parameters.
SIZES = {
    "default": (12, ["max_steps=200"]),
    "larger": (8, ["n_layer=6", "n_head=6", "n_embd=384", "block_size=256", "max_steps=8"]),
}


def check() -> None:
    """Raises UserError if this process may use one core only."""
    if usable_cores() < 2:
        raise UserError("ranks: needs two cores, and there is one for this process")


def measure(repeats: int) -> dict[str, float]:
    """Returns medians of ratios of tokens a second, for each size.

    "2 processes / 2 threads" is what devices=2 changes. "exchange" is the share of time in which two
    processes talk or wait for each other: without it they are as fast as two runs of half the batch.
    """
    found = {}
    for name, (batch_size, keys) in SIZES.items():
        whole = [*COMMON, *keys, f"batch_size={batch_size}"]
        half = [*COMMON, *keys, f"batch_size={batch_size // 2}", "threads=1"]
        ratios = []
        exchanged = []
        for _ in range(repeats):
            one = speed([*whole, "threads=2"])
            two = speed([*whole, "threads=1", "devices=2"])
            apart = speed(half, half)
            ratios.append(two / one)
            exchanged.append(1 - two / apart)
        found[f"{name}: 2 processes / 2 threads"] = median(ratios)
        found[f"{name}: exchange"] = median(exchanged)
    return found


def speed(*commands: list[str]) -> float:
    """Returns the tokens a second of commands that run at the same time, all together."""
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for number, command in enumerate(commands):
            line = [*TRAIN, *command, f"name=run-{number}"]
            running.append(subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL))
        if any(process.wait() for process in running):
            raise UserError(f"ranks: a run of {commands} has failed")
        runs = [read_metrics(path.parent) for path in Path(folder).rglob("metrics.json")]
    return float(sum(run["tokens_per_second"] for run in runs))
