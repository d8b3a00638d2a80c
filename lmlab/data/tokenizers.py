"""Turns text into token ids and back: the base class, and the tokenizer of characters."""

import codecs
import json
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, Self, TypeGuard

import numpy as np

from lmlab import files, plugins
from lmlab.calls import check_methods
from lmlab.catalogue import TOKENIZERS
from lmlab.errors import UserError, reason_of
from lmlab.register import is_own
from lmlab.registry import load


class UnknownCharacters(UserError):
    """The text has characters that the vocabulary lacks."""


class Source(Protocol):
    """What a tokenizer is trained on: a text in pieces, and all its characters, sorted."""

    characters: str

    @property
    def training_sha256(self) -> str:
        """A hash of the training part, and of how it is cut."""

    def pieces(self) -> Iterable[str]:
        """Returns the text in pieces; each call begins anew."""

    def training_pieces(self) -> Iterable[str]:
        """Returns the training part alone, cut where it is cut to be encoded."""


class Tokenizer:
    """Turns text into token ids and back. The lab calls no other methods of a tokenizer.

    A subclass writes `train`, `encode_pieces`, `decode`, `to_values` and `from_values`, and sets
    `vocab_size` and `byte_lengths`.
    """

    unit: ClassVar[str] = "token"
    """What messages call a token."""

    per_character: ClassVar[bool] = False
    """Whether each character is one token, so that a text may be cut anywhere."""

    kind: ClassVar[str]
    """The name of the class in the group `tokenizer`, and in tokenizer.json."""

    vocab_size: int
    """How many tokens there are, V. Their ids are 0 to V - 1."""

    byte_lengths: np.ndarray
    """The number of UTF-8 bytes of each token, (V,). Bits per byte are counted with it."""

    origin: str = "the tokenizer"
    """The key or the file that it comes from, with which messages about it begin."""

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        """Yields the ids of each piece of a text, in the smallest unsigned type.

        Each piece is encoded by itself. The lab cuts a text where a document or a part of it ends,
        and long ones between two words. With `drop`, characters that the vocabulary lacks are left out. Without it, such characters
        raise UnknownCharacters after the last piece; the error counts and names them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode_pieces")

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Returns the text of token ids."""
        raise NotImplementedError(f"{type(self).__name__} has no decode")

    def growing(self) -> "GrowingText":
        """Returns an empty text, to which tokens can be added one by one."""
        return GrowingText(self)

    @classmethod
    def train(cls, text: Source, config: Any) -> Self:
        """Returns the tokenizer of a text. `config` holds the keys of the choice."""
        raise NotImplementedError(f"{cls.__name__} has no train")

    def to_values(self) -> dict[str, Any]:
        """Returns plain values that JSON can hold, from which `from_values` makes the tokenizer."""
        raise NotImplementedError(f"{type(self).__name__} has no to_values")

    def to_json(self) -> str:
        """Returns the content of tokenizer.json, which `from_json` reads."""
        return json.dumps({"type": self.kind} | self.to_values() | {"type": self.kind})

    def sha256(self) -> str:
        """Returns the sha256 of tokenizer.json, which the names of cells contain."""
        return files.sha256(self.to_json().encode())

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Returns the tokenizer of a parsed tokenizer.json, which may come from a stranger.

        Raises UserError for values that `to_values` would not have returned.
        """
        raise NotImplementedError(f"{cls.__name__} has no from_values")

    def in_hugging_face(self) -> dict[str, Any] | None:
        """Returns the content of a tokenizer.json of Hugging Face's; None if it has no such form."""
        return None

    def in_page(self) -> dict[str, Any]:
        """Returns what a page of HTML needs to encode texts; lmlab/inference/page.js reads it.

        Raises UserError if there is no JavaScript that does so.
        """
        raise UserError(f"tokenizer={self.kind}: a page cannot encode texts as it does")

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, (N,). Raises UnknownCharacters."""
        return np.concatenate(list(self.encode_pieces([text])))

    def name_of(self, token: int) -> str:
        """Returns the readable name of a token."""
        return self.decode([token])

    def names(self) -> list[str]:
        """Returns the names of all tokens, in the order of their ids."""
        return [self.name_of(token) for token in range(self.vocab_size)]

    def default_prompt(self) -> str:
        """Returns the prompt if the user gave none: a newline, or token 0 without one."""
        try:
            self.encode("\n")
        except UnknownCharacters:
            return self.decode([0])
        return "\n"


class GrowingText:
    """A text to which tokens are added one by one, each of which is a text by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def add(self, token: int) -> str:
        """Returns the text that a further token adds."""
        return self.tokenizer.decode([token])

    def end(self) -> str:
        """Returns what is left at the end."""
        return ""


class GrowingBytes(GrowingText):
    """A text to which tokens are added one by one, which may end inside a character.

    Such a character is returned with its last byte. U+FFFD stands for bytes that are no text.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.tokens[token])

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


class CharTokenizer(Tokenizer):
    """One token for each character, numbered in the characters' sorted order."""

    kind = "char"
    unit = "character"
    per_character = True

    def __init__(self, chars: str) -> None:
        self.chars = chars
        self.vocab_size = len(chars)
        codes = code_points(chars)
        # From code point to id; V stands for unknown, also where the table ends.
        smallest_type = np.min_scalar_type(self.vocab_size)
        self.table = np.full(codes.max(initial=0) + 2, self.vocab_size, smallest_type)
        self.table[codes] = np.arange(self.vocab_size)
        lengths = [len(char.encode("utf-8", "surrogatepass")) for char in chars]
        self.byte_lengths = read_only(np.array(lengths))

    @classmethod
    def train(cls, text: Source, config: Any = None) -> Self:
        return cls(text.characters)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Returns the tokenizer of all characters in a text."""
        return cls.from_pieces([text])

    @classmethod
    def from_pieces(cls, pieces: Iterable[str]) -> Self:
        """Returns the tokenizer of all characters in a text that comes in pieces."""
        seen = np.zeros(sys.maxunicode + 1, bool)
        for piece in pieces:
            seen[code_points(piece)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        unknown: Counter[str] = Counter()
        for piece in pieces:
            codes = code_points(piece)
            ids = self.table.take(codes, mode="clip")
            known = ids < self.vocab_size
            if not known.all():
                ids = ids[known]
                if not drop:
                    unknown.update(map(chr, codes[~known].tolist()))
            yield ids.astype(np.min_scalar_type(self.vocab_size - 1), copy=False)
        if unknown:
            raise self.unknown_characters(unknown)

    def unknown_characters(self, counts: Counter[str]) -> UnknownCharacters:
        """Returns the error that names the most frequent of these characters."""
        return UnknownCharacters(f"{named(counts)}; known are {self.chars[:200]!r}")

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return "".join(self.chars[i] for i in ids)

    def to_values(self) -> dict[str, Any]:
        return {"chars": list(self.chars)}

    def in_hugging_face(self) -> dict[str, Any] | None:
        if any("\ud800" <= char <= "\udfff" for char in self.chars):  # halves of characters
            return None
        values: dict[str, Any] = load("lmlab.data.tokenizer_json:of_characters")(self.chars)
        return values

    def in_page(self) -> dict[str, Any]:
        return {"kind": "char", "chars": list(self.chars)}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        chars = values.get("chars")
        if not is_sorted_alphabet(chars):
            raise UserError(NO_VOCABULARY)
        return cls("".join(chars))


def named(unknown: Counter[str]) -> str:
    """Returns how many characters are unknown, and the most frequent of them."""
    names = ", ".join(f"{char!r} ({n:,})" for char, n in unknown.most_common(20))
    if len(unknown) > 20:
        names += f" and {len(unknown) - 20:,} more"
    characters = "character" if unknown.total() == 1 else "characters"
    hint = ""
    if sys.getfilesystemencoding() != "utf-8" and any(
        "\udc80" <= char <= "\udcff" for char in unknown
    ):
        hint = " (this locale cannot read what was typed; with LC_ALL=C.UTF-8 it can)"
    return f"{unknown.total():,} {characters} outside the vocabulary{hint}: {names}"


def check_made(tokenizer: Any, kind: str, method: str) -> None:
    """Raises UserError if a method that makes a tokenizer has returned something else."""
    if not callable(getattr(tokenizer, "encode_pieces", None)):
        raise UserError(
            f"tokenizer={kind}: {method} returns {reprlib.repr(tokenizer)}; needs a lmlab.Tokenizer"
        )


def check_tokenizer(tokenizer: Any, sample: str) -> None:
    """Raises UserError if a tokenizer breaks what the lab asks of it, tried with a piece of text.

    A mistake of somebody's own tokenizer would else be a wrong number, or be found when a finished
    run cannot be sampled. Its byte_lengths, which are measured with, cannot be written from here on.
    """
    check_parts(tokenizer)
    kind = tokenizer.kind
    lengths = tokenizer.byte_lengths
    lengths.flags.writeable = False
    ids = checked_ids(tokenizer, tokenizer.encode(sample))
    again = from_json(tokenizer.to_json())
    if again.to_json() != tokenizer.to_json():
        raise UserError(f"tokenizer={kind}: from_values does not make what to_values was made of")
    for one in (tokenizer, again):
        if one.decode(ids) != sample:
            raise UserError(f"tokenizer={kind}: decode does not return the text that was encoded")
    n_bytes = len(sample.encode("utf-8", "surrogatepass"))
    if lengths[ids].sum() != n_bytes:
        raise UserError(
            f"tokenizer={kind}: the byte_lengths of a text's tokens add up to {lengths[ids].sum():,}, but "
            f"it has {n_bytes:,} bytes"
        )


def check_parts(tokenizer: Any) -> None:
    """Raises UserError if somebody's own tokenizer lacks what a subclass writes, or has it otherwise.

    A run may be opened with other code than that which made it.
    """
    kind = tokenizer.kind
    for name in ("encode_pieces", "decode", "to_values"):
        if getattr(type(tokenizer), name) is getattr(Tokenizer, name):
            raise UserError(f"tokenizer={kind}: {type(tokenizer).__name__} has no {name}")
    check_methods(f"tokenizer={kind}", tokenizer, Tokenizer)
    size = tokenizer.vocab_size
    lengths = tokenizer.byte_lengths
    if not isinstance(size, int) or size < 1:
        raise UserError(f"tokenizer={kind}: vocab_size is {size!r}; needs a whole number above 0")
    is_array = isinstance(lengths, np.ndarray) and lengths.shape == (size,)
    whole = is_array and np.issubdtype(lengths.dtype, np.integer)
    if not whole or lengths.min() < 0 or lengths.max() == 0:
        raise UserError(
            f"tokenizer={kind}: byte_lengths must be a numpy array of whole numbers, ({size},): how many "
            "UTF-8 bytes each token has"
        )
    values = tokenizer.to_values()
    if not isinstance(values, dict):
        raise UserError(
            f"tokenizer={kind}: to_values returns {reprlib.repr(values)}; needs a dict for JSON"
        )


def checked_ids(tokenizer: Tokenizer, ids: Any) -> np.ndarray:
    """Returns the ids of a piece in the smallest type for the vocabulary. Raises UserError."""
    ids = np.asarray(ids)
    if len(ids) == 0:
        ids = ids.astype(np.uint8)
    size = tokenizer.vocab_size
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(
            f"tokenizer={tokenizer.kind}: encode_pieces must yield arrays of whole numbers, (N,); it "
            f"yields {ids.dtype} {ids.shape}"
        )
    if len(ids) and not (ids.min() >= 0 and ids.max() < size):
        raise UserError(
            f"tokenizer={tokenizer.kind}: encode_pieces yields ids from {ids.min()} to {ids.max()}; "
            f"vocab_size={size} allows 0 to {size - 1}"
        )
    return ids.astype(np.min_scalar_type(size - 1), copy=False)


def all_checked(tokenizer: Tokenizer, pieces: Iterable[Any]) -> Iterator[np.ndarray]:
    """Yields the ids of each piece, as `checked_ids` returns them. Raises UserError."""
    with tokenizer_errors(tokenizer.kind):
        for piece in pieces:
            yield checked_ids(tokenizer, piece)


@contextmanager
def tokenizer_errors(kind: str) -> Iterator[None]:
    """Turns any other error of somebody's own tokenizer into a UserError with its reason."""
    try:
        with plugins.own_errors(f"tokenizer={kind}"):
            yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"tokenizer={kind}: {reason_of(error)}") from error


NO_VOCABULARY = (
    'is no vocabulary; that is {"type": "char", "chars": [distinct characters, sorted]} or a '
    "tokenizer.json of Hugging Face's"
)


def is_sorted_alphabet(chars: Any) -> TypeGuard[list[str]]:
    """Returns whether `chars` is a list of distinct single characters, sorted, and at least one."""
    if not isinstance(chars, list) or not chars:
        return False
    if not all(isinstance(char, str) and len(char) == 1 for char in chars):
        return False
    return chars == sorted(set(chars))


def from_json(text: str) -> Tokenizer:
    """Returns the tokenizer from the text that `to_json` wrote.

    Raises UserError or ValueError for any other text."""
    values = json.loads(text)
    if isinstance(values, dict) and "model" in values:
        subword: Tokenizer = load("lmlab.data.subwords:from_hugging_face")(values)
        return subword
    kind = str(values.pop("type", None)) if isinstance(values, dict) else ""
    if kind not in TOKENIZERS:
        raise UserError(NO_VOCABULARY)
    builder: type[Tokenizer] = load(TOKENIZERS[kind].builder)
    if not is_own("tokenizer", kind):
        return builder.from_values(values)
    with tokenizer_errors(kind):
        tokenizer = builder.from_values(values)
        check_made(tokenizer, kind, "from_values")
        check_parts(tokenizer)
    return tokenizer


def read_only(array: np.ndarray) -> np.ndarray:
    """Returns the same numbers as an array that cannot be written, such as by somebody's evaluation."""
    seen = array.view()
    seen.flags.writeable = False
    return seen


def code_points(text: str) -> np.ndarray:
    """Returns the Unicode number of each character, (N,), in numpy's own type for indices.

    Numpy would convert any other type to it, which is slow.
    """
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.intp)
