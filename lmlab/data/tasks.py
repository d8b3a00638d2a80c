"""Generated texts whose answers are known: recall, induction, copying, addition.

An example is a line. Example t is a pure function of (data_seed, t), so a text can be of any size.
Only the answers are trained and scored, since what is asked cannot be known.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lmlab.catalogue import AdditionConfig, CopyConfig, InductionConfig, RecallConfig, TaskConfig
from lmlab.errors import UserError
from lmlab.registry import load

Codes = NDArray[np.uint32]  # characters as code points, a row for each example
Mask = NDArray[np.bool_]

BLOCK = 1024  # examples that are drawn with one generator, so as not to begin one for each
# The first and the last letter of each.
ALPHABETS = (("a", "z"), ("α", "ρ"), ("σ", "ω"), ("а", "я"), ("à", "ö"), ("ø", "þ"), ("ա", "ֆ"))
SMALL = "".join(
    chr(code) for first, last in ALPHABETS for code in range(ord(first), ord(last) + 1)
)  # 150 small letters, each of which has a capital
SYMBOLS = np.array([ord(letter) for letter in SMALL + SMALL.upper()], np.uint32)
HALF = len(SMALL)
MARK = "|"
GAP = 0.01  # questions after a gap g are as frequent as GAP * g ** (GAP - 1) (Arora et al. 2023)


def examples(config: TaskConfig) -> Iterator[str]:
    """Yields the examples of a task."""
    task = task_of(config)
    for block in range(-(-config.n_examples // BLOCK)):
        generator = np.random.default_rng((config.data_seed, block))
        rows = task.draw(generator, BLOCK)[: config.n_examples - block * BLOCK]
        lines = np.concatenate([rows, np.full((len(rows), 1), ord("\n"), np.uint32)], axis=1)
        yield lines.tobytes().decode("utf-32-le")


def scored(config: TaskConfig, codes: Codes) -> Mask:
    """Returns which characters (N,) of a text of examples are answers, (N,). Raises UserError."""
    task = task_of(config)
    if len(codes) % (task.length + 1):
        raise UserError(
            "unknown=drop: leaves characters out of examples, whose answers then cannot be found; "
            "needs a vocabulary with all of them"
        )
    rows = codes.reshape(-1, task.length + 1)[:, :-1]
    answers = np.zeros((len(rows), task.length + 1), bool)
    answers[:, :-1] = task.answers(rows)
    return answers.flatten()


def task_of(config: TaskConfig) -> "Task":
    """Returns the task that has these keys."""
    kind: type[Task] = load(config.task)
    return kind(config)


class Task(ABC):
    """Draws examples, and knows their answers."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.length = config.line_length - 1
        """The characters of an example without the end of its line."""

    @abstractmethod
    def draw(self, generator: Generator, n: int) -> Codes:
        """Returns n examples, (n, length)."""

    @abstractmethod
    def answers(self, rows: Codes) -> Mask:
        """Returns which characters of examples (n, length) are answers, (n, length)."""


class Recall(Task):
    """Pairs of a small and a capital letter, then each small letter again, and what belongs to it.

    This is multi-query associative recall (Arora et al. 2023): `aQbX … bX … aQ`. Questions come
    soon more often than late; between them are capitals that belong to nothing.
    """

    config: RecallConfig

    def draw(self, generator: Generator, n: int) -> Codes:
        half, pairs = self.config.n_symbols // 2, self.config.n_pairs
        keys = drawn_once(generator, n, half, pairs)
        values = HALF + generator.integers(half, size=(n, pairs))
        rows = HALF + generator.integers(half, size=(n, self.length))
        rows[:, 0 : 2 * pairs : 2] = keys
        rows[:, 1 : 2 * pairs : 2] = values
        slots = (self.length - 2 * pairs) // 2
        frequencies = GAP * np.arange(1, slots + 1) ** (GAP - 1)
        # The largest of log frequency and Gumbel's noise: places without replacement.
        chances = np.log(frequencies) + generator.gumbel(size=(n, slots))
        asked = 2 * pairs + 2 * np.argsort(-chances, axis=1)[:, :pairs]
        np.put_along_axis(rows, asked, keys, axis=1)
        np.put_along_axis(rows, asked + 1, values, axis=1)
        return SYMBOLS[rows]

    def answers(self, rows: Codes) -> Mask:
        answers = np.zeros(rows.shape, bool)
        answers[:, 1:] = np.isin(rows[:, :-1], SYMBOLS[:HALF])  # what follows a small letter
        answers[:, : 2 * self.config.n_pairs] = False
        return answers


class Induction(Task):
    """Some different letters, again and again: `qtzqtzqtz`. From the second round on they are known."""

    config: InductionConfig

    def draw(self, generator: Generator, n: int) -> Codes:
        periods = generator.integers(2, self.length // 2, size=(n, 1), endpoint=True)
        letters = drawn_once(generator, n, self.config.n_symbols, self.length // 2)
        places = np.arange(self.length) % periods
        return SYMBOLS[np.take_along_axis(letters, places, axis=1)]

    def answers(self, rows: Codes) -> Mask:
        periods = (rows[:, 1:] == rows[:, :1]).argmax(axis=1) + 1
        return np.asarray(np.arange(self.length) > periods[:, None])


class Copy(Task):
    """Letters, a mark, and the same letters: `qtzt|qtzt`."""

    config: CopyConfig

    def draw(self, generator: Generator, n: int) -> Codes:
        half = self.length // 2
        letters = SYMBOLS[generator.integers(self.config.n_symbols, size=(n, half))]
        mark = np.full((n, 1), ord(MARK), np.uint32)
        # Of an even number of characters, the copy has one less.
        return np.concatenate([letters, mark, letters], axis=1)[:, : self.length]

    def answers(self, rows: Codes) -> Mask:
        return np.broadcast_to(np.arange(self.length) > self.length // 2, rows.shape)


class Addition(Task):
    """Sums: `27+35=260`. The digits of the sum come in the order of adding, the last one first."""

    config: AdditionConfig

    def draw(self, generator: Generator, n: int) -> Codes:
        digits = self.config.n_digits
        numbers = generator.integers(10**digits, size=(2, n))
        first, second = (digits_of(number, digits)[:, ::-1] for number in numbers)
        total = digits_of(numbers.sum(axis=0), digits + 1)
        signs = [np.full((n, 1), ord(sign), np.uint32) for sign in "+="]
        return np.concatenate([first, signs[0], second, signs[1], total], axis=1)

    def answers(self, rows: Codes) -> Mask:
        places = np.arange(self.length)
        return np.broadcast_to(places > 2 * self.config.n_digits + 1, rows.shape)


def drawn_once(generator: Generator, n: int, size: int, count: int) -> NDArray[np.int64]:
    """Returns n rows of `count` different numbers below `size`, (n, count)."""
    return generator.random((n, size)).argsort(axis=1)[:, :count]


def digits_of(numbers: NDArray[np.int64], count: int) -> Codes:
    """Returns the digits of numbers (n,), (n, count), the last one of each number first."""
    powers = 10 ** np.arange(count)
    return np.asarray(ord("0") + numbers[:, None] // powers % 10, np.uint32)
