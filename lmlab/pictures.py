"""Pictures for TensorBoard."""

import numpy as np
from PIL import Image, ImageDraw

CELL = 14  # pixels


def bigram(probs: np.ndarray, chars: str) -> np.ndarray:
    """A bigram's table, (V, V) probabilities, as an image (H, W, 3): a row a character, darker is likelier next."""
    shades = 255 - (255 * np.sqrt(probs)).astype(np.uint8)  # the root lets the rare show
    size = CELL * len(chars)
    picture = Image.new("RGB", (size + CELL, size + CELL), "white")
    picture.paste(Image.fromarray(shades).resize((size, size), Image.Resampling.NEAREST), (CELL, CELL))
    for i, char in enumerate(chars, start=1):
        label = {"\n": "\\n", " ": "_"}.get(char, char if char.isascii() else "?")
        ImageDraw.Draw(picture).text((3, i * CELL), label, fill="black")
        ImageDraw.Draw(picture).text((i * CELL + 3, 0), label, fill="black")
    return np.asarray(picture)
