"""The loss at each place of the context: how much it helps to have read more.

At the first place of a window a model has read one token, at the last `block_size` of them. What
the loss falls by in between is what the model makes of its context. Olsson et al. (2022) compare
two places, the 50th and the 500th; here each is the mean of a tenth of the places, which is less
noisy on a short text.
"""

import numpy as np
import torch

from lmlab.data.documents import Documents, counting
from lmlab.errors import UserError
from lmlab.inference.evaluations import Value
from lmlab.inference.loss import of_documents
from lmlab.inference.pictures import line_picture
from lmlab.inference.specimen import Specimen


def by_position(specimen: Specimen) -> dict[str, Value]:
    """Returns the loss at the first place and at the last ones, the gain, and the whole curve.

    The gain is the loss just behind the first tenth of the context less that in its last tenth. The
    text `loss_by_position` has a line for each place. Losses are in nats per token.
    """
    places, losses = losses_by_position(specimen)
    if len(places) < 2:
        raise UserError(
            f"by_position=true: compares the places of a context, and the text, of "
            f"{len(specimen.tokens):,} tokens, is predicted at {len(places)}; needs at least 2"
        )
    tenth = max(1, len(places) // 10)
    early = losses[tenth : 2 * tenth].mean()
    late = losses[-tenth:].mean()
    rows = [f"{place} {loss:.6f}" for place, loss in zip(places, losses, strict=True)]
    return {
        f"{specimen.part}/loss_first": float(losses[0]),
        f"{specimen.part}/loss_last": float(late),
        f"{specimen.part}/context_gain": float(early - late),
        "loss_by_position": "\n".join(rows),
        "by_position": line_picture(places, losses, "place in the context", "loss"),
    }


def losses_by_position(specimen: Specimen) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of the context, 1 to `block_size`, and the mean loss at each.

    Every token is predicted from its own window alone, also by a model that counts. Places at which
    no token is scored are left out.
    """
    model, tokens, T = specimen.model, specimen.tokens, specimen.block_size
    windows = specimen.within or Documents(np.zeros(1, np.int64), None)
    ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    with torch.inference_mode():
        answers = of_documents(model, ids, T, specimen.precision, windows)
    losses = -answers.double().numpy()
    starts = windows.window_starts(T, len(losses))
    places = np.arange(len(losses)) - np.repeat(starts, np.diff(starts, append=len(losses)))
    counts = counting(specimen.documents)
    if counts is not None:
        losses, places = losses[counts], places[counts]
    sizes = np.bincount(places, minlength=T)
    sums = np.bincount(places, weights=losses, minlength=T)
    seen = np.flatnonzero(sizes)
    return seen + 1, sums[seen] / sizes[seen]
