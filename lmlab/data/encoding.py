"""Encodes a text piece by piece, and keeps its tokens in a file of the cache.

Where a token is a character, a text can be cut anywhere. Other tokenizers join characters, so it
matters where a text is cut: where its parts and documents end, and, within long documents, between
two words. Each piece is encoded by itself, so no token belongs to two documents.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lmlab import files, own_code, plugins
from lmlab.data.text import Text
from lmlab.data.tokenizers import Tokenizer, UnknownCharacters, all_checked
from lmlab.errors import UserError
from lmlab.register import is_own
from lmlab.terminal import tell

PIECE = 2**16  # characters; a longer text is cut at the next place between two words
LONGEST_PIECE = 2**18  # characters; without such a place it is cut anywhere
CODE = (
    "data/encoding.py",
    "data/subwords.py",
    "data/tokenizer_json.py",
    "data/tokenizers.py",
    "data/splits.py",
)  # that cuts a text
ONE_EACH = "encode_pieces must yield one array for each piece"
# After a line, before one that is not indented, or between two words.
BETWEEN_WORDS = re.compile(r"(?<=\n)(?=\S)|(?<=\w)(?= \w)")


def token_file(text: Text, tokenizer: Tokenizer, drop: bool = False) -> np.ndarray:
    """Returns the tokens of `text`, (N,), as a read-only memory map of a file in the cache.

    The tokenizer must take a text that is cut anywhere. The name of the file depends on the text,
    so a changed text gets a new file. Two runs that make the same file at the same time write the
    same bytes. Raises UnknownCharacters.
    """
    path = token_path(text, tokenizer, f"{drop}{code_of(tokenizer)}")
    if not files.is_cached(path):
        ids = tokenizer.encode_pieces(text.again(), drop)
        if is_own("tokenizer", tokenizer.kind):
            ids = all_checked(tokenizer, ids)
        files.write_cached(path, map(np.ndarray.tobytes, ids))
    return tokens_in(path, tokenizer)


def encoded(
    text: Text, tokenizer: Tokenizer, cuts: np.ndarray, drop: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of `text`, (N,), and how many of them lie before each of `cuts`.

    `cuts` are positions in characters, ascending, from 0 to the length of the text. The tokens are a
    read-only memory map of a file in the cache. Raises UnknownCharacters, or UserError if the
    tokenizer does not encode each piece by itself.
    """
    places = files.sha256(cuts.astype(np.int64).tobytes())
    path = token_path(text, tokenizer, f"{drop}{code_of(tokenizer)} {places}")
    counted = path.with_suffix(".places")
    if not files.is_cached(path) or not files.is_cached(counted):
        counts = np.zeros(len(cuts), np.int64)
        files.write_cached(path, encoded_pieces(text, tokenizer, cuts, drop, counts))
        files.write_cached(counted, counts.cumsum().tobytes())
    before = np.frombuffer(files.read_sealed(counted, 8 * len(cuts)), np.int64)
    return tokens_in(path, tokenizer), before


def encoded_pieces(
    text: Text, tokenizer: Tokenizer, cuts: np.ndarray, drop: bool, counts: np.ndarray
) -> Iterator[bytes]:
    """Yields the ids of each piece of a text as bytes.

    It adds the number of ids between two cuts to the entry of `counts` that belongs to the second.
    """
    waiting: deque[int] = deque()  # the cuts before the pieces that are being encoded

    def pieces() -> Iterator[str]:
        for cut, piece in between(text.again(), cuts):
            waiting.append(cut)
            yield piece

    ids = tokenizer.encode_pieces(pieces(), drop)
    if not is_own("tokenizer", tokenizer.kind):
        for found in ids:
            counts[waiting.popleft() + 1] += len(found)
            yield found.tobytes()
        return
    n_bytes = 0
    for found in all_checked(tokenizer, ids):
        if not waiting:
            raise UserError(f"tokenizer={tokenizer.kind}: {ONE_EACH}, but it yields more")
        counts[waiting.popleft() + 1] += len(found)
        n_bytes += int(tokenizer.byte_lengths[found].sum())
        yield found.tobytes()
    if waiting:
        raise UserError(f"tokenizer={tokenizer.kind}: {ONE_EACH}, but it yields fewer")
    if n_bytes != text.size and not drop:
        raise UserError(
            f"tokenizer={tokenizer.kind}: the byte_lengths of its tokens add up to {n_bytes:,}, but "
            f"the text has {text.size:,} bytes"
        )


def between(pieces: Iterable[str], cuts: np.ndarray) -> Iterator[tuple[int, str]]:
    """Yields the text between two cuts, in pieces, each with the number of the first cut.

    The result depends on the whole text, not on the pieces in which it comes.
    """
    ends = enumerate(cuts[1:].tolist())
    cut, end = next(ends)
    read = ""  # and not yet yielded
    before = 0  # characters that were yielded
    for piece in pieces:
        read += piece
        start = 0
        while end - before <= len(read):
            yield from ((cut, words) for words in cut_between_words(read[start : end - before]))
            start = end - before
            cut, end = next(ends, (cut + 1, before + len(read) + 1))
        *whole, rest = cut_between_words(read[start:])
        yield from ((cut, words) for words in whole)
        before += len(read) - len(rest)
        read = rest


def cut_between_words(text: str) -> Iterator[str]:
    """Yields a text in pieces of about PIECE characters; the last one may be shorter, or empty."""
    start = 0
    while len(text) - start > PIECE:
        longest = start + LONGEST_PIECE
        place = BETWEEN_WORDS.search(text, start + PIECE, longest)
        if place is None and len(text) < longest:
            break
        end = longest if place is None else place.start()
        yield text[start:end]
        start = end
    yield text[start:]


def token_path(text: Text, tokenizer: Tokenizer, how: str) -> Path:
    """Returns the path of the tokens in the cache; `how` tells how the text was encoded."""
    about = f"{tokenizer.to_json()} {text.sha256} {how} {own_code.sha256_of(*CODE)}"
    content = files.sha256(about.encode())
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    return files.cache_dir() / "tokens" / f"{content}.{dtype}"


def tokens_in(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the memory map of a file of tokens, or, where none can be had, all of them in memory.

    Raises UnknownCharacters if the file is empty.
    """
    if path.stat().st_size == 0:
        raise UnknownCharacters("none of its characters is in the vocabulary")
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    try:
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        tell(
            f"warning: {path}: is read into memory as a whole, since it has no map: {error.strerror}"
        )
        tokens = np.fromfile(path, dtype=dtype)
        tokens.flags.writeable = False
        return tokens


def code_of(tokenizer: Tokenizer) -> str:
    """Returns a hash of the code of somebody's own tokenizer, which may change; else ""."""
    return f" {plugins.sha256()}" if is_own("tokenizer", tokenizer.kind) else ""
