"""From text to numbers and back."""

from __future__ import annotations

import json
from functools import cached_property

import numpy as np

from lmlab.config import UserError


class CharTokenizer:
    """One token a character, numbered in the characters' sorted order."""

    def __init__(self, chars: str) -> None:
        self.chars = chars

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.chars)

    @cached_property
    def codes(self) -> np.ndarray:
        """Code point of each token, (V,) uint32."""
        return code_points(self.chars)

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of each token, (V,) int64."""
        return np.array([len(c.encode("utf-8", "surrogatepass")) for c in self.chars], dtype=np.int64)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, (N,) of the smallest unsigned type that holds them.

        Raises UserError naming the characters that are not in the vocabulary.
        """
        codes = code_points(text)
        ids = np.searchsorted(self.codes, codes).clip(max=max(self.vocab_size - 1, 0))
        known = self.codes[ids] == codes if self.vocab_size else np.zeros(len(codes), dtype=bool)
        if not known.all():
            strange = "".join(sorted({text[i] for i in np.flatnonzero(~known)}))
            raise UserError(
                f"{len(strange)} characters are not in the vocabulary: {strange!r}; known are {self.chars!r}"
            )
        return ids.astype(np.min_scalar_type(max(self.vocab_size - 1, 0)))

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "chars": self.chars}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CharTokenizer:
        """Raises UserError unless `text` is what `to_json` writes."""
        try:
            content = json.loads(text)
            chars = content["chars"]
            if content["type"] != "char" or "".join(sorted(set(chars))) != chars:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError("tokenizer.json: not a character vocabulary of lmlab") from None
        return cls(chars)


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
