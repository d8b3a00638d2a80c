"""The gradient noise scale: how large a batch must be for its gradient to be more than noise.

The gradient of a batch is that of the whole text, G, and noise, which halves in variance when the
batch doubles. The simple noise scale tr(Σ) / |G|² is the batch size at which both are equal; Σ is
the covariance of the gradients of single sequences. Larger batches save fewer and fewer steps
(McCandlish et al. 2018, section 2 and appendix A.1).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.data.batches import IGNORED, Batches
from lmlab.inference.evaluations import Value, untouched
from lmlab.inference.specimen import Specimen
from lmlab.machine import autocast
from lmlab.models.base import LanguageModel

SMALL = 8  # sequences in a small batch
BATCHES = 32  # small batches; together they are the large one
OWN_SEED = 2**32  # no run has it, so that these are not the batches of its training


def noise_scale(specimen: Specimen) -> dict[str, Value]:
    """Returns the noise scale in sequences of `block_size` tokens, and |G|² and tr(Σ) of a sequence.

    The gradients are those of training, with dropout, at the weights as they are. The scale is
    infinite if |G|² is too small to be told from the noise: its estimate is not above zero.
    """
    model = specimen.model
    batches = Batches(
        specimen.train,
        SMALL,
        specimen.block_size,
        OWN_SEED + specimen.seed,
        specimen.align,
        specimen.train_documents,
    )
    squares = 0.0
    with untouched(model), torch.enable_grad():
        torch.manual_seed(specimen.seed)
        model.train()
        total = [torch.zeros_like(weight) for weight in trained(model)]
        for t in range(BATCHES):
            idx, targets = (part.to(model.device) for part in batches[t])
            gradients = gradient(model, idx, targets, specimen.precision)
            squares += squared_norm(gradients)
            for part, more in zip(total, gradients, strict=True):
                part += more
    mean = [part / BATCHES for part in total]
    signal, noise = estimates(squares / BATCHES, squared_norm(mean), SMALL, SMALL * BATCHES)
    return {
        "train/noise_scale": noise / signal if signal > 0 else math.inf,
        "train/gradient_squared": signal,
        "train/gradient_variance": noise,
    }


def trained(model: LanguageModel) -> list[Tensor]:
    """Returns the weights that have a gradient."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def gradient(
    model: LanguageModel, idx: Tensor, targets: Tensor, precision: str
) -> Sequence[Tensor]:
    """Returns the gradient of the mean loss of a batch, a tensor for each of the `trained` weights.

    What a training step keeps in the weights' own `grad` stays as it is.
    """
    with autocast(model.device, precision):
        logits = model(idx).flatten(0, 1)
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    loss = total / (targets != IGNORED).sum().clamp(min=1)
    return torch.autograd.grad(loss, trained(model), allow_unused=True, materialize_grads=True)


def squared_norm(gradients: Sequence[Tensor]) -> float:
    """Returns the sum of the squares of all numbers in a gradient."""
    return float(sum(part.double().square().sum() for part in gradients))


def estimates(small_square: float, big_square: float, small: int, big: int) -> tuple[float, float]:
    """Returns the estimates of |G|² and tr(Σ), which are unbiased (McCandlish et al. 2018, A.1).

    `small_square` is the mean squared norm of the gradients of `small` sequences, `big_square` that
    of `big` sequences.
    """
    signal = (big * big_square - small * small_square) / (big - small)
    noise = (small_square - big_square) / (1 / small - 1 / big)
    return signal, noise
