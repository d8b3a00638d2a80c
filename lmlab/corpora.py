"""The texts. A corpus is a function from its configuration to one string."""

from __future__ import annotations

import glob
import hashlib
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lmlab import files
from lmlab.config import CorpusConfig, FileConfig, UserError

TALES = Path(__file__).parent / "texts" / "tales.txt"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def sentence(config: CorpusConfig) -> str:
    # Nine distinct characters. After h, e, r, w, d, the space and the line's end the next one is
    # certain, after l and o it isn't: the best a bigram can do is 0.39 nats a character.
    return "hello world\n" * 16


def tales(config: CorpusConfig) -> str:
    return decode(TALES)


def pydoc(config: CorpusConfig) -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def shakespeare(config: CorpusConfig) -> str:
    path = files.cache_dir() / "tinyshakespeare.txt"
    if not path.exists():
        download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256)
    elif sha256(path.read_bytes()) != SHAKESPEARE_SHA256:
        raise UserError(f"data=shakespeare: {path} is not tiny-shakespeare (wrong sha256); delete it")
    return decode(path)


def file(config: FileConfig) -> str:
    """All of `path`: a file; a folder's files, hidden ones left out, in sorted order; or a glob's."""
    path = Path(config.path).expanduser()
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if not any(s[0] == "." for s in p.relative_to(path).parts)]
    else:
        found = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    found = [p for p in found if p.is_file()]
    if not found:
        raise UserError(f"path={config.path}: no file there; give a UTF-8 text file, a folder of them, or a glob")
    return "\n".join(decode(p) for p in found)


CORPORA: dict[str, Callable[..., str]] = {
    "sentence": sentence,
    "tales": tales,
    "pydoc": pydoc,
    "shakespeare": shakespeare,
    "file": file,
}


def read(choice: str, config: CorpusConfig) -> str:
    """The text of a corpus. Raises UserError if it can't be had, is not UTF-8, or is empty."""
    text = CORPORA[choice](config)
    if not text:
        raise UserError(f"path={getattr(config, 'path', choice)}: the text is empty")
    return text


def decode(path: Path) -> str:
    """A file's text, every character kept but a byte-order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"path={path}: not UTF-8 text (byte {error.start}); convert it or leave it out") from None
    except OSError as error:
        raise UserError(f"path={path}: can't be read ({error.strerror})") from None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download(url: str, path: Path, expected: str) -> None:
    """Fetches `url` into `path`, with a progress bar, if its sha256 is the expected one."""
    from rich.console import Console
    from rich.progress import wrap_file

    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            with wrap_file(answer, total=total, description=path.name, console=Console(stderr=True)) as source:
                content = source.read()
        reason = "" if sha256(content) == expected else "what came has the wrong sha256"
    except OSError as error:
        reason = str(getattr(error, "reason", error))
    if reason:
        raise UserError(
            f"data=shakespeare: download failed ({reason}); fetch {url} yourself and put it at {path}"
        )
    files.write(path, content)
