"""Runs the commands of the suites and measures their time."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch

from lmlab.runs.folder import read_metrics

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "train.py")]

# nanoGPT's recipes, as its README gives them; the second is its config file as it stands.
NANOGPT = {
    "shakespeare_cpu": "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0",
    "shakespeare_baby": "--log_interval=1 --max_iters=1000",
}


def clock() -> float:
    """Waits until a GPU has finished its work, and returns the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def wall(command: list[str], folder: Path | str) -> float:
    """Runs a whole command, and returns its seconds."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def train(arguments: str) -> tuple[float, dict[str, float]]:
    """Runs train.py. Returns the wall time in seconds, and the run's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = wall(TRAIN + arguments.split(), folder)
        (path,) = Path(folder).rglob("metrics.json")
        return seconds, read_metrics(path.parent)


def train_nanogpt(clone: Path, recipe: str, seed: int, out: Path) -> tuple[float, float]:
    """Runs nanoGPT's train.py. Returns its wall time, and the seconds of its training steps alone.

    Steps with an evaluation before them are counted like the mean of the others.
    """
    # The seed is no option of nanoGPT's, so it is replaced in the source.
    source = f"exec(open('train.py').read().replace('1337', '{1337 + seed}'))"
    command = [sys.executable, "-c", source, "config/train_shakespeare_char.py", f"--out_dir={out}"]
    begun = time.perf_counter()
    output = subprocess.run(
        command + NANOGPT[recipe].split(),
        cwd=clone,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    ).stdout
    seconds = time.perf_counter() - begun
    steps = {
        int(step): float(ms) / 1000
        for step, ms in re.findall(r"iter (\d+): .*time ([\d.]+)ms", output)
    }
    evaluating = {int(step) for step in re.findall(r"step (\d+): train loss", output)}
    mean_step = mean(took for step, took in steps.items() if step not in evaluating)
    return seconds, mean_step * (len(steps) - 1)
