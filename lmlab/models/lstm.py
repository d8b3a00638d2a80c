"""The LSTM: reads the text token by token, and carries along what it needs in a memory.

Letters: B sequences, T tokens in each, C numbers a token and of memory (`n_embd`), V tokens in the
vocabulary. All that a recurrent network knows of the past is its memory, so it can read on for
ever, and came first. What that costs: token t waits for token t - 1, so the T steps can't be done
at once as a transformer does them, and whatever is needed later has to be kept through all steps in
between. The memory is written to and erased through gates, so that gradients pass it undiminished
(Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmlab.catalogue import LSTMConfig
from lmlab.models.base import LanguageModel
from lmlab.models.dropout import Dropout
from lmlab.models.page import PageModel, embeddings_named


@dataclass
class Memory:
    """What a layer carries from token to token, and how many tokens it has read."""

    h: Tensor | None = None  # (B, C): what it says
    c: Tensor | None = None  # (B, C): what it keeps
    length: int = 0


class Layer(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.read = nn.Linear(n_embd, 4 * n_embd)  # what the token has to say to the four below
        self.recall = nn.Linear(n_embd, 4 * n_embd, bias=False)  # and what was said before
        for gate in self.read.weight.chunk(4) + self.recall.weight.chunk(4):
            # What goes through many products neither dies out nor runs away.
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.read.bias)
        # At first nothing is erased (Jozefowicz et al. 2015).
        nn.init.ones_(self.read.bias[n_embd : 2 * n_embd])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        B, T, C = x.shape
        h, c = memory.h, memory.c
        if h is None or c is None:  # nothing was read yet
            h = c = x.new_zeros(B, C)
        said = self.read(x)  # (B, T, 4C), for all tokens at once
        answers = []
        for t in range(T):
            gates = said[:, t] + self.recall(h)  # (B, 4C)
            # (B, C) each, between 0 and 1.
            write, keep, speak = gates[:, : 3 * C].sigmoid().chunk(3, dim=1)
            c = keep * c + write * gates[:, 3 * C :].tanh()
            h = speak * c.tanh()
            answers.append(h)
        memory.h = h
        memory.c = c
        memory.length += T
        return torch.stack(answers, dim=1)  # (B, T, C)


class LSTM(LanguageModel):
    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.dropout = Dropout(config)
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Layer(config.n_embd) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size)
        nn.init.zeros_(self.head.weight)  # at first all next tokens are equally likely
        nn.init.zeros_(self.head.bias)

    def caches(self) -> list[Memory]:
        return [Memory() for _ in self.layers]

    def flops_per_token(self) -> int:
        return 6 * self.n_matrix_weights()

    def in_page(self, vocab_size: int) -> PageModel:
        weights = embeddings_named(self.state_dict())
        arrays = {name.removeprefix("layers."): weight for name, weight in weights.items()}
        sizes = {"n_layer": self.config.n_layer, "n_embd": self.config.n_embd}
        return PageModel("lstm", sizes, arrays)

    def forward(self, idx: Tensor, caches: list[Memory] | None = None) -> Tensor:
        """Logits (B, T, V) of the tokens idx (B, T), which follow those in the memories, if any."""
        x = self.token_embedding(idx)  # (B, T, C)
        for layer, memory in zip(self.layers, caches or self.caches(), strict=True):
            # Between layers alone (Zaremba et al. 2014).
            x = layer(self.dropout(x), memory)
        return self.head(self.dropout(x))  # (B, T, V)
