"""From a corpus to batches of token ids.

B sequences a batch, T tokens a sequence, N tokens in the training part.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lmlab import corpora, files
from lmlab.config import Config, UserError
from lmlab.tokenizers import CharTokenizer


def token_file(text: str, tokenizer: CharTokenizer) -> np.ndarray:
    """The tokens of `text`, (N,), as a read-only memory map.

    The file is named after the content it was made from, so a second run finds it, changed text is
    a new file, and of two runs that write it at once the later replaces it by the same bytes.
    """
    content = (tokenizer.to_json() + text).encode("utf-8", "surrogatepass")
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    path = files.cache_dir() / "tokens" / f"{corpora.sha256(content)}.{dtype}"
    if not path.exists() or path.stat().st_size != len(text) * dtype.itemsize:
        files.write(path, tokenizer.encode(text).tobytes())
    return np.memmap(path, dtype=dtype, mode="r")


class Batches(Dataset):
    """Batch t is a pure function of (tokens, B, T, seed, t), whatever was asked for before.

    An epoch lays windows of T tokens end to end, from a random phase on, and serves them in a
    random order; batches run on across the ends of epochs. So all tokens but at most 2T are seen
    once before any is seen twice.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int) -> None:
        self.tokens, self.batch_size, self.block_size, self.seed = tokens, batch_size, block_size, seed
        spare = len(tokens) - block_size
        if spare < 1:
            raise UserError(
                f"block_size={block_size}: the training text has {len(tokens)} characters; "
                f"allowed here is at most {len(tokens) - 1}"
            )
        self.phases = min(block_size, spare)
        self.windows = max(1, spare // block_size)
        self.window = np.arange(block_size + 1)
        self.starts = lru_cache(maxsize=2)(self._starts)

    def _starts(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch start, in the order in which they are served."""
        random = np.random.default_rng((self.seed, epoch))
        return random.integers(self.phases) + self.block_size * random.permutation(self.windows)

    def __getitem__(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """idx and targets of batch t, each (B, T) int64; targets are idx one token later."""
        epochs, places = np.divmod(np.arange(t * self.batch_size, (t + 1) * self.batch_size), self.windows)
        starts = np.concatenate([self.starts(e)[places[epochs == e]] for e in range(epochs[0], epochs[-1] + 1)])
        pieces = torch.from_numpy(self.tokens[starts[:, None] + self.window].astype(np.int64))
        return pieces[:, :-1], pieces[:, 1:]


class CharDataModule(LightningDataModule):
    """Characters of a corpus as training batches, and its parts as plain token arrays.

    `tokenizer`: one of another run's, for text that a trained model shall read; default is the
    text's own. Raises UserError for text that can't be had, read, encoded or divided.
    """

    def __init__(self, config: Config, tokenizer: CharTokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        text = corpora.read(config.choices["data"], config.data)
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self.tokenizer = tokenizer or CharTokenizer.from_text(text)
        tokens = token_file(text, self.tokenizer)
        held_out = config.data.val_fraction + config.data.test_fraction
        val_start = int(len(tokens) * (1 - held_out) + 1e-6)
        test_start = int(len(tokens) * (1 - config.data.test_fraction) + 1e-6)
        self.splits = {
            "train": tokens[:val_start],
            "val": tokens[val_start:test_start],
            "test": tokens[test_start:],
        }
        for split in ("val", "test"):
            fraction = getattr(config.data, f"{split}_fraction")
            if fraction and len(self.splits[split]) < 2:
                raise UserError(
                    f"{split}_fraction={fraction}: leaves {len(self.splits[split])} of {len(tokens)} "
                    "characters, too few to predict one from another; allowed are 0, or a share of two and more"
                )
        self.batches = Batches(
            self.splits["train"], config.run.batch_size, config.model.block_size, config.run.seed
        )

    def train_dataloader(self) -> DataLoader:
        total = self.config.run.max_steps * self.config.run.grad_accumulation
        return DataLoader(self.batches, batch_size=None, sampler=range(total), num_workers=0)
