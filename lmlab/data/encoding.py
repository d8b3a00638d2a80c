"""Encodes a text, and keeps its tokens in a file of the cache."""

import numpy as np

from lmlab import files, plugins
from lmlab.data.text import Text
from lmlab.data.tokenizers import Tokenizer, UnknownCharacters, all_checked
from lmlab.register import PRESENT


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
    if not files.is_cached(path):
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
