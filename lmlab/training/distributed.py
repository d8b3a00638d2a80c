"""How several ranks train one run: rank 0 calls the others, and Lightning's DDP averages gradients.

Each rank has the whole model and takes its rows of every batch. Rank 0 prepares the run as a single
process would; then it passes to the others what they need to do the same steps.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy

from lmlab import machine, plugins, ranks
from lmlab.config import conf_files
from lmlab.config.check import Config
from lmlab.data import splits
from lmlab.data.tokenizers import Tokenizer
from lmlab.register import is_own
from lmlab.runs.folder import RunDirectory
from lmlab.training.preparation import Prepared

# Called by rank 0 with the folder of a new run.
TELL: ContextVar[Callable[[Path], None] | None] = ContextVar("tell", default=None)


@dataclass(frozen=True)
class Task:
    """What the other ranks need to take part in a run, which rank 0 has prepared."""

    config: Config
    tokenizer: Tokenizer
    sha256: str
    """The checksum that the text must have."""

    path: Path
    """The run's folder, from which they read."""

    metrics: dict[str, Any]
    saved: dict[str, Any] | None
    """The entry of the checkpoint to start from."""

    longest: int | None
    """How many tokens of each part of the text are used; None: all."""


def lead(
    directory: RunDirectory,
    prepared: Prepared,
    saved: dict[str, Any] | None,
    take_part: Callable[[Task], None],
) -> None:
    """Lets the other ranks, if there are any, call `take_part` for a run that is about to begin."""
    here = ranks.here()
    if here.size == 1:
        return
    task = Task(
        config=prepared.config,
        tokenizer=prepared.text.tokenizer,
        sha256=prepared.text.sha256,
        path=directory.path,
        metrics=directory.metrics,
        saved=saved,
        longest=splits.LONGEST.get(),
    )
    content = pickle.dumps((take_part, task))
    here.share((plugins.active_sources(), conf_files.ADDED, directory.path, content))
    here.wait()  # the others may have to read the text


@contextmanager
def telling_folder(tell: Callable[[Path], None]) -> Iterator[None]:
    """A context in which `tell` is called with the folder of a new run."""
    before = TELL.set(tell)
    try:
        yield
    finally:
        TELL.reset(before)


def note_folder(path: Path) -> None:
    """Tells the process that has started the ranks, if one has, which folder a new run got."""
    tell = TELL.get()
    if tell is not None:
        tell(path)


def follow() -> Path | None:
    """Takes part in all that rank 0 trains, until it ends; returns the folder of the last run."""
    path = None
    while (called := ranks.here().share(None)) is not None:
        sources, folders, path, content = called
        conf_files.add_folders(folders)
        with plugins.active(sources), plugins.own_errors():
            take_part, task = pickle.loads(content)
            take_part(task)
    return path


@dataclass(frozen=True)
class Part:
    """Which part this process has: it leads, or has taken part in the run at `path`, if there was one."""

    leads: bool
    path: Path | None = None


@contextmanager
def joined(config: Config) -> Iterator[Part]:
    """A context in which this process is one of the ranks that torchrun or srun has started.

    If it does not lead, it has already done its part when the context begins. A process that is
    none of several leads itself.
    """
    own = ranks.place()
    has_joined = ranks.here().size > 1
    if own is None or has_joined or machine.devices_of(config).processes == 1:
        yield Part(leads=True)
        return
    with ranks.joined(own) as here:
        yield Part(leads=True) if here.leads else Part(leads=False, path=follow())


def strategy(prepared: Prepared) -> DDPStrategy:
    """Returns the strategy by which Lightning averages the gradients of all ranks.

    Torch arranges gradients anew after the first step, in the order in which they came, unless it
    looks for unused weights. Then a resumed run would add them in another order. Buffers, which
    models of the lab never change, are passed on for somebody's own.
    """
    has_own_model = is_own("model", prepared.config.base("model"))
    return DDPStrategy(
        find_unused_parameters=True, broadcast_buffers=has_own_model, timeout=ranks.HANG
    )


def environment() -> ClusterEnvironment:
    """Returns from where Lightning knows its place among the ranks.

    On Slurm, too, a single process is alone: there submitit alone requeues.
    """
    if ranks.here().size == 1:
        return LightningEnvironment()
    return TorchElasticEnvironment()


def message(text: str) -> str:
    """Returns what this process says after a signal: nothing if another one says it."""
    return text if ranks.here().tells else ""
