"""Text from the GPT of nanoGPT's CPU recipe (untrained: the speed is the same), one sequence, 1,000
characters.
"""

import sys
from pathlib import Path
from statistics import median

import torch

from lmlab import machine
from lmlab.config import overrides
from lmlab.inference import generate
from lmlab.models.base import build_model
from suites.commands import clock

N, V = 1000, 65


def measure(repeats: int, nanogpt: Path | None) -> dict[str, float]:
    config = machine.resolve(overrides.resolved(("experiment=shakespeare_cpu",))[0])
    place, T, precision = machine.pick("auto"), config.model.block_size, config.device.precision
    model, start = (
        build_model(config.model, V).to(place),
        torch.zeros(1, 1, dtype=torch.long, device=place),
    )

    def ours() -> None:
        list(
            generate.generate(
                model, start.cpu().numpy(), N, T, temperature=0.8, precision=precision
            )
        )

    @torch.inference_mode()
    def uncached() -> None:
        idx = start
        for _ in range(N):
            probs = (model(idx[:, -T:])[:, -1].float() / 0.8).softmax(-1)
            idx = torch.cat([idx, torch.multinomial(probs, 1)], dim=1)

    ways = {"lmlab": ours, "without a cache": uncached}
    if nanogpt:
        sys.path.insert(0, str(nanogpt))
        from model import GPT, GPTConfig

        shape = {
            key: getattr(config.model, key)
            for key in ("block_size", "n_layer", "n_head", "n_embd", "dropout")
        }
        theirs = GPT(GPTConfig(vocab_size=V, bias=False, **shape)).eval().to(place)
        ways["nanoGPT"] = lambda: theirs.generate(start, N, temperature=0.8, top_k=200)
    found = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, draw in ways.items():
            begun = clock()
            draw()
            if turn:  # the first warms up
                found[way].append(N / (clock() - begun))
    return {f"tokens/s, {way}": median(speeds) for way, speeds in found.items()} | {
        f"lmlab / {way}": median(a / b for a, b in zip(found["lmlab"], found[way], strict=True))
        for way in ways
        if way != "lmlab"
    }
