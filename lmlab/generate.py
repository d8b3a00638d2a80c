"""Text from a model: predict, draw the next token, append it, repeat."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lmlab.config import UserError
from lmlab.device import autocast
from lmlab.tokenizers import CharTokenizer

def next_token_probs(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """From logits (B, V) to the probabilities (B, V) to draw from. temperature: below 1 the likely gets likelier, at 0
    certain. top_k: only the k likeliest. top_p: only the fewest that together reach p (Holtzman et al. 2020).
    """
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    probs = (logits.float() / temperature).softmax(-1)
    if top_k is None and top_p is None:
        return probs
    probs, order = probs.sort(descending=True, stable=True)
    if top_k is not None:
        probs[:, top_k:] = 0
    if top_p is not None:
        probs /= probs.sum(-1, keepdim=True)
        probs[probs.cumsum(-1) - probs >= top_p] = 0  # those before it reach p already
    return torch.zeros_like(probs).scatter(-1, order, probs / probs.sum(-1, keepdim=True))

def draw(probs: Tensor, random: torch.Generator) -> Tensor:
    """One token of each row of probabilities (B, V), as (B, 1): where a uniform number falls among their sums."""
    sums = probs.cumsum(-1)
    return torch.searchsorted(sums, torch.rand(len(probs), 1, generator=random) * sums[:, -1:], right=True)

@torch.inference_mode()
def generate(
    model: nn.Module, idx: Tensor, max_tokens: int, block_size: int, *, seed: int = 0, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, precision: str = "32-true",
) -> Iterator[Tensor]:
    """Continues idx (B, T), yielding the next token of each sequence, (B,), `max_tokens` times. Draws on a random
    generator of its own, on the CPU, so that all devices draw alike. The model sees at most `block_size` tokens. One
    with a cache reads each token once until it is full, then begins again from the last half of what it saw.
    """
    device, training = next(model.parameters()).device, model.training
    random, caches = torch.Generator().manual_seed(seed), None
    model.eval()
    try:
        for _ in range(max_tokens):
            with autocast(device, precision if device.type != "cpu" else "32-true"):  # token by token bf16 is slower
                if not hasattr(model, "empty_caches"):
                    logits = model(idx[:, -block_size:].to(device))
                elif caches and caches[0].length < block_size:
                    logits = model(idx[:, -1:].to(device), caches)
                else:
                    caches, window = model.empty_caches(), block_size if caches is None else max(1, block_size // 2)
                    logits = model(idx[:, -window:].to(device), caches)
            probs = next_token_probs(logits[:, -1].cpu(), temperature, top_k, top_p)
            token = draw(probs, random)
            idx = torch.cat([idx[:, -block_size:], token], dim=1)
            yield token[:, 0]
    finally:
        model.train(training)

def stream(
    model: nn.Module, tokenizer: CharTokenizer, prompt: str, max_tokens: int, block_size: int, *,
    samples: int = 1, stop: str | None = None, **options: object,
) -> Iterator[list[str]]:
    """Yields the new text of each sample, piece by piece; a sample ends before the string `stop`. An empty prompt
    starts after a line's end, or else after the first known character. Raises UserError naming unknown ones.
    """
    try:
        ids = tokenizer.encode(prompt or ("\n" if "\n" in tokenizer.chars else tokenizer.chars[0]))
    except UserError as error:
        raise UserError(f"prompt={prompt}: {error}") from None
    idx = torch.from_numpy(ids.astype("int64")).repeat(samples, 1)
    held, done = [""] * samples, [False] * samples
    for tokens in generate(model, idx, max_tokens, block_size, **options):
        ready = []
        for i, token in enumerate(tokens.tolist()):
            held[i] += "" if done[i] else tokenizer.decode([token])
            if stop and stop in held[i]:
                held[i], done[i] = held[i].split(stop)[0], True
            # what may yet become `stop` waits
            waits = 0 if done[i] or not stop else max(n for n in range(len(stop)) if held[i].endswith(stop[:n]))
            ready.append(held[i][: len(held[i]) - waits])
            held[i] = held[i][len(held[i]) - waits :]
        yield ready
        if all(done):
            return
    yield held
