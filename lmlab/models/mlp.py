"""The MLP: the next character from the last few, whose embeddings lie side by side.

Letters: B sequences, T tokens in each, C numbers that stand for a token (`n_embd`), H hidden units
(`n_hidden`), V tokens in the vocabulary, K tokens that it sees at once (`context`). The first
language model in which what is learned of one context helps with another like it (Bengio et al.
2003; without their direct connections from embeddings to scores, an option there). It sees more
than a bigram, but nothing beyond K tokens, and each place has weights of its own.
"""

import torch
from torch import Tensor, nn

from lmlab.catalogue import MLPConfig
from lmlab.models.base import LanguageModel
from lmlab.models.dropout import Dropout
from lmlab.models.page import PageModel, embeddings_named


class MLP(LanguageModel):
    def __init__(self, config: MLPConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.context = config.context
        self.dropout = Dropout(config)
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.nothing = nn.Parameter(torch.zeros(config.n_embd))  # where no token has been yet
        self.hidden = nn.Linear(config.context * config.n_embd, config.n_hidden)
        self.head = nn.Linear(config.n_hidden, vocab_size)
        nn.init.zeros_(self.head.weight)  # at first all next tokens are equally likely
        nn.init.zeros_(self.head.bias)

    def forward(self, idx: Tensor) -> Tensor:
        B, T = idx.shape
        x = self.token_embedding(idx)  # (B, T, C)
        x = torch.cat([self.nothing.expand(B, self.context - 1, -1), x], dim=1)  # (B, K - 1 + T, C)
        last_few = [x[:, k : k + T] for k in range(self.context)]  # the oldest first
        x = torch.cat(last_few, dim=2)  # (B, T, K C)
        x = torch.tanh(self.hidden(x))  # (B, T, H)
        return self.head(self.dropout(x))  # (B, T, V)

    def in_page(self, vocab_size: int) -> PageModel:
        sizes = {"context": self.context, "n_embd": self.config.n_embd}
        return PageModel("mlp", sizes, embeddings_named(self.state_dict()))
