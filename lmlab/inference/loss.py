"""How good a model is: one number for every token of a text, the same whoever asks."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.machine import autocast
from lmlab.models.ngram import NGram
from lmlab.runs.folder import to_json

TOKENS_AT_ONCE = 4096  # fixed, since the rounding of a matrix product depends on its size


@torch.inference_mode()
def log_probs(
    model: nn.Module, tokens: np.ndarray, block_size: int, precision: str = "32-true"
) -> Tensor:
    """Log-probability (nats) of each token but the first, (N - 1,) float32 on the CPU, each
    predicted once, from the tokens before it in its window: windows of `block_size` don't overlap,
    the last is shorter. What has counted sees all that it can, in windows that do. Nothing is
    random.
    """
    device, training, answers = next(model.parameters()).device, model.training, []
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    whole = (len(ids) - 1) // block_size * block_size  # tokens in windows of full length
    if isinstance(model, NGram):
        n = max(
            1, min(TOKENS_AT_ONCE, 2**24 // model.vocab_size)
        )  # probabilities of 128 MB at most
        for start in range(0, len(ids) - 1, n):
            first, end = max(0, start - block_size), min(start + n, len(ids) - 1)
            logits = model(ids[None, first:end])[0, start - first :]
            answers.append(logits.gather(1, ids[start + 1 : end + 1, None])[:, 0])
        return torch.cat(answers).cpu()
    model.eval()
    for start, end, T in ((0, whole, block_size), (whole, len(ids) - 1, len(ids) - 1 - whole)):
        inputs, targets = (
            ids[start:end].view(-1, max(T, 1)),
            ids[start + 1 : end + 1].view(-1, max(T, 1)),
        )
        n = max(1, TOKENS_AT_ONCE // block_size)
        for row in range(0, len(inputs), n):
            with autocast(device, precision):
                logits = model(inputs[row : row + n]).float().flatten(0, 1)
            answers.append(
                -F.cross_entropy(logits, targets[row : row + n].flatten(), reduction="none")
            )
    model.train(training)
    return torch.cat(answers).cpu()


def loss_metrics(
    answers: Tensor, tokens: np.ndarray, tokenizer: CharTokenizer, split: str
) -> dict[str, float]:
    """From `log_probs` to `split`/loss (mean, nats per token), /perplexity and /bits_per_byte (of
    UTF-8).
    """
    total = -answers.double().sum()
    loss, n_bytes = total / len(answers), tokenizer.byte_lengths[tokens[1:]].sum()
    return {
        f"{split}/loss": loss.item(),
        f"{split}/perplexity": loss.exp().item(),
        f"{split}/bits_per_byte": total.item() / math.log(2) / int(n_bytes),
    }


def keep_evaluation(path: Path, about: dict[str, str], numbers: dict[str, float]) -> None:
    """Adds a line to evaluations.jsonl of the run at `path`. Raises UserError."""
    name = path / "evaluations.jsonl"
    try:
        torn = name.exists() and not name.read_bytes().endswith(b"\n")  # by a kill
        with open(name, "a") as file:
            file.write("\n" * torn + to_json(about | numbers) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; the numbers were not kept") from None
