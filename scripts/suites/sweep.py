"""Measures a sweep of twelve bigram cells of 300 steps, run in three ways."""

import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from lmlab.runs.folder import read_metrics
from suites.commands import TRAIN

SEEDS = (0, 1, 2)
RATES = (0.01, 0.02, 0.03, 0.04)
COMMON = ["model=bigram", "max_steps=300", "threads=1"]


def measure(repeats: int) -> dict[str, float]:
    """Returns medians: the seconds of each way, their ratios, and a cell's cost."""
    cells = [
        [*COMMON, f"seed={seed}", f"lr={rate}"] for seed, rate in itertools.product(SEEDS, RATES)
    ]
    seeds = ",".join(map(str, SEEDS))
    rates = ",".join(map(str, RATES))
    grid = ["-m", *COMMON, f"seed={seeds}", f"lr={rates}", "name=sweep"]
    ways = {
        "shell loop": cells,
        "basic launcher": [[*grid, "hydra/launcher=basic"]],
        "local launcher": [grid],
    }
    walls: dict[str, list[float]] = {way: [] for way in ways}
    besides: list[float] = []
    for _ in range(repeats):
        for way, commands in ways.items():
            wall, training = timed(commands)
            walls[way].append(wall)
        at_once = min(len(cells), os.cpu_count() or 1)
        besides.append((wall - training / at_once) / len(cells))  # the last way is the launcher's
    return {
        **{f"seconds, {way}": median(seconds) for way, seconds in walls.items()},
        "local / shell loop": ratio(walls["local launcher"], walls["shell loop"]),
        "local / basic launcher": ratio(walls["local launcher"], walls["basic launcher"]),
        "seconds a cell beside its training": median(besides),
    }


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Runs commands in a new folder; returns the wall time, and the runs' seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        for command in commands:
            subprocess.run(TRAIN + command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - begun
        runs = [read_metrics(path.parent) for path in Path(folder).rglob("metrics.json")]
    return wall, sum(run["train_seconds"] for run in runs)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median ratio of pairs."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
