"""What a model holds, as pictures for TensorBoard: arrays (H, W, 3) of uint8."""

import numpy as np
from torch import Tensor

from lmlab.models.bigram import Bigram


def bigram_picture(model: Bigram, chars: str) -> np.ndarray:
    """The table as an image (H, W, 3): a row a character, the darker a column, the likelier its
    character next.
    """
    from PIL import Image, ImageDraw  # which no step needs

    shades = shaded(model.table.weight.detach().cpu().softmax(-1))
    cell = max(1, min(14, 1400 // len(chars)))  # pixels
    size = cell * len(chars)
    picture = Image.new("RGB", (size + cell, size + cell), "white")
    picture.paste(Image.fromarray(shades).resize((size, size), 0), (cell, cell))
    for i, char in enumerate(chars, start=1):
        for place in ((3, i * cell), (i * cell + 3, 0)):
            ImageDraw.Draw(picture).text(
                place, repr(char)[1:-1] if char.isascii() else "?", fill="black"
            )
    return np.asarray(picture)


def attention_picture(maps: Tensor) -> np.ndarray:
    """Attention (n_layer, H, T, T) as an image (H, W, 3): a row of squares a layer, a square a
    head. In a square the token of row t looks at that of column s, the darker, the more.
    """
    from PIL import Image, ImageDraw

    (n_layer, n_head, T, _), gap = maps.shape, 14  # pixels, for a square's name
    cell = max(1, min(6, 1400 // (n_head * T)))
    side = cell * T + gap
    picture = Image.new("RGB", (n_head * side + gap, n_layer * side + gap), "white")
    for layer in range(n_layer):
        for head in range(n_head):
            x, y = head * side + gap, layer * side + gap
            square = Image.fromarray(shaded(maps[layer, head].cpu())).resize(
                (cell * T, cell * T), 0
            )
            picture.paste(square, (x, y))
            pen = ImageDraw.Draw(picture)
            pen.rectangle((x - 1, y - 1, x + cell * T, y + cell * T), outline="lightgray")
            pen.text((x, y - 13), f"{layer + 1}.{head + 1}", fill="black")
    return np.asarray(picture)


def shaded(shares: Tensor) -> np.ndarray:
    """From 0, white, to 1, black; the root lets the small ones show."""
    return (255 * (1 - shares.sqrt())).numpy().astype(np.uint8)
