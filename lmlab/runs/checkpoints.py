"""Writes the checkpoints of a run, reads and checks them, and loads them as a model."""

import io
import os
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor

from lmlab import files, machine, plugins
from lmlab.config.check import Config
from lmlab.config.keys import marked, neutral_values
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError, is_out_of_memory
from lmlab.markers import CHANGEABLE, FILLED
from lmlab.models.base import LanguageModel, build_model
from lmlab.runs import hugging_face
from lmlab.runs.code import plugins_of, short
from lmlab.runs.folder import READ_PATHS, newest, read_config, read_metrics, read_tokenizer
from lmlab.terminal import tell

LAB_TYPES = {  # what a checkpoint of the lab holds in addition to Lightning's entries
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
OPTIONAL_TYPES = {  # since version 0.2
    "waiting": dict,
    "events": dict,
    "ended_by_callback": bool,
    "loss_sums": list,
}


LAST = "checkpoints/last.ckpt"
MOST = 2**40  # bytes of a checkpoint, where the model is not known
PLACES = {"state_dict": "the model's state", "optimizer_states": "the optimizer's state"}
# What torch reads without executing code, besides what pickle has signs for.
READABLE: tuple[type, ...] = (Tensor, torch.nn.Parameter, torch.Size, torch.device, torch.dtype)
READABLE += (OrderedDict, Counter, set, complex, bytearray)


class SealedCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints whole or not at all, and refuses changed ones.

    A new `last.ckpt` moves the old `last.ckpt` to `previous.ckpt`. Raises UserError, also for a
    checkpoint that could not be read again; one has at most `limit` bytes. `check` is called with
    each checkpoint as it will be read, before it is written.
    """

    def __init__(
        self, limit: int = MOST, check: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        super().__init__()
        self.limit = limit
        self.check = check

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint with its checksum."""
        path = Path(path)
        sizes = {place: size_of(part, place, path) for place, part in parts_of(checkpoint)}
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        if buffer.tell() > self.limit:
            largest = max(sizes, key=sizes.__getitem__)
            raise UserError(
                f"{path}: is not written, since it would have {buffer.tell():,} bytes, of which "
                f"{largest} has {sizes[largest]:,}; allowed are at most {self.limit:,}"
            )
        if self.check:
            buffer.seek(0)
            self.check(torch.load(buffer, map_location="cpu", weights_only=True))
        if path.name == "last.ckpt" and path.exists():
            files.copy_sealed(path, path.with_name("previous.ckpt"))
        files.write_sealed(path, buffer.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Returns a checkpoint's tensors and plain data, on the CPU. Raises UserError."""
        return read(Path(path))


def parts_of(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the parts of a checkpoint with their places; each callback's state is one."""
    for key, part in checkpoint.items():
        if key == "callbacks":
            yield from (
                (f"the state of the callback {name}", state) for name, state in part.items()
            )
        else:
            yield PLACES.get(key, f"the entry {key}"), part


class PlainPickler(pickle.Pickler):
    """Pickles what `read` takes, and leaves tensors out. Raises TypeError for anything else."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=3)  # it has a sign for bytes and none for frozenset
        self.storages: dict[int, int] = {}  # their bytes, by their place in memory

    def persistent_id(self, value: Any) -> str | None:
        """Returns a name for a tensor, and None for what is pickled as it is."""
        if not isinstance(value, Tensor):
            return None
        check_readable(value)
        if value.layout == torch.strided:
            storage = value.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return "tensor"

    def reducer_override(self, value: Any) -> Any:
        """Says how any other object than plain data is pickled; pickle calls this."""
        check_readable(value)
        return NotImplemented


def check_readable(value: Any) -> None:
    """Raises TypeError for an object, or a class, that torch would not read without its code."""
    if type(value) not in READABLE and not any(value is kind for kind in READABLE):
        raise TypeError(f"{type(value).__name__}: {value!r}"[:80])


def size_of(part: Any, place: str, path: Path) -> int:
    """Returns about how many bytes a part takes. Raises UserError if it could not be read again."""
    buffer = io.BytesIO()
    pickler = PlainPickler(buffer)
    try:
        pickler.dump(part)
    except Exception as error:
        raise UserError(
            f"{path}: is not written, since it could not be read again: {place} holds more than "
            f"tensors, numbers, texts, lists and dicts ({' '.join(str(error).split())})"
        ) from None
    return buffer.tell() + sum(pickler.storages.values())


def read(path: Path, limit: int = MOST) -> dict[str, Any]:
    """Returns a checkpoint's tensors and plain data.

    Raises UserError if the file is damaged, was not written by the lab, contains code, or has more
    than `limit` bytes, and MemoryError if memory runs out.
    """
    content = files.read_sealed(path, limit)
    try:
        entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            # A few compressed bytes could become terabytes.
            raise UserError("compressed, unlike the lab's checkpoints")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not is_complete(checkpoint):
            raise UserError("parts are missing or of the wrong type")
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: contains more than tensors and plain data; nothing was loaded"
        ) from None
    except Exception as error:  # the file can hold anything
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: {error}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not a checkpoint of the lab ({reason})") from None
    return checkpoint


def is_complete(checkpoint: Any) -> bool:
    """Returns whether a checkpoint has all entries of the lab, with the right types.

    It may raise any error if the content is not a checkpoint.
    """
    values = checkpoint["lmlab"]
    types = LAB_TYPES | {key: kind for key, kind in OPTIONAL_TYPES.items() if key in values}
    if not isinstance(checkpoint["state_dict"], dict) or values.keys() != types.keys():
        return False
    if not all(isinstance(values[key], kind) for key, kind in types.items()):
        return False
    if values["step"] < 0 or values["history_bytes"] < 0:
        return False
    if not all(isinstance(number, float) for number in values.get("loss_sums", ())):
        return False
    return all(isinstance(value, str | int | float | None) for value in values["metrics"].values())


def read_for(path: Path, config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a checkpoint that belongs to a run with this configuration and tokenizer.

    Raises UserError, and does so before it reads a file that is too large.
    """
    with torch.device("meta"):
        model = build_model(config.model, tokenizer.vocab_size)
    checkpoint = read(path, model.largest_checkpoint())
    saved = checkpoint["lmlab"]
    for key, value in config.flat().items():
        saved_value = saved["config"].get(key, neutral_values().get(key))
        if isinstance(saved_value, str) and key in marked(FILLED):
            saved_value = os.path.expanduser(saved_value)  # as older versions left it
        may_differ = key in READ_PATHS or key in marked(CHANGEABLE)
        if not may_differ and repr(saved_value) != repr(value):
            raise UserError(
                f"{path}: belongs to another run ({key}={saved_value} there, "
                f"{key}={value} in config.yaml)"
            )
    if saved["tokenizer"] != tokenizer.to_json():
        raise UserError(
            f"{path}: belongs to another run: its vocabulary differs from tokenizer.json"
        )
    weights = weights_of(checkpoint)
    if not model.accepts(weights):
        raise UserError(f"{path}: its weights do not fit config.yaml and tokenizer.json")
    if not all(weights[name].isfinite().all() for name, _ in model.named_parameters()):
        raise UserError(f"{path}: not all of its weights are finite, so the lab did not save them")
    return checkpoint


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the model's `state_dict`; in the checkpoint it is a part of the LightningModule's."""
    state = checkpoint["state_dict"]
    return {str(name).removeprefix("model."): weight for name, weight in state.items()}


def latest(
    path: Path, config: Config, tokenizer: Tokenizer, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Returns the last checkpoint of the run at `path`, or None if there is none.

    If last.ckpt is missing or damaged, previous.ckpt replaces it, and `say` is called with a line about
    it. Raises UserError if both are damaged, or if last.ckpt cannot be read now: it may be whole.
    """
    last = path / LAST
    previous = path / "checkpoints/previous.ckpt"
    if not last.exists() and not previous.exists():
        return None
    try:
        return read_for(last, config, tokenizer)
    except files.Unreadable:
        raise
    except UserError as fault:
        if not previous.exists():
            raise
        try:
            checkpoint = read_for(previous, config, tokenizer)
        except UserError as other:
            hint = ""
            if (path / "checkpoints/best.ckpt").exists():
                hint = f"; a new run can start from its best.ckpt: init_from={path}"
            raise UserError(f"{fault}; {other}{hint}") from None
        say(f"{fault}; continues from previous.ckpt")
        files.copy_sealed(previous, last)
        return checkpoint


@dataclass(frozen=True)
class Run:
    """A trained run: its configuration, its tokenizer, and the model of one checkpoint.

    The precision in `config` is one that this machine supports. A folder of Hugging Face's is
    one, too, but without a text and numbers of its own.
    """

    path: Path
    config: Config
    tokenizer: Tokenizer
    model: LanguageModel
    checkpoint: str  # 'best' or 'last'
    step: int  # after which the weights were written

    @property
    def is_foreign(self) -> bool:
        """Whether it is a folder of Hugging Face's."""
        return hugging_face.is_foreign(self.path)

    @property
    def file(self) -> Path:
        """The file of the weights."""
        if self.is_foreign:
            return self.path / hugging_face.WEIGHTS
        return self.path / f"checkpoints/{self.checkpoint}.ckpt"

    @property
    def sha256(self) -> str:
        """The sha256 of the file of the weights."""
        return files.sha256(self.file.read_bytes())


def load(
    path: str | Path, checkpoint: str | None = None, choice: str = "auto", usual: str = "best"
) -> Run:
    """Returns the newest run at `path`, with its model on the chosen device.

    `checkpoint` is 'last' or 'best', by default the `usual` one, or the other where it is missing:
    the best for want of validation, either in an archive with the other. A best one of before the
    first step gives way to a later last one, which is said, and so is other code of plug-ins.
    Raises UserError.
    """
    path = newest(Path(path))
    check_asked(path, checkpoint)
    asked = checkpoint
    checkpoint = checkpoint or usual
    device = machine.pick(choice)
    config = read_config(path)
    tokenizer = read_tokenizer(path)
    if not (path / f"checkpoints/{checkpoint}.ckpt").exists():
        checkpoint = "last" if checkpoint == "best" else "best"
    if hugging_face.is_foreign(path):
        weights = hugging_face.read_weights(path, config.model, tokenizer.vocab_size)
        step = 0
    else:
        metrics = readable_metrics(path)
        tell_of_other_plugins(path, metrics)
        content = read_for(path / f"checkpoints/{checkpoint}.ckpt", config, tokenizer)
        is_default = asked is None and checkpoint == "best"
        if is_default and is_untrained(content, config) and (path / LAST).exists():
            later = read_for(path / LAST, config, tokenizer)
            if not is_untrained(later, config):
                content, checkpoint = later, "last"
                tell(f"{path}: its best.ckpt is of step 0, before any training; last.ckpt is used")
        weights = weights_of(content)
        step = content["lmlab"]["step"]
        tell_of_no_training(
            path, metrics, f"{checkpoint}.ckpt", step, is_untrained(content, config)
        )
    model = build_model(config.model, tokenizer.vocab_size)
    model.load_state_dict(weights)
    if config.device.precision not in machine.precisions(device):
        config = replace(config, device=replace(config.device, precision="32-true"))
    return Run(path, config, tokenizer, model.to(device).eval(), checkpoint, step)


def readable_metrics(path: Path) -> dict[str, Any]:
    """Returns what metrics.json of the run at `path` says, nothing if it cannot be read.

    Whoever needs its numbers says so; for its weights, lines about what it says can be missing.
    """
    try:
        return read_metrics(path)
    except UserError:
        return {}


def tell_of_other_plugins(path: Path, metrics: dict[str, Any]) -> None:
    """Prints a line if the plug-ins are others than those with which the run at `path` was trained."""
    then = plugins_of(metrics)
    now = plugins.sha256()
    if then and now and then != now:
        print(
            f"warning: {path}: was trained with other code of plug-ins or of what a program registers "
            f"(plugin_sha256 {short(then)}, now {short(now)}), so what it computes may be another",
            file=sys.stderr,
        )


def tell_of_no_training(
    path: Path, metrics: dict[str, Any], file: str, step: int, is_untrained: bool
) -> None:
    """Prints a line if the weights of a run are those of before any training, or if it diverged."""
    of_step = f"{file} is of step {step}"
    if is_untrained:
        of_step += ", before any training"
    if metrics.get("status") == "diverged":
        tell(f"warning: {path}: the run diverged at step {metrics.get('step')}; its {of_step}")
    elif is_untrained:
        tell(f"warning: {path}: its {of_step}")


def is_untrained(checkpoint: dict[str, Any], config: Config) -> bool:
    """Returns whether weights that a run trains from nothing are those of before the first step.

    A model that counts has no steps; its run is over with the first checkpoint.
    """
    entry = checkpoint["lmlab"]
    return config.run.init_from is None and entry["step"] == 0 and not entry["last"]


def check_asked(path: Path, checkpoint: str | None) -> None:
    """Raises UserError if the run at `path` has not the checkpoint that was asked for, if any was."""
    if checkpoint is None:
        return
    if hugging_face.is_foreign(path):
        raise UserError(
            f"checkpoint={checkpoint}: {path} is a folder of Hugging Face's, which has one set of "
            "weights; leave it out"
        )
    if (path / f"checkpoints/{checkpoint}.ckpt").exists():
        return
    if checkpoint == "best":
        raise UserError(
            f"checkpoint=best: {path} has no best.ckpt, which a run without validation does not "
            "write; allowed is last"
        )
    raise UserError(f"checkpoint=last: {path} has no last.ckpt; allowed is best")
