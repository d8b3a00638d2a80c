"""Files that are whole or not there, and the folder where what can be made again is kept."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def cache_dir() -> Path:
    """$LMLAB_CACHE, else lmlab under the user's cache folder."""
    base = os.environ.get("LMLAB_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmlab"


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, which takes the name `path` only once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """`content` into `path`, all of it or nothing."""
    with atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def fresh_dir(path: Path) -> Path:
    """A new folder at `path`, or at the first free of `path-2`, `path-3`, …"""
    for n in range(1, 1_000_000):
        candidate = path if n == 1 else path.with_name(f"{path.name}-{n}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            continue
    raise FileExistsError(path)
