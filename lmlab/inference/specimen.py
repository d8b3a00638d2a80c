"""What an instrument examines: a model, and the tokens by which it is judged."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmlab.data.documents import Documents
from lmlab.data.tokenizers import Tokenizer
from lmlab.inference.loss import TOKENS_AT_ONCE, aligned, places_of_windows
from lmlab.machine import autocast
from lmlab.models.base import LanguageModel, evaluating


@dataclass(frozen=True)
class Specimen:
    """A model, the text by which it is judged, and the text that it was trained on."""

    model: LanguageModel
    tokens: np.ndarray
    """The token ids of the text that judges it, (N,)."""

    documents: Documents | None
    """Those of `tokens`, if the run divides its text into documents."""

    tokenizer: Tokenizer
    block_size: int
    precision: str
    align: str
    """The run's key `align`: with "document" tokens are predicted within their documents."""

    seed: int
    train: np.ndarray
    """The token ids of the training text, (M,); empty if no instrument asks for them."""

    train_documents: Documents | None
    part: str = "val"
    """The first half of the names of numbers, such as val of val/loss."""

    @property
    def within(self) -> Documents | None:
        """The documents within which tokens are predicted, or None."""
        return aligned(self.documents, self.align)


@torch.inference_mode()
def distributions(specimen: Specimen) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields log-probabilities (n, V) of what comes next, and the places (n,) of what came.

    Each token of the text but the first is predicted once, from the windows of the evaluation.
    """
    model = specimen.model
    ids = torch.from_numpy(specimen.tokens.astype(np.int64)).to(model.device)
    with evaluating(model):
        for read, wanted in windows(specimen, len(ids)):
            scores = scores_of(model, ids[read], wanted.shape[1], specimen.precision)
            yield scores.flatten(0, 1), wanted.flatten()


def windows(specimen: Specimen, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the places (B, T) that a model reads of `n` tokens, and those it predicts, (B, S).

    They are the windows in which `log_probs` predicts.
    """
    model, within = specimen.model, specimen.within
    if within is not None and not model.gives_log_probs:
        for places in places_of_windows(within, specimen.block_size, n - 1):
            yield places, places + 1
    else:
        yield from model.windows(torch.arange(n), specimen.block_size, TOKENS_AT_ONCE)


def scores_of(model: LanguageModel, idx: Tensor, last: int, precision: str) -> Tensor:
    """Returns the log-probabilities (B, S, V) after the `last` S tokens of each row, float32."""
    with autocast(model.device, precision):
        scores = model(idx)[:, -last:].float()
    return scores if model.gives_log_probs else scores.log_softmax(-1)
