"""Measures how fast characters are drawn: 1,000 of one text, and ten texts of 500.

nanoGPT's sample.py writes ten texts of 500, one after the other; lmlab writes them at once. The model
is the GPT of nanoGPT's CPU recipe, untrained: the speed is the same.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from lmlab import machine
from lmlab.config import overrides
from lmlab.inference import generate
from lmlab.models.base import build_model
from suites.commands import clock

N = 1000  # characters of one text
TEXTS, LENGTH = 10, 500  # what nanoGPT's sample.py draws, if nothing else is asked for
V = 65  # characters in the vocabulary, as in tiny-shakespeare


def measure(repeats: int, nanogpt: Path | None) -> dict[str, float]:
    """Returns medians: tokens a second of each method, and ratios of lmlab to the others."""
    config = machine.resolve(overrides.resolved(("experiment=shakespeare_cpu",))[0])
    device = machine.pick("auto")
    T = config.model.block_size
    precision = config.device.precision
    model = build_model(config.model, V).to(device)
    start = torch.zeros(1, 1, dtype=torch.long, device=device)

    def ours(texts: int = 1, length: int = N) -> None:
        idx = start.cpu().numpy().repeat(texts, axis=0)
        list(generate.generate(model, idx, length, T, temperature=0.8, precision=precision))

    @torch.inference_mode()
    def uncached() -> None:
        idx = start
        for _ in range(N):
            probs = (model(idx[:, -T:])[:, -1].float() / 0.8).softmax(-1)
            idx = torch.cat([idx, torch.multinomial(probs, 1)], dim=1)

    ways: dict[str, Callable[[], object]] = {"lmlab": ours, "without a cache": uncached}
    if not nanogpt:
        return compared(ways, N, repeats)
    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig

    shape = {
        key: getattr(config.model, key)
        for key in ("block_size", "n_layer", "n_head", "n_embd", "dropout")
    }
    theirs = GPT(GPTConfig(vocab_size=V, bias=False, **shape)).eval().to(device)

    def one_of_theirs(length: int = N) -> None:
        theirs.generate(start, length, temperature=0.8, top_k=200)

    def all_of_theirs() -> None:
        for _ in range(TEXTS):
            one_of_theirs(LENGTH)

    ways["nanoGPT"] = one_of_theirs
    at_once: dict[str, Callable[[], object]] = {
        "lmlab": lambda: ours(TEXTS, LENGTH),
        "nanoGPT": all_of_theirs,
    }
    several = compared(at_once, TEXTS * LENGTH, repeats)
    return compared(ways, N, repeats) | {
        f"{name}, {TEXTS} texts of {LENGTH}": figure for name, figure in several.items()
    }


def compared(ways: dict[str, Callable[[], object]], drawn: int, repeats: int) -> dict[str, float]:
    """Returns medians: tokens a second of each way to draw so many, and ratios of lmlab to the others."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, draw in ways.items():
            begun = clock()
            draw()
            if turn:  # the first warms up
                seconds[way].append(clock() - begun)
    figures = {f"tokens/s, {way}": drawn / median(values) for way, values in seconds.items()}
    for way in ways:
        if way != "lmlab":
            pairs = zip(seconds["lmlab"], seconds[way], strict=True)
            figures[f"lmlab / {way}"] = median(b / a for a, b in pairs)
    return figures
