"""Files that are whole or not there, and the folder for what can be made again."""

import os
import uuid
from pathlib import Path

from lmlab.config import UserError

def cache_dir() -> Path:
    """$LMLAB_CACHE, else lmlab in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("LMLAB_CACHE", f"{base}/lmlab")).expanduser()

def write(path: Path, content: bytes) -> None:
    """`content` into `path`: all of it and safe on disk, or nothing. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror})") from None
    finally:
        temporary.exists() and temporary.unlink()
