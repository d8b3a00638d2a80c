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


def measure(repeats: int) -> dict[str, float]:
    common, seeds, rates = (
        ["model=bigram", "max_steps=300", "threads=1"],
        (0, 1, 2),
        (0.01, 0.02, 0.03, 0.04),
    )
    grid = [
        "-m",
        *common,
        "seed=" + ",".join(map(str, seeds)),
        "lr=" + ",".join(map(str, rates)),
        "name=sweep",
    ]
    cells = [
        [*common, f"seed={seed}", f"lr={rate}"] for seed, rate in itertools.product(seeds, rates)
    ]
    ways = {
        "shell loop": cells,
        "basic launcher": [[*grid, "hydra/launcher=basic"]],
        "local launcher": [grid],
    }
    walls: dict[str, list[float]] = {way: [] for way in ways}
    besides: list[float] = []
    for _ in range(repeats):
        for way, commands in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                for command in commands:
                    subprocess.run(
                        TRAIN + command, cwd=folder, check=True, stdout=subprocess.DEVNULL
                    )
                walls[way].append(time.perf_counter() - begun)
                if way == "local launcher":
                    trained = [
                        read_metrics(path.parent) for path in Path(folder).rglob("metrics.json")
                    ]
                    seconds = sum(run["train_seconds"] for run in trained)
                    besides.append(
                        (walls[way][-1] - seconds / min(len(cells), os.cpu_count() or 1))
                        / len(cells)
                    )
    local = walls["local launcher"]
    return {
        **{f"seconds, {way}": median(found) for way, found in walls.items()},
        "local / shell loop": median(
            a / b for a, b in zip(local, walls["shell loop"], strict=True)
        ),
        "local / basic launcher": median(
            a / b for a, b in zip(local, walls["basic launcher"], strict=True)
        ),
        "seconds a cell beside its training": median(besides),
    }
