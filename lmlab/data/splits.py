"""Divides the tokens of a text into parts: to train on, to validate, to test."""

import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Self

import numpy as np

from lmlab import files, plugins
from lmlab.calls import check_call
from lmlab.catalogue import CORPORA, TOKENIZERS, CorpusConfig
from lmlab.config.check import Config
from lmlab.config.keys import RunConfig
from lmlab.data import documents
from lmlab.data.documents import Documents
from lmlab.data.encoding import between, encoded, token_file
from lmlab.data.text import Text
from lmlab.data.tokenizers import (
    CharTokenizer,
    Source,
    Tokenizer,
    UnknownCharacters,
    check_made,
    check_tokenizer,
    tokenizer_errors,
)
from lmlab.errors import UserError, reason_of
from lmlab.register import is_own
from lmlab.registry import folder_kept, load

# The largest number of tokens that a part may have while something is only tried; None: any.
LONGEST: ContextVar[int | None] = ContextVar("longest", default=None)
SAMPLE = 10_000  # characters with which somebody's own tokenizer is tried


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


@dataclass(frozen=True)
class Layout:
    """Where the four parts of a text end, and its documents: positions in characters or tokens."""

    ends: list[int]
    documents: Documents | None

    @classmethod
    def in_characters(cls, text: Text, config: CorpusConfig, run: RunConfig | None) -> Self:
        """Returns where a text ends its parts and documents. Raises UserError."""
        whole = None
        if run is not None and run.separator is not None:
            letters = CharTokenizer(text.characters)
            whole = documents.find(token_file(text, letters), letters, run, config)
        return cls(ends_of_parts(text.length, config, whole), whole)

    def cuts(self) -> np.ndarray:
        """Returns the positions at which no token may lie on both sides, ascending."""
        positions = [np.array([0, *self.ends])]
        if self.documents is not None:
            positions.append(self.documents.starts)
            if self.documents.scored is not None:
                positions.append(np.flatnonzero(np.diff(self.documents.scored)) + 1)
        return np.unique(np.concatenate(positions))

    def moved(self, cuts: np.ndarray, places: np.ndarray) -> "Layout":
        """Returns the layout with `places` instead of the positions `cuts`."""

        def place_of(positions: np.ndarray) -> np.ndarray:
            return places[np.searchsorted(cuts, positions)]

        moved = None
        if self.documents is not None:
            scored = self.documents.scored
            if scored is not None:
                scored = np.repeat(scored[cuts[:-1]], np.diff(places))
            starts = np.unique(place_of(self.documents.starts))
            moved = Documents(starts, scored, self.documents.unmarked)
        return Layout(place_of(np.array(self.ends)).tolist(), moved)


class TrainingText:
    """What a tokenizer is trained on: a text, of which it may read the training part alone."""

    def __init__(self, text: Text, layout: Callable[[], Layout]) -> None:
        self.text = text
        self.layout = layout  # found only if it is needed
        self.characters = text.characters

    @property
    def training_sha256(self) -> str:
        """A hash of the training part, and of how it is cut."""
        layout = self.layout()
        about = f"{self.text.sha256} {layout.ends[:2]} ".encode()
        return files.sha256(about + layout.cuts().tobytes())

    def pieces(self) -> Iterable[str]:
        """Returns the text in pieces."""
        return self.text.pieces()

    def training_pieces(self) -> Iterator[str]:
        """Yields the training part, cut where it is cut to be encoded."""
        start, end, *_ = self.layout().ends
        cuts = self.layout().cuts()
        for cut, piece in between(self.text.again("learning tokens"), cuts):
            if start <= cuts[cut] < end:
                yield piece


class Splits:
    """A text in its parts `holdout`, `train`, `val` and `test`: arrays of token ids, (N,).

    They follow each other in this order: text next to the validation text is the best to train on,
    so `holdout` is the beginning. `tokenizer` is the given one, or what `train` makes of the
    text, by default that of its characters; `sha256` is that of the text; `dropped` counts the
    characters that the tokenizer lacks, which `drop_unknown` leaves out, or their bytes, and `lacking`
    has each such character once, of a tokenizer of characters. If `run`,
    the keys of a run, divides the text into documents, `documents` holds those of each part, and a
    part begins with the nearest document. Whatever the tokenizer, the parts have the same text.

    Raises UserError if the text cannot be read or divided, or if its sha256 is not the given one.
    Raises UnknownCharacters if the tokenizer lacks characters that may not be dropped.
    """

    @folder_kept()
    def __init__(
        self,
        choice: str,
        config: CorpusConfig,
        tokenizer: Tokenizer | None = None,
        sha256: str | None = None,
        drop_unknown: bool = False,
        run: RunConfig | None = None,
        train: Callable[[Source], Tokenizer] = CharTokenizer.train,
    ) -> None:
        if run is not None:
            run = with_separator(run, config)
        text = Text(partial(pieces_of, choice, config), as_typed(choice, config))
        self.sha256 = text.sha256
        if sha256 not in (None, self.sha256):
            raise UserError(
                f"{as_typed(choice, config)}: the text is not the one that the run was trained on "
                f"(sha256 {self.sha256[:12]}…, that one had {sha256[:12]}…)"
            )
        if run is not None:
            documents.check_contained(run, text.characters)
        in_characters = cache(partial(Layout.in_characters, text, config, run))
        self.tokenizer: Tokenizer = tokenizer or train(TrainingText(text, in_characters))
        try:
            if self.tokenizer.per_character:
                tokens = token_file(text, self.tokenizer, drop_unknown)
                whole = documents.find(tokens, self.tokenizer, run, config) if run else None
                layout = Layout(ends_of_parts(len(tokens), config, whole), whole)
            else:
                cuts = in_characters().cuts()
                tokens, places = encoded(text, self.tokenizer, cuts, drop_unknown)
                layout = in_characters().moved(cuts, places)
                check_parts(layout.ends, config, "tokens")
        except UnknownCharacters as error:
            raise UnknownCharacters(f"data={choice}: {error}") from None
        self.dropped = dropped(text, self.tokenizer, tokens) if drop_unknown else 0
        self.lacking = lacking(text, self.tokenizer) if self.dropped else ""
        ends, whole = layout.ends, layout.documents
        self.unmarked = whole.unmarked if whole is not None else 0
        starts = [0, *ends[:-1]]
        longest = LONGEST.get()
        if longest is not None:
            ends = [min(end, start + longest) for start, end in zip(starts, ends, strict=True)]
        self.holdout, self.train, self.val, self.test = (
            tokens[start:end] for start, end in zip(starts, ends, strict=True)
        )
        self.documents: dict[str, Documents] = {}
        if run is not None and whole is not None:
            for name, start, end in zip(self.parts, starts, ends, strict=True):
                self.documents[name] = whole.within(start, end)
                if end > start and not self.documents[name].scores_something():
                    decided_by = f"score_after={run.score_after}"
                    if config.scores_itself():
                        decided_by = as_typed(choice, config)
                    raise UserError(
                        f"{decided_by}: nothing is scored in the part {name} of the text"
                    )

    @classmethod
    def of_run(
        cls, config: Config, tokenizer: Tokenizer | None = None, sha256: str | None = None
    ) -> Self:
        """Returns the training and validation text of a run with this configuration."""
        drop_unknown = config.run.unknown == "drop"

        def train(text: Source) -> Tokenizer:
            """Returns the tokenizer that the configuration chooses, trained on a text."""
            name = config.base("tokenizer")
            kind: type[Tokenizer] = load(TOKENIZERS[name].builder)
            if not is_own("tokenizer", name):
                return kind.train(text, config.tokenizer)
            with tokenizer_errors(name):
                tokenizer = kind.train(text, config.tokenizer)
                check_made(tokenizer, name, "train")
                check_tokenizer(tokenizer, next(iter(text.pieces()), "")[:SAMPLE])
            return tokenizer

        try:
            return cls(
                config.base("data"), config.data, tokenizer, sha256, drop_unknown, config.run, train
            )
        except UnknownCharacters as error:
            if not config.run.init_from:
                raise
            hint = "unknown=drop leaves them out"
            if config.data.scores_itself():
                hint = f"init_from={config.run.init_from}: needs a run whose vocabulary has them"
            raise UnknownCharacters(f"{error}; {hint}") from None

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The parts by name, in the order of the text."""
        return {"holdout": self.holdout, "train": self.train, "val": self.val, "test": self.test}


def own_rule(config: Config) -> dict[str, str]:
    """Returns, as an entry of metrics.json, which text of a plug-in says what is a document or scored.

    Another text of the same characters can say something else. Returns no entry for other texts.
    """
    base = config.base("data")
    has_rule = config.data.document_end is not None or config.data.scores_itself()
    return {"documents": base} if has_rule and is_own("data", base) else {}


def pieces_of(choice: str, config: CorpusConfig) -> Iterator[str]:
    """Yields the pieces of a corpus. Raises UserError if somebody's own yields anything else."""
    corpus = load(CORPORA[choice].builder)
    if not is_own("data", choice):
        yield from corpus(config)
        return
    check_call(f"data={choice}", corpus, f"{choice}(keys)")
    try:
        with plugins.own_errors():
            pieces = corpus(config)
            if getattr(pieces, "__iter__", None) is None:
                raise UserError(
                    f"data={choice}: must yield text in pieces, but returns {reprlib.repr(pieces)}"
                )
            for piece in pieces:
                if not isinstance(piece, str):
                    raise UserError(
                        f"data={choice}: must yield text in pieces, but yields {type(piece).__name__}"
                    )
                yield piece
    except (TypeError, OSError) as error:  # else they would be taken for the lab's, or of a disk
        raise UserError(f"data={choice}: {reason_of(error)}") from None


def with_separator(run: RunConfig, config: CorpusConfig) -> RunConfig:
    """Returns the keys of a run, in which the end of a corpus's documents stands for null."""
    if config.document_end is None:
        return run
    return replace(run, separator=config.document_end)


def as_typed(choice: str, config: CorpusConfig) -> str:
    """Returns a choice of text with its own keys, such as data=file path=a.txt."""
    shared = {field.name for field in fields(CorpusConfig)}
    own_keys = [key for key in vars(config) if key not in shared]
    return " ".join([f"data={choice}", *(f"{key}={getattr(config, key)}" for key in own_keys)])


def dropped(text: Text, tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """Returns how many characters of a text, or bytes, have no token."""
    counts = np.bincount(tokens, minlength=tokenizer.vocab_size)
    if not tokenizer.per_character:
        return text.size - int(counts @ tokenizer.byte_lengths)
    lengths = [len(tokenizer.decode([i])) for i in range(tokenizer.vocab_size)]
    return text.length - int(counts @ np.array(lengths))


def lacking(text: Text, tokenizer: Tokenizer) -> str:
    """Returns the distinct characters of a text that a tokenizer of characters lacks, sorted."""
    if not tokenizer.per_character:
        return ""
    known = set(tokenizer.decode([*range(tokenizer.vocab_size)]))
    return "".join(char for char in text.characters if char not in known)


def ends_of_parts(n: int, config: CorpusConfig, documents: Documents | None) -> list[int]:
    """Returns where the four parts of a text of `n` characters end.

    Raises UserError if one is too small.
    """
    fractions = [
        config.holdout_fraction,
        1 - config.val_fraction - config.test_fraction,
        1 - config.test_fraction,
    ]
    ends = [int(n * fraction + 1e-6) for fraction in fractions]
    if documents is not None:
        ends = [end if end in (0, n) else documents.nearest_start(end) for end in ends]
    n_documents = None if documents is None else len(documents.starts)
    check_parts([*ends, n], config, "characters", n_documents)
    return [*ends, n]


def check_parts(
    ends: list[int], config: CorpusConfig, unit: str, n_documents: int | None = None
) -> None:
    """Raises UserError if a part of a text has too few characters or tokens.

    `n_documents` is the number of documents that the text is divided into, each of which lies in one
    part.
    """
    n = ends[-1]
    in_documents = ""
    if n_documents is not None:
        whole = "1 document, which is not divided,"
        if n_documents > 1:
            whole = f"{n_documents:,} documents, which are not divided,"
        in_documents = f" in {whole}"
    holdout, train, val, test = np.diff([0, *ends]).tolist()
    if train == 0:
        allowed = "smaller shares"
        if n_documents == 1:
            allowed = "0 for all three, or a text of several documents"
        raise UserError(
            f"val_fraction={config.val_fraction} test_fraction={config.test_fraction} "
            f"holdout_fraction={config.holdout_fraction}: of {n} {unit}{in_documents} none is left for "
            f"training; allowed are {allowed}"
        )
    for name, length in (("holdout", holdout), ("val", val), ("test", test)):
        share = getattr(config, f"{name}_fraction")
        if share and length < 2:
            raise UserError(
                f"{name}_fraction={share}: that is fewer than two of {n} {unit}"
                f"{in_documents.rstrip(',')}; allowed are 0 and larger shares"
            )
