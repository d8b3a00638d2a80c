"""The bigram: the next character guessed from the current one alone."""

import torch
from torch import Tensor, nn

from lmlab.catalogue import BigramConfig
from lmlab.models.base import LanguageModel
from lmlab.models.page import PageModel


class Bigram(LanguageModel):
    """A table: row c scores every character as the next after c.

    All alike at first, so that the first loss is ln V.
    """

    def __init__(self, config: BigramConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.table = nn.Embedding.from_pretrained(torch.zeros(vocab_size, vocab_size), freeze=False)

    def forward(self, idx: Tensor) -> Tensor:
        return self.table(idx)  # (B, T) -> (B, T, V)

    def pair_scores(self) -> Tensor:
        return self.table.weight

    def in_page(self, vocab_size: int) -> PageModel:
        return PageModel("bigram", {"vocab_size": vocab_size}, {"table": self.table.weight})
