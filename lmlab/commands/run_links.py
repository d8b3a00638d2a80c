"""A temporary folder of links to runs, under names that say what differs among them.

TensorBoard names a run after its folder. Here the folder of a run holds links to its events, and a
file with what HParams and Custom Scalars need: columns for what was varied, and charts.
"""

import io
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, summary_v2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter

from lmlab import files
from lmlab.config.grammar import typed_value
from lmlab.errors import UserError, printable, reason_of
from lmlab.numbers import objectives
from lmlab.runs.code import short
from lmlab.runs.folder import EVENTS, read_metrics
from lmlab.runs.tags import GROUPED, charts
from lmlab.sweeps.labels import parts_of, typed_values, words_of
from lmlab.terminal import tell

LOSSES = ("val/loss", "best/val/loss", "train/loss", "val/bits_per_byte")  # columns of HParams
WORSE = ("diverged", "pruned", "failed")  # what a run that did not finish may have come to
SHORT = 16  # characters of a name that a card of TensorBoard shows
LONGEST = 200  # bytes of a name; a file system takes 255
ADDED = "events.out.tfevents.0000000000.lmlab"  # read before the events of the run itself
BEFORE_ALL = -1  # step of what is added; a resumed run takes back only later ones


@dataclass(frozen=True)
class Listed:
    """A run that is to be shown: where it is, and what is known of it."""

    path: Path
    metrics: Mapping[str, Any]

    @property
    def is_cell(self) -> bool:
        """Whether the run belongs to a sweep."""
        return "cell" in self.metrics

    @property
    def place(self) -> str:
        """The folder whose runs are compared: that of the sweep, or "" for all single runs."""
        return str(self.path.parent) if self.is_cell else ""

    @property
    def started(self) -> float:
        """When the run started, in seconds since 1970, or 0 if it does not say."""
        noted = self.metrics.get("started")
        return noted if isinstance(noted, int | float) else 0

    @property
    def typed(self) -> dict[str, str]:
        """The values that a person or a sweep gave to keys, but for names and places."""
        if self.is_cell:
            words = parts_of(str(self.metrics.get("label", "")))
        else:
            words = words_of(str(self.metrics.get("command", "")))
        return typed_values(words)

    @property
    def group(self) -> tuple[str, str]:
        """What is equal for runs that differ in their seed alone."""
        group = self.metrics.get("group") or str(self.path)
        return str(group), str(self.metrics.get("code_sha256"))


def varied(runs: Sequence[Listed]) -> list[str]:
    """Returns the keys that do not have the same value in all runs; the seed is the last one."""
    keys: dict[str, None] = {}
    for run in runs:
        keys |= dict.fromkeys(run.typed)
    differing = [key for key in keys if len({run.typed.get(key) for run in runs}) > 1]
    return sorted(differing, key=lambda key: key == "seed")


def values_of(run: Listed, keys: Iterable[str]) -> list[str]:
    """Returns the values of some keys as they were typed, the name of a model without its key."""
    return [f"{key}={run.typed[key]}".removeprefix("model=") for key in keys if key in run.typed]


def name_of(run: Listed, keys: Iterable[str], times: Sequence[str]) -> str:
    """Returns the name of a run from the varied keys. A single run has also its name and time.

    `times` are the names of the folders of all single runs, of which the common day is left out.
    """
    parts = values_of(run, keys)
    if run.is_cell:
        return " ".join(parts) or run.path.parent.name
    folder, time = run.path.parent.name, run.path.name
    parts = [part for part in parts if part != folder]
    if len({moment[:10] for moment in times}) == 1 and len(time) > 11:
        time = time[11:]
    return " ".join([folder, *parts, time])


def named(runs: Sequence[Listed]) -> dict[str, Listed]:
    """Returns the runs by names to read, each name once, in the order in which they started.

    Names that a card would cut begin with a number, by which their runs are told apart.
    """
    places = {run.place for run in runs}
    times = [run.path.name for run in runs if not run.is_cell]
    found: dict[str, Listed] = {}
    for place in sorted(places):
        here = [run for run in runs if run.place == place]
        here.sort(key=lambda run: (run.started, str(run.path)))
        keys = varied(here)
        names = [name_of(run, keys, times) for run in here]
        needs_numbers = len(here) > 1 and max(map(len, names)) > SHORT
        digits = max(2, len(str(len(here))))
        for n, (run, name) in enumerate(zip(here, names, strict=True), start=1):
            if needs_numbers:
                name = f"{n:0{digits}} {name}"
            name = as_file_name(name) or "run"
            if len(places) > 1 and run.is_cell:
                name = f"{as_file_name(run.path.parent.name) or 'sweep'}/{name}"
            while name in found:
                name += "'"
            found[name] = run
    return found


def as_file_name(name: str) -> str:
    """Returns a name that any file system takes, "" if nothing of it can be kept."""
    plain = re.sub(r"[/\0]", "_", printable(name)).encode()[:LONGEST]
    return plain.decode(errors="ignore").strip(". ")


class RunLinks:
    """Keeps links to the runs in and below some `folders`, in the folder `view`."""

    def __init__(self, folders: Sequence[Path], view: Path) -> None:
        self.folders = folders
        self.view = view
        self.written: dict[str, tuple[Path, bytes]] = {}  # by name: a run, and what was added to it
        self.ended: dict[Path, tuple[int, Listed]] = {}  # with the time of metrics.json
        self.said: set[str] = set()  # what is left out, and why

    def refresh(self) -> None:
        """Adds links to new runs and events, and removes those to runs that are gone.

        TensorBoard reads the added file once. If it must change, the links are removed now, and made
        anew at the next call.
        """
        runs = named([run for path in self.paths() if (run := self.listed(path))])
        columns = columns_of([*runs.values()])
        groups = group_names(runs, columns)
        wanted = {
            name: (run.path, records(run, columns, groups[run.group])) for name, run in runs.items()
        }
        stale = {name for name, found in self.written.items() if wanted.get(name) != found}
        for name in stale:
            shutil.rmtree(self.view / name, ignore_errors=True)
            del self.written[name]
        for name, (path, content) in wanted.items():
            if name not in stale:
                self.link(name, path, content)

    def link(self, name: str, run: Path, added: bytes) -> None:
        """Makes the folder of a run, or adds to it the events that are new."""
        folder = self.view / name
        folder.mkdir(parents=True, exist_ok=True)
        if name not in self.written:
            files.write(folder / ADDED, added)
            self.written[name] = (run, added)
        for events in run.glob(EVENTS):
            with suppress(FileExistsError):
                (folder / events.name).symlink_to(events.absolute())

    def paths(self) -> list[Path]:
        """Returns the folders of all runs that have events."""
        found = {
            config.parent
            for folder in self.folders
            for config in files.named_below(folder, "config.yaml", self.leave_out)
            if next(config.parent.glob(EVENTS), None)
        }
        return sorted(found)

    def listed(self, path: Path) -> Listed | None:
        """Returns a run; None if its metrics.json cannot be read, which is said once.

        One that has ended is read again if it was written since: it may go on.
        """
        try:
            written = (path / "metrics.json").stat().st_mtime_ns
            ended = self.ended.get(path)
            if ended and ended[0] == written:
                return ended[1]
            run = Listed(path, read_metrics(path))
        except (UserError, OSError) as error:
            self.leave_out(f"{path}: {reason_of(error)}")
            return None
        if run.metrics.get("status") in ("finished", *WORSE):
            self.ended[path] = written, run
        return run

    def leave_out(self, why: object) -> None:
        """Says once that a run or a folder is left out, and why."""
        if str(why) not in self.said:
            self.said.add(str(why))
            tell(f"left out      {why}")


def columns_of(runs: Sequence[Listed]) -> api_pb2.Experiment:
    """Returns the columns of HParams: what was varied, but for the seed, and then the losses."""
    places: dict[str, list[Listed]] = {}
    for run in runs:
        places.setdefault(run.place, []).append(run)
    keys = dict.fromkeys(key for here in places.values() for key in varied(here))
    typed = dict.fromkeys(key for run in runs for key in run.typed)
    shown = [key for key in keys if key != "seed"] or [key for key in typed if key != "seed"]
    columns = api_pb2.Experiment()
    for key in shown or ["model"]:
        columns.hparam_infos.append(column_of(key, [value_of(run, key) for run in runs]))
    measured = {name for run in runs for name in run.metrics}
    others = [name for name in objectives() if name in measured and name not in GROUPED]
    for name in dict.fromkeys([*LOSSES, *others]):
        columns.metric_infos.add(name=api_pb2.MetricName(tag=name))
    return columns


def column_of(key: str, values: Sequence[str | float]) -> api_pb2.HParamInfo:
    """Returns a column of HParams. The range of numbers is rounded, so that it seldom changes."""
    column = api_pb2.HParamInfo(name=key, type=api_pb2.DATA_TYPE_STRING, differs=True)
    numbers = [value for value in values if not isinstance(value, str)]
    if values and len(numbers) == len(values):
        column.type = api_pb2.DATA_TYPE_FLOAT64
        column.domain_interval.min_value = -rounded_up(-min(numbers))
        column.domain_interval.max_value = rounded_up(max(numbers))
    else:
        column.domain_discrete.extend(sorted({text_of(value) for value in values}))
    return column


def rounded_up(number: float) -> float:
    """Returns the next power of ten, also of a negative number."""
    if number == 0:
        return 0.0
    power = math.log10(abs(number))
    if number > 0:
        return 10.0 ** math.ceil(power)
    return -(10.0 ** math.floor(power))


def value_of(run: Listed, key: str) -> str | float:
    """Returns the value of a key, a number if it is one; "null" for one that the run has not."""
    value = run.metrics.get(f"config/{key}", run.typed.get(key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return text_of(value)


def text_of(value: object) -> str:
    """Returns a value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool | float):
        return str(typed_value("", value))
    return printable(str(value))


def group_names(
    runs: Mapping[str, Listed], columns: api_pb2.Experiment
) -> dict[tuple[str, str], str]:
    """Returns what HParams calls each group of runs that differ in their seed alone."""
    keys = [column.name for column in columns.hparam_infos]
    found: dict[tuple[str, str], str] = {}
    for name, run in runs.items():
        if run.group in found:
            continue
        shown = name
        if run.is_cell:
            shown = " ".join(values_of(run, keys)) or run.path.parent.name
        if shown in found.values():
            shown += f" {run.group[0]} {short(run.group[1])}"
        shown = printable(shown)
        found[run.group] = shown
    return found


def records(run: Listed, columns: api_pb2.Experiment, group: str) -> bytes:
    """Returns what is added to the events of a run: its hyper-parameters, the columns, the charts."""
    status = run.metrics.get("status")
    if status in WORSE:
        group = f"{group} {status}"  # else its last loss would be part of a mean
    values = {}
    for column in columns.hparam_infos:
        value = value_of(run, column.name)
        is_number = column.type == api_pb2.DATA_TYPE_FLOAT64
        values[column.name] = value if is_number else text_of(value)
    summaries = [
        summary_v2.hparams_pb(values, group, start_time_secs=run.started),
        experiment(columns),
        Summary(value=[charts()]),
    ]
    events = [Event(file_version="brain.Event:2")]
    events += [Event(step=BEFORE_ALL, summary=summary) for summary in summaries]
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return content.getvalue()


def experiment(columns: api_pb2.Experiment) -> Summary:
    """Returns the columns of HParams as an entry of an events file."""
    content = metadata.create_summary_metadata(HParamsPluginData(experiment=columns))
    value = Summary.Value(
        tag=metadata.EXPERIMENT_TAG, metadata=content, tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])
