"""Text from a model: predict, draw the next token, append it, repeat."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.inference.loss import evaluating
from lmlab.machine import autocast
from lmlab.models.base import Cache, Decoder, LanguageModel


@np.errstate(
    all="ignore"
)  # logits that aren't finite give nan, which `draw` takes for its first token
def next_token_probs(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """From logits (B, V) to the probabilities (B, V) to draw from. temperature: below 1 the likely
    gets likelier, at 0 certain. top_k: only the k likeliest. top_p: only the fewest that together
    reach p (Holtzman et al. 2020).
    """
    if temperature == 0:
        return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(1)]
    probs = np.exp(
        (logits - np.maximum.reduce(logits, axis=1, keepdims=True)) / np.float32(temperature)
    )
    probs /= np.add.reduce(probs, axis=1, keepdims=True)
    if top_k is None and top_p is None:
        return probs
    order = np.argsort(-probs, axis=1, kind="stable")
    best = np.take_along_axis(probs, order, axis=1)
    if top_k is not None:
        best[:, top_k:] = 0
    if top_p is not None:
        best /= best.sum(1, keepdims=True)
        best[best.cumsum(1) - best >= top_p] = 0  # those before it reach p already
    np.put_along_axis(probs, order, best / best.sum(1, keepdims=True), axis=1)
    return probs


def draw(probs: np.ndarray, random: torch.Generator) -> np.ndarray:
    """One token (B,) of each row of probabilities (B, V): where a uniform number falls among their
    sums.
    """
    sums = np.add.accumulate(probs, axis=1)
    return np.add.reduce(
        sums <= torch.rand(len(probs), 1, generator=random).numpy() * sums[:, -1:], axis=1
    )


class PlainReader:
    """Reads all tokens anew for each next one: the way for models without caches."""

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

    Then it begins again, with new caches, from the last quarter of what it saw.
    """

    caches: Sequence[Cache] | None = None

    def logits(self, idx: np.ndarray) -> np.ndarray:
        if self.caches is not None and self.caches[0].length < self.block_size:
            return self.next_logits(idx[:, -1:], self.caches)
        window = self.block_size
        if self.caches is not None:
            window = max(1, self.block_size // 4)
        return self.first_logits(idx[:, -window:])

    def first_logits(self, idx: np.ndarray) -> np.ndarray:
        """Returns the logits (B, V) after idx (B, T), read into new caches."""
        self.caches = self.model.caches()
        return self.forward(idx, self.caches)

    def next_logits(self, idx: np.ndarray, caches: Sequence[Cache]) -> np.ndarray:
        """Returns the logits (B, V) after one more token, idx (B, 1)."""
        return self.forward(idx, caches)


class NumpyReader(CachedReader):
    """Like CachedReader, but the model's `decoder` reads all that is read token by token."""

    def __init__(
        self, model: LanguageModel, block_size: int, precision: str, decoder: Decoder
    ) -> None:
        super().__init__(model, block_size, precision)
        self.decoder = decoder

    def first_logits(self, idx: np.ndarray) -> np.ndarray:
        logits = super().first_logits(idx)
        self.decoder.follow(self.caches)
        return logits

    def next_logits(self, idx: np.ndarray, caches: Sequence[Cache]) -> np.ndarray:
        return self.decoder(idx[0, 0])[None]


def reader_for(model: LanguageModel, samples: int, block_size: int, precision: str) -> PlainReader:
    """Returns the fastest reader that can write `samples` texts at a time with `model`."""
    if model.caches() is None:
        return PlainReader(model, block_size, precision)
    if model.device.type == "cpu" and samples == 1:
        decoder = model.decoder()
        if decoder is not None:
            return NumpyReader(model, block_size, precision, decoder)
    return CachedReader(model, block_size, precision)


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
    """Yields the next token of each sequence in idx (B, T), (B,), `max_tokens` times.

    The draws come from a random generator of its own, on the CPU, so that all devices draw alike.
    The model sees at most `block_size` tokens.
    """
    random = torch.Generator().manual_seed(seed)
    with evaluating(model):
        reader = reader_for(model, len(idx), block_size, precision)
        for _ in range(max_tokens):
            logits = reader.logits(idx)
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
    **options: object,
) -> Iterator[list[str]]:
    """Yields the new text of each sample, piece by piece; a sample ends before the string `stop`.
    An empty prompt starts after a line's end, or else after the first known character. Raises
    UserError naming unknown ones.
    """
    try:
        ids = tokenizer.encode(prompt or tokenizer.default_prompt())
    except UserError as error:
        raise UserError(f"prompt={prompt}: {error}") from None
    idx = ids.astype("int64")[None].repeat(samples, axis=0)
    held, done = [""] * samples, [False] * samples
    for tokens in generate(model, idx, max_tokens, block_size, **options):
        ready = []
        for i, token in enumerate(tokens.tolist()):
            held[i] += "" if done[i] else tokenizer.decode([token])
            if stop and stop in held[i]:
                held[i], done[i] = held[i].split(stop)[0], True
            # what may yet become `stop` waits
            waits = (
                0
                if done[i] or not stop
                else max(n for n in range(len(stop)) if held[i].endswith(stop[:n]))
            )
            ready.append(held[i][: len(held[i]) - waits])
            held[i] = held[i][len(held[i]) - waits :]
        yield ready
        if all(done):
            return
    yield held
