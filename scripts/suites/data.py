"""Measures how fast a text becomes tokens, in a new process on one core, without imports.

MB/s, ASCII                 64 MB of the stories repeated, in 10^6 bytes of text a second: both
                            readings, the tokens' file and its checksum, fsync included
MB/s, Cyrillic              the same in Cyrillic letters, two bytes each, as of a Russian text
MB/s, half Cyrillic         a to o alone in Cyrillic: one and two bytes in turn, at random, which
                            delay a decoder most
nanoGPT / lmlab             how many times the seconds (ASCII) nanoGPT's
                            data/shakespeare_char/prepare.py takes, which reads the text whole,
                            looks up each character in a dict and writes 16-bit ids
resident MB, ASCII of 1 GB  the most memory that the process ever had, torch included (measured
                            once; left out for repeats=1)
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

MB = 10**6
CYRILLIC = {ord("a") + i: ord("а") + i for i in range(26)}


def measure(repeats: int) -> dict[str, float]:
    """Returns the figures above, the median of `repeats` measurements each."""
    from lmlab.data import corpora

    tales = corpora.TALES.read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    half = {code: other for code, other in CYRILLIC.items() if code <= ord("o")}
    texts = {
        "ASCII": tales,
        "Cyrillic": tales.lower().translate(CYRILLIC),
        "half Cyrillic": tales.translate(half),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: fill(Path(folder) / f"{name}.txt", text, 64 * MB) for name, text in texts.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in (*texts, "nanoGPT")}
        for _ in range(repeats):
            for name, path in paths.items():
                seconds[name].append(run("lmlab", path)[0])
            seconds["nanoGPT"].append(run("nanogpt", paths["ASCII"])[0])
        figures = {
            f"MB/s, {name}": path.stat().st_size / MB / median(seconds[name])
            for name, path in paths.items()
        }
        ratios = zip(seconds["nanoGPT"], seconds["ASCII"], strict=True)
        figures["nanoGPT / lmlab"] = median(theirs / ours for theirs, ours in ratios)
        if repeats > 1:
            large = fill(paths["ASCII"], tales, 1000 * MB)
            figures["resident MB, ASCII of 1 GB"] = run("lmlab", large)[1] / MB
    return figures


def check() -> None:
    """Raises UserError if the disk has no room for the largest text."""
    from suites import scale

    scale.check()


def fill(path: Path, text: str, size: int) -> Path:
    """Writes the text repeatedly until the file has `size` bytes, and returns its path."""
    content = text.encode()
    with open(path, "wb") as file:
        for _ in range(math.ceil(size / len(content))):
            file.write(content)
    return path


def run(program: str, path: Path) -> tuple[float, float]:
    """Returns the seconds and the peak memory (bytes) of a process that prepares a text.

    The process starts with an empty cache.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        environment = os.environ | {"LMLAB_CACHE": cache}
        command = [sys.executable, __file__, program, str(path), cache]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def lmlab(path: str, folder: str) -> float:
    """Returns the seconds in which the lab prepares the text at `path`."""
    from lmlab.config import overrides
    from lmlab.data.splits import Splits

    config, _ = overrides.resolved(("device=cpu", "data=file", f"path={path}"))
    begun = time.perf_counter()
    Splits.of_run(config)
    return time.perf_counter() - begun


def nanogpt(path: str, folder: str) -> float:
    """Returns the seconds in which nanoGPT's method prepares the text at `path`."""
    import numpy as np

    begun = time.perf_counter()
    text = Path(path).read_text(encoding="utf-8")
    stoi = {char: i for i, char in enumerate(sorted(set(text)))}
    np.array([stoi[char] for char in text], dtype=np.uint16).tofile(Path(folder) / "train.bin")
    return time.perf_counter() - begun


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    seconds = {"lmlab": lmlab, "nanogpt": nanogpt}[sys.argv[1]](*sys.argv[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, peak if sys.platform == "darwin" else peak * 1024]))
