"""Checks the overrides of a command, all at once, before anything starts. Hydra composes them."""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmlab.catalogue import ONCE, STEPWISE
from lmlab.config.check import Config, build, check_key, check_value, from_flat
from lmlab.config.keys import (
    CHOICES,
    CONF,
    SETTINGS,
    SweepConfig,
    choices_of,
    config_class,
    keys_of,
    keys_taken,
    kind_of,
    marked,
)
from lmlab.errors import UserError, nearest


@dataclass(frozen=True)
class Asked:
    """A command that holds: what each of its runs was given, composed; and of a sweep its name and
    how it is run.
    """

    runs: list[tuple[Config, list[str]]]
    name: str
    swept: tuple[str, ...]
    launcher: str
    sweeper: str
    hydra: dict[str, Any]


def checked(arguments: list[str], multirun: bool) -> Asked:
    """Raises UserError unless every run that was asked for holds. Of the numbers that a search may
    try, the ends are looked at.
    """
    overrides = [parse(text) for text in arguments]
    fixed, swept = (
        [o for o in overrides if o.is_sweep_override() is several] for several in (False, True)
    )
    _, choices, settings = compose(
        tuple(o.input_line for o in [o for o in fixed if is_hydras(o)] + chosen(fixed))
    )
    launcher, sweeper = (str(choices[f"hydra/{kind}"]) for kind in ("launcher", "sweeper"))
    for kind, choice in (("launcher", launcher), ("sweeper", sweeper)):
        if choice in SETTINGS:
            own = {key: value for key, value in settings[kind].items() if key != "_target_"}
            for key in {*own} - {*keys_of(SETTINGS[choice])}:
                near = nearest(key, keys_of(SETTINGS[choice]))
                raise UserError(f"hydra.{kind}.{key}={own[key]}: there is no such key{near}")
            build(SETTINGS[choice], own, f"hydra.{kind}.")
    for o in overrides:
        check_place(o, multirun, sweeper)
    values = [
        ends(o)
        if sweeper == "search"
        else [f"{o.key_or_group}={one}" for one in o.sweep_string_iterator()]
        for o in swept
    ]
    found, notices = [], {}
    for picked in combinations(values, limit=4096 if sweeper == "search" else None):
        own = iter(picked)
        cell = [next(own) if o.is_sweep_override() else o.input_line for o in overrides]
        config, notice = resolved(cell)
        found.append((config, [text for text in cell if not is_hydras(parse(text))]))
        notices[notice] = None
    if not any(config.model.has_steps for config, _ in found):
        for config, cell in found:
            check_step_keys([parse(text) for text in cell], config.choices)
    print("".join(f"{notice}\n" for notice in notices if notice), end="")
    keys = tuple(o.key_or_group for o in swept)
    named = not swept or any(o.key_or_group == "name" for o in overrides)
    name = found[0][0].run.name if named else re.sub(r"[^\w.,=+-]", ".", "-".join(keys))
    found = [(replace(config, run=replace(config.run, name=name)), cell) for config, cell in found]
    return Asked(found, name, keys, launcher, sweeper, settings)


def check_place(override: Override, multirun: bool, sweeper: str) -> None:
    """Raises UserError for several values, or a setting of sweeps, where there is none."""
    key, text, several = override.key_or_group, override.input_line, override.is_sweep_override()
    if several and (not multirun or key in marked(ONCE) or is_hydras(override)):
        once = " ".join(["name", *keys_of(SweepConfig)])
        raise UserError(
            f"{text}: several values are a sweep, of any key but {once}; add -m, or quote the "
            f"value twice: {key}=\"'…'\""
        )
    if several and sweeper != "search" and not override.is_discrete_sweep():
        raise UserError(
            f"{text}: has no list of values to try one by one; hydra/sweeper=search looks for the best "
            "among them"
        )
    if several and sweeper == "search" and key == "seed":
        raise UserError(f"{text}: a search would take the luckiest seed for the best; give it one")
    if not multirun and (
        key in keys_of(SweepConfig) or key.startswith(("hydra/launcher", "hydra.launcher"))
    ):
        raise UserError(f"{text}: goes with a sweep; add -m")
    if key == "trial":
        raise UserError(f"{text}: is set by hydra/sweeper=search alone")


def combinations(values: list[list[str]], limit: int | None) -> Iterable[Sequence[str]]:
    """One of each; where there are more than `limit`, the first of all and the last of all."""
    if limit is not None and math.prod(map(len, values)) > limit:
        return [own[0] for own in values], [own[-1] for own in values]
    return itertools.product(*values)


def resolved(cell: Sequence[str]) -> tuple[Config, str]:
    """The checked configuration of one run's overrides, and what is to be said of it. Raises
    UserError.
    """
    typed = [parse(text) for text in cell]
    hydras = [o for o in typed if is_hydras(o)]
    signed = [o for o in typed if o.input_line[0] in "+~" and o not in hydras]
    values, choices, _ = compose(tuple(o.input_line for o in chosen(typed)))
    if not config_class("model", choices["model"]).has_steps:
        for o in typed:
            if o.key_or_group not in CHOICES and not is_hydras(o):
                check_key(o.key_or_group, o.value(), choices)
        typed = without_step_keys(typed)
        values, choices, _ = compose(tuple(o.input_line for o in chosen(typed)))
    plain = {
        o.key_or_group: o.value()
        for o in typed
        if o not in hydras and o.key_or_group not in CHOICES
    }
    for key, value in plain.items():
        check_key(key, value, choices)
    for o in signed:
        raise UserError(
            f"{o.input_line}: keys are not added or removed; give {o.key_or_group}=… a value"
        )
    return read(values | plain, {group: choices[group] for group in CHOICES})


def without_step_keys(typed: list[Override]) -> list[Override]:
    """Returns the overrides that concern a model without steps.

    The others are shared with the other models of a sweep and leave this model as it is.
    """
    return [o for o in typed if o.key_or_group not in marked(STEPWISE)]


def check_step_keys(typed: list[Override], choices: dict[str, str]) -> None:
    """Raises UserError for a key of training by steps that is given for a model without steps."""
    model = choices["model"]
    if config_class("model", model).has_steps:
        return
    for o in typed:
        if o.key_or_group in marked(STEPWISE):
            keys = ", ".join(keys_of(config_class("model", model)))
            raise UserError(
                f"{o.input_line}: model={model} is trained by counting, without steps; it goes "
                f"with {keys} and data, name, seed"
            )


def chosen(overrides: list[Override]) -> list[Override]:
    """Returns the overrides that choose a file of conf/. Raises UserError if it isn't there."""
    groups = [o for o in overrides if o.key_or_group in CHOICES and o.input_line[0] not in "+~"]
    for o in groups:
        check_value(o.key_or_group, o.value(), Literal[*allowed(o.key_or_group)])
    return groups


def allowed(group: str) -> list[str | None]:
    """Returns what can be chosen of a group, or as the experiment (None: no experiment)."""
    if group == "experiment":
        return [None, *sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))]
    return [*choices_of(group)]


def is_hydras(override: Override) -> bool:
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def ends(override: Override) -> list[str]:
    """Of what a search may choose from: each of single values, of an interval its ends."""
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, IntervalSweep):
        kind = int if kind_of(key) is int and value.start % 1 == value.end % 1 == 0 else float
        return [f"{key}={kind(end)}" for end in (value.start, value.end)]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


@lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise UserError(
            f"{text}: not of the form key=value; a value with spaces, commas, quotes or braces is "
            f"quoted twice: {text.partition('=')[0]}=\"'…'\""
        ) from None


@lru_cache
def compose(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """What Hydra composes from choices of groups: the keys, all choices, and Hydra's own settings."""
    try:
        with (
            nullcontext()
            if GlobalHydra.instance().is_initialized()
            else hydra.initialize_config_dir(str(CONF), version_base="1.3")
        ):
            values = OmegaConf.to_container(
                hydra.compose("config", list(overrides), return_hydra_config=True)
            )
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        said = re.split("Config search path|To append to your config", str(error))[
            0
        ]  # + is no way in, here
        extra = "; it comes with pip install -e '.[slurm]'" if "submitit" in said else ""
        raise UserError(said.rstrip(". \n") + extra) from None
    own = values.pop("hydra")
    return values, own["runtime"]["choices"], own


def read(values: dict[str, Any], choices: dict[str, str]) -> tuple[Config, str]:
    """The checked configuration; and, where a choice replaces one of the experiment's own, what of
    the rest stays.
    """
    path = CONF / "experiment" / f"{choices['experiment']}.yaml"
    recipe = yaml.safe_load(path.read_text()) if choices["experiment"] else {"defaults": []}
    entries = [entry for entry in recipe.pop("defaults", []) if isinstance(entry, dict)]
    made_for = {
        key.removeprefix("override /"): own for entry in entries for key, own in entry.items()
    }
    replaced = {group: own for group, own in made_for.items() if choices[group] != own}
    keys_replaced: set[str] = set()
    for group, choice in replaced.items():
        keys_replaced.update(keys_of(config_class(group, choice)))
    lost = keys_replaced & {*recipe} - keys_taken(choices)
    old, new = (" ".join(f"{g}={chosen[g]}" for g in replaced) for chosen in (made_for, choices))
    idle: frozenset[str] = frozenset()
    if not config_class("model", choices["model"]).has_steps:
        idle = marked(STEPWISE)
    kept = " ".join(f"{key}={values[key]}" for key in recipe if key not in lost | idle)
    notice = f"experiment={choices['experiment']} is made for {old}; with {new} it keeps its other values: {kept}"
    return from_flat(
        {key: values[key] for key in values if key not in lost}, choices
    ), notice if replaced else ""
