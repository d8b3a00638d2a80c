"""Measures the time from a command to its first step, its error, or its help."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lmlab.errors import UserError
from suites.commands import TRAIN

IMPORTS = [sys.executable, "-c", "import torch, pytorch_lightning"]


def first_step(folder: str) -> float:
    """Returns the seconds from the command of the default run to its first training step.

    The run is killed after that step.
    """
    begun = time.perf_counter()
    run = subprocess.Popen(
        [*TRAIN, "log_interval=1", "compile=false"], cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        while not any(
            "train/loss" in path.read_text() for path in Path(folder).rglob("history.jsonl")
        ):
            if run.poll() is not None:
                raise UserError("startup: train.py ended before its first step")
            time.sleep(0.005)
        return time.perf_counter() - begun
    finally:
        run.kill()
        run.wait()


def measure(repeats: int) -> dict[str, float]:
    """Returns medians: the seconds, and the ratio of the first step to the imports."""
    seconds: dict[str, list[float]] = {
        "imports": [],
        "first step": [],
        "wrong key": [],
        "help": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        first_step(folder)  # fills the caches
        for _ in range(repeats):
            for name, command in (
                ("imports", IMPORTS),
                ("wrong key", [*TRAIN, "n_leyer=4"]),
                ("help", [*TRAIN, "-h"]),
            ):
                begun = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True)
                seconds[name].append(time.perf_counter() - begun)
            with tempfile.TemporaryDirectory() as fresh:
                seconds["first step"].append(first_step(fresh))
    pairs = zip(seconds["first step"], seconds["imports"], strict=True)
    return {
        "seconds, import torch, pytorch_lightning": median(seconds["imports"]),
        "seconds to the first training step": median(seconds["first step"]),
        "first step / imports": median(a / b for a, b in pairs),
        "seconds, a misspelt key": median(seconds["wrong key"]),
        "seconds, --help": median(seconds["help"]),
    }
