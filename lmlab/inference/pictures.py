"""Draws pictures of a model for TensorBoard: arrays (H, W, 3) of uint8."""

from collections.abc import Iterator, Sequence
from typing import Any

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


SIDE = 320  # pixels of a diagram's square
MARGIN = 40  # pixels around it, for what is written there


def line_picture(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> np.ndarray:
    """Returns the line through the points x, y (N,) as an image (H, W, 3), with its ranges."""
    picture, pen = diagram(x_name, y_name)
    points = [(at(a, x), SIDE - at(b, y)) for a, b in zip(x, y, strict=True)]
    pen.line([(MARGIN + a, MARGIN + b) for a, b in points], fill="black", width=2)
    write_ends(pen, x, y)
    return np.asarray(picture)


def reliability_picture(
    confidence: np.ndarray, right: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Returns how often predictions of each confidence are right as an image (H, W, 3).

    A well calibrated model is on the diagonal, an overconfident one below it. A dot's area is the
    share of predictions in its bin.
    """
    picture, pen = diagram("confidence", "share of right ones")
    unit = np.array([0.0, 1.0])
    pen.line((MARGIN, MARGIN + SIDE, MARGIN + SIDE, MARGIN), fill="lightgray")
    for says, is_so, share in zip(confidence, right, shares, strict=True):
        x = MARGIN + at(says, unit)
        y = MARGIN + SIDE - at(is_so, unit)
        radius = 2 + 20 * float(share) ** 0.5
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="black")
    write_ends(pen, unit, unit)
    return np.asarray(picture)


def diagram(x_name: str, y_name: str) -> tuple[Any, Any]:
    """Returns an empty diagram, an image of PIL's, and a pen that draws in it."""
    from PIL import Image, ImageDraw

    size = SIDE + 2 * MARGIN
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((MARGIN, MARGIN, MARGIN + SIDE, MARGIN + SIDE), outline="lightgray")
    pen.text((MARGIN + SIDE // 3, MARGIN + SIDE + 20), x_name, fill="black")
    pen.text((MARGIN, MARGIN - 30), y_name, fill="black")
    return picture, pen


def at(value: float, values: np.ndarray) -> float:
    """Returns how many pixels from the low end of an axis, which spans `values`, a value lies."""
    low, high = float(values.min()), float(values.max())
    return SIDE / 2 if low == high else SIDE * (float(value) - low) / (high - low)


def write_ends(pen: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Writes the lowest and the highest number at both axes of a diagram."""
    below = MARGIN + SIDE + 4
    pen.text((MARGIN, below), f"{x.min():g}", fill="black")
    pen.text((MARGIN + SIDE - 20, below), f"{x.max():g}", fill="black")
    pen.text((2, MARGIN + SIDE - 10), f"{y.min():.3g}", fill="black")
    pen.text((2, MARGIN), f"{y.max():.3g}", fill="black")


def shaded(shares: Tensor) -> np.ndarray:
    """Returns grey values for shares from 0 (white) to 1 (black).

    The square root makes small shares visible.
    """
    return (255 * (1 - shares.sqrt())).numpy().astype(np.uint8)
