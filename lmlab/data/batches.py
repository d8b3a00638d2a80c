"""Cuts the tokens of a text into batches: B windows of T tokens, and the tokens that follow."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lmlab.config.check import Config
from lmlab.config.keys import Align
from lmlab.data.documents import Documents
from lmlab.errors import UserError

CUT_AT_ONCE = 2**16  # tokens at most: many batches of a small run, one of a large

RESIDENT = 2**28  # bytes of tokens that may lie on the device


TELLING = 0.05  # nats; the built-in texts have less than 0.01, records of equal length half a nat

ESTIMATED = 2**22  # tokens by which it is estimated, at most

ENOUGH = 20  # tokens for each pair of place and token, at least

MOST_PAIRS = 2**26  # of place and token: more would need more than ESTIMATED tokens

ALL_ROWS = slice(None)  # of a batch

IGNORED = -100  # the target of a token whose prediction does not count, as torch names it

Batch = tuple[Tensor, Tensor]  # idx and targets


def check_length(tokens: np.ndarray, block_size: int, unit: str = "token") -> None:
    """Raises UserError if the tokens (N,) are too few for a window of `block_size`.

    `unit` is what a token is called.
    """
    if len(tokens) <= block_size:
        raise UserError(
            f"block_size={block_size}: needs at least {block_size + 1} {unit}s of training "
            f"text, but there are {len(tokens)}"
        )


def resolved_align(config: Config, tokens: np.ndarray) -> Config:
    """Returns a configuration in which "window" or "epoch" stands for align=auto.

    On records of equal length a token's place in a window can tell what the token is. Windows of
    one phase would then teach a model that the place always tells the same, and on other text, at
    another phase, it would be wrong. So they get offsets of their own. Windows of a task begin with
    its examples.
    """
    if config.run.align != "auto":
        return config
    if config.data.line_length:
        return with_align(config, "document")
    tells = place_information(tokens, config.model.block_size) > TELLING
    return with_align(config, "window" if tells else "epoch")


def with_align(config: Config, align: Align) -> Config:
    """Returns a configuration with another value of `align`."""
    return replace(config, run=replace(config.run, align=align))


def place_information(tokens: np.ndarray, block_size: int) -> float:
    """Returns how many nats the place in a window, of windows with one phase, tells of a token.

    It is the mutual information of both, with the correction of Miller and Madow (1955), or 0 if
    the tokens (N,) are too few for an estimate.
    """
    tokens = tokens[:ESTIMATED].astype(np.int64)
    places = np.arange(len(tokens)) % block_size
    vocab_size = int(tokens.max()) + 1
    if block_size * vocab_size > MOST_PAIRS:
        return 0.0
    counts = np.bincount(places * vocab_size + tokens, minlength=block_size * vocab_size)
    counts = counts.reshape(block_size, vocab_size)
    if len(tokens) < ENOUGH * np.count_nonzero(counts):
        return 0.0
    return entropy(counts.sum(0)) + entropy(counts.sum(1)) - entropy(counts)


def entropy(counts: np.ndarray) -> float:
    """Returns the entropy, in nats, of what was counted, corrected for few counts."""
    counts = counts[counts > 0]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum()))


class Batches:
    """Makes batch t from (tokens, B, T, seed, t) alone; earlier batches have no influence.

    With `align` "epoch" an epoch starts at a random offset below T, divides the tokens into windows
    of T, and returns the windows in random order. In an epoch every token is seen once, except at
    most 2T tokens at the ends of the text. With "window" each of these windows is moved by a random
    offset of its own, so a sixth of the tokens is not seen in an epoch, and a sixth twice. With
    "document" the windows begin where `documents` do, and every T tokens after that; a window may
    end in a later document. A batch may hold windows of two epochs.

    Targets that `documents` does not score are IGNORED. If several processes share each batch,
    `rows` are those of this one, and B is their number; the batches themselves are the same.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        batch_size: int,
        block_size: int,
        seed: int,
        align: str = "epoch",
        documents: Documents | None = None,
        rows: slice = ALL_ROWS,
    ) -> None:
        check_length(tokens, block_size)
        spare = len(tokens) - block_size
        self.tokens = tokens
        self.batch_size = batch_size
        self.rows = rows
        self.n_rows = len(range(batch_size)[rows])
        self.block_size = block_size
        self.seed = seed
        self.align = align
        self.phases = min(block_size, spare)
        self.windows = max(1, spare // block_size)  # in an epoch
        self.scored = documents.scored if documents else None
        self.aligned = np.zeros(0, np.int64)
        if align == "document" and documents:
            starts = documents.window_starts(block_size, len(tokens))
            self.aligned = starts[starts < spare]
            self.windows = len(self.aligned)

    def __getitem__(self, t: int) -> Batch:
        """Returns idx and targets of batch t, (B, T) int64. Targets are idx one token later."""
        return self.windows_at(self.window_starts(t, 1))

    def starts(self, epoch: int) -> np.ndarray:
        """Returns the start positions of an epoch's windows, in their random order."""
        phase, order = shuffled(self.seed, epoch, self.phases, self.windows, self.align)
        if self.align == "document":
            return self.aligned[order]
        return phase + self.block_size * order

    def window_starts(self, t: int, n: int) -> np.ndarray:
        """Returns the start positions of the windows of n batches from batch t on, (n B,)."""
        numbers = np.arange(t * self.batch_size, (t + n) * self.batch_size)
        numbers = numbers.reshape(n, self.batch_size)[:, self.rows].flatten()
        epochs, places = np.divmod(numbers, self.windows)
        return np.concatenate(
            [
                self.starts(epoch)[places[epochs == epoch]]
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )

    def windows_at(self, starts: np.ndarray) -> Batch:
        """Returns the T tokens from each position in `starts` (N,), and their targets, (N, T)."""
        places = starts[:, None] + np.arange(self.block_size + 1)
        sequences = torch.from_numpy(self.tokens[places].astype(np.int64))
        idx, targets = sequences[:, :-1], sequences[:, 1:]
        if self.scored is not None:
            scored = torch.from_numpy(self.scored[places[:, 1:]])
            targets = targets.masked_fill(~scored, IGNORED)
        return idx, targets

    def stream(self, t: int, device: torch.device) -> Iterator[Batch]:
        """Yields batch t and all later batches on `device`; several are made in one operation.

        Tokens that fit into the memory of the device are copied there once. Otherwise a thread
        reads them from the disk in advance. In both cases the CPU does not wait for the GPU.
        """
        if len(self.tokens) * self.resident_type().itemsize <= RESIDENT:
            chunks = self.from_device(self.cuts(t), device)
        else:
            chunks = ahead(self.from_disk(self.cuts(t), device))
        for idx, targets in chunks:
            yield from zip(idx.split(self.n_rows), targets.split(self.n_rows), strict=True)

    def cuts(self, t: int) -> Iterator[tuple[int, int]]:
        """Yields the first batch, and the number of batches, of what is cut at once, from batch t on.

        The number starts at 1 and doubles: a short run needs few, a long one should be cut in few
        operations.
        """
        most = max(1, CUT_AT_ONCE // (self.n_rows * (self.block_size + 1)))
        n = 1
        while True:
            yield t, n
            t += n
            n = min(2 * n, most)

    def resident_type(self) -> np.dtype:
        """Returns the type of tokens on a device: torch cannot index all of numpy's types."""
        return np.dtype(np.uint8 if self.tokens.dtype == np.uint8 else np.int32)

    def from_device(self, cuts: Iterable[tuple[int, int]], device: torch.device) -> Iterator[Batch]:
        """Yields the windows of the batches of each cut, made on the device."""
        tokens = torch.from_numpy(self.tokens.astype(self.resident_type())).to(device)
        unscored = None
        if self.scored is not None:
            unscored = torch.from_numpy(~self.scored).to(device)
        window = torch.arange(self.block_size + 1, device=device)
        for first, n in cuts:
            starts = send(torch.from_numpy(self.window_starts(first, n)), device)
            places = starts[:, None] + window
            sequences = tokens[places].long()
            targets = sequences[:, 1:]
            if unscored is not None:
                targets = targets.masked_fill(unscored[places[:, 1:]], IGNORED)
            yield sequences[:, :-1], targets

    def from_disk(self, cuts: Iterable[tuple[int, int]], device: torch.device) -> Iterator[Batch]:
        """Yields the windows of the batches of each cut, read from the disk."""
        for first, n in cuts:
            idx, targets = self.windows_at(self.window_starts(first, n))
            yield send(idx, device), send(targets, device)


@lru_cache(maxsize=2)  # a batch at the end of an epoch needs two
def shuffled(
    seed: int, epoch: int, phases: int, windows: int, align: str
) -> tuple[np.ndarray | int, np.ndarray]:
    """Returns the phase of an epoch's windows, below `phases`, and the random order of its windows.

    With `align` "window" there is a phase for each window, (windows,).
    """
    random = np.random.default_rng((seed, epoch))
    phase = int(random.integers(phases))
    order = random.permutation(windows)
    if align == "window":
        return random.integers(phases, size=windows), order
    return phase, order


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies `tensor` to `device`. It does not wait for a GPU."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """Yields the same items. A thread makes the next item while the last one is used."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items)
        while True:
            item = coming.result()
            coming = reader.submit(next, items)
            yield item


class BatchModule(LightningDataModule):
    """Gives Lightning the batches of `Batches`, starting with batch `first`, without an end."""

    def __init__(self, batches: Batches, first: int = 0) -> None:
        super().__init__()
        self.batches = batches
        self.first = first

    def train_dataloader(self) -> Iterator[Batch]:
        assert self.trainer is not None  # Lightning sets it before it asks
        return self.batches.stream(self.first, self.trainer.strategy.root_device)

    def transfer_batch_to_device(
        self, batch: tuple[Tensor, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        return batch  # the stream has put it there
