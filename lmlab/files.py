"""Files that are whole or not there, checked against a sha256 beside them; and the folder for what can be remade."""

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from lmlab.config import UserError

def cache_dir() -> Path:
    """$LMLAB_CACHE, else lmlab in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("LMLAB_CACHE", f"{base}/lmlab")).expanduser()

def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too survives a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror})") from None
    finally:
        temporary.exists() and temporary.unlink()

def read(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes. Raises UserError for what is missing, larger, a link, or no plain file."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: is not a plain file")
        if path.stat().st_size > limit:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes; allowed are {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None

def seal(path: Path) -> Path:
    """Where the checksum of `path` stands. It holds several while the file is being replaced: whenever the power
    fails, what is at `path` matches one of them.
    """
    return path.with_name(f"{path.name}.sha256")

def write_sealed(path: Path, content: bytes) -> None:
    """`write`, with the checksum beside it. Raises UserError."""
    old = seal(path).read_bytes() if seal(path).exists() else b""
    write(seal(path), sha256(content).encode() + b" " + old)
    write(path, content)
    write(seal(path), sha256(content).encode())

def read_sealed(path: Path, limit: int) -> bytes:
    """`read`. Raises UserError if the content is not what its checksum says, or if it has none."""
    content = read(path, limit)
    if sha256(content).encode() not in read(seal(path), 4096).split():
        raise UserError(f"{path}: damaged or exchanged, its content doesn't match {seal(path).name}")
    return content

def copy_sealed(path: Path, copy: Path) -> None:
    """A second name for a sealed file that is about to be replaced. Raises UserError."""
    temporary = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)  # a disk that knows no second names
        write(seal(copy), read(seal(path), 4096) + b" " + (seal(copy).read_bytes() if seal(copy).exists() else b""))
        os.replace(temporary, copy)
        write(seal(copy), read(seal(path), 4096))
    except OSError as error:
        raise UserError(f"{copy}: can't be written ({error.strerror})") from None
    finally:
        temporary.exists() and temporary.unlink()
