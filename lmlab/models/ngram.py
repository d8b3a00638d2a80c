"""The n-gram: the next character by counting what followed the last few in the training text.

Nothing here is nudged, and there are no steps. Letters: B sequences, T tokens in each, V tokens in
the vocabulary; a context is what the last 0, 1, …, `order` - 1 tokens were. Interpolated modified
Kneser-Ney (Chen and Goodman 1999, section 3.4): each context hands a share of its counts down to
the next shorter one, which saw more. A shorter context counts a token once for each token that
stood before both, not once for each time: "Francisco" is frequent, but follows "San" alone, so
where no context is known it is a poor guess (Kneser and Ney 1995).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.catalogue import NGramConfig
from lmlab.models.base import LanguageModel, alike
from lmlab.models.page import PageModel


@dataclass
class Level:
    """The contexts of one length, numbered, and the tokens that follow each, row after row."""

    contexts: np.ndarray  # sorted: number of the context without its first token * V + that token
    starts: np.ndarray  # where in the arrays below a context's row begins, (contexts + 1,)
    pairs: np.ndarray  # number of the context * V + a token that follows it, sorted
    shares: np.ndarray  # their discounted counts as a share of all of the context's
    rest: np.ndarray  # what is left for the next shorter context, (contexts,)
    discounts: np.ndarray  # what is taken off a count of 1, of 2, and of 3 or more, (3,)

    def spread(self, probs: np.ndarray, numbers: np.ndarray) -> None:
        """Adds each context's shares to the row of its place in probs (N, V), scaled to make room.

        `numbers` (N,) are the contexts; a place whose context was never seen stays as it is.
        """
        V = probs.shape[1]
        places = np.flatnonzero(numbers >= 0)
        rows = numbers[places]
        probs[places] *= self.rest[rows, None]
        sizes = np.diff(self.starts)[rows]
        offsets = self.starts[rows] - np.cumsum(sizes) + sizes
        entries = np.arange(sizes.sum()) + np.repeat(offsets, sizes)  # of all rows
        probs[np.repeat(places, sizes), self.pairs[entries] % V] += self.shares[entries]

    def add(self, probs: np.ndarray, numbers: np.ndarray, tokens: np.ndarray, V: int) -> None:
        """Does for one token of each place, probs (N,), what `spread` does for all V."""
        places = np.flatnonzero(numbers >= 0)
        rows = numbers[places]
        probs[places] *= self.rest[rows]
        codes = rows * V + tokens[places]
        entries = np.searchsorted(self.pairs, codes).clip(max=len(self.pairs) - 1)
        follows = self.pairs[entries] == codes
        probs[places[follows]] += self.shares[entries[follows]]


class Contexts:
    """The contexts in a text of N tokens, numbered, for each length from 0 up to the longest so far."""

    def __init__(self, text: np.ndarray, V: int) -> None:
        self.text = text.astype(np.int64)
        self.V = V
        self.by_length = [np.zeros(1, np.int64)]  # as in Level
        self.before = np.zeros(
            len(text), np.int64
        )  # of each token that has a longest one before it

    def grow(self, order: int) -> None:
        """Numbers those that are longer, up to `order` - 1 tokens, as far as the text has such."""
        N = len(self.text)
        for length in range(len(self.by_length), min(order, N)):
            # One token longer, so the first token has none any more.
            codes = self.before[1:] * self.V + self.text[: N - length]
            sorted_codes, self.before = np.unique(codes, return_inverse=True)
            self.by_length.append(sorted_codes)


class Places:
    """The contexts that end at each token of another text, (N,), for each length up to the longest so far.

    n-grams of one training text share them; to find a context takes longer than to use it.
    """

    def __init__(self, contexts: Contexts, text: np.ndarray) -> None:
        self.contexts = contexts
        self.text = text.astype(np.int64)
        self.numbers = [np.zeros(len(text), np.int64)]  # by length

    def grow(self) -> None:
        """Finds those that are longer, as far as the contexts of the training text are numbered."""
        for length in range(len(self.numbers), len(self.contexts.by_length)):
            token = np.full(len(self.text), -1)
            token[length - 1 :] = self.text[: len(self.text) - length + 1]
            known = self.contexts.by_length[length]
            self.numbers.append(find(known, self.numbers[-1], token, self.contexts.V))


def find(contexts: np.ndarray, shorter: np.ndarray, token: np.ndarray, V: int) -> np.ndarray:
    """Returns the number of each place's context, (N,); -1 for one that was never seen.

    `contexts` are those of a level. `shorter` are the numbers of the places' contexts without their
    first token, `token` is that token; both are -1 where there is none.
    """
    codes = np.where((shorter < 0) | (token < 0), -1, shorter * V + token)
    numbers = np.searchsorted(contexts, codes).clip(max=len(contexts) - 1)
    return np.where(contexts[numbers] == codes, numbers, -1)


class NGram(LanguageModel):
    """All that it learns is the text it has counted; the tables are made from that."""

    gives_log_probs = True

    def __init__(self, config: NGramConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.order = config.order
        self.vocab_size = vocab_size
        self.levels: list[Level] = []
        self.text = nn.Parameter(torch.zeros(0, dtype=torch.int32), requires_grad=False)  # (N,)

    def count(self, text: np.ndarray, known: Contexts | None = None) -> None:
        """Learns from the tokens `text` (N,), of which contexts shorter than `order` may be `known`."""
        V = self.vocab_size
        self.text.data = torch.from_numpy(text.astype(np.int32))
        known = known or Contexts(text, V)
        known.grow(self.order)
        contexts = known.by_length
        codes = known.before * V + known.text[len(contexts) - 1 :]
        pairs, counts = np.unique(codes, return_counts=True)
        self.levels = []
        for length in reversed(range(len(contexts))):
            self.levels.insert(0, level(contexts[length], pairs, counts, V))
            if length > 0:
                # How many different tokens stood before each shorter context and its next token.
                shorter = contexts[length][pairs // V] // V
                pairs, counts = np.unique(shorter * V + pairs % V, return_counts=True)

    def forward(self, idx: Tensor) -> Tensor:
        """Log-probabilities (B, T, V) after each token of idx (B, T), from idx up to that token."""
        (B, T), V = idx.shape, self.vocab_size
        probs = np.full((B * T, V), 1 / V)
        for level, numbers in self.contexts_of(idx):
            level.spread(probs, numbers)
        return torch.from_numpy(np.log(probs)).float().view(B, T, V).to(idx.device)

    def log_probs_of(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Those of `targets` (B, S) alone, without a table of all V: the same numbers."""
        (B, T), S = idx.shape, targets.shape[1]
        tokens = np.zeros((B, T), np.int64)
        tokens[:, T - S :] = targets.cpu().numpy()
        numbers = (numbers for _, numbers in self.contexts_of(idx))
        found = self.log_probs_at(numbers, tokens.reshape(-1)).view(B, T)
        return found[:, T - S :].to(idx.device)

    def log_probs_at(self, numbers: Iterable[np.ndarray], tokens: np.ndarray) -> Tensor:
        """Those of `tokens` (N,), each after its contexts, whose numbers are given for each level."""
        probs = np.full(len(tokens), 1 / self.vocab_size)
        for level, rows in zip(self.levels, numbers, strict=True):
            level.add(probs, rows, tokens, self.vocab_size)
        return torch.from_numpy(np.log(probs)).float()

    def contexts_of(self, idx: Tensor) -> Iterator[tuple[Level, np.ndarray]]:
        """Yields each level, and of each place in idx (B, T) the number of its context there (B T,).

        The number is -1 where the context was never seen.
        """
        B, T = idx.shape
        longest = len(self.levels)
        # -1: nothing was there. An unsigned type would make a token of it.
        ids = np.pad(idx.long().cpu().numpy(), ((0, 0), (longest, 0)), constant_values=-1)
        numbers = np.zeros(B * T, np.int64)
        for length, level in enumerate(self.levels):
            if length > 0:
                start = longest - length + 1
                token = ids[:, start : start + T].reshape(-1)  # `length` tokens back
                numbers = find(level.contexts, numbers, token, self.vocab_size)
            yield level, numbers

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: object) -> None:
        """Counts again: a text has any length, and its tables follow from it."""
        self.count(state[f"{prefix}text"].numpy())
        super()._load_from_state_dict(state, prefix, *others)

    def n_params(self) -> int:
        """How many numbers it has counted: its parameters, as it were."""
        return sum(len(level.pairs) for level in self.levels)

    def size(self) -> str:
        return f"{self.n_params():,} counts"

    def flops_per_token(self) -> int:
        return 0

    def accepts(self, state: dict[str, Any]) -> bool:
        """A text of any length, of tokens that are in the vocabulary."""
        text = state.get("text")
        if state.keys() != {"text"} or not isinstance(text, Tensor):  # from a file: anything
            return False
        wanted = torch.empty(text.shape, dtype=torch.int32, device="meta")
        if not alike(text, wanted) or text.dim() != 1 or len(text) == 0:
            return False
        return bool((text >= 0).all() and (text < self.vocab_size).all())

    def largest_checkpoint(self) -> int:
        return 2**34

    def in_page(self, vocab_size: int) -> PageModel:
        discounts = [level.discounts.tolist() for level in self.levels]
        sizes = {"vocab_size": vocab_size, "discounts": discounts}
        return PageModel("ngram", sizes, {"text": self.text})

    def windows(
        self, ids: Tensor, block_size: int, tokens_at_once: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """They overlap, so that each token is predicted from its full context."""
        for start in range(0, len(ids) - 1, tokens_at_once):
            first = max(0, start - block_size)
            end = min(start + tokens_at_once, len(ids) - 1)
            yield ids[None, first:end], ids[None, start + 1 : end + 1]


def level(contexts: np.ndarray, pairs: np.ndarray, counts: np.ndarray, V: int) -> Level:
    """The tables of contexts of one length.

    They are made from the sorted `pairs` (context * V + token) and how often each counts.
    """
    # At least 1, which a short text may lack.
    n1, n2, n3, n4 = (max(int((counts == n).sum()), 1) for n in (1, 2, 3, 4))
    # The one discount of Kneser and Ney: for a count of 1, and where a short text allows no more.
    Y = n1 / (n1 + 2 * n2)
    discounts = np.clip([Y, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3], Y, [1, 2, 3])
    taken = discounts[counts.clip(max=3) - 1]
    rows = pairs // V
    totals = np.bincount(rows, counts, len(contexts))
    lost = np.bincount(rows, taken, len(contexts))
    # A context that only began the text hands all down.
    rest = np.where(totals > 0, lost / totals.clip(min=1), 1.0)
    sizes = np.bincount(rows, minlength=len(contexts))
    return Level(
        contexts=contexts,
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        pairs=pairs,
        shares=(counts - taken) / totals[rows],
        rest=rest,
        discounts=discounts,
    )
