"""The keys of all runs and sweeps, such as seed and max_steps, and their markers. No torch.

Markers in a key's annotation hold its properties. lmlab/markers.py explains them;
lmlab/catalogue.py holds the keys of models, texts, devices and optimizers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lmlab.catalogue import (
    CALLBACKS,
    CATALOGUE,
    GROUP_MARKERS,
    INSTRUMENTS,
    LOGGERS,
    SCHEDULES,
    Choice,
)
from lmlab.config.conf_files import names_in, read_file
from lmlab.errors import UserError
from lmlab.markers import (
    CHANGEABLE,
    LAST_BITS,
    OF_THE_RUN,
    ONCE,
    STEPWISE,
    UNTOUCHING,
    Count,
    CountsBeside,
    Follows,
    FollowsUse,
    LinesText,
    Marker,
    Neutral,
    OneOf,
    PathText,
    Positive,
    PositiveOrZero,
    plain_kind,
)
from lmlab.numbers import COLUMNS, objectives
from lmlab.register import PRESENT
from lmlab.registry import remembered

GROUPS = tuple(CATALOGUE)
DIVIDING = ("separator", "score_after")  # their texts divide the text, and often end lines
# What decides, beside the text, which tokens val/loss is a mean of.
VALIDATED = ("val_fraction", "test_fraction", *DIVIDING)
LEFT_OUT = "left_out"  # how many characters of the text the vocabulary lacks, or bytes
# What tells validation texts from each other; losses on different ones cannot be compared.
TEXT_KEYS = ("data_sha256", "documents", *VALIDATED, LEFT_OUT)
CHOICES = tuple(GROUP_MARKERS)  # the groups and the experiment


Align = Literal["auto", "epoch", "window", "document"]  # lmlab/data/batches.py explains them


@dataclass(frozen=True)
class RunConfig:
    """The keys of every run."""

    name: Annotated[str, UNTOUCHING, OF_THE_RUN, ONCE, Follows("model")]
    out: Annotated[PathText, UNTOUCHING, OF_THE_RUN, ONCE, Neutral("outputs")]
    seed: Annotated[int, "[0, 4294967296)", OF_THE_RUN]
    threads: Annotated[int, "[1, 1024]"] | None
    compile: Annotated[bool | None, CHANGEABLE, LAST_BITS, STEPWISE, Neutral(False)]
    max_steps: Annotated[Count, CHANGEABLE, STEPWISE]
    max_minutes: Annotated[Positive | None, CHANGEABLE, STEPWISE]
    batch_size: Annotated[Count, STEPWISE]
    align: Annotated[Align, STEPWISE, Neutral("epoch")]
    separator: Annotated[LinesText | None, Neutral(None)]
    score_after: Annotated[LinesText | None, Neutral(None)]
    grad_accumulation: Annotated[int, "[1, 10000]", STEPWISE]  # a step is not stopped within
    grad_clip: Annotated[PositiveOrZero, STEPWISE]
    schedule: Annotated[str, OneOf(lambda: SCHEDULES), STEPWISE]
    warmup_steps: Annotated[int, "[0, inf)", STEPWISE]
    hold_steps: Annotated[int, "[0, inf)", STEPWISE, Neutral(0)]
    decay_steps: Annotated[Count, STEPWISE, Follows("max_steps")]
    min_lr: Annotated[PositiveOrZero, STEPWISE, Follows("lr", divisor=10)]
    log_interval: Annotated[Count, CHANGEABLE, UNTOUCHING, STEPWISE]
    eval_interval: Annotated[Count, CHANGEABLE, STEPWISE]
    # It decides when a run with patience ends.
    eval_tokens: Annotated[
        Count | None, UNTOUCHING, CountsBeside("patience", usual=32768), STEPWISE, Neutral(None)
    ]
    checkpoint_interval: Annotated[Count, CHANGEABLE, UNTOUCHING, STEPWISE]
    checkpoint_minutes: Annotated[Positive, CHANGEABLE, UNTOUCHING, STEPWISE]
    # What lies at init_from enters by its sha256.
    init_from: Annotated[PathText | None, UNTOUCHING, STEPWISE, OF_THE_RUN]
    # Its sha256 is part of the code that makes a run.
    plugin: Annotated[PathText | None, CHANGEABLE, UNTOUCHING, OF_THE_RUN, ONCE, Neutral(None)]
    unknown: Annotated[Literal["error", "drop"], STEPWISE]
    resume: Annotated[str | None, UNTOUCHING, OF_THE_RUN]
    replay: Annotated[str | None, UNTOUCHING, OF_THE_RUN]
    # Those of `INSTRUMENTS` in the catalogue.
    by_position: Annotated[bool, CHANGEABLE, UNTOUCHING, Neutral(False)] = False
    calibration: Annotated[bool, CHANGEABLE, UNTOUCHING, Neutral(False)] = False
    novelty: Annotated[bool, CHANGEABLE, UNTOUCHING, Neutral(False)] = False
    minimal_pairs: Annotated[bool, CHANGEABLE, UNTOUCHING, Neutral(False)] = False
    noise_scale: Annotated[bool, CHANGEABLE, UNTOUCHING, STEPWISE, Neutral(False)] = False


@dataclass(frozen=True)
class SweepConfig:
    """The keys of a whole command: fast_dev_run, and those of sweeps. No config.yaml holds them."""

    fast_dev_run: Annotated[bool, ONCE]

    retries: Annotated[int, "[0, 100]", ONCE]
    dry_run: Annotated[bool, ONCE]
    same_code: Annotated[bool, ONCE]
    trial: Annotated[str | None, ONCE]


@dataclass(frozen=True)
class LocalConfig:
    """The settings of hydra/launcher=local."""

    n_jobs: Count | None
    time_limit: Positive | None


@dataclass(frozen=True)
class SearchConfig:
    """The settings of hydra/sweeper=search."""

    n_trials: Count
    objective: Annotated[str, OneOf(objectives)] | None
    direction: Literal["minimize", "maximize"] | None
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "hyperband", "none"]
    storage: str | None
    batch: Count
    seed: Annotated[int, "[0, 4294967296)"]


# The settings of the launchers and sweepers that are lmlab's own.
SETTINGS: dict[str, type] = {"local": LocalConfig, "search": SearchConfig}


@remembered
def bases_of(group: str) -> dict[str, str]:
    """Returns all choices of `group`. Each maps to itself, a preset to its built-in choice.

    A preset is a file in conf/ whose defaults list names the choice that it builds on.
    """
    above: dict[str, str] = {}
    for name in names_in(group):
        for entry in read_file(group, name).get("defaults", ()):
            if type(entry) is str and entry != "_self_" and name not in CATALOGUE[group]:
                above[name] = entry.removeprefix(f"/{group}/")
    bases = {name: name for name in CATALOGUE[group]}
    for preset, base in above.items():
        for _ in above:  # a preset may build on a preset, but not on itself
            base = above.get(base, base)
        if base in CATALOGUE[group]:
            bases[preset] = base
    return bases


@remembered
def choices_of(group: str) -> dict[str, Choice]:
    """Returns all choices of `group` by name: the rows of the catalogue, and their presets."""
    return {choice: CATALOGUE[group][base] for choice, base in bases_of(group).items()}


def config_class(group: str, choice: str) -> type[Any]:
    """Returns the class that holds the keys of a choice."""
    return choices_of(group)[choice].config


@remembered
def keys_of(config: type) -> tuple[str, ...]:
    """Returns the names of the keys that a config class defines."""
    return tuple(field.name for field in fields(config))


@remembered
def all_keys() -> frozenset[str]:
    """Returns the groups, and all keys of runs, of sweeps and of every choice."""
    known = {*CHOICES, *keys_of(RunConfig), *keys_of(SweepConfig), *companion_keys()}
    for group in GROUPS:
        for row in choices_of(group).values():
            known.update(keys_of(row.config))
    return frozenset(known)


@remembered
def companions() -> dict[str, type[Any]]:
    """Returns the classes of the keys of all callbacks and loggers, by their names."""
    return {name: row.config for name, row in (CALLBACKS | LOGGERS).items()}


@remembered
def companion_keys() -> dict[str, Any]:
    """Returns the keys of all callbacks and loggers, each with its default."""
    keys: dict[str, Any] = {}
    for config in companions().values():
        keys |= {field.name: field.default for field in fields(config)}
    return keys


def check_own_keys() -> None:
    """Raises UserError if a key that a plug-in adds is one of the lab's, or of another part.

    Models may share keys with other models, and optimizers with other optimizers.
    """
    owners: dict[str, str] = dict.fromkeys(CHOICES, "group")
    owners |= dict.fromkeys((*keys_of(RunConfig), *keys_of(SweepConfig)), "run")
    places = {(addition.kind, addition.name): addition.place for addition in PRESENT}
    parts = []
    for kind, rows in (*CATALOGUE.items(), ("callback", CALLBACKS), ("logger", LOGGERS)):
        for name, row in rows.items():
            part = kind if kind in CATALOGUE else name
            parts.append((places.get((kind, name), ""), part, row.config))
    parts.sort(key=lambda part: part[0] != "")  # the lab's own come first: the others are at fault
    for place, part, config in parts:
        for key in keys_of(config):
            owner = owners.setdefault(key, part)
            if owner != part:
                raise UserError(
                    f"{place}: {config.__name__}.{key}: there is such a key already, of the "
                    f"{owner}; it needs another name"
                )
            if key in COLUMNS:
                raise UserError(
                    f"{place}: {config.__name__}.{key}: the lab's own tables have a column of this name; "
                    "it needs another name"
                )


@remembered
def token_keys() -> frozenset[str]:
    """Returns the keys that decide what a token is: the group `tokenizer`, and the keys in it."""
    keys = {key for row in CATALOGUE["tokenizer"].values() for key in keys_of(row.config)}
    return frozenset({"tokenizer", *keys})


def switched_on(keys: Any) -> tuple[str, ...]:
    """Returns the instruments that keys, of a run or of a command, switch on."""
    return tuple(name for name in INSTRUMENTS if getattr(keys, name))


def keys_taken(choices: dict[str, str]) -> set[str]:
    """Returns the keys that the chosen model, text, device and optimizer have."""
    taken: set[str] = set()
    for group in GROUPS:
        taken.update(keys_of(config_class(group, choices[group])))
    return taken


def annotations() -> Iterator[tuple[str, Any]]:
    """Yields each key of runs and sweeps with its annotation, once for every class."""
    classes: dict[type, None] = {RunConfig: None, SweepConfig: None}  # each once, in order
    for rows in (*CATALOGUE.values(), CALLBACKS, LOGGERS):
        classes |= dict.fromkeys(row.config for row in rows.values())
    for config in classes:
        hints = get_type_hints(config, include_extras=True)
        yield from ((key, hints[key]) for key in keys_of(config))


def markers(annotation: Any) -> tuple[Any, ...]:
    """Returns the markers and the interval that an annotation holds."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


@remembered
def marked(marker: Marker) -> frozenset[str]:
    """Returns the keys and groups that have `marker`."""
    keys = {key for key, annotation in annotations() if marker in markers(annotation)}
    groups = {group for group, marks in GROUP_MARKERS.items() if marker in marks}
    return frozenset(keys | groups)


def marked_in(config: type, marker: Marker) -> set[str]:
    """Returns the keys of the config class `config` that have `marker`."""
    hints = get_type_hints(config, include_extras=True)
    return {key for key in keys_of(config) if marker in markers(hints[key])}


def idle_keys(choices: dict[str, str]) -> frozenset[str]:
    """Returns the keys that have no effect on the chosen model.

    These are the keys of training by steps, if the model has no steps.
    """
    if config_class("model", choices["model"]).has_steps:
        return frozenset()
    return marked(STEPWISE) | keys_of_groups(STEPWISE)


@remembered
def keys_of_groups(marker: Marker) -> frozenset[str]:
    """Returns all keys of the groups that have `marker`."""
    keys: set[str] = set()
    for group, rows in CATALOGUE.items():
        if marker in GROUP_MARKERS[group]:
            for row in rows.values():
                keys.update(keys_of(row.config))
    return frozenset(keys)


@remembered
def markers_of(kind: type) -> dict[str, Any]:
    """Returns the keys and groups that have a marker of the class `kind`, each with that marker."""
    markers_by_key = {}
    with_markers = [(key, markers(annotation)) for key, annotation in annotations()]
    for key, marks in (*with_markers, *GROUP_MARKERS.items()):
        for marker in marks:
            if type(marker) is kind:
                markers_by_key[key] = marker
    return markers_by_key


def untouching(values: Mapping[str, Any]) -> frozenset[str]:
    """Returns the keys that do not touch what a run with these values computes."""
    counting = {key for key, beside in markers_of(CountsBeside).items() if beside.counts(values)}
    return marked(UNTOUCHING) - counting


def neutral_values() -> dict[str, Any]:
    """Returns the keys and groups added after version 0.1, each with the value that changes nothing."""
    return {key: neutral.value for key, neutral in markers_of(Neutral).items()}


def following_keys() -> dict[str, Follows]:
    """Returns the keys whose default depends on another key, each with its rule."""
    return markers_of(Follows) | markers_of(FollowsUse)


@remembered
def kind_of(key: str) -> type | None:
    """Returns the type of a key's values (int for `int | None`), or None for an unknown key."""
    for name, annotation in annotations():
        if name == key:
            return plain_kind(annotation)
    return None


def may_be_null(annotation: Any) -> bool:
    """Returns whether an annotation allows None, which is typed as null."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return NoneType in get_args(annotation)
