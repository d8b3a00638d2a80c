"""Reads a folder of Hugging Face's that holds a GPT-2, as if it were a run. Nothing is executed.

Such a folder has config.json, model.safetensors and the files of a tokenizer, as the library
transformers saves them. It has no text, no curves and no numbers. The files may be links to plain
files, as in the cache of Hugging Face's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab import files
from lmlab.catalogue import GPTConfig
from lmlab.config.check import Config
from lmlab.config.grammar import typed_value
from lmlab.config.overrides import resolved
from lmlab.data import subwords
from lmlab.data.tokenizer_json import parsed
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError, reason_of, shown

if TYPE_CHECKING:  # a command is checked without torch
    from torch import Tensor

WEIGHTS = "model.safetensors"
LIMIT = 2**20  # bytes of config.json
TYPES = ("F32", "F16", "BF16", "F64")  # of numbers, as a file of weights calls them


def is_foreign(path: Path) -> bool:
    """Returns whether a folder is one of Hugging Face's, and no run."""
    return (path / "config.json").exists() and not (path / "config.yaml").exists()


def keys_of(path: Path) -> tuple[GPTConfig, int]:
    """Returns the keys of the model in a folder, and the size of its vocabulary.

    Raises UserError for another model than a GPT-2.
    """
    from lmlab.models.hugging_face import gpt_config

    file = path / "config.json"
    content = files.read(file, LIMIT, follow=True)
    try:
        values = parsed(content)
        if values.get("model_type") != "gpt2":
            raise UserError(f'model_type={shown(values.get("model_type"))}: allowed is "gpt2"')
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


def read_weights(path: Path, keys: GPTConfig, vocab_size: int) -> dict[str, Tensor]:
    """Returns the weights of a folder by our names. Raises UserError if they do not fit the model.

    The head of the file is compared with what config.json claims before any memory is filled.
    """
    from safetensors import safe_open

    from lmlab.models.hugging_face import full_names, gpt2_shapes, gpt_weights

    file = path / WEIGHTS
    if not file.is_file():  # or a link to one, as in the cache of Hugging Face's
        raise UserError(f"{file}: {why_no_weights(file)}")
    try:
        with safe_open(file, framework="pt") as opened:
            names = full_names(opened.keys(), keys.n_layer)
            shapes = gpt2_shapes(keys, vocab_size)
            for full, name in names.items():
                check_weight(name, opened.get_slice(name), shapes[full])
            theirs = {full: opened.get_tensor(name) for full, name in names.items()}
        ours = gpt_weights(theirs, keys.n_layer)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # the file can hold anything
        raise UserError(f"{file}: is no file of weights ({reason_of(error)})") from None
    if not all(weight.isfinite().all() for weight in ours.values()):
        raise UserError(f"{file}: not all of its weights are finite")
    return ours


def check_weight(name: str, weight: Any, needed: tuple[int, ...]) -> None:
    """Raises UserError unless a weight, of which only the head is read, has this shape and numbers."""
    if weight.get_dtype() not in TYPES:
        raise UserError(f"{name} has the type {weight.get_dtype()}; allowed are {', '.join(TYPES)}")
    shape = tuple(weight.get_shape())
    if shape != needed:
        raise UserError(
            f"its weights do not fit config.json: {name} has the shape {shape}, and config.json "
            f"says {needed}"
        )


def why_no_weights(file: Path) -> str:
    """Returns why a folder has no file of weights, and what to do, from what else is there."""
    writes = f"save_pretrained of transformers writes {WEIGHTS}"
    if file.exists():
        return f"is no plain file; {writes}"
    if file.with_name("pytorch_model.bin").exists():
        return f"is missing; pytorch_model.bin can hold code and is not read; {writes}"
    if file.with_name(f"{WEIGHTS}.index.json").exists():
        return f"is missing; several files of weights are not read; {writes} with max_shard_size"
    return f"is missing; {writes}"


def no_run(typed: str, path: Path) -> UserError:
    """Returns the error that says what to do with a folder that was `typed` where a run is needed."""
    return UserError(
        f"{typed}: is a model of Hugging Face's, not a run; init_from={path} begins a run with its "
        "weights"
    )


def lacking(path: Path) -> UserError:
    """Returns the error that says what a folder lacks: it has no numbers and no text."""
    return UserError(
        f"{path}: is a model of Hugging Face's, not a run, and has no text or numbers of its own; "
        "needs a text (data= of evaluate, text= of explain), or the folder of a run"
    )
