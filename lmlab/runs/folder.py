"""A run's folder: writes config.yaml, metrics.json, history.jsonl, train.log; reads them back.

`RunDirectory` writes it; the functions read it. A folder may come from a stranger, so its content
is parsed, checked and limited in size, and never executed.
"""

import itertools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TextIO, TypeGuard

import yaml
from rich.console import Console

from lmlab import files, plugins
from lmlab.catalogue import CATALOGUE
from lmlab.config.check import Config, check_value, from_flat
from lmlab.config.keys import (
    CHOICES,
    GROUPS,
    choices_of,
    config_class,
    keys_of,
    neutral_values,
)
from lmlab.data import subwords
from lmlab.data.tokenizers import Tokenizer, from_json
from lmlab.errors import OwnCodeError, UserError, printable
from lmlab.notebook import plain_console
from lmlab.numbers import numbers_where
from lmlab.register import is_own
from lmlab.runs import hugging_face
from lmlab.runs.code import plugins_of
from lmlab.runs.typed import command
from lmlab.terminal import tell

WEIGHTS = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")
LIMITS = {  # bytes
    "config.yaml": 2**16,
    "source.yaml": 2**16,
    "tokenizer.json": subwords.LIMIT,
    "metrics.json": 2**20,
    "history.jsonl": 2**32,
    "evaluations.jsonl": 2**24,
}


WARNINGS = " | "  # between two of them in metrics.json
LARGEST = sys.float_info.max  # larger whole numbers are no floats
ENDINGS = (".yaml", ".json", ".jsonl", ".ckpt", ".log", ".sha256")  # of files, never of folders
READ_PATHS = ("path", "tokenizer_path", "init_from")  # keys with paths that a run has read
TIME = "%Y-%m-%d_%H-%M-%S"  # in the name of a run's folder
EVENTS = "events.out.tfevents.*"  # TensorBoard's files in the folder of a run

# A line of config.yaml: no nesting, no reference, no tag, with which a few bytes of YAML can become
# many, or take hours to parse.
PLAIN_LINE = r"('?)(\w+)\1: [^ \t\[{&*!|>%@`].*"  # YAML quotes a key such as on
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where PyYAML has it


class RunDirectory:
    """The folder of a run that is being trained, and its lock.

    The lock is held until `close` or the end of the process. Raises UserError if another process
    holds it, or if history.jsonl is missing.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "history.jsonl").exists():
            raise UserError(f"{path / 'history.jsonl'}: is missing")
        self.typed = path  # as messages have it
        self.path = path.absolute()  # a person's own code may change the working folder
        self.opened = ExitStack()
        try:
            # A status check of another process holds the lock for a moment only.
            self.opened.enter_context(files.lock(path / "train.log", wait=0.1))
        except files.Locked:
            raise UserError(f"{path}: another process is using this run") from None
        self.log = self.open_to_append("train.log")
        self.history = self.open_to_append("history.jsonl")
        self.console = plain_console(soft_wrap=True)
        self.metrics: dict[str, Any] = {}

    def open_to_append(self, name: str) -> TextIO:
        """Opens a file to append lines, each written at once. `close` closes the file."""
        file = open(self.path / name, "a", buffering=1, encoding="utf-8", errors=files.HALVES)
        return self.opened.enter_context(file)

    @classmethod
    def create(
        cls,
        path: Path,
        noted: Mapping[str, Any],
        tokenizer: Tokenizer,
        facts: dict[str, Any],
        source: Mapping[str, Any] | None = None,
    ) -> Self:
        """Creates a run's folder at `path`, or at the next free name: all of it or nothing.

        config.yaml holds `noted`, and metrics.json begins with `facts`; `source` is the
        content of config.yaml of the run that gave the weights. Raises UserError.
        """
        above = [folder for folder in path.parents if not folder.exists()]
        path = new_folder(path)
        with ExitStack() as undo:
            for folder in reversed(above):
                undo.callback(remove_if_empty, folder)
            undo.callback(shutil.rmtree, path)
            (path / "history.jsonl").touch()
            directory = cls(path)
            undo.callback(directory.close)
            files.write_sealed(path / "tokenizer.json", tokenizer.to_json().encode())
            directory.update(**facts)
            if source:
                write_config(path, source, "source.yaml")
            write_config(path, noted)  # the last one: a folder without it is no run
            undo.pop_all()
        return directory

    def rewind(self, history_bytes: int, events: Mapping[str, Any] | None) -> None:
        """Removes what was written after a checkpoint, and temporary files of a killed process.

        `history_bytes` is the length of history.jsonl at the checkpoint, and `events` holds the
        lengths of TensorBoard's files by name, if the checkpoint tells them.
        """
        self.history.truncate(history_bytes)
        if events is not None:
            sizes = {path.name: path.stat().st_size for path in self.path.glob(EVENTS)}
            for name, size in sizes.items():
                length = events.get(name, 0)
                if isinstance(length, int) and 0 <= length < size:
                    os.truncate(self.path / name, length)
            for name in sorted({str(name) for name in events} - {*sizes}):
                self.warn(
                    f"{name}: is missing; TensorBoard shows what comes from here on, and history.jsonl "
                    "has all numbers"
                )
        for temporary in self.path.rglob(f".*.{'?' * 32}"):
            temporary.unlink()

    def check_history(self, history_bytes: int) -> None:
        """Raises UserError if history.jsonl is shorter than it was at the checkpoint."""
        if history_bytes > os.fstat(self.history.fileno()).st_size:
            raise UserError(
                f"{self.typed / 'history.jsonl'}: is shorter than when the checkpoint was made"
            )

    def say(self, text: str) -> None:
        """Writes a line to the terminal and to train.log."""
        text = printable(text)
        self.console.print(text)
        self.log.write(text + "\n")

    def warn(self, text: str) -> None:
        """Writes that something failed which the run does not need.

        That is to stderr, to train.log and, each text once, to the next metrics.json.
        """
        text = printable(text)
        print(f"warning: {text}", file=sys.stderr)
        self.log.write(f"warning: {text}\n")
        known = warnings_of(self.metrics)
        if text not in known:
            self.metrics["warnings"] = WARNINGS.join([*known, text])

    def record(self, /, **values: Any) -> None:
        """Adds a line to history.jsonl."""
        self.history.write(to_json(values) + "\n")

    def settle(self) -> dict[str, Any]:
        """Waits until history and events are on disk; returns their lengths, as `rewind` needs."""
        self.history.flush()
        events = {}
        for path in (self.path / "history.jsonl", *self.path.glob(EVENTS)):
            with open(path, "rb") as file:
                files.sync(file.fileno())
                events[path.name] = os.fstat(file.fileno()).st_size
        return {"history_bytes": events.pop("history.jsonl"), "events": events}

    def update(self, **values: Any) -> None:
        """Merges `values` into metrics.json. Raises UserError if it cannot be written."""
        if not self.path.is_dir():
            raise UserError(f"{self.typed}: the folder of the run was moved or deleted meanwhile")
        self.metrics |= values
        files.write(self.path / "metrics.json", to_json(self.metrics, indent=2).encode())

    def close(self) -> None:
        """Closes the files and releases the lock."""
        self.opened.close()


class SilentDirectory:
    """What a rank other than 0 has in the place of a RunDirectory: it writes nothing anywhere.

    `path` is the run's folder, from which it reads, and `metrics` what metrics.json has.
    """

    def __init__(self, path: Path, metrics: dict[str, Any]) -> None:
        self.typed = path
        self.path = path.absolute()
        self.metrics = metrics
        self.console = Console(quiet=True)

    def say(self, text: str) -> None:
        """Does nothing, as all others."""

    def warn(self, text: str) -> None: ...

    def record(self, /, **values: Any) -> None: ...

    def settle(self) -> dict[str, Any]:
        """Returns lengths of no files."""
        return {"history_bytes": 0, "events": {}}

    def update(self, **values: Any) -> None: ...

    def close(self) -> None: ...


AnyDirectory = RunDirectory | SilentDirectory


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """Returns what a run has warned of, from its metrics.json."""
    noted = metrics.get("warnings")
    return noted.split(WARNINGS) if isinstance(noted, str) else []


def remove_if_empty(folder: Path) -> None:
    """Removes a folder, unless another run has meanwhile begun in it."""
    with suppress(OSError):
        folder.rmdir()


def new_folder(path: Path) -> Path:
    """Creates a folder at `path` or the next free name, and returns it. Raises UserError."""
    reason = files.obstacle(path.parent)
    if reason:
        raise UserError(f"{path}: the folder of the run cannot be made: {reason}")
    name = path.name
    for n in itertools.count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = path.with_name(f"{name}-{n}")
        except OSError as error:
            raise UserError(
                f"{path}: the folder of the run cannot be made ({error.strerror})"
            ) from None
    return path


def to_json(values: dict[str, Any], indent: int | None = None) -> str:
    """Returns JSON, with null in place of NaN and infinity."""
    finite = dict(values)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            finite[key] = None
    return json.dumps(finite, allow_nan=False, indent=indent)


def timestamp() -> str:
    """Returns the folder name of a run that starts now."""
    return datetime.now().strftime(TIME)


def write_config(path: Path, noted: Mapping[str, Any], name: str = "config.yaml") -> None:
    """Writes `Config.as_saved` into the folder `path`. Raises UserError."""
    files.write_sealed(path / name, to_yaml(noted).encode())


class FlatDumper(yaml.SafeDumper):
    """Writes each value in one line."""


def represented(dumper: FlatDumper, text: str) -> yaml.ScalarNode:
    """Returns a text as YAML writes it: in double quotes, which escape them, if it has ends of lines."""
    has_ends = text.splitlines() not in ([], [text])
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if has_ends else None)


FlatDumper.add_representer(str, represented)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Returns keys and values in YAML, each in one line."""
    return yaml.dump(
        dict(values), Dumper=FlatDumper, sort_keys=False, allow_unicode=True, width=2**30
    )


def newest(path: Path, key: str = "run", holding: Sequence[str] = WEIGHTS) -> Path:
    """Returns the newest run, at `path` or in a folder below it, that holds the first of some files.

    If no run holds the first, it is the newest that holds the second, and so on. The newest is the
    one that started last, also if others were copied or moved later. Raises UserError if there is
    none; the message names `key`.
    """
    if hugging_face.is_foreign(path):
        return path
    found = files.named_below(path, "config.yaml", lambda why: tell(f"left out: {why}"))
    folders = [config.parent for config in found]
    for file in holding:
        complete = [folder for folder in folders if (folder / file).exists()]
        if complete:
            return max(complete, key=started_at)
    if folders:
        raise UserError(
            f"{key}={path}: the run there has none of {', '.join(holding)}, as one that never began, or "
            "one from an archive without checkpoints"
        )
    check_outside(key, path)
    raise UserError(f"{key}={path}: no trained run there; {command('train')} makes one")


def check_outside(key: str, path: Path) -> None:
    """Raises UserError if `path` is a file of a run, or in one, where the folder of a run is needed."""
    for folder in path.parents:
        if all((folder / name).is_file() for name in ("config.yaml", "tokenizer.json")):
            raise UserError(f"{key}={path}: is a part of a run; needs its folder: {key}={folder}")


def started_at(run: Path) -> tuple[float, int]:
    """Returns when a run started: in seconds, and the time in ns, which a copy need not keep."""
    tokenizer = run / "tokenizer.json"  # written once, at the start
    return noted_start(run), tokenizer.stat().st_mtime_ns if tokenizer.exists() else 0


def noted_start(run: Path) -> float:
    """Returns when a run started, in seconds since 1970, or 0 if nothing tells.

    Runs of before version 0.2 did not note it. TensorBoard has the second in the name of its first
    file; the name of the folder has it in local time.
    """
    try:
        noted = read_metrics(run).get("started")
    except UserError:
        noted = None
    if isinstance(noted, int | float):
        return noted
    names = [path.name.split(".")[3] for path in run.glob(EVENTS)]
    seconds = [int(name) for name in names if name.isdecimal()]
    if seconds:
        return min(seconds)
    try:
        return datetime.strptime(run.name[: len("2026-11-22_10-00-00")], TIME).timestamp()
    except ValueError:  # the folder of a cell, or one that was renamed
        return 0


def read_config(path: Path, name: str = "config.yaml") -> Config:
    """Returns the configuration of the run at `path`.

    Raises UserError for a file that the lab would not have written.
    """
    if hugging_face.is_foreign(path):
        return hugging_face.read_config(path)
    refuse_links(path)
    content = files.read_sealed(path / name, LIMITS[name])
    values: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    try:
        values = parse_plain_yaml(content)
        choices = {group: values.pop(group, neutral_values().get(group)) for group in CHOICES}
        bases = {}
        for group in GROUPS:
            base = values.pop(f"{group}_base", None)  # of a preset, since version 0.2
            if base is None:
                check_value(group, choices[group], Literal[*choices_of(group)])
            else:
                check_value(f"{group}_base", base, Literal[*CATALOGUE[group]])
                check_value(group, choices[group], str)
                bases[group] = base
        for key in READ_PATHS if name == "config.yaml" else ():
            if isinstance(values.get(key), str):
                values[key] = place_seen_from_here(path, values[key])
        return from_flat(values, choices, bases)
    except (UserError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = f"{path / name}: {' '.join(str(error).split())}"
        named = re.search(rb"^plugin: (?!null)(.+)$", content, re.MULTILINE)
        if named:
            key = error.key if isinstance(error, UserError) else ""
            missing = {key} - {*values}
            why += of_plugin(named[1].decode(errors="replace"), choices, missing, path)
        raise UserError(why) from None


def of_plugin(plugin: str, choices: Mapping[str, Any], missing: set[str], path: Path) -> str:
    """Returns what to do about the run at `path` that cannot be read, and was made with a plug-in.

    If a choice of the lab's own has one of the `missing` keys, the plug-in's had the same name.
    """
    for group in GROUPS:
        choice = choices.get(group)
        if choice not in CATALOGUE[group] or is_own(group, choice):
            continue
        if missing & {*keys_of(config_class(group, choice))}:
            return (
                f"; {group}={choice} was a choice of plugin={plugin} when the run was made, and is "
                "the lab's own now, so only the lab of that time opens it"
            )
    if plugins.names() is None:
        return f"; the run was made with plugin={plugin}, name it"
    with suppress(UserError):
        if plugins_of(read_metrics(path)) != plugins.sha256():
            return f"; the run was made with other code of plugin={plugin}"
    return ""


def place_seen_from_here(run: Path, noted: str) -> str:
    """Returns a path that a run has read, as it is seen from the working folder of this process.

    `noted` may be relative to the folder in which the run was started. If nothing is there, `noted`
    is returned.
    """
    try:
        started_in = read_metrics(run).get("working_folder")
    except UserError:  # it is looked at later, by whoever needs it
        return noted
    if not isinstance(started_in, str) or started_in == os.getcwd():
        return noted
    from_there = os.path.join(started_in, noted)
    is_pattern = any(char in noted for char in "*?[") and os.path.isdir(started_in)
    if noted.startswith("~") or not (os.path.exists(from_there) or is_pattern):
        return noted
    return from_there


def refuse_links(path: Path, but: Path | None = None) -> None:
    """Raises UserError if a folder contains a link or a special file, or a folder for a file.

    What lies in the folder `but`, which nobody reads, may be anything.
    """
    for entry in path.rglob("*"):
        if but is not None and entry.is_relative_to(but):
            continue
        is_folder = entry.is_dir() and entry.suffix not in ENDINGS
        is_plain = entry.is_file() or is_folder or not entry.exists()  # just removed
        if entry.is_symlink() or not is_plain:
            raise UserError(
                f"{entry}: is a link or not a plain file; all files of a run must be in its folder"
            )


def parse_plain_yaml(content: bytes) -> dict[str, Any]:
    """Returns the keys and plain values of a flat YAML file. Raises UserError for other content."""
    seen = set()
    for n, line in enumerate(content.decode().splitlines(), start=1):
        parts = re.fullmatch(PLAIN_LINE, line)
        if not parts:
            raise UserError(f"line {n} is not of the form key: value, with a plain value")
        key = parts[2]
        if key in seen:
            raise UserError(f"line {n}: {key}: is there twice")
        seen.add(key)
    try:
        values = loaded(content) or {}
    except ValueError as error:  # such as a day that no month has
        raise UserError(f"{faulty_line(content.decode())}: {error}") from None
    for key, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{key}: needs a plain value, not {type(value).__name__}")
    return values


def loaded(content: bytes) -> Any:
    """Returns what a YAML file holds, read by the faster loader, where that one can read it.

    It refuses halves of characters, which names of files may have.
    """
    try:
        return yaml.load(content, Loader=FAST)
    except yaml.YAMLError:
        return yaml.safe_load(content)


def faulty_line(text: str) -> str:
    """Returns the first line of a flat YAML file that cannot be read, with its number."""
    for n, line in enumerate(text.splitlines(), start=1):
        try:
            yaml.safe_load(line)
        except ValueError:
            return f"line {n}: {line}"
    return "a line"


def read_tokenizer(path: Path) -> Tokenizer:
    """Returns the tokenizer of the run at `path`. Raises UserError."""
    if hugging_face.is_foreign(path):
        return hugging_face.read_tokenizer(path)
    file = path / "tokenizer.json"
    content = files.read_sealed(file, LIMITS["tokenizer.json"])
    try:
        tokenizer = from_json(content.decode())
    except OwnCodeError:
        raise
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: {error}") from None
    tokenizer.origin = str(file)
    return tokenizer


def read_metrics(path: Path) -> dict[str, Any]:
    """Returns the content of metrics.json. Raises UserError.

    The status "running" is returned as "interrupted" if no process is training the run.
    """
    if hugging_face.is_foreign(path):
        raise hugging_face.lacking(path)
    content = files.read(path / "metrics.json", LIMITS["metrics.json"])
    try:
        metrics = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path / 'metrics.json'}: is damaged, no JSON: {error}; init_from={path} begins a run "
            "with its weights"
        ) from None
    if not is_flat(metrics):
        raise UserError(
            f"{path / 'metrics.json'}: needs one flat JSON object, of texts and finite numbers"
        )
    if metrics.get("status") == "running" and not is_locked(path):
        metrics["status"] = "interrupted"
    return metrics


def is_complete(metrics: Mapping[str, Any], config: Config) -> bool:
    """Returns whether a run has finished, and the losses of counting are known, if it has any."""
    has_references = "reference/uniform" in metrics or config.data.val_fraction == 0
    return metrics.get("status") == "finished" and has_references


def is_flat(values: Any) -> TypeGuard[dict[str, Any]]:
    """Returns whether parsed JSON is one object of texts, finite numbers, true, false and null."""
    if not isinstance(values, dict):
        return False
    for value in values.values():
        if isinstance(value, dict | list):
            return False
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            return False
    return True


def has_losses(point: dict[str, Any]) -> bool:
    """Returns whether all losses in a line of history.jsonl are numbers or null."""
    losses = (point.get(name) for name in numbers_where("in_leaderboard"))
    return all(isinstance(loss, int | float | None) for loss in losses)


def text_sha256(metrics: dict[str, Any], path: Path, key: str = "data_sha256") -> str:
    """Returns the sha256 that the text of the run at `path` must have.

    Raises UserError if metrics.json does not contain it.
    """
    value = metrics.get(key)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise UserError(f"{path / 'metrics.json'}: has no {key}, so the run's own text is unknown")
    return value


def is_locked(path: Path) -> bool:
    """Returns whether a process is training the run."""
    if not (path / "train.log").exists():
        return False
    try:
        with files.lock(path / "train.log", shared=True):
            return False
    except files.Locked:
        return True


def read_history(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of history.jsonl. Raises UserError if the lab did not write one of them.

    It ignores an incomplete last line, which a killed process leaves.
    """
    if hugging_face.is_foreign(path):
        raise hugging_face.lacking(path)
    history = path / "history.jsonl"
    content = files.read(history, LIMITS[history.name]).decode(errors="replace")
    whole_lines = content.split("\n")[:-1]
    points = []
    for n, line in enumerate(whole_lines, start=1):
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            point = None
        is_point = is_flat(point) and type(point.get("step")) is int
        if not is_point or not has_losses(point):
            raise UserError(f"{history}: line {n} was not written by the lab")
        points.append(point)
    return points
