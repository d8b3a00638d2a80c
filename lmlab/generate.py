"""Text from a model: predict, draw the next token, append it, repeat."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lmlab.config import UserError
from lmlab.device import autocast
from lmlab.tokenizers import CharTokenizer


def next_token_probs(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """From logits (B, V) to the probabilities (B, V) to draw from.

    temperature: below 1 the likely gets likelier, above 1 everything evens out, at 0 the likeliest
    is certain. top_k: only the k likeliest tokens. top_p: only the fewest tokens that together
    have probability p (Holtzman et al. 2020, nucleus sampling).
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    ordered, order = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    if top_k is not None:
        probs[:, top_k:] = 0
    if top_p is not None:
        probs = probs / probs.sum(-1, keepdim=True)
        probs[probs.cumsum(-1) - probs >= top_p] = 0  # what stands before it reaches p already
    probs = probs / probs.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, order, probs)


@torch.inference_mode()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_tokens: int,
    block_size: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    precision: str = "32-true",
) -> Iterator[Tensor]:
    """Continues idx (B, T), yielding the next token of each sequence, (B,), `max_tokens` times.

    The model sees the last `block_size` tokens. All randomness comes from `generator`, which
    lives on the CPU, so that every device draws the same numbers.
    """
    device = next(model.parameters()).device
    training = model.training
    for _ in range(max_tokens):
        idx = idx[:, -block_size:]
        model.eval()
        with autocast(device, precision):
            logits = model(idx.to(device))[:, -1]
        model.train(training)
        probs = next_token_probs(logits.cpu(), temperature, top_k, top_p)
        token = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
        idx = torch.cat([idx, token], dim=1)
        yield token[:, 0]


def stream(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    max_tokens: int,
    block_size: int,
    *,
    samples: int = 1,
    seed: int = 0,
    stop: str | None = None,
    **options: object,
) -> Iterator[list[str]]:
    """Yields the new text of each sample, piece by piece; a sample ends before the string `stop`.

    An empty prompt starts after a line's end, or after the first character of the vocabulary.
    `options` are those of `generate`. Raises UserError for a prompt with unknown characters.
    """
    try:
        ids = tokenizer.encode(prompt or ("\n" if "\n" in tokenizer.chars else tokenizer.chars[0]))
    except UserError as error:
        raise UserError(f"prompt: {error}") from None
    idx = torch.from_numpy(ids.astype("int64")).repeat(samples, 1)
    generator = torch.Generator().manual_seed(seed)
    held, done = [""] * samples, [False] * samples
    for tokens in generate(model, idx, max_tokens, block_size, generator=generator, **options):
        pieces = []
        for i, token in enumerate(tokens.tolist()):
            held[i] += "" if done[i] else tokenizer.decode([token])
            if stop and stop in held[i]:
                held[i], done[i] = held[i][: held[i].index(stop)], True
            # what may yet turn out to be the beginning of `stop` waits
            keep = 0 if done[i] or not stop else max(n for n in range(len(stop)) if held[i].endswith(stop[:n]))
            cut = len(held[i]) - keep
            pieces.append(held[i][:cut])
            held[i] = held[i][cut:]
        yield pieces
        if all(done):
            return
    yield held


def text(*args: object, **options: object) -> str:
    """All of one sample at once; arguments as for `stream`."""
    return "".join(pieces[0] for pieces in stream(*args, **options))
