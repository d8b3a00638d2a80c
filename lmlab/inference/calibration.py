"""Calibration: is the model right as often as it says?

The confidence of a prediction is the probability of the likeliest token; it is right if that token
came. Predictions are sorted by confidence into 15 bins of equal width. The expected calibration
error is the mean difference between confidence and share of right ones in a bin, weighted by how
many predictions are in it (Guo et al. 2017, equation 3).
"""

import numpy as np
import torch

from lmlab.data.documents import counting
from lmlab.inference.evaluations import Value
from lmlab.inference.pictures import reliability_picture
from lmlab.inference.specimen import Specimen, distributions

BINS = 15  # as in Guo et al. 2017, section 5


def calibration(specimen: Specimen) -> dict[str, Value]:
    """Returns the calibration error, and by how much the model is more confident than right.

    The text `reliability` has a line for each bin: confidence, share of right ones, predictions.
    """
    confidence, is_right = predictions(specimen)
    bins = (np.ceil(confidence * BINS).astype(int) - 1).clip(0, BINS - 1)  # (m/15, (m + 1)/15]
    sizes = np.bincount(bins, minlength=BINS)
    filled = sizes > 0
    confident = np.bincount(bins, confidence, BINS)[filled] / sizes[filled]
    right = np.bincount(bins, is_right, BINS)[filled] / sizes[filled]
    shares = sizes[filled] / sizes.sum()
    rows = [
        f"{says:.6f} {is_so:.6f} {size}"
        for says, is_so, size in zip(confident, right, sizes[filled], strict=True)
    ]
    return {
        f"{specimen.part}/calibration_error": float(shares @ np.abs(confident - right)),
        f"{specimen.part}/overconfidence": float(shares @ (confident - right)),
        "reliability": "\n".join(rows),
        "calibration": reliability_picture(confident, right, shares),
    }


def predictions(specimen: Specimen) -> tuple[np.ndarray, np.ndarray]:
    """Returns the confidence of each prediction that counts, and whether it was right, (n,)."""
    targets = torch.from_numpy(specimen.tokens.astype(np.int64))
    counts = counting(specimen.documents)
    confidence = np.zeros(len(targets) - 1)
    is_right = np.zeros(len(targets) - 1, bool)
    for scores, places in distributions(specimen):
        highest, likeliest = scores.max(-1)
        numbers = places.numpy() - 1
        confidence[numbers] = highest.double().exp().cpu().numpy()
        is_right[numbers] = (likeliest.cpu() == targets[places]).numpy()
    if counts is None:
        return confidence, is_right
    return confidence[counts], is_right[counts]
