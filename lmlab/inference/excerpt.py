"""Takes an excerpt of a text, on which a model is evaluated between start and end of its training.

It consists of whole windows, evenly spread over the text, and is the same at each evaluation. Each
of its tokens is predicted from the same tokens before it as in the evaluation of the whole text.
"""

import numpy as np

from lmlab.data.documents import Documents

PIECE = 64  # tokens that a piece of an excerpt has at least, unless a document is shorter


def excerpt(
    tokens: np.ndarray, block_size: int, n: int, documents: Documents | None, is_aligned: bool
) -> tuple[np.ndarray, Documents] | None:
    """Returns an excerpt in which about `n` tokens are predicted, or None if the text has no more.

    It is made of pieces of `tokens` (N,), (M,), which are its documents. `is_aligned` says that
    windows begin with the documents of the text. It is None as well if nothing in it is scored.
    """
    predicted = len(tokens) - 1
    if predicted <= n:
        return None
    if documents is not None and is_aligned:
        starts = documents.window_starts(block_size, predicted)
    else:
        length = block_size * -(-PIECE // block_size)  # rounded up to whole windows
        starts = np.arange(0, predicted, length)
    ends = np.append(starts[1:], predicted)
    count = max(1, round(len(starts) * n / predicted))
    chosen = ((np.arange(count) + 0.5) * len(starts) / count).astype(np.int64)
    # The last window of a piece predicts one token more: the first of the next piece in the text.
    pieces = [np.arange(starts[i], ends[i] + 1) for i in chosen]
    places = np.concatenate(pieces)
    begins = np.cumsum([0, *map(len, pieces[:-1])])
    scored = np.ones(len(places), bool)
    if documents is not None and documents.scored is not None:
        scored = documents.scored[places]
    scored[begins] = False  # nothing of the text stands before the first token of a piece
    taken = Documents(begins, scored)
    if not taken.scores_something():
        return None
    return np.asarray(tokens[places]), taken
