"""How good a model is: one number for every token of a text, the same whoever asks."""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.config import UserError, from_flat
from lmlab.data import CharDataModule
from lmlab.device import autocast
from lmlab.runs import Run
from lmlab.tokenizers import CharTokenizer

TOKENS_AT_ONCE = 2048  # fixed, since the rounding of a matrix product depends on its size


@torch.inference_mode()
def log_probs(model: nn.Module, tokens: np.ndarray, block_size: int, precision: str = "32-true") -> Tensor:
    """Log-probability (nats) of each token but the first, (N - 1,) float32 on the CPU.

    The text is cut into windows of `block_size` that don't overlap, the last one shorter, so each
    token is predicted once. Dropout is off; no random number is drawn.
    """
    device, training, answers = next(model.parameters()).device, model.training, []
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    whole = (len(ids) - 1) // block_size * block_size  # tokens in windows of full length
    model.eval()
    for start, end, T in ((0, whole, block_size), (whole, len(ids) - 1, len(ids) - 1 - whole)):
        inputs, targets = ids[start:end].view(-1, max(T, 1)), ids[start + 1 : end + 1].view(-1, max(T, 1))
        n = max(1, TOKENS_AT_ONCE // block_size)
        for row in range(0, len(inputs), n):
            with autocast(device, precision):
                logits = model(inputs[row : row + n]).float().flatten(0, 1)
            answers.append(-F.cross_entropy(logits, targets[row : row + n].flatten(), reduction="none"))
    model.train(training)
    return torch.cat(answers).cpu()


def metrics(answers: Tensor, tokens: np.ndarray, tokenizer: CharTokenizer) -> dict[str, float]:
    """From `log_probs` of a text to its loss (mean, nats per token), perplexity and bits per UTF-8 byte."""
    total = -answers.double().sum()
    loss, n_bytes = total / len(answers), tokenizer.byte_lengths[tokens[1:]].sum()
    bits_per_byte = total.item() / math.log(2) / int(n_bytes)
    return {"loss": loss.item(), "perplexity": loss.exp().item(), "bits_per_byte": bits_per_byte}


def text_of(run: Run, split: str, data: str | None, path: str | None) -> tuple[np.ndarray, str]:
    """Tokens and sha256 of a part of the run's own text, or of all of the corpus `data`.

    Raises UserError for a part that is not there, text changed since the run, unknown characters.
    """
    config = run.config
    if data or path:
        choices, values = config.choices | {"data": data or config.choices["data"]}, config.flat()
        values |= {"val_fraction": 0, "test_fraction": 0, "path": path or "???"}
        unwanted = {*choices, *([] if path or data == "file" else ["path"])}
        config = from_flat({key: value for key, value in values.items() if key not in unwanted}, choices)
        split = "train"
    text = CharDataModule(config, run.tokenizer)
    if config is run.config and text.sha256 != json.loads((run.path / "metrics.json").read_text())["data_sha256"]:
        raise UserError(f"run={run.path}: its text has changed since; data=… evaluates on other text")
    if len(text.splits[split]) < 2:
        there = ", ".join(name for name, tokens in text.splits.items() if len(tokens) > 1)
        raise UserError(f"split={split}: the run kept no text for it; allowed are {there}")
    return text.splits[split], text.sha256
