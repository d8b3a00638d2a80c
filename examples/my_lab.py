"""A model, a text and a measure of your own, in one file, which can be anywhere.

    python train.py plugin=examples/my_lab.py model=rnn data=recipes

Change it, or begin a new file: nothing in the lab itself is edited. Commands that open a run take plugin=.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

import lmlab


class RNNConfig(lmlab.ModelConfig):
    """Keys of the model, as in n_embd=64, with their ranges and defaults."""

    n_embd: Annotated[int, "[1, 100000]"] = 32


@lmlab.register.model("rnn", RNNConfig)
class RNN(lmlab.LanguageModel):
    """A plain recurrent network (Elman 1990): a memory of n_embd numbers, rewritten at each token."""

    def __init__(self, config: RNNConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.memory = nn.RNN(config.n_embd, config.n_embd, batch_first=True)
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        x, _ = self.memory(self.token_embedding(idx))  # (B, T, C)
        return self.head(x)  # (B, T, V)


@lmlab.register.corpus("recipes")
def recipes(config: lmlab.CorpusConfig) -> Iterator[str]:
    """Yields a text in pieces: here a hundred short recipes."""
    for cups in range(1, 101):
        yield f"Take {cups} cups of flour, {2 * cups} eggs and a pinch of salt. Stir and bake.\n"


@lmlab.register.evaluation(better="higher")
def accuracy(model: lmlab.LanguageModel, data: "lmlab.Subject") -> dict[str, float]:
    """Returns val/accuracy: how often the likeliest token is the right one."""
    ids = torch.tensor(data.tokens[:257].astype(int), device=model.device)
    with torch.inference_mode():
        windows = model.windows(ids, data.block_size, 4096)
        right = [model(idx).argmax(-1) == targets for idx, targets in windows]
    return {"val/accuracy": torch.cat([one.flatten() for one in right]).double().mean().item()}
