"""Measures how fast 1,000 characters are drawn, one by one.

The model is the GPT of nanoGPT's CPU recipe, untrained: the speed is the same.
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

N = 1000  # characters to draw
V = 65  # characters in the vocabulary, as in tiny-shakespeare


def measure(repeats: int, nanogpt: Path | None) -> dict[str, float]:
    """Returns medians: tokens a second of each method, and ratios of lmlab to the others."""
    config = machine.resolve(overrides.resolved(("experiment=shakespeare_cpu",))[0])
    device = machine.pick("auto")
    T = config.model.block_size
    precision = config.device.precision
    model = build_model(config.model, V).to(device)
    start = torch.zeros(1, 1, dtype=torch.long, device=device)

    def ours() -> None:
        idx = start.cpu().numpy()
        list(generate.generate(model, idx, N, T, temperature=0.8, precision=precision))

    @torch.inference_mode()
    def uncached() -> None:
        idx = start
        for _ in range(N):
            probs = (model(idx[:, -T:])[:, -1].float() / 0.8).softmax(-1)
            idx = torch.cat([idx, torch.multinomial(probs, 1)], dim=1)

    ways: dict[str, Callable[[], object]] = {"lmlab": ours, "without a cache": uncached}
    if nanogpt:
        sys.path.insert(0, str(nanogpt))
        from model import GPT, GPTConfig

        shape = {
            key: getattr(config.model, key)
            for key in ("block_size", "n_layer", "n_head", "n_embd", "dropout")
        }
        theirs = GPT(GPTConfig(vocab_size=V, bias=False, **shape)).eval().to(device)
        ways["nanoGPT"] = lambda: theirs.generate(start, N, temperature=0.8, top_k=200)
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, draw in ways.items():
            begun = clock()
            draw()
            if turn:  # the first warms up
                speeds[way].append(N / (clock() - begun))
    figures = {f"tokens/s, {way}": median(values) for way, values in speeds.items()}
    for way in ways:
        if way != "lmlab":
            pairs = zip(speeds["lmlab"], speeds[way], strict=True)
            figures[f"lmlab / {way}"] = median(a / b for a, b in pairs)
    return figures
