"""A run's directory: all that sampling, evaluating and comparing need."""

import io
import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric.plugins import TorchCheckpointIO
from rich.console import Console
from torch import nn

from lmlab import device, files
from lmlab.config import CHOICES, Config, UserError, from_flat
from lmlab.corpora import sha256
from lmlab.models import build_model
from lmlab.tokenizers import CharTokenizer

class RunDirectory:
    """What a run writes while it runs, at `path` or the next free name. Raises UserError if it can't."""
    def __init__(self, path: Path, config: Config, tokenizer: CharTokenizer) -> None:
        names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
        try:
            self.path = next(name for name in itertools.chain([path], names) if not name.exists())
            self.path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{path}: the run's folder can't be made ({error.strerror})") from None
        files.write(self.path / "config.yaml", yaml.safe_dump(config.flat(), sort_keys=False).encode())
        files.write(self.path / "tokenizer.json", tokenizer.to_json().encode())
        self.metrics: dict[str, Any] = {}
        self.history, self.log = (open(self.path / name, "a", buffering=1) for name in ("history.jsonl", "train.log"))
        self.console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line for the terminal and train.log."""
        self.console.print(text)
        self.log.write(text + "\n")

    def record(self, **values: float) -> None:
        """A line for history.jsonl."""
        self.history.write(to_json(values) + "\n")

    def update(self, **values: Any) -> None:
        """Merges `values` into metrics.json."""
        self.metrics |= values
        files.write(self.path / "metrics.json", to_json(self.metrics, indent=2).encode())

    def close(self) -> None:
        self.history.close()
        self.log.close()

def to_json(values: dict[str, Any], **options: Any) -> str:
    """JSON in which a number that is not finite is null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, allow_nan=False, **options)

class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written whole or not at all, a sha256 beside them."""
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        files.write(Path(path), buffer.getvalue())
        files.write(Path(f"{path}.sha256"), sha256(buffer.getvalue()).encode())

@dataclass(frozen=True)
class Run:
    """A run read back, with the model of one of its checkpoints, and the precision that it can have here."""
    path: Path
    config: Config
    tokenizer: CharTokenizer
    model: nn.Module
    checkpoint: str

def newest(path: Path) -> Path:
    """The run at `path`, or of those below it the one that started last. Raises UserError where there is none."""
    found = [config for config in path.rglob("config.yaml") if (config.parent / "checkpoints/last.ckpt").exists()]
    if not found:
        raise UserError(f"run={path}: no trained run there; python train.py makes one")
    return max(found, key=lambda config: config.stat().st_mtime_ns).parent

def load(path: Path, checkpoint: str = "best", choice: str = "auto") -> Run:
    """Opens the newest run of `path`. `checkpoint`: 'last', or 'best' (last where none validated). Raises UserError."""
    path = newest(path)
    values, place = yaml.safe_load((path / "config.yaml").read_text()), device.pick(choice)
    config = from_flat(values, {group: values.pop(group) for group in CHOICES})
    if config.device.precision not in device.precisions(place):
        config = replace(config, device=replace(config.device, precision="32-true"))
    tokenizer = CharTokenizer.from_json((path / "tokenizer.json").read_text())
    checkpoint = checkpoint if (path / f"checkpoints/{checkpoint}.ckpt").exists() else "last"
    state = torch.load(path / f"checkpoints/{checkpoint}.ckpt", map_location=place, weights_only=True)["state_dict"]
    model = build_model(config.model, tokenizer.vocab_size)
    model.load_state_dict({key.removeprefix("model."): weight for key, weight in state.items()})
    return Run(path, config, tokenizer, model.to(place).eval(), checkpoint)
