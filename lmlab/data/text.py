"""Reads a text in pieces, stores its tokens in a file of the cache, and divides it into parts."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lmlab import files, plugins
from lmlab.catalogue import CORPORA, TOKENIZERS, CorpusConfig
from lmlab.config.check import Config
from lmlab.config.keys import RunConfig
from lmlab.data import documents
from lmlab.data.documents import Documents
from lmlab.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    UnknownCharacters,
    all_checked,
    check_tokenizer,
    tokenizer_errors,
)
from lmlab.errors import UserError, system_error
from lmlab.notebook import plain_console
from lmlab.register import PRESENT
from lmlab.registry import load

# The largest number of tokens that a part may have while something is only tried; None: any.
LONGEST: ContextVar[int | None] = ContextVar("longest", default=None)
SAMPLE = 10_000  # characters with which somebody's own tokenizer is tried
LARGE = 50_000_000  # bytes of text that take long enough for a progress bar


@contextmanager
def shortened(length: int | None) -> Iterator[None]:
    """A context in which each part of a text has no more than its first `length` tokens.

    With None it has all of them.
    """
    token = LONGEST.set(length)
    try:
        yield
    finally:
        LONGEST.reset(token)


class Text:
    """A text of any size. It is read twice, in pieces, and need not fit into memory.

    `__init__` reads it once and computes `sha256` and `size` (of its UTF-8 bytes), `length` (in
    characters) and `characters` (the distinct ones, sorted). Each call of `pieces()` reads the
    text again from its beginning.
    """

    def __init__(self, pieces: Callable[[], Iterable[str]]) -> None:
        self.pieces = pieces
        self.size = 0
        self.length = 0
        self.mark = 0  # a hash of all pieces, far faster than sha256
        self.digest = hashlib.sha256()
        self.characters = CharTokenizer.from_pieces(self.first_reading()).chars
        self.sha256 = self.digest.hexdigest()

    def first_reading(self) -> Iterator[str]:
        """Yields the pieces, and computes bytes, characters and checksum of the whole text."""
        with progress_bar("reading") as update:
            for piece in self.pieces():
                content = piece.encode("utf-8", "surrogatepass")
                self.digest.update(content)
                self.size += len(content)
                self.length += len(piece)
                self.mark = hash((self.mark, piece))
                update(self.size)
                yield piece

    def again(self) -> Iterator[str]:
        """Yields the pieces a second time. Raises UserError at the end if the text has changed."""
        length = 0
        mark = 0
        with progress_bar("tokenising", self.size) as update:
            for piece in self.pieces():
                length += len(piece)
                mark = hash((mark, piece))
                update(length * self.size / max(1, self.length))
                yield piece
        if mark != self.mark:
            raise UserError("the text changed while it was read; try again")


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[[float], None]]:
    """Returns a context with a function that takes the number of bytes read so far.

    On a terminal a progress bar shows this number, as soon as it is larger than `LARGE`.
    """
    console = plain_console(stderr=True)
    progress = Progress(
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )
    task = progress.add_task("", total=total)

    def update(done: float) -> None:
        progress.update(task, completed=done)
        if done > LARGE:
            progress.start()

    try:
        yield update
    finally:
        progress.stop()


def token_file(text: Text, tokenizer: Tokenizer, drop: bool = False) -> np.ndarray:
    """Returns the tokens of `text`, (N,), as a read-only memory map of a file in the cache.

    The name of the file depends on the text, so a changed text gets a new file. Two runs that make
    the same file at the same time write the same bytes. Raises UnknownCharacters.
    """
    made_by = ""
    if is_own(tokenizer.kind):
        made_by = f" {plugins.sha256()}"  # whose code may change
    content = files.sha256(f"{tokenizer.to_json()} {text.sha256} {drop}{made_by}".encode())
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    path = files.cache_dir() / "tokens" / f"{content}.{dtype}"
    if not is_cached(path):
        ids = tokenizer.encode_pieces(text.again(), drop)
        if is_own(tokenizer.kind):
            ids = all_checked(tokenizer, ids)
        files.write_sealed(path, map(np.ndarray.tobytes, ids))
    if path.stat().st_size == 0:
        raise UnknownCharacters("none of its characters is in the vocabulary")
    return np.memmap(path, dtype=dtype, mode="r")


def is_own(tokenizer: str) -> bool:
    """Returns whether a plug-in, and not the lab, has a tokenizer of this name."""
    return any((one.kind, one.name) == ("tokenizer", tokenizer) for one in PRESENT)


def is_cached(path: Path) -> bool:
    """Returns whether a file of the cache is there and intact.

    Raises UserError if it cannot be read, or if it is missing and cannot be written.
    """
    try:
        if files.is_intact(path):
            return True
        reason = files.obstacle(path.parent)
    except OSError as error:
        reason = system_error(error, path)
    if reason:
        raise UserError(f"the cache cannot be used: {reason}; LMLAB_CACHE=… names another folder")
    return False


class Splits:
    """A text in its parts `holdout`, `train`, `val` and `test`: arrays of token ids, (N,).

    They follow each other in this order: text next to the validation text is the best to train on,
    so `holdout` is the beginning. `tokenizer` is the given one, or what `train` makes of the
    text, by default that of its characters; `sha256` is that of the text; `dropped` counts the
    characters that the tokenizer lacks, which `drop_unknown` leaves out. If `run`, the keys of a run, divides the text into documents,
    `documents` holds those of each part, and a part begins with the nearest document.

    Raises UserError if the text cannot be read or divided, or if its sha256 is not the given one.
    Raises UnknownCharacters if the tokenizer lacks characters that may not be dropped.
    """

    def __init__(
        self,
        choice: str,
        config: CorpusConfig,
        tokenizer: Tokenizer | None = None,
        sha256: str | None = None,
        drop_unknown: bool = False,
        run: RunConfig | None = None,
        train: Callable[[Text], Tokenizer] = CharTokenizer.train,
    ) -> None:
        text = Text(partial(load(CORPORA[choice].builder), config))
        self.tokenizer: Tokenizer = tokenizer or train(text)
        self.sha256 = text.sha256
        if sha256 not in (None, self.sha256):
            raise UserError(
                f"{as_typed(choice, config)}: the text is not the one that the run was trained on "
                f"(sha256 {self.sha256[:12]}…, that one had {sha256[:12]}…)"
            )
        try:
            tokens = token_file(text, self.tokenizer, drop_unknown)
        except UnknownCharacters as error:
            raise UnknownCharacters(f"data={choice}: {error}") from None
        self.dropped = 0
        if drop_unknown:
            lengths = [len(self.tokenizer.decode([i])) for i in range(self.tokenizer.vocab_size)]
            counts = np.bincount(tokens, minlength=self.tokenizer.vocab_size)
            self.dropped = text.length - int(counts @ np.array(lengths))
        whole = documents.find(tokens, self.tokenizer, run) if run else None
        ends = ends_of_parts(tokens, config, whole)
        starts = [0, *ends[:-1]]
        longest = LONGEST.get()
        if longest is not None:
            ends = [min(end, start + longest) for start, end in zip(starts, ends, strict=True)]
        self.holdout, self.train, self.val, self.test = (
            tokens[start:end] for start, end in zip(starts, ends, strict=True)
        )
        self.documents: dict[str, Documents] = {}
        if whole is not None:
            for name, start, end in zip(self.parts, starts, ends, strict=True):
                self.documents[name] = whole.within(start, end)
                self.documents[name].check(name, end - start)

    @classmethod
    def of_run(
        cls, config: Config, tokenizer: Tokenizer | None = None, sha256: str | None = None
    ) -> Self:
        """Returns the training and validation text of a run with this configuration."""
        drop_unknown = config.run.unknown == "drop"

        def train(text: Text) -> Tokenizer:
            """Returns the tokenizer that the configuration chooses, trained on a text."""
            name = config.base("tokenizer")
            kind: type[Tokenizer] = load(TOKENIZERS[name].builder)
            if not is_own(name):
                return kind.train(text, config.tokenizer)
            with tokenizer_errors(name):
                tokenizer = kind.train(text, config.tokenizer)
                check_tokenizer(tokenizer, next(iter(text.pieces()), "")[:SAMPLE])
            return tokenizer

        try:
            return cls(
                config.base("data"), config.data, tokenizer, sha256, drop_unknown, config.run, train
            )
        except UnknownCharacters as error:
            if config.run.init_from:
                raise UnknownCharacters(f"{error}; unknown=drop leaves them out") from None
            raise

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The parts by name, in the order of the text."""
        return {"holdout": self.holdout, "train": self.train, "val": self.val, "test": self.test}


def as_typed(choice: str, config: CorpusConfig) -> str:
    """Returns a choice of text with its own keys, such as data=file path=a.txt."""
    shared = {field.name for field in fields(CorpusConfig)}
    own_keys = [key for key in vars(config) if key not in shared]
    return " ".join([f"data={choice}", *(f"{key}={getattr(config, key)}" for key in own_keys)])


def ends_of_parts(
    tokens: np.ndarray, config: CorpusConfig, documents: Documents | None
) -> list[int]:
    """Returns where the four parts of a text end. Raises UserError if one is too small."""
    n = len(tokens)
    shares = {
        "holdout": config.holdout_fraction,
        "val": config.val_fraction,
        "test": config.test_fraction,
    }
    fractions = [
        shares["holdout"],
        1 - shares["val"] - shares["test"],
        1 - shares["test"],
    ]
    ends = [int(n * fraction + 1e-6) for fraction in fractions]
    if documents is not None:
        ends = [end if end in (0, n) else documents.nearest_start(end) for end in ends]
    lengths = np.diff([0, *ends, n])
    holdout, train, val, test = lengths.tolist()
    if train == 0:
        raise UserError(
            f"val_fraction={config.val_fraction} test_fraction={config.test_fraction} "
            f"holdout_fraction={config.holdout_fraction}: of {n} characters none is left for "
            "training; allowed are smaller shares"
        )
    for name, length in (("holdout", holdout), ("val", val), ("test", test)):
        if shares[name] and length < 2:
            raise UserError(
                f"{name}_fraction={shares[name]}: that is fewer than two of {n} characters; "
                "allowed are 0 and larger shares"
            )
    return [*ends, n]
