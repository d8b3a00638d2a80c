"""Batches of token ids: B sequences a batch, T tokens a sequence."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from lmlab.config.check import Config
from lmlab.data import corpora
from lmlab.data.text import Text, token_file
from lmlab.data.tokenizers import CharTokenizer, UnknownCharacters
from lmlab.errors import UserError

CUT_AT_ONCE = 2**16  # tokens: many batches of a small run, one of a large


RESIDENT = 2**28  # bytes of tokens that may lie on the device


class Batches:
    """Batch t is a pure function of (tokens, B, T, seed, t), whatever was asked for before. An
    epoch lays windows of T tokens end to end from a random phase on and serves them in random
    order; batches run on across the ends of epochs. So every token but at most 2T is seen once
    before any is seen twice.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int) -> None:
        spare = len(tokens) - block_size
        if spare < 1:
            raise UserError(
                f"block_size={block_size}: needs at least {block_size + 1} characters of training text, "
                f"here are {len(tokens)}"
            )
        self.tokens, self.batch_size, self.block_size, self.seed = (
            tokens,
            batch_size,
            block_size,
            seed,
        )
        self.phases, self.windows = min(block_size, spare), max(1, spare // block_size)
        self.starts = lru_cache(maxsize=2)(self.starts)

    def starts(self, epoch: int) -> np.ndarray:
        """Where an epoch's windows start, in the order in which they are served."""
        random = np.random.default_rng((self.seed, epoch))
        return random.integers(self.phases) + self.block_size * random.permutation(self.windows)

    def __getitem__(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """idx and targets of batch t, each (B, T) int64; targets are idx one token later."""
        pieces = self.windows_at(self.places(t, 1))
        return pieces[:, :-1], pieces[:, 1:]

    def places(self, t: int, n: int) -> np.ndarray:
        """Where the windows of n batches from batch t on start, (n B,)."""
        epochs, order = np.divmod(
            np.arange(t * self.batch_size, (t + n) * self.batch_size), self.windows
        )
        return np.concatenate(
            [self.starts(e)[order[epochs == e]] for e in range(epochs[0], epochs[-1] + 1)]
        )

    def windows_at(self, starts: np.ndarray) -> torch.Tensor:
        """The T + 1 tokens from each of them on, int64."""
        return torch.from_numpy(
            self.tokens[starts[:, None] + np.arange(self.block_size + 1)].astype(np.int64)
        )

    def stream(self, t: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batch t and all after it, cut several at a time: from tokens that lie on the device where
        they fit, else from the disk, by a thread that reads ahead. Nothing waits for a GPU.
        """
        n = max(1, CUT_AT_ONCE // (self.batch_size * (self.block_size + 1)))
        kind = (
            np.uint8 if self.tokens.dtype == np.uint8 else np.int32
        )  # torch can't index all of numpy's types
        fits = len(self.tokens) * np.dtype(kind).itemsize <= RESIDENT
        if fits:
            tokens = torch.from_numpy(self.tokens.astype(kind)).to(device)
            window = torch.arange(self.block_size + 1, device=device)

        def sent(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(
                device, non_blocking=True
            )

        def cut(t: int) -> torch.Tensor:
            starts = self.places(t, n)
            pieces = (
                tokens[sent(torch.from_numpy(starts))[:, None] + window].long()
                if fits
                else sent(self.windows_at(starts))
            )
            return pieces.view(n, self.batch_size, -1)

        chunks = map(cut, itertools.count(t, n))
        for pieces in chunks if fits else ahead(chunks):
            yield from ((piece[:, :-1], piece[:, 1:]) for piece in pieces)


def ahead(items: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same items, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items)
        while True:
            item, coming = coming.result(), reader.submit(next, items)
            yield item


class CharDataModule(LightningDataModule):
    """A corpus as training batches from step `start` on, and its parts as token arrays: `splits`
    holdout, train, val, test. `tokenizer` is that of the model that shall read it, if there is one;
    `sha256` what the text has to have. Raises UserError for text that can't be had, read or
    divided, or is another.
    """

    def __init__(
        self, config: Config, tokenizer: CharTokenizer | None = None, sha256: str | None = None
    ) -> None:
        super().__init__()
        self.config, self.start, choice = config, 0, config.choices["data"]
        text = Text(partial(corpora.CORPORA[choice], config.data))
        self.tokenizer, self.sha256 = tokenizer or text.vocabulary, text.sha256
        if sha256 not in (None, self.sha256):
            name = f"{choice} path={config.data.path}" if choice == "file" else choice
            raise UserError(
                f"data={name}: the text is not the one that the run was trained on (sha256 "
                f"{self.sha256[:12]}…, that one had {sha256[:12]}…)"
            )
        try:
            tokens = token_file(text, self.tokenizer, config.run.unknown == "drop")
        except UnknownCharacters as error:
            hint = "; unknown=drop leaves them out" if config.run.init_from else ""
            raise UserError(f"data={choice}: {error}{hint}") from None
        self.dropped = text.length - len(tokens)
        fractions = {
            name: getattr(config.data, f"{name}_fraction") for name in ("holdout", "val", "test")
        }
        held, val, test = (
            fractions.values()
        )  # held at the start: what stands next to val is the best to learn from
        ends = [int(len(tokens) * share + 1e-6) for share in (held, 1 - val - test, 1 - test)]
        self.splits = dict(
            zip(("holdout", "train", "val", "test"), np.split(tokens, ends), strict=True)
        )
        if not len(self.splits["train"]):
            raise UserError(
                f"val_fraction={fractions['val']} test_fraction={fractions['test']} holdout_fraction="
                f"{fractions['holdout']}: of {len(tokens)} characters they leave none to train on; allowed "
                "are smaller shares"
            )
        for split, fraction in fractions.items():
            if fraction and len(self.splits[split]) < 2:
                raise UserError(
                    f"{split}_fraction={fraction}: of {len(tokens)} characters that is less than two; "
                    "allowed are 0 or a larger share"
                )

    def setup(self, stage: str) -> None:
        """Raises UserError if the training part is too short for `block_size`."""
        run = self.config.run
        self.batches = Batches(
            self.splits["train"], run.batch_size, self.config.model.block_size, run.seed
        )

    def train_dataloader(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first = self.start * self.config.run.grad_accumulation
        return self.batches.stream(first, self.trainer.strategy.root_device)  # max_steps ends it

    def transfer_batch_to_device(
        self, batch: tuple[torch.Tensor, torch.Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return batch  # it was cut there
