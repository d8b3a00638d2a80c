"""Divides the tokens of a text into parts: to train on, to validate, to test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import partial
from typing import Self

import numpy as np

from lmlab.catalogue import CORPORA, TOKENIZERS, CorpusConfig
from lmlab.config.check import Config
from lmlab.config.keys import RunConfig
from lmlab.data import documents
from lmlab.data.documents import Documents
from lmlab.data.encoding import is_own, token_file
from lmlab.data.text import Text
from lmlab.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    UnknownCharacters,
    check_tokenizer,
    tokenizer_errors,
)
from lmlab.errors import UserError
from lmlab.registry import load

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
