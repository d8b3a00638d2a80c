"""Measures how time and memory grow: with the text, a sweep's cells, the vocabulary, the context.

seconds, 100 MB of text    to turn a text of so many 10^6 bytes into tokens, the first time
seconds, 1,000 cells       to check a sweep of so many runs and to show it, with dry_run=true
ms a step, V=5,000         of the default GPT with so many tokens in its vocabulary
ms a step, context 256     of the default GPT, with as many tokens a step at every length of the context

Beside each stands the most memory, in 10^6 bytes, that its process ever had, torch included. Each is
measured in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

MB = 10**6
TEXTS = (1, 10, 100, 1000)  # MB
CELLS = (10, 100, 1000, 10_000)
VOCABULARIES = (50, 500, 5000, 50_000)
CONTEXTS = (64, 256, 1024)
TOKENS = 1024  # of a step
STEPS = 10  # that are measured, after one that warms up
NEEDED = 1300 * MB  # of the disk: the largest text, and its tokens


def check() -> None:
    """Raises UserError if the disk has no room for the largest text."""
    from lmlab.errors import UserError

    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < NEEDED:
        raise UserError(
            f"{folder}: has {free // MB:,} MB free; needs {NEEDED // MB:,}, and TMPDIR names "
            "another folder"
        )


def measure(repeats: int) -> dict[str, float]:
    """Returns the figures above, medians of `repeats` measurements."""
    from lmlab.terminal import tell

    figures: dict[str, float] = {}

    def note(name: str, unit: str, *arguments: str) -> None:
        """Measures one thing several times."""
        tell(f"… scale: {name}")
        found = [in_a_process(*arguments) for _ in range(repeats)]
        factor = 1000 if unit.startswith("ms") else 1
        figures[f"{unit}, {name}"] = factor * median(seconds for seconds, _ in found)
        figures[f"MB, {name}"] = median(memory for _, memory in found) / MB

    with tempfile.TemporaryDirectory() as folder:
        for size in TEXTS:
            path = fill(Path(folder) / "text.txt", size * MB)
            note(f"{size:,} MB of text", "seconds", "text", str(path))
    for n in CELLS:
        note(f"{n:,} cells", "seconds", "cells", str(n))
    for size in VOCABULARIES:
        note(f"V={size:,}", "ms a step", "step", str(size), "64")
    for length in CONTEXTS:
        note(f"context {length:,}", "ms a step", "step", "50", str(length))
    return figures


def fill(path: Path, size: int) -> Path:
    """Writes the stories repeatedly until the file has `size` bytes, and returns its path."""
    from lmlab.data import corpora
    from suites import data

    return data.fill(path, corpora.TALES.read_text(encoding="utf-8"), size)


def in_a_process(*arguments: str) -> tuple[float, float]:
    """Returns the seconds and the peak memory (bytes) of a new process with these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def text(path: str) -> float:
    """Returns the seconds in which the lab prepares the text at `path`, with an empty cache."""
    import os

    os.environ["LMLAB_CACHE"] = str(Path.cwd())
    from suites import data

    return data.lmlab(path, "")


def cells(n: str) -> float:
    """Returns the seconds in which a sweep of `n` cells is checked and shown."""
    from lmlab.commands import train

    line = f"-m model=bigram data=sentence max_steps=2 threads=1 seed=range({n}) dry_run=true"
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(line.split())
    return time.perf_counter() - begun


def step(vocab_size: str, block_size: str) -> float:
    """Returns the median seconds of a training step of the default GPT on random tokens."""
    from suites.context import Steps

    steps = Steps("model=gpt", int(block_size), int(vocab_size), TOKENS)
    seconds = [steps.seconds() for _ in range(STEPS + 1)]
    return median(seconds[1:])


PARTS: dict[str, Callable[..., float]] = {"text": text, "cells": cells, "step": step}

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder, whose data.py is another
    sys.path.insert(0, str(Path(__file__).parents[2]))
    seconds = PARTS[sys.argv[1]](*sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, peak if sys.platform == "darwin" else peak * 1024]))
