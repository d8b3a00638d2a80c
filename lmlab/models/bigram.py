"""The bigram: the next character guessed from the current one alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmlab.config import BigramConfig


class Bigram(nn.Module):
    """Row c of the table holds a score for each character that may follow c.

    All scores start at zero, so every character is equally likely and the first loss is ln V.
    """

    def __init__(self, config: BigramConfig, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size, _weight=torch.zeros(vocab_size, vocab_size))

    def forward(self, idx: Tensor) -> Tensor:
        return self.table(idx)  # (B, T) -> (B, T, V)
