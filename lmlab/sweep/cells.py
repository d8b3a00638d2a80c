"""A cell of a sweep: one run whose folder is named after what it computes. So asking for it again
skips it, goes on with it or tries it again, whichever launcher asks and however many do at once. No
torch before a cell runs.
"""

import fcntl
import hashlib
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmlab import files
from lmlab.catalogue import UNTOUCHING
from lmlab.config.check import Config
from lmlab.config.keys import SweepConfig, keys_of, marked, neutral_values
from lmlab.config.overrides import parse
from lmlab.errors import UserError
from lmlab.runs.folder import is_locked, read_config, read_metrics, to_json, write_config

ENDED = ("finished", "diverged", "pruned")  # of its own


class Busy(Exception):
    """Another process is at work on the cell."""


@dataclass(frozen=True)
class Sweep:
    """What all cells of one command share: among it the overrides that the door added to those
    typed (`beside`), and the keys that were given several values.
    """

    name: str
    command: str
    beside: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path("outputs", "sweeps", self.name)

    @property
    def own(self) -> Path:
        """Where the sweep keeps what belongs to no run: locks, logs, Hydra's notes."""
        return self.folder / ".sweep"


@dataclass(frozen=True)
class Cell:
    """A run to be made. `config` has the device, precision and threads that it gets; `hash` tells
    it from all others, `group` is that of all which differ only in their seed; sizes are those of
    the whole run.
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

    @property
    def path(self) -> Path:
        """Its folder: the one that has its hash, however the command was worded that made it."""
        found = sorted(self.sweep.folder.glob(f"*-{self.hash}"))
        return found[0] if found else self.sweep.folder / f"{self.label[:150]}-{self.hash}"

    @property
    def facts(self) -> dict[str, str]:
        """What its metrics.json says of its place in the sweep."""
        return {"cell": self.hash, "group": self.group, "label": self.label}

    @property
    def log(self) -> Path:
        return self.sweep.own / "logs" / f"{self.path.name}.log"

    def metrics(self) -> dict[str, Any]:
        """What its folder says of it; nothing where there is none yet, or one that can't be read."""
        try:
            return read_metrics(self.path)
        except UserError:
            return {}

    def status(self) -> str:
        return str(self.metrics().get("status", "new"))

    def over(self) -> bool:
        """Whether nothing is left to do. What a search has cut is done for a search that cuts, and
        for nobody else.
        """
        status, trial = self.status(), self.config.sweep and self.config.sweep.trial
        cuts = bool(trial) and json.loads(trial)["pruner"] != "none"
        return status in ENDED and (status != "pruned" or cuts)


def identity(flat: dict[str, Any], data_sha256: str, init_sha256: str | None) -> tuple[str, str]:
    """The hash of a run's configuration and data, and that of its group, whose members differ in
    their seeds.
    """
    neutral = neutral_values()
    touching = {
        key: value
        for key, value in flat.items()
        if key not in marked(UNTOUCHING) and not (key in neutral and neutral[key] == value)
    }
    touching |= {"data_sha256": data_sha256} | ({"init_sha256": init_sha256} if init_sha256 else {})

    def short(values: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]

    return short(touching), short({key: value for key, value in touching.items() if key != "seed"})


def label(overrides: list[str], sweep: Sweep) -> str:
    """The overrides as part of a folder's name: first those that vary, long numbers shortened."""
    hidden = ("name", *keys_of(SweepConfig))
    typed = [
        text
        for text in overrides
        if text not in sweep.beside and parse(text).key_or_group not in hidden
    ]
    typed.sort(key=lambda text: parse(text).key_or_group not in sweep.swept)
    shorter = re.sub(
        r"\d\.\d{5,}(e-?\d+)?", lambda found: f"{float(found[0]):.4g}", ",".join(typed)
    )
    return re.sub(r"[^\w.,=+-]", "_", shorter, flags=re.ASCII)


@contextmanager
def locked(cell: Cell, patience: float = 0.1) -> Iterator[None]:
    """While it is held nobody else runs the cell. Raises Busy if somebody does, and not only asks
    whether somebody does, which takes less than `patience` seconds. Death releases it.
    """
    path, late = cell.sweep.own / "locks" / cell.hash, time.monotonic() + patience
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > late:
                    raise Busy(cell.path) from None
                time.sleep(0.01)
        yield


def is_busy(cell: Cell) -> bool:
    """Whether some process runs the cell, as a sweep's or resumed by hand."""
    try:
        with locked(cell, patience=0):
            return is_locked(cell.path)
    except Busy:
        return True


def run(cell: Cell, watch: Callable[[int, float], bool] | None = None) -> str:
    """Does what is left to do of the cell and returns its status. What goes wrong is noted in its
    folder and printed; only what stops the program is raised, and Busy. `watch` is told (step,
    val/loss) and may end the run early.
    """
    with locked(cell):
        path, tries = cell.path, 1 + (cell.config.sweep.retries if cell.config.sweep else 0)
        if cell.over():
            return cell.status()
        if is_locked(path):  # somebody resumes it by hand
            raise Busy(path)
        for _ in range(tries):
            try:
                status = attempt(cell, path, watch)
                break
            except Exception as error:
                traceback.print_exc()
                status = fail(cell, reason(error.__cause__ or error))
        return status


def run_when_free(cell: Cell, watch: Callable[[int, float], bool] | None = None) -> str:
    """`run`, after whoever else is at work on the cell."""
    while True:
        try:
            return run(cell, watch)
        except Busy:
            time.sleep(0.5)


def attempt(cell: Cell, path: Path, watch: Callable[[int, float], bool] | None) -> str:
    """One try: on from the last checkpoint if there is one, else from the beginning."""
    from lmlab.training import experiment

    if (path / "checkpoints/last.ckpt").exists():
        saved = read_config(path)
        if saved.choices["data"] == cell.config.choices["data"]:
            saved = replace(saved, data=cell.config.data)  # the text may have been moved
        return experiment.resume(path, saved, cell.sweep.command, watch)
    if path.exists():  # ended before there was anything to go on from
        shutil.rmtree(path)
    return experiment.run(
        cell.config, path, cell.sweep.command, cell.data_sha256, cell.facts, watch
    )[0]


def fail(cell: Cell, why: str) -> str:
    """Notes that the cell failed, and why; makes its folder if it had not come so far."""
    path, config = cell.path, cell.config
    metrics = cell.metrics()
    if not (path / "config.yaml").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_config(path, config)
    if not metrics:
        metrics = {
            "step": 0,
            "seed": config.run.seed,
            "n_params": cell.n_params,
            "data_sha256": cell.data_sha256,
        }
        metrics |= cell.facts
    metrics |= {"status": "failed", "reason": why}
    files.write(path / "metrics.json", to_json(metrics, indent=2).encode())
    return "failed"


def reason(error: BaseException) -> str:
    """An error in one line, the first of what it says."""
    said = re.sub(r"\[enforce fail[^]]*\] err == 0\. ", "", " ".join(str(error).split()))[
        :300
    ]  # torch's line number
    short = isinstance(error, MemoryError) or any(
        sign in said.lower()
        for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{'out of memory: ' * short}{kind}{said}"
