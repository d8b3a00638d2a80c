"""A run's directory: all that sampling, evaluating, resuming and comparing need. What stands in it
is data, maybe a stranger's: it is parsed, checked and limited in size, never executed.
"""

import itertools
import json
import math
import os
import re
import shutil
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TextIO

import yaml
from rich.console import Console

from lmlab import files
from lmlab.catalogue import GROUPS
from lmlab.config.check import Config, check_value, from_flat
from lmlab.config.keys import CHOICES, NEUTRAL, RunConfig, keys_of
from lmlab.data.tokenizers import Tokenizer, from_json
from lmlab.errors import UserError, printable

LIMITS = {
    "config.yaml": 2**16,
    "source.yaml": 2**16,
    "tokenizer.json": 2**25,
    "metrics.json": 2**20,
    # bytes; a vocabulary of all characters there are takes 14 MB
    "history.jsonl": 2**32,
    "evaluations.jsonl": 2**24,
}


PLAIN_LINE = r"\w+: [^ \t\[{&*!|>%@`].*"  # of config.yaml: no nesting, no reference, no tag


class RunDirectory:
    """What a run writes while it runs. Its lock is held until `close` or the process's end, however
    that comes; raises UserError where another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened = ExitStack()
        try:
            # A status check of another process holds the lock for a moment only.
            self.opened.enter_context(files.lock(path / "train.log", wait=0.1))
        except files.Locked:
            raise UserError(f"{path}: another process is at work on this run") from None
        self.log = self.open_to_append("train.log")
        self.history = self.open_to_append("history.jsonl")
        self.console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.metrics: dict[str, Any] = {}

    def open_to_append(self, name: str) -> TextIO:
        file = open(self.path / name, "a", buffering=1, encoding="utf-8")
        return self.opened.enter_context(file)

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        tokenizer: Tokenizer,
        facts: dict[str, Any],
        source: Config | None = None,
    ) -> Self:
        """A new one at `path` or the next free name. `facts` is what metrics.json begins with,
        `source` the configuration of the run whose weights it starts from.
        """
        name = path.name
        for n in itertools.count(2):
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                path = path.with_name(f"{name}-{n}")
            except OSError as error:
                raise UserError(
                    f"{path}: the run's folder can't be made ({error.strerror})"
                ) from None
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, path)
            directory = cls(path)
            undo.callback(directory.close)
            files.write_sealed(path / "tokenizer.json", tokenizer.to_json().encode())
            directory.update(**facts)
            if source:
                write_config(path, source, "source.yaml")
            write_config(path, config)  # the last of them: what has none is no run
            undo.pop_all()
        return directory

    def rewind(self, history_bytes: int) -> None:
        """Forgets what was noted behind a checkpoint, and what a killed process had only begun to
        write.
        """
        if history_bytes > os.fstat(self.history.fileno()).st_size:
            raise UserError(
                f"{self.path / 'history.jsonl'}: is shorter than when the checkpoint was made"
            )
        self.history.truncate(history_bytes)
        for begun in self.path.rglob(f".*.{'?' * 32}"):
            begun.unlink()

    def say(self, text: str) -> None:
        """A line for the terminal and train.log."""
        text = printable(text)
        self.console.print(text)
        self.log.write(text + "\n")

    def record(self, **values: Any) -> None:
        """A line for history.jsonl."""
        self.history.write(to_json(values) + "\n")

    def settle(self) -> int:
        """Waits until all that was noted is on disk; returns the length of history.jsonl."""
        self.history.flush()
        for path in (self.path / "history.jsonl", *self.path.glob("events.out.tfevents.*")):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        return os.fstat(self.history.fileno()).st_size

    def update(self, **values: Any) -> None:
        """Merges `values` into metrics.json."""
        self.metrics |= values
        files.write(self.path / "metrics.json", to_json(self.metrics, indent=2).encode())

    def close(self) -> None:
        self.opened.close()


def to_json(values: dict[str, Any], **options: Any) -> str:
    """JSON in which a number that is not finite is null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
    return json.dumps(finite, allow_nan=False, **options)


def timestamp() -> str:
    """The name of a run that starts now."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def write_config(path: Path, config: Config, name: str = "config.yaml") -> None:
    content = yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True, width=2**30)
    files.write_sealed(path / name, content.encode())


def newest(path: Path, key: str = "run") -> Path:
    """The run at `path`, or of those below it the one that started last. Raises UserError where
    there is none.
    """

    def started(run: Path) -> int:
        tokenizer = run / "tokenizer.json"  # written once, at the start
        return tokenizer.stat().st_mtime_ns if tokenizer.exists() else 0

    found = [config.parent for config in path.rglob("config.yaml")]
    found = [run for run in found if (run / "checkpoints/last.ckpt").exists()]
    if not found:
        raise UserError(f"{key}={path}: no trained run there; python train.py makes one")
    return max(found, key=started)


def read_config(path: Path, name: str = "config.yaml") -> Config:
    """The configuration of the run at `path`. Raises UserError for what the lab would not have
    written.
    """
    for entry in path.rglob("*"):
        if entry.is_symlink() or (entry.exists() and not (entry.is_file() or entry.is_dir())):
            raise UserError(
                f"{entry}: is a link, or no plain file; all that belongs to a run lies in its own folder"
            )
    content = files.read_sealed(path / name, LIMITS[name])
    try:
        for n, line in enumerate(content.decode().splitlines(), start=1):
            if not re.fullmatch(
                PLAIN_LINE, line
            ):  # with which few bytes can become many, or take hours
                raise UserError(f"line {n} is not of the form key: value, with a plain value")
        values = yaml.safe_load(content) or {}
        for key, value in values.items():
            if not isinstance(value, str | int | float | None):
                raise UserError(f"{key}: needs a plain value, not {type(value).__name__}")
        choices = {group: values.pop(group, None) for group in CHOICES}
        for group, parts in GROUPS.items():
            check_value(group, choices[group], Literal[*parts])
        taken = {key for group, parts in GROUPS.items() for key in keys_of(parts[choices[group]])}
        values |= {
            key: value
            for key, value in NEUTRAL.items()
            if key not in values and key in taken | {*keys_of(RunConfig)}
        }
        missing = {*keys_of(RunConfig)} - {*values}
        if missing:
            raise UserError(f"{min(missing)} is missing")
        return from_flat(values, choices)
    except (UserError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path / name}: {' '.join(str(error).split())}") from None


def read_tokenizer(path: Path) -> Tokenizer:
    """The vocabulary of the run at `path`. Raises UserError."""
    content = files.read_sealed(path / "tokenizer.json", LIMITS["tokenizer.json"])
    try:
        return from_json(content.decode())
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{path / 'tokenizer.json'}: {error}") from None


def read_metrics(path: Path) -> dict[str, Any]:
    """metrics.json, in which what no process is at work on is not 'running' but 'interrupted'.
    Raises UserError.
    """
    content = files.read(path / "metrics.json", LIMITS["metrics.json"])
    try:
        metrics = json.loads(content)
        if not isinstance(metrics, dict) or any(
            isinstance(value, dict | list) for value in metrics.values()
        ):
            raise UserError("needs one flat JSON object")
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{path / 'metrics.json'}: {error}") from None
    if metrics.get("status") == "running" and not is_locked(path):
        metrics["status"] = "interrupted"
    return metrics


def text_sha256(metrics: dict[str, Any], path: Path, key: str = "data_sha256") -> str:
    """What the text of the run at `path` has to have. Raises UserError if the run doesn't say."""
    if not re.fullmatch(r"[0-9a-f]{64}", str(metrics.get(key))):
        raise UserError(
            f"{path / 'metrics.json'}: has no {key}, so no text can be taken for the run's own"
        )
    return metrics[key]


def is_locked(path: Path) -> bool:
    """Whether a process is at work on the run."""
    if not (path / "train.log").exists():
        return False
    try:
        with files.lock(path / "train.log", shared=True):
            return False
    except files.Locked:
        return True


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl, without a last one that a kill tore. Raises UserError."""
    name, found = path / "history.jsonl", []
    for n, line in enumerate(
        files.read(name, LIMITS[name.name]).decode(errors="replace").split("\n")[:-1], start=1
    ):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            found.append(None)
        if not isinstance(found[-1], dict) or type(found[-1].get("step")) is not int:
            raise UserError(f"{name}: line {n} is no line of the lab's")
    return found
