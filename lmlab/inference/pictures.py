"""Draws pictures of a model for TensorBoard: arrays (H, W, 3) of uint8."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from lmlab.inference.attention_maps import attention_maps
from lmlab.models.base import LanguageModel


def pictures_of(
    model: LanguageModel,
    idx: Tensor,
    names: Sequence[str],
    with_attention: bool,
    kept: np.ndarray | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the pictures of a model, each with its name.

    To draw attention, the model reads the tokens idx (T,), which are on its device. `names` are
    the readable names of all tokens in the vocabulary. `kept` are the ids of those that a table of
    pairs shows, all if it is None.
    """
    scores = model.pair_scores()
    if scores is not None:
        kept = np.arange(len(names)) if kept is None else kept
        yield "bigram", table_picture(scores, names, kept)
    own_picture = model.picture(idx, names)
    if own_picture is not None:
        yield "picture", own_picture
    if with_attention:
        maps = attention_maps(model, idx)
        if maps is not None:
            yield "attention", attention_picture(maps)


def commonest(frequencies: np.ndarray, n: int) -> np.ndarray:
    """Returns the ids of the `n` most frequent tokens, in ascending order."""
    return np.sort(np.argsort(-frequencies, kind="stable")[:n])


def table_picture(scores: Tensor, names: Sequence[str], kept: np.ndarray) -> np.ndarray:
    """Returns scores (V, V) as an image (H, W, 3), with one row for each token of `kept` (K,).

    In the row of a token, the cells of likely next tokens are dark.
    """
    from PIL import Image, ImageDraw  # takes time, and no training step needs it

    cell = max(1, min(14, 1400 // len(kept)))  # pixels
    size = cell * len(kept)
    squares = Image.fromarray(shaded(scores.detach()[kept].cpu().softmax(-1)[:, kept]))
    picture = Image.new("RGB", (size + cell, size + cell), "white")
    picture.paste(squares.resize((size, size), Image.Resampling.NEAREST), (cell, cell))
    pen = ImageDraw.Draw(picture)
    for i, token in enumerate(kept.tolist(), start=1):
        name = names[token]
        label = repr(name)[1:-1] if name.isascii() else "?"  # PIL's font has ASCII alone
        pen.text((3, i * cell), label, fill="black")
        pen.text((i * cell + 3, 0), label, fill="black")
    return np.asarray(picture)


def attention_picture(maps: Tensor) -> np.ndarray:
    """Returns attention (n_layer, H, T, T) as an image (H, W, 3), with a square for each head.

    Each layer is a row of squares. In a square, row t shows how much token t attends to each
    token s: darker means more.
    """
    from PIL import Image, ImageDraw

    n_layer, n_head, T, _ = maps.shape
    gap = 14  # pixels above a square, for its name
    cell = max(1, min(6, 1400 // (n_head * T)))
    side = cell * T
    step = side + gap
    picture = Image.new("RGB", (n_head * step + gap, n_layer * step + gap), "white")
    pen = ImageDraw.Draw(picture)
    for layer in range(n_layer):
        for head in range(n_head):
            x = head * step + gap
            y = layer * step + gap
            square = Image.fromarray(shaded(maps[layer, head].cpu()))
            picture.paste(square.resize((side, side), Image.Resampling.NEAREST), (x, y))
            pen.rectangle((x - 1, y - 1, x + side, y + side), outline="lightgray")
            pen.text((x, y - 13), f"{layer + 1}.{head + 1}", fill="black")
    return np.asarray(picture)


def shaded(shares: Tensor) -> np.ndarray:
    """Returns grey values for shares from 0 (white) to 1 (black).

    The square root makes small shares visible.
    """
    return (255 * (1 - shares.sqrt())).numpy().astype(np.uint8)
