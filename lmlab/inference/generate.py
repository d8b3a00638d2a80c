"""Text from a model: predict, draw the next token, append it, repeat."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference.decoder import LARGEST, Decoder
from lmlab.machine import autocast
from lmlab.models.gpt import GPT
from lmlab.models.modern import Modern


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


def generate(
    model: nn.Module,
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
    """Continues idx (B, T), yielding the next token of each sequence, (B,), `max_tokens` times.
    Draws on a random generator of its own, on the CPU, so that all devices draw alike. The model
    sees at most `block_size` tokens. One with a cache reads each token once until it is full, then
    begins again from the last quarter of what it saw.
    """
    device, training = next(model.parameters()).device, model.training
    random, caches, decoder = torch.Generator().manual_seed(seed), None, None
    alone = isinstance(model, GPT | Modern) and device.type == "cpu" and len(idx) == 1
    alone = alone and sum(weight.numel() for weight in model.parameters()) <= LARGEST
    model.eval()
    try:
        for _ in range(max_tokens):
            if alone and caches and caches[0].length < block_size:
                decoder = decoder or Decoder(model)
                if decoder.followed is not caches:
                    decoder.follow(caches)
                logits = decoder(idx[0, -1])[None]
            else:
                window = block_size
                if caches and caches[0].length < block_size:
                    window = 1
                elif hasattr(model, "empty_caches"):
                    window = max(1, block_size // 4) if caches else block_size
                    caches = model.empty_caches()
                place = autocast(
                    device, precision if device.type != "cpu" else "32-true"
                )  # in bf16 a token is slower
                with torch.inference_mode(), place:
                    read = torch.from_numpy(idx[:, -window:]).to(device)
                    logits = (
                        (model(read, caches) if caches else model(read))[:, -1]
                        .float()
                        .cpu()
                        .numpy()
                    )
            tokens = draw(next_token_probs(logits, temperature, top_k, top_p), random)
            idx = np.concatenate((idx[:, -block_size:], tokens[:, None]), axis=1)
            yield tokens
    finally:
        model.train(training)


def stream(
    model: nn.Module,
    tokenizer: CharTokenizer,
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
        ids = tokenizer.encode(prompt or ("\n" if "\n" in tokenizer.chars else tokenizer.chars[0]))
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
