"""A cell of a sweep: one run, which is skipped if it is finished, resumed, or tried again.

The name of a cell's folder holds a hash of its configuration and text. So a second command finds
the same cell, with any launcher, and also if several processes look for it at the same time.
Nothing imports torch before a cell runs.
"""

import hashlib
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab import files, plugins
from lmlab.config.check import Config
from lmlab.config.grammar import parse
from lmlab.config.keys import marked, markers_of, neutral_values
from lmlab.errors import OwnCodeError, UserError, reason_of
from lmlab.markers import ONCE, UNTOUCHING, CountsBeside
from lmlab.runs.code import LIBRARY, UNKNOWN, SameCode, code_of, code_sha256, own_code, short
from lmlab.runs.folder import (
    is_complete,
    is_locked,
    read_config,
    read_metrics,
    to_json,
    write_config,
)
from lmlab.runs.typed import name_the_command

ENDED = ("finished", "diverged", "pruned")  # statuses after which a cell is not run again
LABEL = 150  # characters of a label in a folder's name

SETTLED = 10  # seconds after which no second change of a folder can have the same time
LISTED: dict[Path, tuple[int, dict[str, Path]]] = {}  # when each sweep's folder changed; its cells

# From a step and the numbers of its evaluation: whether the cell shall continue.
Watch = Callable[[int, Mapping[str, float]], bool]


class Busy(Exception):
    """Raised if another process runs the cell."""


@dataclass(frozen=True)
class Sweep:
    """The facts that all cells of one command share.

    `added` are the overrides that come from init_from=, not from the user. `swept` are the keys
    with several values. `same_code` says that it does not matter which code has made a cell.
    `out` is the folder of all runs and sweeps.
    """

    name: str
    command: str
    added: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    same_code: bool = False
    out: str = "outputs"
    library: Path = LIBRARY
    """The library of the command; each process that runs a cell must have imported the same."""

    @property
    def folder(self) -> Path:
        """The folder of the sweep, in which each cell has its own."""
        return files.expanded(self.out) / "sweeps" / self.name

    @property
    def own(self) -> Path:
        """The folder of files that belong to no single cell: locks, logs, Hydra's files."""
        return self.folder / ".sweep"

    def cells(self) -> dict[str, Path]:
        """Returns the folders of the sweep's cells, by their hash.

        They are listed again if the sweep's folder has changed. A list that was made soon after a
        change is not kept: a second change may have the same time.
        """
        listed_at = time.time()
        try:
            changed = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        place = self.folder.absolute()
        known = LISTED.get(place)
        if known and known[0] == changed:
            return known[1]
        by_hash = {}
        for path in sorted(self.folder.glob("*-*"), reverse=True):  # the first name wins
            by_hash[path.name.rpartition("-")[2]] = path
        if listed_at - changed / 1e9 > SETTLED:
            LISTED[place] = changed, by_hash
        return by_hash


@dataclass(frozen=True)
class Cell:
    """A run of a sweep, finished or not.

    `config` has the device, precision and threads that the run gets. `hash` identifies the cell,
    `group` all cells that differ only in their seed. `tokens` and `flops` are of the whole run.
    `beside` is the code of an earlier cell with this configuration, if other code has made it.
    """

    config: Config
    sweep: Sweep
    label: str
    hash: str
    group: str
    data_sha256: str
    n_params: int
    tokens: int
    flops: int
    beside: str | None = None

    def find(self) -> Path:
        """Returns the cell's folder: an existing one with its hash, or the path of a new one.

        An existing folder may have another label, made by a different command. Another process may
        create the folder at any time, so two calls may differ.
        """
        new = self.sweep.folder / f"{self.label[:LABEL]}-{self.hash}"
        return self.sweep.cells().get(self.hash, new)

    @property
    def facts(self) -> dict[str, str]:
        """The entries of the cell's metrics.json about its place in the sweep."""
        return {"cell": self.hash, "group": self.group, "label": self.label}

    @property
    def trial(self) -> str | None:
        """The search's trial that this cell runs, as JSON, or None."""
        return self.config.sweep.trial if self.config.sweep else None

    @property
    def retries(self) -> int:
        """How many more times the cell is tried if it fails."""
        return self.config.sweep.retries if self.config.sweep else 0

    def with_retries(self, retries: int) -> "Cell":
        """Returns a copy of the cell with another number of retries."""
        if self.config.sweep is None:
            return self
        sweep = replace(self.config.sweep, retries=retries)
        return replace(self, config=replace(self.config, sweep=sweep))

    def log_path(self) -> Path:
        """Returns the path of the log file, which holds the output of the cell's process."""
        return self.sweep.own / "logs" / f"{self.find().name}.log"

    def metrics(self) -> dict[str, Any]:
        """Returns the cell's metrics.json, or an empty dict if it is missing or cannot be read."""
        try:
            return read_metrics(self.find())
        except UserError:
            return {}

    def status(self) -> str:
        """Returns the cell's status, or "new" if it has not started."""
        return str(self.metrics().get("status", "new"))

    def made_by(self) -> str:
        """Returns the short hash of the code that made the cell, or "unknown"."""
        return code_of(self.metrics())

    def is_over(self) -> bool:
        """Returns whether the training is over.

        A pruned cell is over only for a search that prunes.
        """
        status = self.status()
        if status == "pruned":
            return self.trial is not None and json.loads(self.trial)["pruner"] != "none"
        return status in ENDED

    def is_done(self) -> bool:
        """Returns whether nothing is left to do.

        Something is, if a signal came while a finished cell counted its references, or if its
        config.yaml was lost.
        """
        metrics = self.metrics()
        if metrics.get("status") == "finished" and not is_complete(metrics, self.config):
            return False
        return self.is_over() and (self.find() / "config.yaml").exists()


def identity(flat: dict[str, Any], sources: dict[str, str]) -> tuple[str, str]:
    """Returns the hash of a run's configuration and sources, and the hash of its group.

    `sources` holds the sha256 of the files that the run reads. The members of a group differ only in
    their seed.
    """
    neutral = neutral_values()
    hashed = {}
    for key, value in flat.items():
        is_neutral = key in neutral and neutral[key] == value
        if key not in marked(UNTOUCHING) and not is_neutral:
            hashed[key] = value
    for key, beside in markers_of(CountsBeside).items():
        if beside.counts(flat) and flat.get(key) != beside.usual:
            hashed[key] = flat.get(key)
    hashed |= sources
    without_seed = {key: value for key, value in hashed.items() if key != "seed"}
    return short_hash(hashed), short_hash(without_seed)


def own_hash(sweep: Sweep, cell_hash: str) -> tuple[str, str | None]:
    """Returns the hash of the cell that the code of this process makes or continues.

    It is `cell_hash`, unless other code has made that cell, or has begun to train it. Then it is a
    hash with the code in it, and the other code is returned as well. Raises UserError if something
    else is in the cell's place.
    """
    code = own_code()
    same = SameCode(sweep.own).equal_to(code)
    path = sweep.cells().get(cell_hash)
    if path and not path.is_dir():
        raise UserError(
            f"{path}: is no folder, or a link to nothing; a cell's folder must be there"
        )
    made_by = maker(path) if path else None
    if made_by and made_by not in same and not sweep.same_code:
        return short_hash({"cell": cell_hash, "code": code}), made_by
    return cell_hash, None


def of_this_code(cell: Cell) -> Cell:
    """Returns the cell that the code of this process makes: another one if other code has begun it.

    Another process may do so at any time.
    """
    own, beside = own_hash(cell.sweep, cell.hash)
    return cell if own == cell.hash else replace(cell, hash=own, beside=beside)


def maker(path: Path) -> str | None:
    """Returns the code that made the run at `path`.

    It returns None if the code is not known, or if the run has made no step.
    """
    try:
        metrics = read_metrics(path)
    except UserError:
        return None
    code = short(metrics.get("code_sha256"))
    has_begun = metrics.get("status") in ENDED or metrics.get("step")
    return code if has_begun and code != UNKNOWN else None


def codes_of(sweep: Sweep) -> set[str]:
    """Returns the codes that made the sweep's cells, as far as they are known."""
    return {code for path in sweep.folder.glob("*/") if (code := maker(path))}


def call_codes_equal(sweep: Sweep) -> None:
    """Writes that all codes of the sweep's cells, and that of this process, are called equal."""
    codes = codes_of(sweep) | {own_code()}
    if len(codes) > 1:
        SameCode(sweep.own).add(codes, sweep.command)


def short_hash(values: dict[str, Any]) -> str:
    """Returns eight hexadecimal digits of the sha256 of `values`."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def label(overrides: list[str], sweep: Sweep) -> str:
    """Returns a run's overrides as part of a folder's name.

    Swept keys come first, and long numbers are shortened.
    """
    hidden = marked(ONCE)
    typed = []
    for text in overrides:
        if text not in sweep.added and parse(text).key_or_group not in hidden:
            typed.append(text)
    typed.sort(key=lambda text: parse(text).key_or_group not in sweep.swept)
    shortened = re.sub(r"\d\.\d{5,}(e-?\d+)?", short_number, ",".join(typed))
    return re.sub(r"[^\w.,=+-]", "_", shortened, flags=re.ASCII)


def short_number(match: re.Match[str]) -> str:
    """Returns a number with four digits."""
    return f"{float(match[0]):.4g}"


@contextmanager
def locked(cell: Cell, patience: float = 0.1) -> Iterator[None]:
    """Holds the cell's lock, so that no other process runs the cell.

    Raises Busy if another process holds it for longer than `patience` seconds. A process that only
    checks the lock holds it for less time. The lock is released when the process ends for any
    reason.
    """
    path = cell.sweep.own / "locks" / cell.hash
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock(path, wait=patience):
            yield
    except files.Locked as locked_file:
        if locked_file.args and locked_file.args[0] == path:
            raise Busy(cell.find()) from None
        raise


def is_busy(cell: Cell) -> bool:
    """Returns whether a process runs the cell, in a sweep or resumed by hand."""
    try:
        with locked(cell, patience=0):
            return is_locked(cell.find())
    except Busy:
        return True


def run(cell: Cell, watch: Watch | None = None) -> str:
    """Runs or resumes a cell until its end; returns its status.

    An error is printed, and written to the cell's folder. Raises Busy, KeyboardInterrupt or
        SystemExit.
    `watch` may end the run early.
    """
    if not os.path.samefile(cell.sweep.library, LIBRARY):  # their paths may be written in two ways
        raise UserError(
            f"this process has imported {LIBRARY}, but the sweep was started with "
            f"{cell.sweep.library}; PYTHONPATH={cell.sweep.library.parent} chooses that one"
        )
    name_the_command(cell.sweep.command)
    with locked(cell):
        path = cell.find()
        if of_this_code(cell) != cell:  # it was begun a moment ago
            raise Busy(path)
        if cell.is_done():
            return cell.status()
        if is_locked(path):  # by a process that resumes it by hand
            raise Busy(path)
        for _ in range(1 + cell.retries):
            try:
                with plugins.own_errors():
                    return attempt(cell, path, watch)
            except Exception as error:
                if isinstance(error, OwnCodeError):
                    error.show()
                    status = fail(cell, str(error))  # with its place
                else:
                    traceback.print_exception(error)
                    status = fail(cell, reason_of(error.__cause__ or error))
        return status


def run_when_free(cell: Cell, watch: Watch | None = None) -> Cell:
    """Does the same as `run`, but first waits while another process runs the cell.

    Returns the cell that was run: not this one if that process has other code.
    """
    while True:
        cell = of_this_code(cell)
        try:
            run(cell, watch)
            return cell
        except Busy:
            time.sleep(0.5)


def attempt(cell: Cell, path: Path, watch: Watch | None) -> str:
    """Tries a cell once, from its last checkpoint if it has one, and returns its status."""
    from lmlab.training import experiment

    command = cell.sweep.command
    if any((path / "checkpoints").glob("*.ckpt")):  # previous.ckpt may stand in for the last
        saved = read_config(path)
        if saved.choices["data"] == cell.config.choices["data"]:
            saved = replace(saved, data=cell.config.data)  # the text may have been moved
        return experiment.resume(path, saved, command, watch)
    if path.exists():  # it ended before its first checkpoint
        shutil.rmtree(path)
    status, _ = experiment.run(cell.config, path, command, cell.data_sha256, cell.facts, watch)
    return status


def fail(cell: Cell, why: str) -> str:
    """Writes to the cell's folder that it failed, and why, and returns "failed".

    The folder is created if it is missing.
    """
    path = cell.find()
    metrics = cell.metrics()
    if not (path / "config.yaml").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_config(path, cell.config.as_saved())
    if not metrics:
        metrics = {
            "step": 0,
            "seed": cell.config.run.seed,
            "n_params": cell.n_params,
            "data_sha256": cell.data_sha256,
            "code_sha256": code_sha256(),
            **cell.facts,
        }
    metrics |= {"status": "failed", "reason": why}
    files.write(path / "metrics.json", to_json(metrics, indent=2).encode())
    return "failed"
