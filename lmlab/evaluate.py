"""How good a model is: one number for every token of a text, the same whoever asks."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.device import autocast
from lmlab.tokenizers import CharTokenizer

TOKENS_AT_ONCE = 2048  # a fixed size, so that the sums of a matrix product don't depend on batch_size


@torch.inference_mode()
def log_probs(model: nn.Module, tokens: np.ndarray, block_size: int, precision: str = "32-true") -> Tensor:
    """Log-probability of each token but the first, (N - 1,) float32 on the CPU, nats.

    The text is cut into windows of `block_size` that don't overlap, the last one shorter, so every
    token is predicted once. Dropout is off; no random number is drawn.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(tokens.astype(np.int64))
    whole = (len(ids) - 1) // block_size * block_size
    windows = [
        *zip(
            ids[:whole].view(-1, block_size).split(max(1, TOKENS_AT_ONCE // block_size)),
            ids[1 : whole + 1].view(-1, block_size).split(max(1, TOKENS_AT_ONCE // block_size)),
            strict=True,
        ),
        (ids[None, whole:-1], ids[None, whole + 1 :]),
    ]
    training = model.training
    model.eval()
    answers = []
    for idx, targets in windows:
        if idx.numel():
            with autocast(device, precision):
                logits = model(idx.to(device))
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="none")
            answers.append(-loss.cpu())
    model.train(training)
    return torch.cat(answers)


def metrics(answers: Tensor, tokens: np.ndarray, tokenizer: CharTokenizer) -> dict[str, float]:
    """From `log_probs` of a text to its mean loss (nats per token), perplexity and bits per UTF-8 byte.

    Overflow of the perplexity gives infinity.
    """
    total = -answers.double().sum().item()
    loss = total / len(answers)
    n_bytes = int(tokenizer.byte_lengths[tokens[1:]].sum())
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan,
        "bits_per_byte": total / math.log(2) / n_bytes,
    }
