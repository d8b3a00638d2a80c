"""Writes files whole or not at all; their checksums, their locks, and the cache folder."""

import errno
import hashlib
import math
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from lmlab.errors import UserError, system_error

try:
    import fcntl
except ModuleNotFoundError:
    sys.stderr.write("error: lmlab needs Linux or macOS; on Windows it runs in WSL\n")
    raise SystemExit(2) from None

HALVES = "backslashreplace"  # how half a character, which UTF-8 does not have, is written

IN_USE = ".lock"  # in a folder of the cache: whoever writes there holds its lock

POLL_SECONDS = 0.01  # between two tries to take a lock

# How a file system answers that cannot say when something is on disk.
WITHOUT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
WITHOUT_FOLDERS = (*WITHOUT_SYNC, errno.EBADF)  # or can say it of files alone

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class Unreadable(UserError):
    """A file is there, but the system does not let us read it now."""


class Locked(Exception):
    """Raised if another process holds the lock of a file. Callers turn it into their own error."""


def obstacle(path: Path) -> str:
    """Returns why no file or folder can be made at or below `path`, or "" if it can.

    The reason names the first thing above it that is no folder, such as a link to a disk that is
    not there.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        if os.path.lexists(folder):
            break
    if not folder.exists():
        return f"{folder} is a link to {os.readlink(folder)}, which does not exist"
    if not folder.is_dir():
        return f"{folder} is no folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"


def cache_dir() -> Path:
    """Returns the cache folder, whose files can be made again: $LMLAB_CACHE, or ~/.cache/lmlab.

    An empty variable counts as not set, and so does an XDG_CACHE_HOME that is not absolute. Raises
    UserError if the account has no home.
    """
    named = os.environ.get("LMLAB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser()
        if os.path.isabs(base):
            return Path(base, "lmlab")
        return Path("~/.cache/lmlab").expanduser()
    except RuntimeError:
        raise UserError(
            f"LMLAB_CACHE={named or ''}: the account has no home; needs a folder for the cache"
        ) from None


def expanded(typed: str) -> Path:
    """Returns a path in which a home folder stands for ~ or ~name.

    As in a shell, the name of an account that does not exist stays as it is.
    """
    return Path(os.path.expanduser(typed))


def sha256(content: bytes) -> str:
    """Returns the sha256 of `content`, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes `content`, one piece or many, to `path`: either all of it or nothing.

    Text is written as UTF-8; half a character, from a name that is not UTF-8, as \\udce9. Raises
    UserError if it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode(errors=HALVES)
    temporary = temporary_name(path)
    try:
        write_pieces(temporary, content)
        move(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        remove(temporary)


def write_sealed(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes `content` to `path`, and its checksum to a second file. Raises UserError."""
    temporary = temporary_name(path)
    try:
        checksum = write_pieces(temporary, content)
        write(seal(path), checksum + b" " + sums(path))
        move(temporary, path)
        write(seal(path), checksum)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        remove(temporary)


def temporary_name(path: Path) -> Path:
    """Returns a hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_pieces(path: Path, content: bytes | Iterable[bytes]) -> bytes:
    """Writes a new file and waits until it is on disk; returns its checksum."""
    pieces = [content] if isinstance(content, bytes) else content
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        sync(file.fileno())
    return digest.hexdigest().encode()


def sync(file: int) -> None:
    """Waits until an open file is on disk. On a file system that cannot say it, it warns once."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in WITHOUT_SYNC:
            raise
        warn_without_sync()


def move(temporary: Path, path: Path) -> None:
    """Gives a file its final name, and waits until the name is on disk.

    Raises UserError if a device or a pipe has that name, which would be lost.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is no plain file, and a plain file does not replace it")
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on disk, if the file system can say it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in WITHOUT_FOLDERS:
            raise
    finally:
        os.close(folder)


def place(temporary: Path, path: Path) -> None:
    """Gives a file its final name, which nothing has yet. Raises FileExistsError if something has.

    So of two commands that write the same name at once only one does.
    """
    try:
        os.link(temporary, path)  # unlike a move it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # the disk knows no second names
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        move(temporary, path)
    else:
        os.unlink(temporary)
        sync_folder(path.parent)


def remove(temporary: Path) -> None:
    """Removes the temporary file of a failed replacement."""
    if temporary.exists():
        temporary.unlink()


def read(path: Path, limit: int, follow: bool = False) -> bytes:
    """Returns the content of a file of at most `limit` bytes.

    Raises UserError for a file that is missing, larger, a link, or not a plain file, and Unreadable
    for one that the system does not let us read. With `follow` it may be a link to a plain file.
    """
    try:
        is_link = path.is_symlink() and not follow
        if is_link or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: is not a plain file")
        if path.stat().st_size > limit:
            raise UserError(
                f"{path}: has {path.stat().st_size:,} bytes; allowed are at most {limit:,}"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path, limit: int, shown: str) -> str:
    """Returns the text of a file, which is `shown` in the message if it is not UTF-8.

    Raises UserError then, and as `read` does.
    """
    try:
        return read(path, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: byte {error.start} is not UTF-8 text") from None


def seal(path: Path) -> Path:
    """Returns the path of the file that holds the checksum of `path`.

    While `path` is being replaced, it holds the checksums of both versions, so that the old and the
    new version are valid after a crash.
    """
    return path.with_name(f"{path.name}.sha256")


def sums(path: Path) -> bytes:
    """Returns the checksums of `path`, empty if there are none. Raises UserError."""
    if not seal(path).exists():
        return b""
    return read(seal(path), 4096)


def read_sealed(path: Path, limit: int) -> bytes:
    """Returns the content of a file. Raises UserError if its checksum is missing or wrong."""
    for _ in range(3):  # another process may replace both files between the two reads
        content = read(path, limit)
        if sha256(content).encode() in read(seal(path), 4096).split():
            return content
    raise UserError(
        f"{path}: is damaged or was replaced: its content does not match {seal(path).name}"
    )


def is_intact(path: Path) -> bool:
    """Returns whether a sealed file, of any size, exists and matches its checksum."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode() in sums(path).split()


def is_cached(path: Path) -> bool:
    """Returns whether a file of the cache is there and intact.

    Raises UserError if it cannot be read, or if it is missing and cannot be written.
    """
    try:
        if is_intact(path):
            return True
        reason = obstacle(path.parent)
    except OSError as error:
        reason = system_error(error, path)
    if reason:
        raise UserError(f"the cache cannot be used: {reason}; LMLAB_CACHE=… names another folder")
    return False


def write_cached(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes a sealed file of the cache, and removes what killed processes have left beside it.

    Raises UserError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with lock(path.parent / IN_USE, wait=math.inf, shared=True):
            write_sealed(path, content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); LMLAB_CACHE=… names another folder for the "
            "cache"
        ) from None


def walk(
    folder: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields each folder at or below `folder` once, with the names of its folders and its files.

    It follows links, and takes names in their order, so that all disks give the same. The caller
    may remove names of folders from the list. `onerror` is called for what cannot be read.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(parent), folders, sorted(names)


def named_below(folder: Path, name: str, left_out: Callable[[str], object]) -> list[Path]:
    """Returns the files of this name in a folder and below it, also behind links.

    `left_out` gets a sentence about each folder that cannot be read.
    """

    def unreadable(error: OSError) -> None:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            left_out(f"{error.filename}: cannot be read ({error.strerror})")

    return [parent / name for parent, _, names in walk(folder, unreadable) if name in names]


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files from a folder of the cache, unless a process writes there.

    Where the file system has no locks, nobody can know that, and they stay.
    """
    with open_for_lock(folder / IN_USE, shared=False) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        for temporary in folder.glob(f".*.{'?' * 32}"):
            with suppress(PermissionError):  # another user's
                temporary.unlink(missing_ok=True)


def copy_sealed(path: Path, copy: Path) -> None:
    """Copies a file, with its checksum, to a second name. Raises UserError."""
    temporary = temporary_name(copy)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # the disk knows no second names
            write(temporary, path.read_bytes())
        write(seal(copy), sums(path) + b" " + sums(copy))
        os.replace(temporary, copy)
        write(seal(copy), sums(path))
    except OSError as error:
        raise UserError(f"{copy}: cannot be written ({error.strerror})") from None
    finally:
        remove(temporary)


@contextmanager
def lock(path: Path, wait: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Holds an advisory lock on the file at `path`, which is created if it is missing.

    Raises `Locked` if another process still holds it after `wait` seconds (math.inf: waits
    forever). The lock is released when the process ends for any reason. Several processes can
    hold a `shared` lock at the same time, but no other process an exclusive one; a `shared` lock
    needs an existing file. On a file system without locks it warns once and goes on.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait
    with open_for_lock(path, shared) as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Locked(path) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                warn_without_locks()
                break
            time.sleep(POLL_SECONDS)
        yield


def open_for_lock(path: Path, shared: bool) -> IO[str]:
    """Opens the file of a lock. It need not be writable if another user has created it."""
    if not shared:
        try:
            return open(path, "a", encoding="utf-8")
        except PermissionError:
            pass
    return open(path, encoding="utf-8")


@lru_cache
def warn_without_sync() -> None:
    """Warns, once in a process, that this file system does not say when a file is on disk."""
    print(
        "warning: this file system does not say when a file is on disk; if the machine loses power, a "
        "checkpoint may be lost",
        file=sys.stderr,
    )


@lru_cache
def warn_without_locks() -> None:
    """Warns, once in a process, that this file system has no locks."""
    print(
        "warning: this file system has no locks; do not train one run in two processes",
        file=sys.stderr,
    )
