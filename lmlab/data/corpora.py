"""The texts. A corpus is a function from its configuration to the pieces of a text, in order."""

import codecs
import glob
from collections.abc import Iterator
from pathlib import Path

import torch

from lmlab import files
from lmlab.catalogue import CorpusConfig, FileConfig
from lmlab.errors import UserError

PIECE = (
    2**18
)  # bytes of a file read at a time: what is made of them on the way stays small enough to be fast


TALES = Path(__file__).parent / "texts" / "tales.txt"


SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def sentence(config: CorpusConfig) -> Iterator[str]:
    # Nine characters, of which only l and o leave open what follows: 0.39 nats is the best that a
    # bigram can do.
    yield "hello world\n" * 16


def tales(config: CorpusConfig) -> Iterator[str]:
    yield from pieces(TALES)


def pydoc(config: CorpusConfig) -> Iterator[str]:
    from pydoc_data.topics import topics

    yield "\n".join(topics[name] for name in sorted(topics))


def shakespeare(config: CorpusConfig) -> Iterator[str]:
    path = files.cache_dir() / "tinyshakespeare.txt"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                SHAKESPEARE_URL, str(path), hash_prefix=SHAKESPEARE_SHA256
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data=shakespeare: no download ({error}); fetch {SHAKESPEARE_URL} yourself "
                f"and put it at {path}"
            ) from None
    if files.sha256(path.read_bytes()) != SHAKESPEARE_SHA256:
        raise UserError(
            f"data=shakespeare: {path} is something else (wrong sha256); delete it and start again"
        )
    yield from pieces(path)


def file(config: FileConfig) -> Iterator[str]:
    """All of `path`: a file, the files of a folder (hidden ones left out) or of a glob, sorted by
    name.
    """
    path = Path(config.path).expanduser()
    if path.is_dir():
        found = [
            p
            for p in path.rglob("*")
            if not any(name[0] == "." for name in p.relative_to(path).parts)
        ]
    else:
        found = (
            [path]
            if path.exists()
            else [Path(name) for name in glob.glob(str(path), recursive=True)]
        )
    found = sorted(p for p in found if p.is_file())
    if not found:
        raise UserError(
            f"path={config.path}: no file there; give a UTF-8 text file, a folder of them, or a glob"
        )
    for i, place in enumerate(found):
        if i:
            yield "\n"
        yield from pieces(place)


CORPORA = {corpus.__name__: corpus for corpus in (sentence, tales, pydoc, shakespeare, file)}


def pieces(path: Path) -> Iterator[str]:
    """A file's text, every character kept but a byte-order mark at its beginning. Raises UserError
    if it has none.
    """
    end, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            while block := file.read(PIECE):
                end = file.tell()
                yield decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        start = (
            end - len(error.object) + error.start
        )  # `object` begins with what was left of the piece before
        raise UserError(f"path={path}: byte {start} is not UTF-8 text; convert the file") from None
    except OSError as error:
        raise UserError(f"path={path}: can't be read ({error.strerror})") from None
    if not end:
        raise UserError(f"path={path}: the file is empty")
