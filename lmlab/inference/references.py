"""How good a loss is: what is reached on the same text by counting alone."""

import fcntl
import itertools
import json
import math
from collections import Counter

import numpy as np

from lmlab import files
from lmlab.catalogue import NGramConfig
from lmlab.data.text import Splits
from lmlab.inference.loss import log_probs
from lmlab.models.ngram import NGram

COUNTED, PREDICTED = (
    5_000_000,
    1_000_000,
)  # tokens at most: the last of training, the first of validation


ORDERS = range(2, 21)


def references(data: Splits) -> dict[str, float]:
    """Nats per validation token: of guessing (`reference/uniform`), of the frequencies of single
    tokens (`/unigram`), of pairs with one added to each count (`/bigram`), and of the n-gram whose
    order (`/order`) does best (`/ngram`). Worked out once and kept in the cache. Nothing where
    there is no validation text.
    """
    parts = [data.holdout[-COUNTED:], data.train[-COUNTED:]]
    train = np.concatenate(parts)[-COUNTED:]
    val, V = data.val[:PREDICTED], data.tokenizer.vocab_size
    if len(val) < 2:
        return {}
    key = files.sha256(b"".join([train.tobytes(), b"/", val.tobytes(), str(V).encode()]))
    path = files.cache_dir() / "references" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the runs of a sweep want it at the same time
        if not path.exists():
            files.write(path, json.dumps(by_counting(train, val, V)).encode())
    return json.loads(path.read_bytes())


def by_counting(train: np.ndarray, val: np.ndarray, V: int) -> dict[str, float]:
    first = Counter(train[:-1].tolist())
    known, asked = (Counter(itertools.pairwise(part.tolist())) for part in (train, val))
    total = sum(n * math.log((known[a, b] + 1) / (first[a] + V)) for (a, b), n in asked.items())
    found = {
        "reference/uniform": math.log(V),
        "reference/unigram": loss(train, val, V, 1),
        "reference/bigram": -total / (len(val) - 1),
    }
    best = math.inf
    for order in ORDERS:  # the loss falls, then rises
        before, best = best, min(best, loss(train, val, V, order))
        if best == before:
            break
        found |= {"reference/ngram": best, "reference/order": order}
    return found


def loss(train: np.ndarray, val: np.ndarray, V: int, order: int) -> float:
    model = NGram(NGramConfig(order), V)
    model.count(train)
    return -log_probs(model, val, model.order).double().mean().item()
