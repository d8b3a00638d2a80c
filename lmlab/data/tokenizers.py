"""From text to numbers and back."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from lmlab.errors import UserError


class UnknownCharacters(UserError):
    """Text that the vocabulary can't express."""


class CharTokenizer:
    """One token a character, numbered in the characters' sorted order."""

    def __init__(self, chars: str) -> None:
        self.chars, self.vocab_size = chars, len(chars)
        codes = code_points(chars)
        self.table = np.full(
            codes.max(initial=0) + 2, self.vocab_size, np.min_scalar_type(self.vocab_size)
        )
        self.table[codes] = np.arange(
            self.vocab_size
        )  # V is unknown, so is what lies beyond the end
        self.byte_lengths = np.array(
            [len(char.encode("utf-8", "surrogatepass")) for char in chars]
        )  # (V,)

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls.from_pieces([text])

    @classmethod
    def from_pieces(cls, pieces: Iterable[str]) -> Self:
        """That of all characters of a text that comes in pieces."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for piece in pieces:
            seen[code_points(piece)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode(self, text: str) -> np.ndarray:
        """Token ids, (N,) of the smallest unsigned type. Raises UnknownCharacters."""
        [ids] = self.encode_pieces([text])
        return ids

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        """The ids of a text piece by piece. Characters outside the vocabulary are left out; unless
        they may be (`drop`), UnknownCharacters counts and names them at the text's end.
        """
        unknown: Counter[str] = Counter()
        for piece in pieces:
            codes = code_points(piece)
            ids = self.table.take(codes, mode="clip")
            known = ids < self.vocab_size
            if not known.all():
                ids = ids[known]
                drop or unknown.update(map(chr, codes[~known].tolist()))
            yield ids.astype(np.min_scalar_type(self.vocab_size - 1), copy=False)
        if unknown:
            named = ", ".join(f"{char!r} ({n:,})" for char, n in unknown.most_common(20))
            more = f" and {len(unknown) - 20:,} more" if len(unknown) > 20 else ""
            raise UnknownCharacters(
                f"{unknown.total():,} characters outside the vocabulary: {named}{more}; "
                f"known are {self.chars[:200]!r}"
            )

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def to_json(self) -> str:
        return json.dumps({"type": "char", "chars": list(self.chars)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises UserError or ValueError for what `to_json` would not have written."""
        values = json.loads(text)
        chars = (
            values.get("chars")
            if isinstance(values, dict) and values.get("type") == "char"
            else None
        )
        single = isinstance(chars, list) and all(
            isinstance(char, str) and len(char) == 1 for char in chars
        )
        if not single or not chars or chars != sorted(set(chars)):
            raise UserError(
                'is no vocabulary; that is {"type": "char", "chars": [distinct characters, sorted]}'
            )
        return cls("".join(chars))


def code_points(text: str) -> np.ndarray:
    """(N,) of the type that numpy indexes with: it converts others on the way, slowly."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.intp)
