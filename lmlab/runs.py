"""A run's directory: everything that sampling, evaluating and comparing need, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.plugins import CheckpointIO
from torch import nn

from lmlab import device, files
from lmlab.config import GROUPS, Config, UserError, from_flat
from lmlab.models import build_model
from lmlab.tokenizers import CharTokenizer


class RunDirectory:
    """What a run writes, while it runs. Raises UserError where the folder can't be made."""

    def __init__(self, path: Path, config: Config, tokenizer: CharTokenizer) -> None:
        try:
            self.path = files.fresh_dir(path)
        except OSError as error:
            raise UserError(f"{path}: the run's folder can't be made ({error.strerror})") from None
        files.write(self.path / "config.yaml", yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True))
        files.write(self.path / "tokenizer.json", tokenizer.to_json())
        self.metrics: dict[str, Any] = {}
        self.history = open(self.path / "history.jsonl", "a", buffering=1)

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.ckpt"

    def record(self, **values: float) -> None:
        """A line for history.jsonl."""
        self.history.write(to_json(values) + "\n")

    def update(self, **values: Any) -> None:
        """Merges `values` into metrics.json."""
        self.metrics |= values
        files.write(self.path / "metrics.json", to_json(self.metrics, indent=2) + "\n")


def to_json(values: dict[str, Any], **options: Any) -> str:
    """JSON in which a number that is not finite is null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, allow_nan=False, **options)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, written whole or not at all, with a sha256 beside them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        files.write(Path(path), buffer.getbuffer())
        files.write(Path(f"{path}.sha256"), hashlib.sha256(buffer.getbuffer()).hexdigest() + "\n")

    def load_checkpoint(self, path: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
        """Raises UserError for a file that is damaged, or holds more than tensors and plain data."""
        try:
            content = Path(path).read_bytes()
            if hashlib.sha256(content).hexdigest() != Path(f"{path}.sha256").read_text().strip():
                raise UserError(f"{path}: damaged, its sha256 differs from the one beside it")
            return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
        except OSError as error:
            raise UserError(f"{error.filename}: can't be read ({error.strerror})") from None
        except (RuntimeError, pickle.UnpicklingError, EOFError):
            raise UserError(f"{path}: not a checkpoint of tensors and plain data") from None

    def remove_checkpoint(self, path: str) -> None:
        for name in (path, f"{path}.sha256"):
            Path(name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """A run read back: its configuration, its tokenizer, and the model of one of its checkpoints."""

    path: Path
    config: Config
    tokenizer: CharTokenizer
    model: nn.Module
    checkpoint: str


def load(path: Path, checkpoint: str, device_choice: str = "auto") -> Run:
    """Opens a run directory. `checkpoint`: 'last', or 'best', which is last where nothing validated."""
    path = newest(path)
    config = read_config(path)
    tokenizer = CharTokenizer.from_json((path / "tokenizer.json").read_text())
    if checkpoint == "best" and not (path / "checkpoints" / "best.ckpt").exists():
        checkpoint = "last"
    file = path / "checkpoints" / f"{checkpoint}.ckpt"
    state = AtomicCheckpointIO().load_checkpoint(str(file), "cpu").get("state_dict", {})
    model = build_model(config.model, tokenizer.vocab_size)
    try:
        model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    except RuntimeError:
        raise UserError(f"{file}: its weights don't fit the model that {path / 'config.yaml'} describes") from None
    return Run(path, config, tokenizer, model.to(device.pick(device_choice)).eval(), checkpoint)


def read_config(path: Path) -> Config:
    """The checked configuration of a run directory, read as plain data."""
    try:
        values = yaml.safe_load((path / "config.yaml").read_text())
        choices = {group: values.pop(group) for group in (*GROUPS, "experiment")}
        return from_flat(values, choices)
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from None
    except (yaml.YAMLError, AttributeError, KeyError):
        raise UserError(f"{path / 'config.yaml'}: not a configuration that lmlab wrote") from None


def newest(path: Path) -> Path:
    """`path` if it is a run directory, else the run below it that started last."""
    if (path / "config.yaml").exists():
        return path
    found = [p.parent for p in path.rglob("config.yaml") if (p.parent / "checkpoints").exists()]
    if not found:
        raise UserError(f"run={path}: no run there; python train.py makes one")
    return max(found, key=lambda run: (run / "config.yaml").stat().st_mtime_ns)
