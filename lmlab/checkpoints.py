"""The state of a training run on disk: all that its next step depends on, and a model to read it back into."""

import io
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import nn

from lmlab import device, files, runs
from lmlab.config import CHANGEABLE, Config, UserError
from lmlab.models import build_model
from lmlab.tokenizers import CharTokenizer

LIMIT = 2**38  # bytes
OWN = {  # what a checkpoint of the lab holds beside Lightning's own
    "config": dict, "tokenizer": str, "data_sha256": str, "metrics": dict, "history_bytes": int, "step": int,
    "best": float, "train_seconds": float, "train_loss": float, "loss_sum": torch.Tensor, "losses": int,
    "random_state": dict,
}

class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all and read only if nothing in them was changed. The last
    `last.ckpt` becomes `previous.ckpt`. Raises UserError.
    """
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        if path.name == "last.ckpt" and path.exists():
            files.copy_sealed(path, path.with_name("previous.ckpt"))
        files.write_sealed(path, buffer.getvalue())

    def load_checkpoint(self, path: Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read(Path(path))

def read(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain data. Raises UserError for one that is damaged, foreign, or carries code."""
    content = files.read_sealed(path, LIMIT)
    try:
        entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError("packed; a checkpoint of the lab isn't")  # a few bytes could become terabytes
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        own, state = checkpoint["lmlab"], checkpoint["state_dict"]
        fits = isinstance(state, dict) and {*own} == {*OWN} and all(isinstance(own[key], OWN[key]) for key in OWN)
        if not fits or not all(isinstance(value, str | int | float | None) for value in own["metrics"].values()):
            raise UserError("its parts are not what they should be")
    except pickle.UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain data, so nothing of it was loaded") from None
    except (UserError, zipfile.BadZipFile, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no checkpoint of the lab ({' '.join(str(error).split())})") from None
    return checkpoint

def read_for(path: Path, config: Config, tokenizer: CharTokenizer) -> dict[str, Any]:
    """`read`, of a checkpoint that belongs to a run. Raises UserError, before a model takes any memory."""
    checkpoint = read(path)
    own, state = checkpoint["lmlab"], {k.removeprefix("model."): w for k, w in checkpoint["state_dict"].items()}
    for key, value in config.flat().items():
        if key not in CHANGEABLE and (there := own["config"].get(key)) != value:
            raise UserError(f"{path}: belongs to another run ({key}={there} there, {key}={value} in config.yaml)")
    if own.get("tokenizer") != tokenizer.to_json():
        raise UserError(f"{path}: belongs to another run, whose vocabulary is not that of tokenizer.json")
    with torch.device("meta"):
        asked = build_model(config.model, tokenizer.vocab_size).state_dict()
    if {name: kind(weight) for name, weight in asked.items()} != {name: kind(weight) for name, weight in state.items()}:
        raise UserError(f"{path}: its weights are not those that config.yaml and tokenizer.json ask for")
    if sum(weight.nbytes for weight in state.values()) > 2 * path.stat().st_size:  # twice: heads may be tied
        raise UserError(f"{path}: its weights would take more memory than the file")
    return checkpoint

def kind(weight: Any) -> tuple[Any, ...] | None:
    return (weight.shape, weight.dtype, weight.layout) if isinstance(weight, torch.Tensor) else None

def latest(path: Path, config: Config, tokenizer: CharTokenizer, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What the run at `path` has saved last, None if nothing. previous.ckpt stands in for a last.ckpt that is damaged,
    and takes its place; `say` is told. Raises UserError if both are damaged.
    """
    last, previous = (path / f"checkpoints/{name}.ckpt" for name in ("last", "previous"))
    if not last.exists() and not previous.exists():
        return None
    try:
        return read_for(last, config, tokenizer)
    except UserError as fault:
        if not previous.exists():
            raise
        try:
            checkpoint = read_for(previous, config, tokenizer)
        except UserError as other:
            raise UserError(f"{fault}; {other}") from None
        say(f"{fault}; going on from previous.ckpt")
        files.copy_sealed(previous, last)
        return checkpoint

def random_state() -> dict[str, Any]:
    """The state of every random generator that a training step could draw on, as plain data."""
    _, keys, *others = np.random.get_state()
    state = {"python": random.getstate(), "numpy": [keys.tolist(), *others], "torch": torch.get_rng_state(),
             "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    return state | ({"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {})

def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    keys, *others = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *others))
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])

@dataclass(frozen=True)
class Run:
    """A run read back, with the model of one of its checkpoints, and the precision that it can have here."""
    path: Path
    config: Config
    tokenizer: CharTokenizer
    model: nn.Module
    checkpoint: str

def load(path: Path, checkpoint: str = "best", choice: str = "auto") -> Run:
    """Opens the newest run of `path`. `checkpoint`: 'last', or 'best' (last where none validated). Raises UserError."""
    path, place = runs.newest(path), device.pick(choice)
    config, tokenizer = runs.read_config(path), runs.read_tokenizer(path)
    checkpoint = checkpoint if (path / f"checkpoints/{checkpoint}.ckpt").exists() else "last"
    state = read_for(path / f"checkpoints/{checkpoint}.ckpt", config, tokenizer)["state_dict"]
    model = build_model(config.model, tokenizer.vocab_size)
    model.load_state_dict({key.removeprefix("model."): weight for key, weight in state.items()})
    if config.device.precision not in device.precisions(place):
        config = replace(config, device=replace(config.device, precision="32-true"))
    return Run(path, config, tokenizer, model.to(place).eval(), checkpoint)
