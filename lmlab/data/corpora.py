"""The texts. A corpus is a function: it takes a configuration and yields a text in pieces."""

import codecs
import glob
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from lmlab import files
from lmlab.catalogue import CorpusConfig, FileConfig, FolderConfig
from lmlab.errors import UserError, printable
from lmlab.terminal import tell

# Bytes of a file read at a time: few enough that what is made of them stays in fast memory.
PIECE = 2**18

NAMED = 5  # files that a line names at most

TIMEOUT = 60.0  # seconds that a download may say nothing

TALES = Path(__file__).parent / "texts" / "tales.txt"

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def sentence(config: CorpusConfig) -> Iterator[str]:
    """Yields one sentence many times.

    It has nine different characters. Each of them except l and o determines the next one, so the
    loss of a bigram cannot be below 0.39 nats.
    """
    yield "hello world\n" * 16


def tales(config: CorpusConfig) -> Iterator[str]:
    """Yields the stories that are part of the package."""
    yield from pieces(TALES)


def pydoc(config: CorpusConfig) -> Iterator[str]:
    """Yields the language reference that comes with Python, half a megabyte."""
    from pydoc_data.topics import topics

    yield "\n".join(topics[name] for name in sorted(topics))


def shakespeare(config: CorpusConfig) -> Iterator[str]:
    """Yields tiny-shakespeare (Karpathy 2015), which is downloaded once into the cache.

    Raises UserError without a network, or if the file in the cache is not this text.
    """
    path = files.cache_dir() / "tinyshakespeare.txt"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data=shakespeare: the cache cannot be made ({path.parent}: {error.strerror}); "
                "LMLAB_CACHE=… names another folder"
            ) from None
        try:
            with answering_within(TIMEOUT):
                torch.hub.download_url_to_file(
                    SHAKESPEARE_URL, str(path), hash_prefix=SHAKESPEARE_SHA256
                )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data=shakespeare: the download failed ({error}); download {SHAKESPEARE_URL} "
                f"yourself and save it as {path}"
            ) from None
    if files.sha256(path.read_bytes()) != SHAKESPEARE_SHA256:
        raise UserError(
            f"data=shakespeare: {path} is another text (its sha256 differs); delete the file and try again"
        )
    yield from pieces(path)


@contextmanager
def answering_within(seconds: float) -> Iterator[None]:
    """A context in which a connection that says nothing for so many seconds is an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def file(config: FileConfig) -> Iterator[str]:
    """Yields all of `path`, file by file, with a newline between two files. Raises UserError."""
    for i, path in enumerate(filled_files(config)):
        if i > 0:
            yield "\n"
        yield from pieces(path)


def folder(config: FolderConfig) -> Iterator[str]:
    """Yields all of `path`, file by file, with `document_end` after each. Raises UserError."""
    end = config.document_end or ""
    for path in filled_files(config):
        for piece in pieces(path):
            if end in piece:
                raise UserError(
                    f"path={path}: contains {end!r}, which data=folder puts after each file; remove it"
                )
            yield piece
        yield end


def filled_files(config: FileConfig) -> list[Path]:
    """Returns the files of `path` that are not empty, sorted, and says what is left out.

    Raises UserError if there is none.
    """
    paths = paths_of(config.path)
    if not paths:
        there = Path(config.path)
        reason = "no file there"
        if os.path.lexists(there) and not there.is_dir():
            reason = f"is {why_no_file(there)}"
        raise UserError(
            f"path={config.path}: {reason}; give a UTF-8 text file, a folder of them, or a glob"
        )
    empty = {path for path in paths if is_empty(path)}
    filled = [path for path in paths if path not in empty]
    if not filled:
        raise UserError(f"path={config.path}: there is no text, only empty files")
    tell_left_out(config.path, filled, empty)
    return filled


def tell_left_out(typed: str, read: list[Path], empty: set[Path]) -> None:
    """Says what `typed`, a folder or a glob, holds and is not read, and what is read twice."""
    folder = files.expanded(typed)
    reasons = [(path, "empty") for path in empty]
    if folder.is_dir():
        for path in files_below(folder):
            if is_hidden(path.relative_to(folder)):
                reasons.append((path, "hidden"))
            elif not path.is_file():
                reasons.append((path, why_no_file(path)))
    elif not folder.exists():
        found = map(Path, glob.glob(str(folder), recursive=True))
        reasons += [(path, why_no_file(path)) for path in found if not path.is_file()]
    if reasons:
        tell_once(f"path={typed}: files read {len(read):,}, left out {named(reasons)}")
    first: dict[tuple[int, int], Path] = {}
    again = []
    for path in read:
        identity = path.stat().st_dev, path.stat().st_ino
        if identity in first:
            again.append((path, f"the same file as {first[identity]}"))
        first.setdefault(identity, path)
    if again:
        tell_once(f"path={typed}: files read more than once {named(again)}")


def why_no_file(path: Path) -> str:
    """Returns what a path is that is no file."""
    if path.is_dir():
        return "a folder"
    return "no plain file" if path.exists() else "a link to nothing"


def named(reasons: list[tuple[Path, str]]) -> str:
    """Returns the number of paths, and the first ones with their reasons."""
    names = [f"{path} ({reason})" for path, reason in sorted(reasons)]
    others = f" and {len(names) - NAMED:,} others" if len(names) > NAMED else ""
    return f"{len(names):,}: {', '.join(names[:NAMED])}{others}"


@lru_cache
def tell_once(text: str) -> None:
    """Writes a line to stderr; each text is read twice, and by each cell."""
    tell(printable(text))


def paths_of(typed: str) -> list[Path]:
    """Returns the files of a file name, a folder (without hidden files) or a glob, sorted."""
    path = files.expanded(typed)
    try:
        path.exists()
    except OSError as error:  # its name is too long
        raise UserError(f"path={typed}: {error.strerror}") from None
    if path.is_dir():
        paths = [entry for entry in files_below(path) if not is_hidden(entry.relative_to(path))]
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(name) for name in glob.glob(str(path), recursive=True)]
    return sorted(entry for entry in paths if entry.is_file())


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and below it, also behind links, each folder once.

    A folder with a hidden and another name is found by the other. Raises UserError for a folder
    that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"path={error.filename}: cannot be read ({error.strerror})")

    found = set()
    for with_hidden in (False, True):
        for parent, folders, names in files.walk(folder, refuse):
            if not with_hidden:
                folders[:] = [name for name in folders if not name.startswith(".")]
            if os.path.realpath(parent) not in found:
                found.add(os.path.realpath(parent))
                yield from (parent / name for name in names)


def is_empty(path: Path) -> bool:
    """Returns whether a file has no text. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(codecs.BOM_UTF8) + 1) in (b"", codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"path={path}: cannot be read ({error.strerror})") from None


# How files begin that hold texts in another form.
PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"%PDF": "PDF",
}


def is_hidden(path: Path) -> bool:
    """Returns whether a file, or a folder above it, has a name that begins with a dot."""
    return any(name.startswith(".") for name in path.parts)


def is_utf_16(block: bytes) -> bool:
    """Returns whether bytes, which may also be UTF-8, are mostly Latin letters in UTF-16."""
    odd, even = block[1::2].count(0), block[::2].count(0)
    return len(block) > 15 and min(odd, even) == 0 and max(odd, even) > len(block) / 4


def is_utf_32(block: bytes) -> bool:
    """Returns whether bytes are letters of most languages in UTF-32, of which two or three are 0."""
    is_aligned = any(not any(block[first::4]) for first in (0, 3))
    return len(block) > 15 and is_aligned and block.count(0) > 0.6 * len(block)


def pieces(path: Path) -> Iterator[str]:
    """Yields the text of a file, without a byte-order mark at its beginning.

    Raises UserError if it is not UTF-8, also if it is another encoding that could be taken for it,
    or cannot be read.
    """
    end = 0  # bytes read so far
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            while block := file.read(PIECE):
                end = file.tell()
                if is_utf_32(block):
                    raise UserError(
                        f"path={path}: most bytes are 0, as in UTF-32; {converted('UTF-32', path)}"
                    )
                if is_utf_16(block):
                    raise UserError(
                        f"path={path}: every second byte is 0, as in UTF-16; {converted('UTF-16', path)}"
                    )
                yield decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # `error.object` begins with the bytes that were left over from the piece before.
        start = end - len(error.object) + error.start
        packed = next((kind for mark, kind in PACKED.items() if error.object.startswith(mark)), "")
        if packed and end - len(error.object) == 0:
            raise UserError(
                f"path={path}: begins like a file of {packed}; unpack it first"
            ) from None
        raise UserError(
            f"path={path}: byte {start} is not UTF-8 text; {converted('LATIN1', path)}, if it is in Latin-1"
        ) from None
    except OSError as error:
        raise UserError(f"path={path}: cannot be read ({error.strerror})") from None


def converted(encoding: str, path: Path) -> str:
    """Returns what to type so that a file becomes UTF-8, as the end of a message."""
    name = shlex.quote(str(path))
    return f"convert the file, as in: iconv -f {encoding} -t UTF-8 {name} > utf8.txt"
