"""A text of any size, which is read in pieces, with a word or a progress bar if it takes long."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError, printable
from lmlab.notebook import plain_console
from lmlab.terminal import after_a_second, tell


class Text:
    """A text of any size. It is read twice, in pieces, and need not fit into memory.

    `__init__` reads it once and computes `sha256` and `size` (of its UTF-8 bytes), `length` (in
    characters) and `characters` (the distinct ones, sorted). Each call of `pieces()` reads the
    text again from its beginning.
    """

    def __init__(self, pieces: Callable[[], Iterable[str]], name: str = "the text") -> None:
        self.pieces = pieces
        self.name = name  # as messages have it
        self.size = 0
        self.length = 0
        self.mark = 0  # a hash of all pieces, far faster than sha256
        self.digest = hashlib.sha256()
        self.characters = CharTokenizer.from_pieces(self.first_reading()).chars
        self.sha256 = self.digest.hexdigest()
        if self.size == 0:
            raise UserError(f"{self.name}: the text is empty")

    def first_reading(self) -> Iterator[str]:
        """Yields the pieces, and computes bytes, characters and checksum of the whole text."""
        with progress_bar(f"reading {self.name}") as update:
            for piece in self.pieces():
                content = piece.encode("utf-8", "surrogatepass")
                self.digest.update(content)
                self.size += len(content)
                self.length += len(piece)
                self.mark = hash((self.mark, piece))
                update(self.size)
                yield piece

    def again(self, title: str = "tokenising") -> Iterator[str]:
        """Yields the pieces another time; `title` stands before the progress bar.

        Raises UserError at the end if the text has changed.
        """
        length = 0
        mark = 0
        with progress_bar(f"{title}: {self.name}", self.size) as update:
            for piece in self.pieces():
                length += len(piece)
                mark = hash((mark, piece))
                update(length * self.size / max(1, self.length))
                yield piece
        if mark != self.mark:
            raise UserError(
                f"{self.name}: the text changed while it was read; it must be the same each time"
            )


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[[float], None]]:
    """Returns a context with a function that takes the number of bytes read so far.

    If it takes longer than a second, a terminal shows this number, and other output the title.
    """
    console = plain_console(stderr=True)
    progress = Progress(
        TextColumn(printable(title), markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task("", total=total)

    def show() -> None:
        if console.is_interactive:
            progress.start()
        else:
            tell(f"{printable(title)} …")

    try:
        with after_a_second(show):
            yield lambda done: progress.update(task, completed=done)
    finally:
        if console.is_interactive:  # else it would print an empty line
            progress.stop()
