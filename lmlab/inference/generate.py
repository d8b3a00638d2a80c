"""Generates text with a model: predict, draw the next token, append it, repeat."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lmlab.data.tokenizers import GrowingText, Tokenizer
from lmlab.errors import UserError
from lmlab.machine import autocast
from lmlab.models.base import Cache, Decoder, LanguageModel, evaluating

CHECKED = 3  # tokens by which a fast reader is compared with the model
NO_NUMBERS = "the model's scores are no numbers, so what it writes means nothing"
TOLERANCE = 1e-2  # of its logits; an error of the code is larger, one of rounding smaller


@np.errstate(all="ignore")  # logits that are no numbers give nan: `draw` takes the first token
def next_token_probs(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """Returns the probabilities (B, V) to draw from, given the logits (B, V).

    A `temperature` below 1 makes likely tokens more likely; with 0 the most likely one is certain.
    `top_k` keeps the k most likely tokens. `top_p` keeps the smallest set of tokens whose
    probabilities together reach p (Holtzman et al. 2020).
    """
    if np.float32(temperature) == 0:
        return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(1)]
    highest = np.maximum.reduce(logits, axis=1, keepdims=True)
    probs = np.exp((logits - highest) / np.float32(temperature))
    probs /= np.add.reduce(probs, axis=1, keepdims=True)
    if top_k is None and top_p is None:
        return probs
    order = np.argsort(-probs, axis=1, kind="stable")
    best = np.take_along_axis(probs, order, axis=1)
    if top_k is not None:
        best[:, top_k:] = 0
    if top_p is not None:
        best /= best.sum(1, keepdims=True)
        least = float(np.finfo(np.float32).tiny)  # of a smaller share nothing would be left
        best[best.cumsum(1) - best >= max(top_p, least)] = 0  # the tokens before it reach p already
    np.put_along_axis(probs, order, best / best.sum(1, keepdims=True), axis=1)
    return probs


def draw(probs: np.ndarray, random: torch.Generator) -> np.ndarray:
    """Returns one token (B,) for each row of probabilities (B, V).

    It draws a uniform number and returns the first token whose cumulative sum exceeds it.
    """
    sums = np.add.accumulate(probs, axis=1)
    numbers = torch.rand(len(probs), 1, generator=random).numpy()
    return np.add.reduce(sums <= numbers * sums[:, -1:], axis=1)


class PlainReader:
    """Reads all tokens again for each new token. It is used for models without caches."""

    def __init__(self, model: LanguageModel, block_size: int, precision: str) -> None:
        self.model = model
        self.block_size = block_size
        self.device = model.device
        # On the CPU, one token takes longer in bfloat16.
        self.precision = "32-true" if self.device.type == "cpu" else precision

    def logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after the tokens idx (B, T), of which the last is new."""
        return self.forward(idx[:, -self.block_size :])

    def forward(self, idx: np.ndarray, *caches: Sequence[Cache]) -> np.ndarray:
        """Returns the model's logits (B, V) after the last of the tokens idx (B, T)."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(torch.from_numpy(idx).to(self.device), *caches)
            return logits[:, -1].float().cpu().numpy()


class CachedReader(PlainReader):
    """Reads each token once, until the caches are full.

    When they are full, it starts again with new caches, from the last quarter of the tokens.
    """

    caches: Sequence[Cache] = ()  # until the first tokens are read

    def logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after the tokens idx (B, T), of which the last is new."""
        if not self.caches:
            return self.first_logits(idx[:, -self.block_size :])
        if self.caches[0].length < self.block_size:
            return self.next_logits(idx[:, -1:])
        return self.first_logits(idx[:, -max(1, self.block_size // 4) :])

    def first_logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after idx (B, T), read into new caches."""
        self.caches = self.model.caches() or ()
        return self.forward(idx, self.caches)

    def next_logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after one more token, idx (B, 1)."""
        return self.forward(idx, self.caches)


class NumpyReader(CachedReader):
    """Like CachedReader, but the model's `decoder`, in numpy, reads the single tokens."""

    def __init__(
        self, model: LanguageModel, block_size: int, precision: str, decoder: Decoder
    ) -> None:
        super().__init__(model, block_size, precision)
        self.decoder = decoder

    def first_logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after idx (B, T); torch reads these."""
        logits = super().first_logits(idx)
        self.decoder.follow(self.caches)
        return logits

    def next_logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (1, V) after one more token, idx (1, 1).

        One thread computes them: torch's erf would wake the others for two microseconds of work.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.decoder(idx[0, 0])[None]
        finally:
            torch.set_num_threads(threads)


def reader_for(model: LanguageModel, samples: int, block_size: int, precision: str) -> PlainReader:
    """Returns the fastest reader that can write `samples` texts at a time with `model`.

    A fast reader is used only if it returns the model's own logits for a few tokens.
    """
    for fast in fast_readers(model, samples, block_size, precision):
        if is_faithful(fast):
            return fast
        print(
            f"warning: {type(fast).__name__} does not return the logits of {type(model).__name__}; "
            "sampling does without it",
            file=sys.stderr,
        )
    return PlainReader(model, block_size, precision)


def fast_readers(
    model: LanguageModel, samples: int, block_size: int, precision: str
) -> Iterator[CachedReader]:
    """Yields the readers that are faster than PlainReader for this model, the fastest first."""
    if model.caches() is None:
        return
    if model.device.type == "cpu" and samples == 1:
        decoder = model.decoder()
        if decoder is not None:
            yield NumpyReader(model, block_size, precision, decoder)
    yield CachedReader(model, block_size, precision)


@torch.inference_mode()
def is_faithful(fast: CachedReader) -> bool:
    """Returns whether a reader returns the model's own logits after each of a few tokens.

    They are compared in float32. Afterwards the reader is as before.
    """
    plain = PlainReader(fast.model, fast.block_size, "32-true")
    precision = fast.precision
    fast.precision = "32-true"
    tokens = np.zeros((1, 1), dtype=np.int64)
    are_equal = True
    with evaluating(fast.model):
        for _ in range(min(CHECKED, fast.block_size)):
            wanted = plain.logits(tokens)
            found = fast.logits(tokens)
            are_equal &= np.allclose(found, wanted, TOLERANCE, TOLERANCE, equal_nan=True)
            last = np.array([[wanted.shape[1] - 1]])
            tokens = np.concatenate((tokens, last), axis=1)
    fast.precision = precision
    fast.caches = ()
    return are_equal


def generate(
    model: LanguageModel,
    idx: np.ndarray,
    max_tokens: int,
    block_size: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    precision: str = "32-true",
) -> Iterator[np.ndarray]:
    """Yields the next token of each sequence in idx (B, T), as (B,), `max_tokens` times.

    A separate random generator on the CPU draws the tokens, so all devices draw the same ones.
    The model sees at most `block_size` tokens.
    """
    random = torch.Generator().manual_seed(seed)
    with evaluating(model):
        reader = reader_for(model, len(idx), block_size, precision)
        was_told = False
        for _ in range(max_tokens):
            logits = reader.logits(idx)
            if not was_told and not np.maximum.reduce(logits, axis=None) < np.inf:
                was_told = True
                print(f"warning: {NO_NUMBERS}", file=sys.stderr)
            tokens = draw(next_token_probs(logits, temperature, top_k, top_p), random)
            idx = np.concatenate((idx[:, -block_size:], tokens[:, None]), axis=1)
            yield tokens


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    block_size: int,
    *,
    samples: int = 1,
    stop: str | None = None,
    **options: Any,
) -> Iterator[list[str]]:
    """Yields the new text of each sample, piece by piece. A sample ends before the string `stop`.

    If the prompt is empty, the tokenizer chooses one. `options` go to `generate`. Raises
    UserError for a prompt or `stop` with unknown characters.
    """
    try:
        ids = tokenizer.encode(prompt or tokenizer.default_prompt())
    except UserError as error:
        raise UserError(f"prompt={prompt}: {error}") from None
    if stop is not None:
        check_stop(stop, tokenizer)
    idx = ids.astype("int64")[None].repeat(samples, axis=0)
    texts = [Sample(tokenizer.growing(), stop) for _ in range(samples)]
    for tokens in generate(model, idx, max_tokens, block_size, **options):
        yield [text.add(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.is_done for text in texts):
            return
    yield [text.end() for text in texts]


def check_stop(stop: str, tokenizer: Tokenizer) -> None:
    """Raises UserError if no text can contain `stop`, or if every text does."""
    if not stop:
        raise UserError("stop=: is empty; needs a text before which a sample ends")
    try:
        tokenizer.encode(stop)
    except UserError as error:
        hint = "; in a shell $'\\n' is a newline" if "\\n" in stop else ""
        raise UserError(f"stop={stop}: can never be written: {error}{hint}") from None


class Sample:
    """A text that grows token by token, and ends before the string `stop`, if it is given."""

    def __init__(self, growing: GrowingText, stop: str | None) -> None:
        self.growing = growing
        self.stop = stop
        self.held = ""  # text that may yet become `stop`
        self.is_done = False

    def add(self, token: int) -> str:
        """Adds a token, and returns the text that can be written now."""
        return self.extend(self.growing.add(token))

    def end(self) -> str:
        """Returns the text that is left when no more tokens come."""
        ready = self.extend(self.growing.end())
        return ready + self.held

    def extend(self, piece: str) -> str:
        """Adds a piece of text, and returns the text that can be written now."""
        if self.is_done:
            return ""
        self.held += piece
        if not self.stop:
            waits = 0
        elif self.stop in self.held:
            self.held = self.held.split(self.stop)[0]
            self.is_done = True
            waits = 0
        else:
            starts = range(len(self.stop))
            waits = max(n for n in starts if self.held.endswith(self.stop[:n]))
        ready = self.held[: len(self.held) - waits]
        self.held = self.held[len(ready) :]
        return ready
