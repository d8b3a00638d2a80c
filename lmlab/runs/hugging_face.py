"""Reads a folder of Hugging Face's that holds a GPT-2, as if it were a run. Nothing is executed.

Such a folder has config.json, model.safetensors and the files of a tokenizer, as the library
transformers saves them. It has no text, no curves and no numbers. The files may be links to plain
files, as in the cache of Hugging Face's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmlab import files
from lmlab.catalogue import GPTConfig
from lmlab.config.check import Config
from lmlab.config.overrides import resolved, typed_value
from lmlab.data import subwords
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError, reason_of

if TYPE_CHECKING:  # a command is checked without torch
    from torch import Tensor

    from lmlab.models.base import LanguageModel

WEIGHTS = "model.safetensors"
LIMIT = 2**20  # bytes of config.json


def is_foreign(path: Path) -> bool:
    """Returns whether a folder is one of Hugging Face's, and no run."""
    return (path / "config.json").exists() and not (path / "config.yaml").exists()


def keys_of(path: Path) -> tuple[GPTConfig, int]:
    """Returns the keys of the model in a folder, and the size of its vocabulary.

    Raises UserError for another model than a GPT-2.
    """
    file = path / "config.json"
    content = files.read(file, LIMIT, follow=True)
    try:
        values = subwords.parsed(content)
        if values.get("model_type") != "gpt2":
            raise UserError(f"model_type={values.get('model_type')!r}: allowed is 'gpt2'")
        from lmlab.models.hugging_face import gpt_config

        return gpt_config(values), values["vocab_size"]
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def read_config(path: Path) -> Config:
    """Returns a configuration with the keys of the model in a folder. Raises UserError."""
    keys, _ = keys_of(path)
    values = {"model": "gpt", "tokenizer": "file", "tokenizer_path": str(path)} | vars(keys)
    try:
        config, _ = resolved([f"{key}={typed_value(key, value)}" for key, value in values.items()])
    except UserError as error:
        raise UserError(f"{path / 'config.json'}: {error}") from None
    return config


def read_tokenizer(path: Path) -> Tokenizer:
    """Returns the tokenizer of a folder. Raises UserError if it is not that of the model."""
    _, vocab_size = keys_of(path)
    tokenizer = subwords.from_file(path)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{path / 'config.json'}: vocab_size={vocab_size}, but its tokenizer has "
            f"{tokenizer.vocab_size} tokens; needs the same number"
        )
    return tokenizer


def read_weights(path: Path, model: LanguageModel) -> dict[str, Tensor]:
    """Returns the weights of a folder by our names. Raises UserError if they do not fit the model.

    The model may be on torch's meta device, so that no memory is filled before they are known to fit.
    """
    from safetensors import safe_open

    from lmlab.models.hugging_face import gpt_weights

    file = path / WEIGHTS
    if not file.is_file():  # or a link to one, as in the cache of Hugging Face's
        reason = "is no plain file" if file.exists() else "is missing"
        raise UserError(
            f"{file}: {reason}; the weights must be in this file, which save_pretrained of "
            "transformers writes"
        )
    weights: dict[str, Tensor] = {}
    try:
        if file.stat().st_size > model.largest_checkpoint():
            raise UserError(f"has {file.stat().st_size:,} bytes, more than the model can have")
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        ours = gpt_weights(weights, model.config.n_layer)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # the file can hold anything
        raise UserError(f"{file}: is no file of weights ({reason_of(error)})") from None
    if not model.accepts(ours):
        raise UserError(f"{file}: its weights do not fit config.json")
    if not all(weight.isfinite().all() for weight in ours.values()):
        raise UserError(f"{file}: not all of its weights are finite")
    return ours


def lacking(path: Path) -> UserError:
    """Returns the error that says what a folder lacks: it has no numbers and no text."""
    return UserError(
        f"{path}: is a model of Hugging Face's, not a run, and has no text or numbers of its own; "
        "needs the name of a text, or the folder of a run"
    )
