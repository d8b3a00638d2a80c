"""The texts. A corpus is a function from its configuration to one string."""

import glob
from pathlib import Path

import torch

from lmlab import files
from lmlab.config import CorpusConfig, FileConfig, UserError

TALES = Path(__file__).parent / "texts" / "tales.txt"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

def sentence(config: CorpusConfig) -> str:
    # Nine characters, of which only l and o leave open what follows: 0.39 nats is the best that a bigram can do.
    return "hello world\n" * 16

def tales(config: CorpusConfig) -> str:
    return decode(TALES)

def pydoc(config: CorpusConfig) -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))

def shakespeare(config: CorpusConfig) -> str:
    path = files.cache_dir() / "tinyshakespeare.txt"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(SHAKESPEARE_URL, str(path), hash_prefix=SHAKESPEARE_SHA256)
        except (OSError, RuntimeError) as error:
            raise UserError(f"data=shakespeare: no download ({error}); fetch {SHAKESPEARE_URL} yourself "
                            f"and put it at {path}") from None
    if files.sha256(path.read_bytes()) != SHAKESPEARE_SHA256:
        raise UserError(f"data=shakespeare: {path} is something else (wrong sha256); delete it and start again")
    return decode(path)

def file(config: FileConfig) -> str:
    """All of `path`: a file, the files of a folder (hidden ones left out) or of a glob, sorted by name."""
    path = Path(config.path).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if not any(name[0] == "." for name in p.relative_to(path).parts)]
    else:
        found = [path] if path.exists() else [Path(name) for name in glob.glob(str(path), recursive=True)]
    texts = [decode(p) for p in sorted(found) if p.is_file()]
    if not texts:
        raise UserError(f"path={config.path}: no file there; give a UTF-8 text file, a folder of them, or a glob")
    return "\n".join(texts)

CORPORA = {corpus.__name__: corpus for corpus in (sentence, tales, pydoc, shakespeare, file)}

def decode(path: Path) -> str:
    """A file's text, every character kept but a byte-order mark. Raises UserError if it has none."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"path={path}: byte {error.start} is not UTF-8 text; convert the file") from None
    except OSError as error:
        raise UserError(f"path={path}: can't be read ({error.strerror})") from None
    if not text:
        raise UserError(f"path={path}: the file is empty")
    return text
