"""Measures a training step against the length of the context: a GPT and an LSTM of as many parameters.

A step reads the same number of characters at every length. The LSTM goes through a context one
character after the other; the GPT looks at all pairs of them at once.
"""

from statistics import median

import torch
import torch.nn.functional as F

from lmlab import machine
from lmlab.config import overrides
from lmlab.models.base import build_model
from lmlab.training.optimizers import build_optimizer
from suites.commands import clock

LENGTHS = (32, 64, 128, 256, 512, 1024)
TOKENS = 4096  # of a step
V = 65  # characters in the vocabulary, as in tiny-shakespeare
MODELS = {"gpt": "n_layer=4 n_head=4 n_embd=64", "lstm": "n_layer=1 n_embd=152"}


class Steps:
    """Makes training steps of a model on random ids. `keys` are those of train.py."""

    def __init__(self, keys: str, length: int, vocab_size: int = V, tokens: int = TOKENS) -> None:
        arguments = f"{keys} block_size={length}".split()
        config = machine.resolve(overrides.resolved(arguments)[0])
        place = machine.pick(config.choices["device"])
        self.precision = config.device.precision
        self.place = place
        self.model = build_model(config.model, vocab_size).to(place)
        self.optimizer = build_optimizer(self.model, config.optimizer, self.precision)
        self.ids = torch.randint(vocab_size, (tokens // length, length + 1), device=place)

    def seconds(self) -> float:
        """Makes one step, and returns how long it took."""
        begun = clock()
        with machine.autocast(self.place, self.precision):
            logits = self.model(self.ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return clock() - begun


def measure(repeats: int) -> dict[str, float]:
    """Returns medians: milliseconds of each model's step, and ratios of the LSTM's to the GPT's."""
    figures = {}
    for length in LENGTHS:
        steps = {model: Steps(f"model={model} {keys}", length) for model, keys in MODELS.items()}
        seconds: dict[str, list[float]] = {model: [] for model in MODELS}
        for turn in range(5 * repeats + 1):
            for model, one in steps.items():
                taken = one.seconds()
                if turn:  # the first warms up
                    seconds[model].append(taken)
        for model, values in seconds.items():
            figures[f"ms a step, {model}, block_size={length}"] = 1000 * median(values)
        pairs = zip(seconds["lstm"], seconds["gpt"], strict=True)
        figures[f"lstm / gpt, block_size={length}"] = median(a / b for a, b in pairs)
    return figures
