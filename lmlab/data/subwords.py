"""Tokenizers of bytes and of byte pairs, in the form of Hugging Face's tokenizer.json.

    byte   a token for each of the 256 bytes of UTF-8
    bpe    pairs of bytes that often stand side by side, merged into tokens (Sennrich et al. 2016;
           Radford et al. 2019), which the library `tokenizers` learns from the training part
    file   any byte-level tokenizer.json, such as GPT-2's

scripts/tiny_bpe.py shows in plain Python how pairs are counted, merged, encoded and decoded.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lmlab import files, own_code
from lmlab.catalogue import BPEConfig, TokenizerConfig, TokenizerFileConfig
from lmlab.data.tokenizers import (
    NO_VOCABULARY,
    CharTokenizer,
    GrowingBytes,
    Source,
    Tokenizer,
    UnknownCharacters,
    named,
)
from lmlab.errors import UserError, reason_of
from lmlab.registry import load
from lmlab.terminal import call_in_thread, showing

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

LIMIT = 2**26  # bytes of a tokenizer.json; a million tokens of a usual text take 45 MB
MOST = 2**20  # tokens of a vocabulary
AT_ONCE = 2**22  # characters that are encoded together
LONGEST = 1000  # characters of a pattern or of an added token
LONGEST_WORD = 1000  # bytes


class ByteLevelTokenizer(Tokenizer):
    """A tokenizer whose tokens are strings of bytes: any text can be encoded, and comes back."""

    tokens: list[bytes]
    """The bytes of each token."""

    def set_tokens(self, tokens: list[bytes]) -> None:
        """Sets the tokens, from which the size of the vocabulary and all lengths follow."""
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.byte_lengths = np.array([len(token) for token in tokens])

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        raise UserError(NO_VOCABULARY)  # `from_hugging_face` reads them

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def growing(self) -> GrowingBytes:
        return GrowingBytes(self.tokens)

    def in_hugging_face(self) -> dict[str, Any] | None:
        return parsed(self.to_json())

    def name_of(self, token: int) -> str:
        r"""Returns the text of a token, or, for a part of a character, bytes such as \xe2\x80."""
        try:
            return self.tokens[token].decode()
        except UnicodeDecodeError:
            return repr(self.tokens[token])[2:-1]


class ByteTokenizer(ByteLevelTokenizer):
    """One token for each byte of UTF-8; its id is the value of the byte."""

    kind = "byte"
    unit = "byte"

    def __init__(self) -> None:
        self.set_tokens([bytes([byte]) for byte in range(256)])

    @classmethod
    def train(cls, text: Source, config: TokenizerConfig) -> Self:
        return cls()

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        for piece in without_halves(pieces, drop):
            yield np.frombuffer(piece.encode(), np.uint8)

    def to_json(self) -> str:
        return json.dumps(BYTES, ensure_ascii=False)


class PairTokenizer(ByteLevelTokenizer):
    """Merged pairs of bytes, as a tokenizer.json describes them. The library encodes them."""

    kind = "bpe"

    def __init__(self, description: str) -> None:
        """Reads `description`, the content of a tokenizer.json. Raises UserError."""
        library = load("tokenizers:Tokenizer")
        values = parsed(description)
        check_description(values)
        try:
            self.library: Library = library.from_str(description)
        except Exception as error:  # the library raises no other class
            raise UserError(f"is no tokenizer: {reason_of(error)}") from None
        self.description: str = self.library.to_str()  # in the library's own form
        size = len(self.description.encode())
        if size > LIMIT:
            raise UserError(
                f"the tokenizer.json of a run would have {size:,} bytes; allowed are at most {LIMIT:,}"
            )
        self.set_tokens(bytes_of_tokens(values))
        for token in values.get("added_tokens", ()):
            if self.library.token_to_id(token["content"]) != token["id"]:
                raise UserError(
                    f"added_tokens: {token['content']!r} needs the id "
                    f"{self.library.token_to_id(token['content'])}, not {token['id']}"
                )

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        smallest_type = np.min_scalar_type(self.vocab_size - 1)
        for batch in batched(without_halves(pieces, drop)):
            for piece, ids in zip(batch, self.encode_batch(batch), strict=True):
                if b"".join(map(self.tokens.__getitem__, ids)) != piece.encode():
                    raise UserError(self.changed(piece, ids))
                yield np.array(ids, smallest_type)

    def encode_batch(self, batch: list[str]) -> Iterator[list[int]]:
        """Yields the ids of each text of a batch. Raises UserError if the library gives up.

        It does so on a pattern that goes back too often, after lines of its own on stderr.
        """
        try:
            encodings = self.library.encode_batch_fast(batch, add_special_tokens=False)
        except BaseException as error:
            if not repr(error).startswith("PanicException"):  # no Exception, and not to be imported
                raise
            raise UserError(
                f"{self.origin}: cannot encode the text ({error}); needs a pattern that tries fewer "
                "ways to match"
            ) from None
        for encoding in encodings:
            yield encoding.ids

    def changed(self, piece: str, ids: list[int]) -> str:
        """Returns why a tokenizer that does not return a piece of text cannot be used."""
        again = self.decode(ids)
        pairs = enumerate(zip(piece, again, strict=False))
        first = next((i for i, (one, other) in pairs if one != other), min(len(piece), len(again)))
        part = slice(max(0, first - 10), first + 20)
        return (
            f"{self.origin}: changes the text: {piece[part]!r} comes back as {again[part]!r}; it "
            "needs to return each byte"
        )

    def to_json(self) -> str:
        return self.description


class BPETokenizer(PairTokenizer):
    """The tokens that the library learns from the training part of a text."""

    @classmethod
    def train(cls, text: Source, config: BPEConfig) -> Self:
        """Returns the tokenizer of a text. Raises UserError if it has too few pairs to merge.

        The result is cached.
        """
        from tokenizers import __version__

        code = own_code.sha256_of("data/encoding.py", "data/subwords.py")
        about = f"{text.training_sha256} {config.vocab_size} {__version__} {code}"
        path = files.cache_dir() / "tokenizers" / f"{files.sha256(about.encode())}.json"
        if files.is_cached(path):
            return cls(files.read_sealed(path, LIMIT).decode())
        description = learned(without_halves(text.training_pieces(), drop=True), config.vocab_size)
        try:
            tokenizer = cls(description)
        except UserError as error:
            raise UserError(f"vocab_size={config.vocab_size}: {error}") from None
        if tokenizer.vocab_size < config.vocab_size:
            raise UserError(
                f"vocab_size={config.vocab_size}: the training text has pairs for no more than "
                f"{tokenizer.vocab_size:,} tokens"
            )
        files.write_cached(path, tokenizer.to_json().encode())
        return tokenizer


class FileTokenizer(ByteLevelTokenizer):
    """The tokens of a tokenizer.json that the user names."""

    @classmethod
    # The file decides which class of tokenizers it is.
    def train(cls, text: Source, config: TokenizerFileConfig) -> Tokenizer:  # type: ignore[override]
        """Returns the tokenizer of the file, or of a folder that holds one. Raises UserError."""
        origin = f"tokenizer_path={config.tokenizer_path}"
        try:
            tokenizer = from_file(files.expanded(config.tokenizer_path))
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        tokenizer.origin = origin
        return tokenizer


def learned(pieces: Iterable[str], vocab_size: int) -> str:
    """Returns the tokenizer.json of the commonest pairs in a text.

    Of pairs that are equally common, that with the smallest ids is merged first. Bytes have the ids
    that GPT-2 gives them. A word of more than LONGEST_WORD bytes is learned from in parts, since the
    time grows with the square of its length.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # It matches this length alone: a match in each shorter word would double the time.
    parts = pre_tokenizers.Split(Regex(rf"[\s\S]{{{LONGEST_WORD}}}"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([words, parts])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    with showing("learning tokens …"):
        call_in_thread(library.train_from_iterator, pieces, trainer)
    library.pre_tokenizer = words
    return library.to_str()


def from_file(path: Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, or of a folder. Raises UserError.

    A folder may hold vocab.json and merges.txt instead, as GPT-2's first files do. Its files may be
    links, as in the cache of Hugging Face's.
    """
    if path.is_dir():
        if (path / "vocab.json").exists() and not (path / "tokenizer.json").exists():
            return from_vocabulary(path / "vocab.json", path / "merges.txt")
        path = path / "tokenizer.json"
    content = files.read(path, LIMIT, follow=True)
    try:
        tokenizer = from_hugging_face(parsed(content))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    tokenizer.origin = str(path)
    return tokenizer


def from_vocabulary(vocabulary: Path, merges: Path) -> Tokenizer:
    """Returns the tokenizer of GPT-2's two files: tokens with their ids, and merged pairs.

    A token that no pair makes, such as <|endoftext|>, is an added one.
    """
    content = files.read(vocabulary, LIMIT, follow=True)
    try:
        vocab = parsed(content)
    except UserError as error:
        raise UserError(f"{vocabulary}: {error}") from None
    try:
        lines = files.read(merges, LIMIT, follow=True).decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{merges}: is no text in UTF-8") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    merged = {*BYTE_OF, *("".join(pair) for pair in pairs)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": token, "special": True} | flags
        for token, i in vocab.items()
        if token not in merged and token.isascii()  # others stand for bytes in another way
    ]
    parts = {
        "added_tokens": added,
        "pre_tokenizer": BYTE_LEVEL | {"use_regex": True},
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }
    try:
        tokenizer = PairTokenizer(json.dumps(BYTES | parts))
    except UserError as error:
        raise UserError(f"{vocabulary}: {error}") from None
    tokenizer.origin = str(vocabulary)
    return tokenizer


def from_hugging_face(values: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a parsed tokenizer.json of Hugging Face. Raises UserError."""
    if "model" not in values:
        raise UserError("is no tokenizer.json; that is an object with the key model")
    if values == BYTES:
        return ByteTokenizer()
    chars = alphabet_in(values)
    if chars:
        return CharTokenizer(chars)
    return PairTokenizer(json.dumps(values))


def parsed(description: str | bytes) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises UserError."""
    try:
        values = json.loads(description)
    except (RecursionError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError("is no JSON object")
    return values


def without_halves(pieces: Iterable[str], drop: bool) -> Iterator[str]:
    """Yields pieces of text without half characters, which UTF-8 cannot hold.

    Unless `drop`, it raises UnknownCharacters if there were any.
    """
    halves: Counter[str] = Counter()
    for piece in pieces:
        whole = piece.encode("utf-8", "ignore").decode()
        if len(whole) < len(piece) and not drop:
            halves.update(char for char in piece if "\ud800" <= char <= "\udfff")
        yield whole
    if halves:
        raise UnknownCharacters(f"{named(halves)}; known are all but half characters")


def batched(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of pieces that have at least AT_ONCE characters together, but the last."""
    batch: list[str] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece) + 1  # empty pieces take memory, too
        if length >= AT_ONCE:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


# What a tokenizer.json may hold. It is read as data, and may come from a stranger.


def byte_characters() -> dict[str, int]:
    """Returns the printable character that stands for each byte, in the order of GPT-2's ids.

    Printable bytes of Latin-1 stand for themselves; the others get characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = byte_characters()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTES: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": BYTE_LEVEL | {"use_regex": False},
    "post_processor": None,
    "decoder": BYTE_LEVEL | {"use_regex": False},
    "model": {
        "type": "BPE",
        "vocab": dict(sorted(BYTE_OF.items(), key=lambda item: item[1])),
        "merges": [],
    },
}
"""The tokenizer.json of single bytes."""

# What may stand in the parts of a tokenizer.json, apart from its model.
PARTS = {
    "normalizer": {"NFC"},
    "pre_tokenizer": {"ByteLevel", "Split", "Digits", "Punctuation", "Sequence"},
    "post_processor": {"ByteLevel", "TemplateProcessing", "Sequence"},
    "decoder": {"ByteLevel"},
}
MODEL = {  # the keys of the model, and the values that change nothing
    "type": ("BPE",),
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False, True),
    "byte_fallback": (False,),
    "ignore_merges": (False, True),
}


def check_description(values: Mapping[str, Any]) -> None:
    """Raises UserError unless a tokenizer.json is byte-level, and carries nothing else.

    The library would take part of a longer text, cut it, or end the program without a word.
    """
    for key, value in values.items():
        if key not in BYTES:
            raise UserError(f"{key}: is no part of a tokenizer.json")
        if key in ("truncation", "padding") and value is not None:
            raise UserError(f"{key}: needs null; the lab itself cuts texts")
    for name, allowed in PARTS.items():
        check_part(name, values.get(name), allowed)
    if "ByteLevel" not in json.dumps(values.get("pre_tokenizer")):
        raise UserError("pre_tokenizer: needs ByteLevel, so that each byte of a text comes back")
    check_model(values.get("model"))
    check_added(values.get("added_tokens", []), values["model"]["vocab"])


def check_part(name: str, part: Any, allowed: set[str]) -> None:
    """Raises UserError if a part of a tokenizer.json, or a part of it, has another type."""
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in allowed:
        raise UserError(f"{name}: is {kind!r}; allowed are null, {', '.join(sorted(allowed))}")
    pattern = part.get("pattern")
    if pattern is not None and len(json.dumps(pattern)) > LONGEST:
        raise UserError(f"{name}: its pattern has more than {LONGEST:,} characters")
    if part["type"] == "Sequence":
        parts = part.get("pretokenizers") or part.get("processors")
        if not isinstance(parts, list):
            raise UserError(f"{name}: a Sequence needs a list of parts")
        for further in parts:
            check_part(name, further, allowed - {"Sequence"})


def check_model(model: Any) -> None:
    """Raises UserError unless a model has a vocabulary, and merges of its tokens."""
    if not isinstance(model, dict):
        raise UserError("model: needs an object with vocab and merges")
    for key, value in model.items():
        if key in ("vocab", "merges"):
            continue
        allowed = MODEL.get(key, ())
        if value not in allowed:
            words = ", ".join(map(repr, allowed)) or "no such key"
            raise UserError(f"model: {key}={value!r}; allowed are {words}")
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"model: type={model['type']!r}; allowed is BPE")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not is_numbering(vocab.values()):
        raise UserError(f"model: vocab needs different whole numbers from 0 to {MOST:,}")
    if BYTE_OF.keys() - vocab.keys():
        raise UserError("model: vocab lacks some of the 256 bytes, so it cannot encode every text")
    if any(char not in BYTE_OF for token in vocab for char in token):
        raise UserError("model: vocab has a character that stands for no byte")
    if not isinstance(merges, list):
        raise UserError("model: merges needs a list of pairs")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(token, str) for token in pair):
            raise UserError(f"model: merges has {merge!r}, which is no pair of tokens")
        if not {*pair, "".join(pair)} <= vocab.keys():
            raise UserError(f"model: merges has {merge!r}, which vocab lacks")


def is_numbering(ids: Iterable[Any]) -> bool:
    """Returns whether `ids` are different whole numbers below MOST, and at least one."""
    found = list(ids)
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in found)
    return whole and 0 < len(found) == len(set(found)) and 0 <= min(found) <= max(found) < MOST


def check_added(added: Any, vocab: Mapping[str, int]) -> None:
    """Raises UserError unless the added tokens are texts with ids of their own."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    needed = {"id", "content", *flags}
    if not isinstance(added, list):
        raise UserError("added_tokens: needs a list")
    taken = {i: token for token, i in vocab.items()}
    for token in added:
        if not isinstance(token, dict) or token.keys() != needed or not is_numbering([token["id"]]):
            raise UserError(f"added_tokens: needs {', '.join(sorted(needed))}, with an id")
        content = token["content"]
        if not isinstance(content, str) or not 0 < len(content) <= LONGEST:
            raise UserError(f"added_tokens: a content needs 1 to {LONGEST:,} characters")
        if not all(isinstance(token[flag], bool) for flag in flags):
            raise UserError(f"added_tokens: {content!r} needs true or false for {', '.join(flags)}")
        if content in vocab and not content.isascii():
            raise UserError(
                f"added_tokens: {content!r} is a token of vocab, where its characters stand for bytes; "
                "needs another content"
            )
        if taken.setdefault(token["id"], content) != content:
            raise UserError(
                f"added_tokens: {content!r} has the id {token['id']}, which is that of "
                f"{taken[token['id']]!r}"
            )


def bytes_of_tokens(values: Mapping[str, Any]) -> list[bytes]:
    """Returns the bytes of each token of a checked tokenizer.json; an id without one has none."""
    by_id = {
        i: bytes(BYTE_OF[char] for char in token) for token, i in values["model"]["vocab"].items()
    }
    for token in values.get("added_tokens", ()):
        by_id[token["id"]] = token["content"].encode()
    return [by_id.get(i, b"") for i in range(max(by_id) + 1)]


# Characters in Hugging Face's form, as export writes them.

CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}


def of_characters(chars: str) -> dict[str, Any]:
    """Returns the tokenizer.json of single characters, in the order of their ids."""
    vocab = {char: i for i, char in enumerate(chars)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
    parts = {"pre_tokenizer": CHARACTER | {"invert": False}, "decoder": {"type": "Fuse"}}
    return BYTES | parts | {"model": model}


def alphabet_in(values: Mapping[str, Any]) -> str:
    """Returns the characters of what `of_characters` returned, or "" of another tokenizer."""
    model = values["model"]
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        return ""
    chars = "".join(sorted(model["vocab"]))
    return chars if values == of_characters(chars) else ""
