"""The state of a training run on disk: all that its next step depends on, and a model to read it
back into.
"""

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from lmlab import files, machine
from lmlab.config.check import Config
from lmlab.config.keys import CHANGEABLE, NEUTRAL
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.models.base import LanguageModel, build_model
from lmlab.runs.folder import newest, read_config, read_tokenizer

OWN = {  # what a checkpoint of the lab holds beside Lightning's own
    "config": dict,
    "tokenizer": str,
    "data_sha256": str,
    "metrics": dict,
    "history_bytes": int,
    "step": int,
    "last": bool,
    "best": float,
    "train_seconds": float,
    "train_loss": float,
    "loss_sum": float,
    "losses": int,
    "random_state": dict,
}


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all and read only if nothing in them was
    changed. The last `last.ckpt` becomes `previous.ckpt`. Raises UserError.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None
    ) -> None:
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        if path.name == "last.ckpt" and path.exists():
            files.copy_sealed(path, path.with_name("previous.ckpt"))
        files.write_sealed(path, buffer.getvalue())

    def load_checkpoint(
        self, path: Path, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        return read(Path(path))


def read(path: Path, limit: int = 2**40) -> dict[str, Any]:
    """A checkpoint's tensors and plain data. Raises UserError for one that is damaged, foreign, or
    carries code, or has more than `limit` bytes.
    """
    content = files.read_sealed(path, limit)
    try:
        entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(
                "packed; a checkpoint of the lab isn't"
            )  # a few bytes could become terabytes
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        own, state = checkpoint["lmlab"], checkpoint["state_dict"]
        fits = (
            isinstance(state, dict)
            and {*own} == {*OWN}
            and all(isinstance(own[key], OWN[key]) for key in OWN)
        )
        if not fits or not all(
            isinstance(value, str | int | float | None) for value in own["metrics"].values()
        ):
            raise UserError("its parts are not what they should be")
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain data, so nothing of it was loaded"
        ) from None
    except Exception as error:  # whatever somebody has put there
        raise UserError(
            f"{path}: is no checkpoint of the lab ({' '.join(str(error).split())})"
        ) from None
    return checkpoint


def read_for(path: Path, config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """`read`, of a checkpoint that belongs to a run. Raises UserError before anything takes more
    memory than it may.
    """
    with torch.device("meta"):
        asked = build_model(config.model, tokenizer.vocab_size)
    checkpoint = read(path, asked.largest_checkpoint())
    own, state = (
        checkpoint["lmlab"],
        {str(k).removeprefix("model."): w for k, w in checkpoint["state_dict"].items()},
    )
    for key, value in config.flat().items():
        if key not in CHANGEABLE and repr(
            there := own["config"].get(key, NEUTRAL.get(key))
        ) != repr(value):
            raise UserError(
                f"{path}: belongs to another run ({key}={there} there, {key}={value} in config.yaml)"
            )
    if own["tokenizer"] != tokenizer.to_json():
        raise UserError(
            f"{path}: belongs to another run, whose vocabulary is not that of tokenizer.json"
        )
    if not asked.accepts(state):
        raise UserError(
            f"{path}: its weights are not those that config.yaml and tokenizer.json ask for"
        )
    return checkpoint


def latest(
    path: Path, config: Config, tokenizer: Tokenizer, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """What the run at `path` has saved last, None if nothing. previous.ckpt stands in for a
    last.ckpt that is damaged, and takes its place; `say` is told. Raises UserError if both are
    damaged.
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
            raise UserError(
                f"{fault}; {other}; a new run can start from its best.ckpt: init_from={path}"
            ) from None
        say(f"{fault}; going on from previous.ckpt")
        files.copy_sealed(previous, last)
        return checkpoint


@dataclass(frozen=True)
class Run:
    """A run read back, with the model of one of its checkpoints, and the precision that it can have
    here.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    model: LanguageModel
    checkpoint: str

    @property
    def sha256(self) -> str:
        """That of the checkpoint's file."""
        return files.sha256((self.path / f"checkpoints/{self.checkpoint}.ckpt").read_bytes())


def load(path: Path, checkpoint: str = "best", choice: str = "auto") -> Run:
    """Opens the newest run of `path`. `checkpoint`: 'last', or 'best' (last where none validated).
    Raises UserError.
    """
    path, place = newest(path), machine.pick(choice)
    config, tokenizer = read_config(path), read_tokenizer(path)
    checkpoint = checkpoint if (path / f"checkpoints/{checkpoint}.ckpt").exists() else "last"
    state = read_for(path / f"checkpoints/{checkpoint}.ckpt", config, tokenizer)["state_dict"]
    model = build_model(config.model, tokenizer.vocab_size)
    model.load_state_dict({key.removeprefix("model."): weight for key, weight in state.items()})
    if config.device.precision not in machine.precisions(place):
        config = replace(config, device=replace(config.device, precision="32-true"))
    return Run(path, config, tokenizer, model.to(place).eval(), checkpoint)
