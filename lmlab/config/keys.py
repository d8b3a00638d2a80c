"""The keys of a run and of a sweep, and what is true of each key. Imports no torch."""

from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from lmlab.catalogue import GROUPS, Count, Positive, PositiveOrZero


@dataclass(frozen=True)
class RunConfig:
    name: str
    seed: Annotated[int, "[0, 4294967296)"]
    threads: Count | None
    compile: bool | None
    max_steps: Count
    max_minutes: Positive | None
    batch_size: Count
    grad_accumulation: Count
    grad_clip: PositiveOrZero
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: Annotated[int, "[0, inf)"]
    hold_steps: Annotated[int, "[0, inf)"]
    decay_steps: Count
    min_lr: PositiveOrZero
    log_interval: Count
    eval_interval: Count
    checkpoint_interval: Count
    checkpoint_minutes: Positive
    init_from: str | None
    unknown: Literal["error", "drop"]
    resume: str | None
    replay: str | None


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep is told beside its runs; no run keeps it."""

    retries: Annotated[int, "[0, 100]"]
    dry_run: bool
    trial: str | None


@dataclass(frozen=True)
class LocalConfig:
    n_jobs: Count | None
    time_limit: Positive | None


@dataclass(frozen=True)
class SearchConfig:
    n_trials: Count
    objective: Literal[
        "val/loss", "best/val/loss", "val/bits_per_byte", "train/loss", "tokens_per_second"
    ]
    direction: Literal["minimize", "maximize"]
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "hyperband", "none"]
    storage: str | None
    batch: Count
    seed: Annotated[int, "[0, 4294967296)"]


SETTINGS: dict[str, type] = {
    "local": LocalConfig,
    "search": SearchConfig,
}  # of hydra/launcher and hydra/sweeper


# What a resumed run may change: when it ends, whether it is compiled, what is written when, and
# where its text (of the same content) lies.
CHANGEABLE = (
    "max_steps",
    "max_minutes",
    "compile",
    "log_interval",
    "eval_interval",
    "checkpoint_interval",
    "checkpoint_minutes",
    "path",
)


# Keys that name, place or watch a run without touching what it computes. What lies at `path` and
# `init_from`, and what `data` makes of it, enters by its sha256.
UNTOUCHING = (
    "name",
    "experiment",
    "data",
    "path",
    "init_from",
    "resume",
    "replay",
    "log_interval",
    "checkpoint_interval",
    "checkpoint_minutes",
)


# Keys that the lab gained after 0.1. At these values a run is what it was without the key: a
# config.yaml that lacks it has the value, and the names of a sweep's cells leave it out.
NEUTRAL: dict[str, Any] = {"compile": False, "hold_steps": 0, "holdout_fraction": 0.0}


CHOICES = (*GROUPS, "experiment")


def keys_of(part: type) -> list[str]:
    return [own.name for own in fields(part)]


COUNTED = (
    "ngram",
)  # models that are trained by counting, and what goes with training by steps alone


STEPWISE = {
    "optimizer",
    "device",
    "precision",
    *keys_of(RunConfig),
    *(key for part in GROUPS["optimizer"].values() for key in keys_of(part)),
} - {"name", "seed", "threads", "resume", "replay"}


def kind_of(key: str) -> type | None:
    """The type of a key's values, whichever choice takes it."""
    parts = (RunConfig, *(part for choices in GROUPS.values() for part in choices.values()))
    hint = next((get_type_hints(part)[key] for part in parts if key in keys_of(part)), None)
    return (
        next((kind for kind in get_args(hint) if kind is not NoneType), None)
        if get_args(hint)
        else hint
    )
