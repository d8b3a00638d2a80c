"""The n-gram: the next character by counting what followed the last few characters in the training
text.

Nothing here is nudged, and there are no steps. Letters: B sequences, T tokens in each, V tokens in
the vocabulary; a context is what the last 0, 1, …, `order` - 1 tokens were. Interpolated modified
Kneser-Ney (Chen and Goodman 1999, section 3.4): each context hands a share of its counts down to
the next shorter one, which saw more. A shorter context counts a token once for each token that
stood before both, not once for each time: "Francisco" is frequent, but follows "San" alone, so
where no context is known it is a poor guess (Kneser and Ney 1995).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.catalogue import NGramConfig
from lmlab.models.base import LanguageModel, alike


@dataclass
class Level:
    """The contexts of one length, numbered; and the tokens that follow each, in rows one after the
    other.
    """

    contexts: np.ndarray  # sorted: number of the context without its first token * V + that token
    starts: np.ndarray  # where in the arrays below a context's row begins, (contexts + 1,)
    tokens: np.ndarray  # which tokens follow
    shares: np.ndarray  # their discounted counts as a share of all of the context's
    rest: np.ndarray  # what is left for the next shorter context, (contexts,)


class NGram(LanguageModel):
    """All that it learns is the text it has counted; the tables are made from that."""

    has_steps = False
    gives_log_probs = True

    def __init__(self, config: NGramConfig, vocab_size: int) -> None:
        super().__init__()
        self.order = config.order
        self.vocab_size = vocab_size
        self.levels: list[Level] = []
        self.text = nn.Parameter(torch.zeros(0, dtype=torch.int32), requires_grad=False)  # (N,)

    def count(self, text: np.ndarray) -> None:
        """Learns from the tokens `text` (N,)."""
        V, N = self.vocab_size, len(text)
        self.text.data, text = torch.from_numpy(text.astype(np.int32)), text.astype(np.int64)
        contexts, before = (
            [np.zeros(1, np.int64)],
            np.zeros(N, np.int64),
        )  # before[i]: number of the context of text[i]
        for length in range(
            1, min(self.order, N)
        ):  # one token longer, so the first token has none any more
            sorted_codes, before = np.unique(
                before[1:] * V + text[: N - length], return_inverse=True
            )
            contexts.append(sorted_codes)
        pairs, counts = np.unique(before * V + text[len(contexts) - 1 :], return_counts=True)
        self.levels = []
        for length in reversed(range(len(contexts))):
            self.levels.insert(0, level(contexts[length], pairs, counts, V))
            if (
                length
            ):  # how many different tokens stood before each shorter context and its next token
                shorter = contexts[length][pairs // V] // V
                pairs, counts = np.unique(shorter * V + pairs % V, return_counts=True)

    def forward(self, idx: Tensor) -> Tensor:
        """Log-probabilities (B, T, V) after each token of idx (B, T), from what is in idx before
        it.
        """
        (B, T), V = idx.shape, self.vocab_size
        ids = np.pad(
            idx.cpu().numpy(), ((0, 0), (len(self.levels), 0)), constant_values=-1
        )  # -1: nothing was there
        probs, numbers = (
            np.full((B * T, V), 1 / V),
            np.zeros(B * T, np.int64),
        )  # of each place's context; -1: not seen
        for length, level in enumerate(self.levels):
            if length:
                token = ids[:, len(self.levels) - length + 1 :][:, :T].reshape(
                    -1
                )  # `length` tokens back
                codes = np.where((numbers < 0) | (token < 0), -1, numbers * V + token)
                numbers = np.searchsorted(level.contexts, codes).clip(max=len(level.contexts) - 1)
                numbers = np.where(level.contexts[numbers] == codes, numbers, -1)
            places = np.flatnonzero(numbers >= 0)
            rows = numbers[places]
            probs[places] *= level.rest[rows, None]
            begin, sizes = level.starts[rows], np.diff(level.starts)[rows]
            entries = np.arange(sizes.sum()) + np.repeat(
                begin - np.cumsum(sizes) + sizes, sizes
            )  # of all rows
            probs[np.repeat(places, sizes), level.tokens[entries]] += level.shares[entries]
        return torch.from_numpy(np.log(probs)).float().view(B, T, V).to(idx.device)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: object) -> None:
        """Counts again: a text has any length, and its tables follow from it."""
        self.count(state[f"{prefix}text"].numpy())
        super()._load_from_state_dict(state, prefix, *others)

    def n_params(self) -> int:
        """How many numbers it has counted: its parameters, as it were."""
        return sum(len(level.tokens) for level in self.levels)

    def size(self) -> str:
        return f"{self.n_params():,} counts"

    def flops_per_token(self) -> int:
        return 0

    def accepts(self, state: dict[str, Any]) -> bool:
        """A text of any length, of tokens that are in the vocabulary."""
        text = state.get("text")
        if state.keys() != {"text"} or not isinstance(text, Tensor):  # from a file: anything
            return False
        if (
            not alike(text, torch.empty(text.shape, dtype=torch.int32, device="meta"))
            or text.dim() != 1
        ):
            return False
        return len(text) > 0 and bool((text >= 0).all() and (text < self.vocab_size).all())

    def largest_checkpoint(self) -> int:
        return 2**34

    def windows(
        self, ids: Tensor, block_size: int, tokens_at_once: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """They overlap, so that each token is predicted from its full context."""
        n = max(1, min(tokens_at_once, 2**24 // self.vocab_size))  # probabilities of 128 MB at most
        for start in range(0, len(ids) - 1, n):
            first, end = max(0, start - block_size), min(start + n, len(ids) - 1)
            yield ids[None, first:end], ids[None, start + 1 : end + 1]


def level(contexts: np.ndarray, pairs: np.ndarray, counts: np.ndarray, V: int) -> Level:
    """The tables of contexts of one length from the sorted `pairs` (context * V + token) and how
    often each counts.
    """
    n1, n2, n3, n4 = (
        max(int((counts == n).sum()), 1) for n in (1, 2, 3, 4)
    )  # 1 where a short text has none
    Y = n1 / (
        n1 + 2 * n2
    )  # the one discount of Kneser and Ney, for a count of 1 and where a short text allows no more
    discounts = np.clip([Y, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3], Y, [1, 2, 3])
    taken = discounts[counts.clip(max=3) - 1]
    rows = pairs // V
    totals, lost = (np.bincount(rows, weights, len(contexts)) for weights in (counts, taken))
    rest = np.where(
        totals > 0, lost / totals.clip(min=1), 1.0
    )  # a context that only began the text hands all down
    return Level(
        contexts,
        np.searchsorted(pairs, np.arange(len(contexts) + 1) * V),
        pairs % V,
        (counts - taken) / totals[rows],
        rest,
    )
