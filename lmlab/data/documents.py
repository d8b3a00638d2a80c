"""Finds the documents of a text: where they begin, and which of their tokens are scored."""

from dataclasses import dataclass

import numpy as np

from lmlab.catalogue import CorpusConfig
from lmlab.config.grammar import ESCAPES
from lmlab.config.keys import DIVIDING, RunConfig
from lmlab.data.tokenizers import Tokenizer, read_only
from lmlab.errors import UserError

UNESCAPED = {typed: text for text, typed in ESCAPES.items()} | {r"\\": "\\"}
NOT_THERE = "the text does not contain it"


@dataclass(frozen=True)
class Documents:
    """The documents of a text of N tokens, or of a part of it."""

    starts: np.ndarray
    """The positions at which documents begin, ascending; the first is 0."""

    scored: np.ndarray | None
    """For each token whether its prediction counts, (N,) bool; None if all count."""

    unmarked: int = 0
    """How many documents of the whole text lack the mark of `score_after`, so none of it counts."""

    def __post_init__(self) -> None:
        """Lets nobody who is given the documents change them, such as an evaluation of one's own."""
        for name, array in (("starts", self.starts), ("scored", self.scored)):
            if array is not None:
                object.__setattr__(self, name, read_only(array))

    def within(self, start: int, end: int) -> "Documents":
        """Returns the documents of the tokens from `start` to `end`."""
        inside = self.starts[(self.starts > start) & (self.starts < end)]
        starts = np.concatenate(([start], inside)) - start
        return Documents(starts, None if self.scored is None else self.scored[start:end])

    def scores_something(self) -> bool:
        """Returns whether at least one token is scored."""
        return self.scored is None or bool(self.scored[1:].any())

    def nearest_start(self, position: int) -> int:
        """Returns the start of a document that is nearest to `position`."""
        return int(self.starts[np.abs(self.starts - position).argmin()])

    def window_starts(self, block_size: int, n: int) -> np.ndarray:
        """Returns where windows begin that never reach into another document before their end.

        They begin with each document, and within it at each multiple of `block_size`. `n` is the
        number of tokens.
        """
        lengths = np.diff(self.starts, append=n)
        counts = -(-lengths // block_size)  # rounded up
        first_of_document = np.cumsum(counts) - counts
        number_within = np.arange(counts.sum()) - np.repeat(first_of_document, counts)
        return np.repeat(self.starts, counts) + block_size * number_within


def counting(documents: Documents | None) -> np.ndarray | None:
    """Returns for each token but the first whether its prediction counts; None if all do."""
    if documents is None or documents.scored is None:
        return None
    return documents.scored[1:]


def extent(tokens: np.ndarray, unit: str, documents: Documents | None) -> str:
    """Returns how long a text is, in words such as "3,338 characters, of which 1,024 are scored"."""
    length = f"{len(tokens):,} {unit}s"
    counts = counting(documents)
    return length if counts is None else f"{length}, of which {counts.sum():,} are scored"


def find(
    tokens: np.ndarray, tokenizer: Tokenizer, run: RunConfig, corpus: CorpusConfig
) -> Documents | None:
    """Returns the documents of a text, or None if it is not divided: `separator` is null.

    Raises UserError if the text has no such separator or mark.
    """
    if run.separator is None:
        return None
    ends = ends_of(tokens, tokenizer, "separator", run.separator)
    starts = np.concatenate(([0], ends[ends < len(tokens)]))
    if run.score_after is None:
        return Documents(starts, scored_by(corpus, tokens, tokenizer))
    marks = ends_of(tokens, tokenizer, "score_after", run.score_after)
    document_of_mark = np.searchsorted(starts, marks, side="left") - 1
    length = len(tokenizer.encode(unescaped(run.score_after)))
    is_within = marks - length >= starts[document_of_mark]  # not begun in the document before
    marks, document_of_mark = marks[is_within], document_of_mark[is_within]
    if len(marks) == 0:
        raise UserError(f"score_after={run.score_after}: no document contains it")
    documents, first = np.unique(document_of_mark, return_index=True)
    change = np.zeros(len(tokens) + 1, np.int8)  # where scoring begins and ends
    np.add.at(change, marks[first], 1)
    np.add.at(change, np.append(starts, len(tokens))[documents + 1], -1)
    scored = np.cumsum(change[:-1], dtype=np.int8).astype(bool)
    return Documents(starts, scored, len(starts) - len(documents))


def check_contained(run: RunConfig, characters: str) -> None:
    """Raises UserError if a text with these characters cannot contain a separator or mark.

    It is asked before there are tokens, which differ from one tokenizer to the other.
    """
    for key in DIVIDING:
        typed = getattr(run, key)
        if typed is not None and not {*unescaped(typed)} <= {*characters}:
            raise UserError(f"{key}={typed}: {NOT_THERE}")


def scored_by(corpus: CorpusConfig, tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray | None:
    """Returns which tokens (N,) a corpus itself scores, (N,) bool; None if it scores all.

    Each token is a character.
    """
    if not corpus.scores_itself():
        return None
    characters = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    codes = np.array([ord(text) if len(text) == 1 else 0 for text in characters], np.uint32)
    scored = np.asarray(corpus.scored(codes[tokens]))
    if scored.shape != tokens.shape or scored.dtype != bool:
        raise UserError(
            f"{type(corpus).__name__}.scored: returns {scored.dtype} {scored.shape}; needs bool "
            f"{tokens.shape}, a truth value for each character"
        )
    return scored


def ends_of(tokens: np.ndarray, tokenizer: Tokenizer, key: str, typed: str) -> np.ndarray:
    """Returns the positions after each occurrence of a typed text, from left to right.

    Occurrences do not overlap. Raises UserError if there is none.
    """
    pattern = unescaped(typed)
    try:
        ids = tokenizer.encode(pattern)
    except UserError as error:
        raise UserError(f"{key}={typed}: {error}") from None
    found = np.ones(max(0, len(tokens) - len(ids) + 1), bool)
    for offset, token in enumerate(ids):
        found &= tokens[offset : offset + len(found)] == token
    begins = np.flatnonzero(found)
    if len(begins) == 0:
        raise UserError(f"{key}={typed}: {NOT_THERE}")
    if np.all(np.diff(begins) >= len(ids)):
        return begins + len(ids)
    ends: list[int] = []
    for begin in begins.tolist():
        if not ends or begin >= ends[-1]:
            ends.append(begin + len(ids))
    return np.array(ends)


def unescaped(typed: str) -> str:
    """Returns a text with newlines and tabs in place of the \\n and \\t that were typed."""
    text = ""
    rest = typed
    while rest:
        if rest[:2] in UNESCAPED:
            text += UNESCAPED[rest[:2]]
            rest = rest[2:]
        else:
            text += rest[0]
            rest = rest[1:]
    return text
