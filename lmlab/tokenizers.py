"""From text to numbers and back."""

import json
from typing import Self

import numpy as np

from lmlab.config import UserError

class CharTokenizer:
    """One token a character, numbered in the characters' sorted order."""
    def __init__(self, chars: str) -> None:
        self.chars, self.vocab_size = chars, len(chars)
        self.codes = code_points(chars)  # (V,)
        self.byte_lengths = np.array([len(char.encode("utf-8", "surrogatepass")) for char in chars])  # (V,)

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """Token ids, (N,) of the smallest unsigned type. Raises UserError naming unknown characters."""
        codes = code_points(text)
        ids = np.searchsorted(self.codes, codes).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self.codes[ids] != codes)
        if len(unknown):
            strange = "".join(sorted({text[i] for i in unknown}))
            raise UserError(f"characters outside the vocabulary: {strange!r}; known are {self.chars!r}")
        return ids.astype(np.min_scalar_type(self.vocab_size - 1))

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "chars": self.chars})

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(json.loads(text)["chars"])

def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
