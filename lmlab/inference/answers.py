"""Looks at the tokens that a text scores: which of them a model has right, where and how far back."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.data.documents import Documents
from lmlab.inference.loss import places_of_windows, scores_of
from lmlab.machine import autocast
from lmlab.models.base import LanguageModel, evaluating

Ints = NDArray[np.int64]


@torch.inference_mode()
def answer_numbers(
    model: LanguageModel, tokens: np.ndarray, block_size: int, precision: str, documents: Documents
) -> dict[str, float]:
    """Returns the accuracy of a model at the scored tokens, and how it depends on their places.

    Each is predicted from the tokens before it in its document, of a longer one from those in its
    window. `whole_answers` is the share of documents whose scored tokens are all right.
    `accuracy_by_place/8` belongs to places 8 to 15 of a document; the first that can be predicted
    has place 1. `accuracy_by_distance/8` belongs to answers whose question, the token before, stood
    last 8 to 15 tokens earlier in what the model sees.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))
    starts = torch.tensor(documents.starts, dtype=torch.int64)
    length = window_length(model, block_size, documents)
    found = []
    with evaluating(model):
        for idx, targets, scored, at in scored_windows(ids, length, documents):
            with autocast(model.device, precision):
                logits = model(idx.to(model.device)).float().cpu()
            losses = -scores_of(logits.flatten(0, 1), targets.flatten(), model.gives_log_probs)
            right = logits.argmax(dim=-1) == targets
            distances = torch.from_numpy(distances_of(idx.numpy()))
            numbers_of_documents = torch.searchsorted(starts, at, right=True) - 1
            places = at - starts[numbers_of_documents]
            columns = numbers_of_documents, places, distances, right, losses.view_as(targets)
            found.append(torch.stack([column[scored].double() for column in columns]))
    document, places, distances, right, losses = torch.cat(found, dim=1).numpy()
    of_document = np.unique(document, return_inverse=True)[1]
    n_wrong = np.bincount(of_document, 1 - right)
    numbers = {
        "val/answer_accuracy": float(right.mean()),
        "val/whole_answers": float((n_wrong == 0).mean()),
    }
    numbers |= in_ranges("accuracy_by_place", places, right)
    numbers |= in_ranges("loss_by_place", places, losses)
    numbers |= in_ranges("accuracy_by_distance", distances, right)
    return numbers


def window_length(model: LanguageModel, block_size: int, documents: Documents) -> int:
    """Returns the length of windows; a model that counts may see whole documents."""
    if not model.gives_log_probs:
        return block_size
    return int(np.diff(documents.starts).max(initial=block_size))


def scored_windows(
    ids: Tensor, block_size: int, documents: Documents
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yields windows of ids (N,): ids, targets, whether those are scored, and where they are.

    All are (B, T).
    """
    assert documents.scored is not None  # the caller has looked
    is_scored = torch.tensor(documents.scored)
    for first in places_of_windows(documents, block_size, len(ids) - 1):
        target = first + 1
        yield ids[first], ids[target], is_scored[target], target


def distances_of(rows: Ints) -> Ints:
    """Returns how far back each token of rows (B, T) stood last, (B, T); 0 if it did not."""
    distances = np.zeros(rows.shape, np.int64)
    for distance in range(rows.shape[1] - 1, 0, -1):  # a shorter one comes later, and counts
        same = rows[:, distance:] == rows[:, :-distance]
        distances[:, distance:][same] = distance
    return distances


def in_ranges(name: str, places: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Returns the mean of `values` (N,) where `places` (N,) are 1, 2 to 3, 4 to 7 and so on."""
    numbers = {}
    first = 1
    while first <= places.max(initial=0):
        inside = (places >= first) & (places < 2 * first)
        if inside.any():
            numbers[f"{name}/{first}"] = float(values[inside].mean())
        first *= 2
    return numbers
