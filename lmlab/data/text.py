"""A text read in pieces, and its tokens in a file of the cache."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lmlab import files
from lmlab.data.tokenizers import CharTokenizer, UnknownCharacters
from lmlab.errors import UserError

LARGE = 50_000_000  # bytes of text from which on a bar is worth while


class Text:
    """A text that need not fit into memory: what its first reading tells (`sha256` and `size` of
    its UTF-8 form, `length` in characters, the `vocabulary` of them) and `again` for the second.
    `pieces` begins to read it.
    """

    def __init__(self, pieces: Callable[[], Iterable[str]]) -> None:
        self.pieces, self.size, self.length, self.mark = pieces, 0, 0, 0
        digest = hashlib.sha256()

        def first() -> Iterator[str]:
            with bar("reading") as show:
                for piece in pieces():
                    content = piece.encode("utf-8", "surrogatepass")
                    digest.update(content)
                    self.size, self.length = self.size + len(content), self.length + len(piece)
                    self.mark = hash((self.mark, piece))
                    show(self.size)
                    yield piece

        self.vocabulary = CharTokenizer.from_pieces(first())
        self.sha256 = digest.hexdigest()

    def again(self) -> Iterator[str]:
        """The same pieces once more. Raises UserError at their end if they were others."""
        done = mark = 0
        with bar("tokenising", self.size) as show:
            for piece in self.pieces():
                done, mark = done + len(piece), hash((mark, piece))  # far faster than sha256
                show(done * self.size / max(1, self.length))
                yield piece
        if mark != self.mark:
            raise UserError("the text changed while it was read; start again")


@contextmanager
def bar(doing: str, total: int | None = None) -> Iterator[Callable[[float], None]]:
    """Takes how many bytes are done, and shows it on a terminal once they are many."""
    columns, console = (
        (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn()),
        Console(stderr=True),
    )
    progress = Progress(
        *columns, console=console, transient=True, disable=not console.is_interactive
    )
    task = progress.add_task("", total=total)

    def show(done: float) -> None:
        progress.update(task, completed=done)
        if done > LARGE:
            progress.start()

    try:
        yield show
    finally:
        progress.stop()


def token_file(text: Text, tokenizer: CharTokenizer, drop: bool = False) -> np.ndarray:
    """The tokens of `text`, (N,), as a read-only memory map of a file named after the content it
    was made from: changed text is a new file, and of two runs that make one at once the later
    replaces it by the same bytes.
    """
    content = files.sha256(f"{tokenizer.to_json()} {text.sha256} {drop}".encode())
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    path = files.cache_dir() / "tokens" / f"{content}.{dtype}"
    if not files.is_intact(path):
        files.write_sealed(
            path, map(np.ndarray.tobytes, tokenizer.encode_pieces(text.again(), drop))
        )
    if not path.stat().st_size:
        raise UnknownCharacters("none of its characters is in the vocabulary")
    return np.memmap(path, dtype=dtype, mode="r")
