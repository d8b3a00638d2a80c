"""How fast the lab is, next to what would be used instead:

  python scripts/benchmark.py sweep

Suites:
  sweep  twelve bigram cells of 300 steps: `python train.py -m …` against a shell loop of twelve `python train.py`, and
         against the same sweep under Hydra's basic launcher; a cell's cost beside its training

repeats  how often each is run, in turn; the medians count (3)
out      where the figures are written as JSON (null: nowhere)

Times are whole commands, start-up included. Only the ratios of one call mean anything: machines are noisy.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lmlab import files, runs
from lmlab.cli import one_line_errors, parse_script
from lmlab.config import Count, UserError

TRAIN = [sys.executable, str(Path(__file__).parent.parent / "train.py")]

@dataclass(frozen=True)
class Options:
    repeats: Count = 3
    out: str | None = None


def sweep(repeats: int) -> dict[str, float]:
    common, seeds, rates = ["model=bigram", "max_steps=300", "threads=1"], (0, 1, 2), (0.01, 0.02, 0.03, 0.04)
    grid = ["-m", *common, "seed=" + ",".join(map(str, seeds)), "lr=" + ",".join(map(str, rates)), "name=sweep"]
    cells = [[*common, f"seed={seed}", f"lr={rate}"] for seed, rate in itertools.product(seeds, rates)]
    ways = {"shell loop": cells, "basic launcher": [[*grid, "hydra/launcher=basic"]], "local launcher": [grid]}
    walls, besides = {way: [] for way in ways}, []
    for _ in range(repeats):
        for way, commands in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                for command in commands:
                    subprocess.run(TRAIN + command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
                walls[way].append(time.perf_counter() - begun)
                if way == "local launcher":
                    trained = [runs.read_metrics(path.parent) for path in Path(folder).rglob("metrics.json")]
                    seconds = sum(run["train_seconds"] for run in trained)
                    besides.append((walls[way][-1] - seconds / min(len(cells), os.cpu_count() or 1)) / len(cells))
    local = walls["local launcher"]
    return {
        **{f"seconds, {way}": median(found) for way, found in walls.items()},
        "local / shell loop": median(a / b for a, b in zip(local, walls["shell loop"], strict=True)),
        "local / basic launcher": median(a / b for a, b in zip(local, walls["basic launcher"], strict=True)),
        "seconds a cell beside its training": median(besides),
    }


SUITES = {"sweep": sweep}


def main(argv: list[str]) -> None:
    wanted = [argument for argument in argv if "=" not in argument and argument[:1] != "-"]
    options = parse_script(Options, __doc__, [argument for argument in argv if argument not in wanted])
    for suite in wanted:
        if suite not in SUITES:
            raise UserError(f"{suite}: there is no such suite; allowed are {', '.join(SUITES)}")
    figures = {suite: SUITES[suite](options.repeats) for suite in wanted or SUITES}
    for suite, found in figures.items():
        print(f"{suite}, medians of {options.repeats}")
        for name, figure in found.items():
            print(f"  {name:<36}{figure:8.3f}")
    if options.out:
        files.write(Path(options.out), json.dumps(figures, indent=2).encode())


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
