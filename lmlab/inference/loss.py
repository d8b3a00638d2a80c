"""Computes the log-probability of each token of a text under a model, and the loss."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab import plugins
from lmlab.config.check import check_key
from lmlab.data.documents import Documents, counting
from lmlab.data.splits import Splits
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.machine import autocast
from lmlab.models.base import LanguageModel, evaluating
from lmlab.ranks import ALONE, Ranks
from lmlab.registry import folder_kept
from lmlab.runs import checkpoints
from lmlab.runs.code import code_sha256
from lmlab.runs.folder import read_metrics, text_sha256, to_json
from lmlab.signals import Interrupted

PIECE = 2**20  # tokens whose bytes are counted at a time

TOKENS_AT_ONCE = 4096  # fixed, since the rounding of a matrix product depends on its size


class Turns:
    """Which batches of windows this process computes, if several share them.

    They take them in turn. `is_asked_to_stop` tells whether a signal has reached this process; all
    break off together with Interrupted. `ranks` are those that share; a single process does all.
    """

    def __init__(
        self, ranks: Ranks = ALONE, is_asked_to_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.ranks = ranks
        self.is_asked_to_stop = is_asked_to_stop
        self.n = 0

    def next(self) -> bool:
        """Returns whether the next batch is this process's. Raises Interrupted."""
        place = self.n % self.ranks.size
        self.n += 1
        if place == 0:
            self.look_for_signals()
        return place == self.ranks.rank

    def look_for_signals(self) -> None:
        """Raises Interrupted if a signal has reached any of the ranks."""
        (asked,) = self.ranks.agree(int(self.is_asked_to_stop()))
        if asked:
            raise Interrupted

    def add_up(self, found: Tensor) -> None:
        """Fills in what the others have found; a number is 0 where another has computed it."""
        self.ranks.add_up(found)


@torch.inference_mode()
@folder_kept()
def log_probs(
    model: LanguageModel,
    tokens: np.ndarray,
    block_size: int,
    precision: str = "32-true",
    documents: Documents | None = None,
    turns: Turns | None = None,
) -> Tensor:
    """Returns the log-probability (nats) of tokens 2 to N, (N - 1,) float32 on the CPU.

    Each token is predicted once, from the tokens before it in one of `model.windows`, or, with
    `documents`, from those of its own document. Nothing is random. With `turns` several processes
    share the work, and all get the same numbers, which do not depend on how many they are.
    """
    turns = turns or Turns()
    # As few bytes as torch allows: int64 would take eight times the text.
    narrow = np.uint8 if tokens.dtype == np.uint8 else np.int32
    ids = torch.from_numpy(tokens.astype(narrow)).to(model.device)
    if documents is not None and not model.gives_log_probs:
        return of_documents(model, ids, block_size, precision, documents, turns)
    # One tensor from the start: between the logits, many small ones would break memory into pieces.
    result = torch.zeros(len(ids) - 1, device=model.device)
    n = 0
    with evaluating(model):
        for idx, targets in model.windows(ids, block_size, TOKENS_AT_ONCE):
            if turns.next():
                found = answers(model, idx, targets, precision)
                result[n : n + len(found)] = found
            n += targets.numel()
    turns.add_up(result)
    if n != len(result):
        raise UserError(
            f"{type(model).__name__}.windows predicts {n} of {len(result)} tokens; each must be once"
        )
    return result.cpu()


def of_documents(
    model: LanguageModel,
    ids: Tensor,
    block_size: int,
    precision: str,
    documents: Documents,
    turns: Turns | None = None,
) -> Tensor:
    """Returns the log-probabilities (N - 1,) of ids (N,), predicted within their documents.

    The windows are those of training: they begin with each document, and within it at each multiple
    of `block_size`. The first token of a document is predicted from the window before it.
    """
    turns = turns or Turns()
    result = torch.zeros(len(ids) - 1)
    with evaluating(model):
        for places in places_of_windows(documents, block_size, len(result)):
            if turns.next():
                found = answers(model, ids[places], ids[places + 1], precision)
                result[places.flatten()] = found.cpu()
    turns.add_up(result)
    return result


def places_of_windows(documents: Documents, block_size: int, n: int) -> Iterator[Tensor]:
    """Yields batches of windows that begin with each of the documents of `n` tokens, (B, T).

    A window is given by the places of its tokens, and has at most `block_size` of them.
    """
    starts = documents.window_starts(block_size, n)
    lengths = np.diff(starts, append=n)
    for length in np.unique(lengths).tolist():
        rows = torch.from_numpy(starts[lengths == length])
        for begins in rows.split(max(1, TOKENS_AT_ONCE // length)):
            yield begins[:, None] + torch.arange(length)


def answers(model: LanguageModel, idx: Tensor, targets: Tensor, precision: str) -> Tensor:
    """Returns the log-probabilities of targets (B, S), (B S,), which follow the last of idx (B, T)."""
    idx, targets = idx.long(), targets.long()  # a text may be of smaller numbers
    found = model.log_probs_of(idx, targets)
    if found is not None:
        if found.shape != targets.shape:
            raise UserError(
                f"{type(model).__name__}.log_probs_of returns {tuple(found.shape)}; needs "
                f"{tuple(targets.shape)}, a number for each target"
            )
        return found.flatten()
    with autocast(model.device, precision):
        logits = model(idx)[:, -targets.shape[1] :].float().flatten(0, 1)  # (B S, V)
    return scores_of(logits, targets.flatten(), model.gives_log_probs)


def aligned(documents: Documents | None, align: str) -> Documents | None:
    """Returns the documents if a run with this value of `align` is evaluated within them."""
    return documents if align == "document" else None


def scores_of(logits: Tensor, targets: Tensor, are_log_probs: bool) -> Tensor:
    """Returns the log-probability of each of `targets` (N,), from logits (N, V)."""
    if are_log_probs:
        return logits.gather(1, targets[:, None])[:, 0]
    return -F.cross_entropy(logits, targets, reduction="none")


def loss_metrics(
    log_probs: Tensor,
    tokens: np.ndarray,
    tokenizer: Tokenizer,
    split: str,
    documents: Documents | None = None,
) -> dict[str, float]:
    """Returns `split`/loss (mean, nats per token), `split`/perplexity and `split`/bits_per_byte.

    `log_probs` (N - 1,) belong to `tokens` (N,) without the first. Only the tokens that `documents`
    scores count. Bytes are counted in UTF-8.
    """
    predicted = tokens[1:]
    counts = counting(documents)
    if counts is not None:
        log_probs = log_probs[torch.tensor(counts)]
        predicted = predicted[counts]
    total = -log_probs.sum(dtype=torch.float64)
    loss = total / len(log_probs)
    n_bytes = 0
    for start in range(0, len(predicted), PIECE):  # a number for each token would fill the memory
        n_bytes += int(tokenizer.byte_lengths[predicted[start : start + PIECE]].sum())
    numbers = {
        f"{split}/loss": loss.item(),
        f"{split}/perplexity": loss.exp().item(),
        f"{split}/bits_per_byte": total.item() / math.log(2) / n_bytes,
    }
    return {name: number + 0.0 for name, number in numbers.items()}  # of -0 it makes 0


def keep_evaluation(path: Path, about: dict[str, str | int], numbers: dict[str, float]) -> None:
    """Adds a line to evaluations.jsonl of the run at `path`.

    It says which weights, which text, which code, and the numbers. Raises UserError.
    """
    name = path / "evaluations.jsonl"
    code = {"code_sha256": code_sha256(), "plugin_sha256": plugins.sha256()}
    line = to_json(about | code | numbers) + "\n"
    try:
        before = name.read_bytes() if name.exists() else b""
        if before and not before.endswith(b"\n"):  # a kill cut the last line
            line = "\n" + line
        try:
            with open(name, "ab") as file:
                file.write(line.encode())
        except OSError:
            with suppress(OSError):
                if before:
                    os.truncate(name, len(before))
                else:
                    name.unlink()
            raise
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; the numbers were not kept") from None


def with_text_at(run: checkpoints.Run, path: str | None) -> checkpoints.Run:
    """Returns the run with another path of its own text, which was moved; None keeps the path.

    The checksum still tells whether it is the run's text. Raises UserError if the text of the run
    is no file.
    """
    if path is None:
        return run
    check_key("path", path, run.config.built_on())
    data: Any = replace(run.config.data, path=path)
    return replace(run, config=replace(run.config, data=data))


def own_text(run: checkpoints.Run) -> Splits:
    """Returns the text that `run` was trained on. Raises UserError if it has changed."""
    return Splits.of_run(run.config, run.tokenizer, text_sha256(read_metrics(run.path), run.path))


def evaluate_test_split(path: Path) -> None:
    """Evaluates the last weights of the run at `path` on its test split, and saves the loss.

    Raises UserError.
    """
    run = checkpoints.load(path, "last")
    text = own_text(run)
    config = run.config
    documents = text.documents.get("test")
    found = log_probs(
        run.model,
        text.test,
        config.model.block_size,
        config.device.precision,
        aligned(documents, config.run.align),
    )
    keep_evaluation(
        run.path,
        {"checkpoint": "last", "step": run.step, "text": "test", "sha256": text.sha256},
        loss_metrics(found, text.test, run.tokenizer, "test", documents),
    )
