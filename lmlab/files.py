"""Files that are written whole or not at all, their checksums, their locks, and the cache folder."""

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmlab.errors import UserError

POLL_SECONDS = 0.01  # between two tries to take a lock


class Locked(Exception):
    """Another process holds the lock of a file. The caller says it in the words of its command."""


def cache_dir() -> Path:
    """$LMLAB_CACHE, else lmlab in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("LMLAB_CACHE", f"{base}/lmlab")).expanduser()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes | Iterable[bytes], sealed: bool = False) -> None:
    """`content`, in one piece or many, into `path`: all of it and safe on disk, or nothing. Raises
    UserError.
    """
    temporary, digest = path.with_name(f".{path.name}.{uuid.uuid4().hex}"), hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                file.write(piece)
                sealed and digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        sealed and write(seal(path), digest.hexdigest().encode() + b" " + sums(path))
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too survives a power cut
        finally:
            os.close(folder)
        sealed and write(seal(path), digest.hexdigest().encode())
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror})") from None
    finally:
        temporary.exists() and temporary.unlink()


def read(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes. Raises UserError for what is missing, larger, a link, or no
    plain file.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: is not a plain file")
        if path.stat().st_size > limit:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes; allowed are {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None


def seal(path: Path) -> Path:
    """Where the checksum of `path` stands. It holds several while the file is being replaced:
    whenever the power fails, what is at `path` matches one of them.
    """
    return path.with_name(f"{path.name}.sha256")


def write_sealed(path: Path, content: bytes | Iterable[bytes]) -> None:
    """`write`, with the checksum beside it. Raises UserError."""
    write(path, content, sealed=True)


def sums(path: Path) -> bytes:
    """The checksums beside `path`, if there are any. Raises UserError."""
    return read(seal(path), 4096) if seal(path).exists() else b""


def read_sealed(path: Path, limit: int) -> bytes:
    """`read`. Raises UserError if the content is not what its checksum says, or if it has none."""
    for _ in range(3):  # between the two reads another process may have replaced both
        content = read(path, limit)
        if sha256(content).encode() in read(seal(path), 4096).split():
            return content
    raise UserError(f"{path}: damaged or exchanged, its content doesn't match {seal(path).name}")


def is_intact(path: Path) -> bool:
    """Whether a sealed file of any size is there and is what its checksum says. Raises UserError."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode() in sums(path).split()


def copy_sealed(path: Path, copy: Path) -> None:
    """A second name for a sealed file that is about to be replaced. Raises UserError."""
    temporary = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
    try:
        try:
            os.link(path, temporary)
        except OSError:
            write(temporary, path.read_bytes())  # a disk that knows no second names
        write(seal(copy), sums(path) + b" " + sums(copy))
        os.replace(temporary, copy)
        write(seal(copy), sums(path))
    except OSError as error:
        raise UserError(f"{copy}: can't be written ({error.strerror})") from None
    finally:
        temporary.exists() and temporary.unlink()


@contextmanager
def lock(path: Path, wait: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Holds an advisory lock on the file at `path`, which is created if it is missing.

    Raises `Locked` if another process still holds it after `wait` seconds (math.inf: never). The
    end of the process releases the lock, however it comes. A `shared` lock only reads the file,
    which must exist; it excludes exclusive locks, but not other shared ones.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait
    with open(path, "r" if shared else "a") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Locked(path) from None
            time.sleep(POLL_SECONDS)
        yield
