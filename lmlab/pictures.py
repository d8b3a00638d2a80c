"""Pictures for TensorBoard."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

CELL = 14  # pixels


def bigram(probs: np.ndarray, chars: str) -> np.ndarray:
    """The table of a bigram, (V, V) probabilities, as an RGB image (H, W, 3) uint8.

    A row a character, a column each character that may follow it, darker is likelier.
    """
    shades = 255 - (255 * np.sqrt(probs)).astype(np.uint8)  # the root lets rare ones show
    size = CELL * (len(chars) + 1)
    picture = Image.new("RGB", (size, size), "white")
    picture.paste(Image.fromarray(shades).resize((size - CELL, size - CELL), Image.Resampling.NEAREST), (CELL, CELL))
    draw = ImageDraw.Draw(picture)
    for i, char in enumerate(chars, start=1):
        label = {"\n": "\\n", " ": "_"}.get(char, char)
        if label.isascii() and label.isprintable():
            draw.text((3, i * CELL), label, fill="black")
            draw.text((i * CELL + 3, 0), label, fill="black")
    return np.asarray(picture)
