"""From a corpus to batches of token ids: B sequences a batch, T tokens a sequence."""

from functools import lru_cache

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lmlab import corpora, files
from lmlab.config import Config, UserError
from lmlab.tokenizers import CharTokenizer

def token_file(text: str, tokenizer: CharTokenizer) -> np.ndarray:
    """The tokens of `text`, (N,), as a read-only memory map of a file named after the content it was made from:
    changed text is a new file, and of two runs that make one at once the later replaces it by the same bytes.
    """
    content = corpora.sha256((tokenizer.to_json() + text).encode("utf-8", "surrogatepass"))
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    path = files.cache_dir() / "tokens" / f"{content}.{dtype}"
    if not path.exists():
        files.write(path, tokenizer.encode(text).tobytes())
    return np.memmap(path, dtype=dtype, mode="r")

class Batches(Dataset):
    """Batch t is a pure function of (tokens, B, T, seed, t), whatever was asked for before. An epoch lays windows of
    T tokens end to end from a random phase on and serves them in random order; batches run on across the ends of
    epochs. So every token but at most 2T is seen once before any is seen twice.
    """
    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, seed: int) -> None:
        spare = len(tokens) - block_size
        if spare < 1:
            raise UserError(f"block_size={block_size}: needs at least {block_size + 1} characters of training text, "
                            f"here are {len(tokens)}")
        self.tokens, self.batch_size, self.block_size, self.seed = tokens, batch_size, block_size, seed
        self.phases, self.windows = min(block_size, spare), max(1, spare // block_size)
        self.starts = lru_cache(maxsize=2)(self.starts)

    def starts(self, epoch: int) -> np.ndarray:
        """Where an epoch's windows start, in the order in which they are served."""
        random = np.random.default_rng((self.seed, epoch))
        return random.integers(self.phases) + self.block_size * random.permutation(self.windows)

    def __getitem__(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """idx and targets of batch t, each (B, T) int64; targets are idx one token later."""
        epochs, places = np.divmod(np.arange(t * self.batch_size, (t + 1) * self.batch_size), self.windows)
        starts = np.concatenate([self.starts(e)[places[epochs == e]] for e in range(epochs[0], epochs[-1] + 1)])
        pieces = self.tokens[starts[:, None] + np.arange(self.block_size + 1)]
        pieces = torch.from_numpy(pieces.astype(np.int64))
        return pieces[:, :-1], pieces[:, 1:]

class CharDataModule(LightningDataModule):
    """A corpus as training batches, and its parts as token arrays: `splits` train, val and test. `tokenizer` is
    that of the model that shall read it, if there is one. Raises UserError for text that can't be had or divided.
    """
    def __init__(self, config: Config, tokenizer: CharTokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        text = corpora.CORPORA[config.choices["data"]](config.data)
        self.sha256 = corpora.sha256(text.encode("utf-8", "surrogatepass"))
        self.tokenizer = tokenizer or CharTokenizer.from_text(text)
        tokens = token_file(text, self.tokenizer)
        fractions = {"val": config.data.val_fraction, "test": config.data.test_fraction}
        ends = [int(len(tokens) * (1 - share) + 1e-6) for share in (sum(fractions.values()), fractions["test"])]
        self.splits = dict(zip(("train", "val", "test"), np.split(tokens, ends), strict=True))
        for split, fraction in fractions.items():
            if fraction and len(self.splits[split]) < 2:
                raise UserError(f"{split}_fraction={fraction}: of {len(tokens)} characters that is less than two; "
                                "allowed are 0 or a larger share")

    def setup(self, stage: str) -> None:
        """Raises UserError if the training part is too short for `block_size`."""
        run = self.config.run
        self.batches = Batches(self.splits["train"], run.batch_size, self.config.model.block_size, run.seed)

    def train_dataloader(self) -> DataLoader:
        run = self.config.run
        return DataLoader(self.batches, batch_size=None, sampler=range(run.max_steps * run.grad_accumulation))
