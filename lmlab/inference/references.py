"""Computes the losses of simple models that only count, on the same text, for comparison."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmlab import files, own_code
from lmlab.catalogue import NGramConfig
from lmlab.data.documents import counting
from lmlab.data.splits import Splits
from lmlab.errors import UserError
from lmlab.models.ngram import Contexts, NGram, Places

COUNTED = 5_000_000  # tokens at most: the last ones of the training text

PREDICTED = 1_000_000  # tokens at most: the first ones of the validation text

CODE = ("inference/references.py", "models/ngram.py")  # that computes them

LIMIT = 4096  # bytes of a file in the cache

ORDERS = range(2, 21)  # of the n-grams that are tried

LOSSES = ("reference/uniform", "reference/unigram", "reference/bigram", "reference/ngram")

ORDER = "reference/order"  # of the best n-gram


def references(data: Splits) -> dict[str, float]:
    """Returns losses of simple models on the validation text, in nats per token.

    The keys are `reference/uniform` (all tokens equally likely), `reference/unigram` (frequencies
    of tokens), `reference/bigram` (frequencies of pairs, with one added to each count) and
    `reference/ngram` (the best n-gram; its order is `reference/order`). The result is cached; if
    the cache cannot be used, a warning says so. Returns an empty dict without validation text.
    """
    if len(data.val) < 2:
        return {}
    train = np.concatenate([data.holdout[-COUNTED:], data.train[-COUNTED:]])[-COUNTED:]
    vocab_size = data.tokenizer.vocab_size
    counts = counting(data.documents.get("val"))
    first = 0
    if counts is not None and not counts[: PREDICTED - 1].any():
        first = int(counts.argmax())  # nothing that counts is nearer to the beginning
        counts = counts[first:]
    val = data.val[first:][:PREDICTED]
    parts = [train.tobytes(), b"/", val.tobytes(), str(vocab_size).encode()]
    parts.append(own_code.sha256_of(*CODE).encode())
    if counts is not None:
        counts = counts[: len(val) - 1]
        parts.append(counts.tobytes())
    key = files.sha256(b"".join(parts))
    path = files.cache_dir() / "references" / f"{key}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.lock(
            path.with_suffix(".lock"), wait=math.inf
        ):  # the runs of a sweep ask at once
            losses = kept(path)
            if losses is None:
                losses = by_counting(train, val, vocab_size, counts)
                files.write_cached(path, json.dumps(losses).encode())
        return losses
    except (OSError, UserError) as error:
        print(f"warning: {path}: the cache cannot be used ({error})", file=sys.stderr)
        return by_counting(train, val, vocab_size, counts)


def kept(path: Path) -> dict[str, float] | None:
    """Returns the losses in a file of the cache; None if it holds anything else. Raises UserError."""
    if not files.is_cached(path):
        return None
    try:
        losses = json.loads(files.read_sealed(path, LIMIT))
    except (ValueError, RecursionError):
        return None
    if not are_losses(losses):
        return None
    return dict(losses)


def are_losses(values: Any) -> bool:
    """Returns whether values from a file are such as `by_counting` returns."""
    if not isinstance(values, dict) or values.keys() != {*LOSSES, ORDER}:
        return False
    finite = (isinstance(values[key], float) and math.isfinite(values[key]) for key in LOSSES)
    return all(finite) and isinstance(values[ORDER], int) and values[ORDER] in ORDERS


def by_counting(
    train: np.ndarray, val: np.ndarray, vocab_size: int, counts: np.ndarray | None = None
) -> dict[str, float]:
    """Returns the losses on `val` of models that count `train`. `references` explains them.

    `counts` tells for each token of `val` but the first whether its prediction counts.
    """
    places = Places(Contexts(train, vocab_size), val[:-1])
    losses = {
        "reference/uniform": math.log(vocab_size),
        "reference/unigram": ngram_loss(places, val[1:], 1, counts),
        "reference/bigram": add_one_bigram_loss(train, val, vocab_size, counts),
    }
    best = math.inf
    for order in ORDERS:
        loss = ngram_loss(places, val[1:], order, counts)
        if not loss < best:  # it falls with the order, then it rises
            break
        best = loss
        losses |= {"reference/ngram": best, "reference/order": order}
    return losses


def add_one_bigram_loss(
    train: np.ndarray, val: np.ndarray, vocab_size: int, counts: np.ndarray | None
) -> float:
    """Returns the loss of a bigram that adds one to the count of each pair."""
    firsts = np.bincount(train[:-1], minlength=vocab_size)
    predicted = pairs_of(val, vocab_size)
    if counts is not None:
        predicted = predicted[counts]
    wanted, times = np.unique(predicted, return_counts=True)
    # Each wanted pair once more than it is there: the one that is added.
    pairs, seen = np.unique(
        np.concatenate([pairs_of(train, vocab_size), wanted]), return_counts=True
    )
    shares = seen[np.searchsorted(pairs, wanted)] / (firsts[wanted // vocab_size] + vocab_size)
    return (0 - float((times * np.log(shares)).sum())) / len(predicted)  # which is never -0


def pairs_of(text: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns a number for each pair of neighbours in `text` (N,): the first * V + the second, (N - 1,)."""
    return text[:-1].astype(np.int64) * vocab_size + text[1:]


def ngram_loss(
    places: Places, predicted: np.ndarray, order: int, counts: np.ndarray | None
) -> float:
    """Returns the loss of an n-gram of this order on the token that follows each of `places`.

    The places, and the contexts of the training text, may be known for shorter contexts, not for
    longer ones.
    """
    contexts = places.contexts
    model = NGram(NGramConfig(order), contexts.V)
    model.count(contexts.text, contexts)
    places.grow()
    answers = model.log_probs_at(places.numbers, predicted)
    if counts is not None:
        answers = answers[torch.tensor(counts)]
    return 0 - answers.double().mean().item()
