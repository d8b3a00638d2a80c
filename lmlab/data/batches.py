"""Cuts the tokens of a text into batches: B windows of T tokens, and the tokens that follow."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lmlab.errors import UserError

CUT_AT_ONCE = 2**16  # tokens: many batches of a small run, one of a large

RESIDENT = 2**28  # bytes of tokens that may lie on the device


def check_length(tokens: np.ndarray, block_size: int) -> None:
    """Raises UserError if the tokens (N,) are too few for a window of `block_size`."""
    if len(tokens) <= block_size:
        raise UserError(
            f"block_size={block_size}: needs at least {block_size + 1} characters of training "
            f"text, but there are {len(tokens)}"
        )


class Batches:
    """Makes batch t from (tokens, B, T, seed, t) alone; earlier batches have no influence.

    An epoch starts at a random offset below T, divides the tokens into windows of T, and returns
    the windows in random order. A batch may hold windows of two epochs. In an epoch every token is
    seen once, except at most 2T tokens at the ends of the text.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int) -> None:
        check_length(tokens, block_size)
        spare = len(tokens) - block_size
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.phases = min(block_size, spare)
        self.windows = max(1, spare // block_size)  # in an epoch

    def __getitem__(self, t: int) -> tuple[Tensor, Tensor]:
        """Returns idx and targets of batch t, (B, T) int64. Targets are idx one token later."""
        sequences = self.windows_at(self.window_starts(t, 1))
        return sequences[:, :-1], sequences[:, 1:]

    def starts(self, epoch: int) -> np.ndarray:
        """Returns the start positions of an epoch's windows, in their random order."""
        phase, order = shuffled(self.seed, epoch, self.phases, self.windows)
        return phase + self.block_size * order

    def window_starts(self, t: int, n: int) -> np.ndarray:
        """Returns the start positions of the windows of n batches from batch t on, (n B,)."""
        numbers = np.arange(t * self.batch_size, (t + n) * self.batch_size)
        epochs, places = np.divmod(numbers, self.windows)
        return np.concatenate(
            [
                self.starts(epoch)[places[epochs == epoch]]
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )

    def windows_at(self, starts: np.ndarray) -> Tensor:
        """Returns the T + 1 tokens after each position in `starts` (N,), (N, T + 1) int64."""
        places = starts[:, None] + np.arange(self.block_size + 1)
        return torch.from_numpy(self.tokens[places].astype(np.int64))

    def stream(self, t: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batch t and all later batches on `device`; several are made in one operation.

        Tokens that fit into the memory of the device are copied there once. Otherwise a thread
        reads them from the disk in advance. In both cases the CPU does not wait for the GPU.
        """
        n = max(1, CUT_AT_ONCE // (self.batch_size * (self.block_size + 1)))
        if len(self.tokens) * self.resident_type().itemsize <= RESIDENT:
            chunks = self.from_device(t, n, device)
        else:
            chunks = ahead(self.from_disk(t, n, device))
        for chunk in chunks:
            for sequences in chunk.view(n, self.batch_size, -1):
                yield sequences[:, :-1], sequences[:, 1:]

    def resident_type(self) -> np.dtype:
        """Returns the type of tokens on a device: torch cannot index all of numpy's types."""
        return np.dtype(np.uint8 if self.tokens.dtype == np.uint8 else np.int32)

    def from_device(self, t: int, n: int, device: torch.device) -> Iterator[Tensor]:
        """Yields the windows of n batches at a time, beginning with batch t, made on the device."""
        tokens = torch.from_numpy(self.tokens.astype(self.resident_type())).to(device)
        window = torch.arange(self.block_size + 1, device=device)
        for first in itertools.count(t, n):
            starts = send(torch.from_numpy(self.window_starts(first, n)), device)
            yield tokens[starts[:, None] + window].long()

    def from_disk(self, t: int, n: int, device: torch.device) -> Iterator[Tensor]:
        """Yields the windows of n batches at a time, beginning with batch t, read from the disk."""
        for first in itertools.count(t, n):
            yield send(self.windows_at(self.window_starts(first, n)), device)


@lru_cache(maxsize=2)  # a batch at the end of an epoch needs two
def shuffled(seed: int, epoch: int, phases: int, windows: int) -> tuple[int, np.ndarray]:
    """Returns the phase of an epoch, below `phases`, and the random order of its windows."""
    random = np.random.default_rng((seed, epoch))
    phase = int(random.integers(phases))
    return phase, random.permutation(windows)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies `tensor` to `device`. It does not wait for a GPU."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def ahead(items: Iterator[Tensor]) -> Iterator[Tensor]:
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

    def train_dataloader(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.trainer is not None  # Lightning sets it before it asks
        return self.batches.stream(self.first, self.trainer.strategy.root_device)

    def transfer_batch_to_device(
        self, batch: tuple[Tensor, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        return batch  # the stream has put it there
