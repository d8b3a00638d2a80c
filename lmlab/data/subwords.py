"""Tokenizers of bytes and of byte pairs, in the form of Hugging Face's tokenizer.json.

    byte   a token for each of the 256 bytes of UTF-8
    bpe    pairs of bytes that often stand side by side, merged into tokens (Sennrich et al. 2016;
           Radford et al. 2019), which the library `tokenizers` learns from the training part
    file   any byte-level tokenizer.json, such as GPT-2's

scripts/tiny_bpe.py shows in plain Python how pairs are counted, merged, encoded and decoded.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lmlab import files, own_code
from lmlab.catalogue import BPEConfig, TokenizerConfig, TokenizerFileConfig
from lmlab.cores import usable_cores
from lmlab.data.tokenizer_json import (
    BYTE_LEVEL,
    BYTE_OF,
    BYTES,
    alphabet_in,
    bytes_of_tokens,
    check_description,
    keeps_every_byte,
    pairs_in_page,
    parsed,
)
from lmlab.data.tokenizers import (
    NO_VOCABULARY,
    CharTokenizer,
    GrowingBytes,
    Source,
    Tokenizer,
    UnknownCharacters,
    named,
    read_only,
)
from lmlab.errors import UserError, reason_of
from lmlab.registry import load
from lmlab.terminal import showing, tell
from lmlab.threads import call_in_thread

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Library

LIMIT = 2**26  # bytes of a tokenizer.json; a million tokens of a usual text take 45 MB
AT_ONCE = 2**18 * usable_cores()  # characters that are encoded together: Ctrl-C waits for them
LONGEST_WORD = 1000  # bytes


class ByteLevelTokenizer(Tokenizer):
    """A tokenizer whose tokens are strings of bytes: any text can be encoded, and comes back."""

    tokens: list[bytes]
    """The bytes of each token."""

    def set_tokens(self, tokens: list[bytes]) -> None:
        """Sets the tokens, from which the size of the vocabulary and all lengths follow."""
        self.tokens = tokens
        self.vocab_size = len(tokens)
        self.byte_lengths = read_only(np.array([len(token) for token in tokens]))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        raise UserError(NO_VOCABULARY)  # `from_hugging_face` reads them

    def decode(self, ids: np.ndarray | list[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def growing(self) -> GrowingBytes:
        return GrowingBytes(self.tokens)

    def in_hugging_face(self) -> dict[str, Any] | None:
        """Returns the description, with the decoder that makes texts of tokens again.

        The lab does without it; others would put blanks between the tokens.
        """
        description = parsed(self.to_json())
        if description.get("decoder") is None:
            description["decoder"] = BYTES["decoder"]
        return description

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

    def in_page(self) -> dict[str, Any]:
        return {"kind": "byte"}

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
            raise UserError(f"is no tokenizer: {reason_of(UserError(error))}") from None
        self.description: str = self.library.to_str()  # in the library's own form
        size = len(self.description.encode())
        if size > LIMIT:
            raise UserError(
                f"the tokenizer.json of a run would have {size:,} bytes; allowed are at most {LIMIT:,}"
            )
        self.set_tokens(bytes_of_tokens(values))
        self.may_change = not keeps_every_byte(values)  # else nobody need look whether it does
        for token in values.get("added_tokens", ()):
            if self.library.token_to_id(token["content"]) != token["id"]:
                raise UserError(
                    f"added_tokens: {token['content']!r} needs the id "
                    f"{self.library.token_to_id(token['content'])}, not {token['id']}"
                )

    def encode_pieces(self, pieces: Iterable[str], drop: bool = False) -> Iterator[np.ndarray]:
        smallest_type = np.min_scalar_type(self.vocab_size - 1)
        batches = batched(without_halves(pieces, drop))
        for batch, encodings in one_ahead(self.encode_batch, batches):
            for piece, encoding in zip(batch, encodings, strict=True):
                ids = encoding.ids
                if (
                    self.may_change
                    and b"".join(map(self.tokens.__getitem__, ids)) != piece.encode()
                ):
                    raise UserError(self.changed(piece, ids))
                yield np.array(ids, smallest_type)

    def encode_batch(self, batch: list[str]) -> "list[Encoding]":
        """Returns the encoding of each text of a batch. Raises UserError if the library gives up.

        It does so on a pattern that goes back too often, after lines of its own on stderr. They come
        from its threads and have no end that could be told, so that to hide them would be to hide
        what others write there meanwhile.
        """
        try:
            return self.library.encode_batch_fast(batch, add_special_tokens=False)
        except BaseException as error:
            if not repr(error).startswith("PanicException"):  # no Exception, and not to be imported
                raise
            raise UserError(
                f"{self.origin}: cannot encode the text ({error}); needs a pattern that tries fewer "
                "ways to match"
            ) from None

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

    def in_page(self) -> dict[str, Any]:
        return {"kind": "bpe"} | pairs_in_page(parsed(self.description))

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

        code = own_code.sha256_of("data/encoding.py", "data/subwords.py", "data/tokenizer_json.py")
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
        except OSError as error:  # of a name that no file can have
            raise UserError(f"{origin}: {error.strerror}") from None
        tokenizer.origin = origin
        added = added_by_template(tokenizer.to_json())
        if added:
            tell(
                f"warning: {origin}: its post_processor adds {', '.join(added)} to each text, which the lab does "
                "not do; programs that encode texts with it, such as transformers, do"
            )
        return tokenizer


def added_by_template(content: str) -> list[str]:
    """Returns the tokens that the TemplateProcessing of a checked tokenizer.json adds to a text."""
    if '"TemplateProcessing"' not in content:  # which may be megabytes long
        return []
    processor = json.loads(content).get("post_processor") or {}
    parts = processor.get("processors", [processor])
    templates = [part["single"] for part in parts if part.get("type") == "TemplateProcessing"]
    tokens = [
        piece["SpecialToken"]["id"]
        for single in templates
        for piece in single
        if "SpecialToken" in piece
    ]
    return sorted({*tokens})


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
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
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


def without_halves(pieces: Iterable[str], drop: bool) -> Iterator[str]:
    """Yields pieces of text without half characters, which UTF-8 cannot hold.

    Unless `drop`, it raises UnknownCharacters if there were any.
    """
    halves: Counter[str] = Counter()
    for piece in pieces:
        if piece.isascii():  # which is known without a look at it
            yield piece
            continue
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


def one_ahead(
    encode: "Callable[[list[str]], list[Encoding]]", batches: Iterable[list[str]]
) -> "Iterator[tuple[list[str], list[Encoding]]]":
    """Yields each batch with what `encode` returns for it.

    A thread encodes the next batch while the caller works on this one.
    """
    begun: deque[tuple[list[str], Future[list[Encoding]]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            begun.append((batch, thread.submit(encode, batch)))
            if len(begun) > 1:
                first, encodings = begun.popleft()
                yield first, encodings.result()
        for last, encodings in begun:
            yield last, encodings.result()
