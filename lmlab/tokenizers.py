"""From text to numbers and back."""

import json
import re
from collections import Counter
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
        """Token ids, (N,) of the smallest unsigned type. Raises UserError counting and naming unknown characters."""
        codes = code_points(text)
        ids = np.searchsorted(self.codes, codes).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self.codes[ids] != codes)
        if len(unknown):
            counts = Counter(text[i] for i in unknown)
            named = ", ".join(f"{char!r} ({n:,})" for char, n in counts.most_common(20))
            more = f" and {len(counts) - 20:,} more" if len(counts) > 20 else ""
            raise UserError(f"{len(unknown):,} characters outside the vocabulary: {named}{more}; "
                            f"known are {self.chars[:200]!r}")
        return ids.astype(np.min_scalar_type(self.vocab_size - 1))

    def without_unknown(self, text: str) -> str:
        """`text` without the characters that `encode` would refuse."""
        known = set(self.chars)
        return "".join(char for char in text if char in known)

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "chars": list(self.chars)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises UserError or ValueError for what `to_json` would not have written."""
        values = json.loads(text)
        chars = values.get("chars") if isinstance(values, dict) and values.get("type") == "char" else None
        single = isinstance(chars, list) and all(isinstance(char, str) and len(char) == 1 for char in chars)
        if not single or not chars or chars != sorted(set(chars)):
            raise UserError('is no vocabulary; that is {"type": "char", "chars": [distinct characters, sorted]}')
        return cls("".join(chars))

def printable(text: str) -> str:
    """`text` without power over the terminal: control characters but newline and tab become their names."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)

def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
