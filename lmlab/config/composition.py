"""Composes the choices of a command with Hydra: its files of conf/, and the values in them."""

import re
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmlab.config.check import Config, build, check_value, from_flat
from lmlab.config.conf_files import ADDED, CONF, names_in
from lmlab.config.grammar import is_signed, key_of, parse
from lmlab.config.keys import (
    CHOICES,
    SweepConfig,
    choices_of,
    companion_keys,
    config_class,
    idle_keys,
    keys_of,
    keys_taken,
)
from lmlab.config.recipes import check_preset, read_recipe
from lmlab.errors import UserError, about, nearest, reason_of
from lmlab.registry import remembered
from lmlab.signals import signals_held

HYDRAS_PLUGINS = "hydra_plugins"  # the package in which Hydra looks for them
LISTED = "list"  # the sweeper that the lab itself chooses, for grids and for sweeps from files


def chosen(overrides: list[Override]) -> list[Override]:
    """Returns the overrides that choose a file of conf/. Raises UserError if a file is missing."""
    groups = [o for o in overrides if o.key_or_group in CHOICES and not is_signed(o)]
    for override in groups:
        group = override.key_or_group
        with about(group):
            choice = check_value(group, override.value(), Literal[*allowed(group)])
            if group == "experiment":
                read_recipe(choice)  # Hydra's own errors name neither file nor line
            elif choice is not None:
                check_preset(group, choice)
    return groups


def allowed(group: str) -> list[str | None]:
    """Returns the choices of a group; for "experiment" also None, which means no experiment."""
    if group == "experiment":
        return [None, *names_in("experiment")]
    return [*choices_of(group)]


def without_glob(text: str) -> str:
    """Returns an argument in which the choices that fit replace a pattern, as in model=glob(gpt*).

    Raises UserError for a pattern of a key that is no group, or that fits no choice.
    """
    override = parse(text)
    value = override.value()
    if not isinstance(value, Glob):
        return text
    key = override.key_or_group
    with about(key):
        if key not in CHOICES:
            raise UserError(f"{text}: glob() is for {', '.join(CHOICES)}")
        names = [name for name in allowed(key) if name is not None]
        fitting = value.filter(names)
        if not fitting:
            raise UserError(f"{text}: fits none of {', '.join(names)}")
    return f"{key}={','.join(fitting)}"


@remembered
def compose(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Returns the keys' values, all choices, and Hydra's own settings, as Hydra composes them.

    `overrides` are choices of groups. Raises UserError.
    """
    try:
        with signals_held(), initialized():
            composed = hydra.compose(
                primary(), [*overrides, *search_path()], return_hydra_config=True
            )
            values: Any = OmegaConf.to_container(composed)
            settings = values.pop("hydra")
            check_sources(settings["runtime"]["config_sources"])
    except MissingConfigException as error:
        raise UserError(missing_choice(error, overrides)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra goes on to recommend +key=…, which the lab refuses.
        reason = re.split("Config search path|To append to your config", str(error))[0]
        hint = ""
        if "Could not override 'hydra." in reason:
            hint = "; there is no such key, --help lists those of local and search"
        raise UserError(reason.rstrip(". \n") + hint) from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        files = [frame.filename for frame in frames if HYDRAS_PLUGINS in Path(frame.filename).parts]
        if not files:
            raise
        raise UserError(
            f"{files[-1]}: this plug-in of Hydra's failed: {reason_of(error)}"
        ) from None
    return values, settings["runtime"]["choices"], settings


def check_sources(sources: list[dict[str, str]]) -> None:
    """Raises UserError if a plug-in of Hydra's has put files of its own before those of the lab."""
    for source in sources:
        if source["provider"] == "main":
            return
        if source["provider"] != "hydra":
            raise UserError(
                f"a plug-in of Hydra's ({source['provider']}) puts {source['path']} before the lab's own "
                "files; --config-dir= adds a folder of recipes and presets"
            )


def missing_choice(error: MissingConfigException, overrides: tuple[str, ...]) -> str:
    """Returns in one line that a launcher or sweeper of Hydra is not installed, and which are."""
    found = re.fullmatch(r"hydra/(launcher|sweeper)/(.*)", str(error.missing_cfg_file))
    if not found:
        return " ".join(str(error).split())
    kind, missing = found.groups()
    typed = next((text for text in overrides if key_of(text) == f"hydra/{kind}"), missing)
    installed = sorted({*(error.options or ())} - {LISTED})
    hint = nearest(missing, installed)
    if missing.startswith("submitit"):
        hint = "; it comes with: pip install hydra-submitit-launcher"
    if installed:
        hint += f"; installed are {', '.join(installed)}"
    return f"{typed}: there is no {kind} {missing!r}{hint}"


def search_path() -> list[str]:
    """Returns the override with which Hydra also looks into the folder of --config-dir, if any."""
    folders = [f"'file://{folder.absolute()}'" for folder in ADDED]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def primary() -> str:
    """Returns the name of the file with which Hydra begins.

    It is conf/config.yaml, or, if plug-ins add keys to every run, the same with these keys.
    """
    own = companion_keys()
    path = CONF / "config.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if own.keys() <= values.keys():
        return "config"
    ConfigStore.instance().store("config_with_plugins", values | own)
    return "config_with_plugins"


def initialized() -> AbstractContextManager[Any]:
    """Returns a context in which Hydra reads conf/. If Hydra already runs, it uses that context."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    context: AbstractContextManager[Any] = hydra.initialize_config_dir(
        str(CONF), version_base="1.3"
    )
    return context


def read(values: dict[str, Any], choices: dict[str, str]) -> tuple[Config, str]:
    """Checks composed values; returns their configuration and a notice (or "").

    A typed choice, such as a model, can replace the experiment's. Then the experiment's values for
    keys that the new choice lacks are dropped, and the notice says which values stay.
    """
    of_sweeps = keys_of(SweepConfig)
    sweep: SweepConfig = build(SweepConfig, {key: values[key] for key in of_sweeps})
    values = {key: value for key, value in values.items() if key not in of_sweeps}
    recipe = read_recipe(choices["experiment"])
    made_for = recipe.made_for.items()
    replaced = {group: choice for group, choice in made_for if choices[group] != choice}
    if not replaced:
        return replace(from_flat(values, choices), sweep=sweep), ""
    replaced_keys: set[str] = set()
    for group, choice in replaced.items():
        replaced_keys.update(keys_of(config_class(group, choice)))
    dropped = (replaced_keys & {*recipe.values}) - keys_taken(choices)
    silent = dropped | idle_keys(choices)
    kept = [f"{key}={values[key]}" for key in recipe.values if key not in silent]
    old = [f"{group}={choice}" for group, choice in replaced.items()]
    new = [f"{group}={choices[group]}" for group in replaced]
    notice = (
        f"experiment={choices['experiment']} is made for {' '.join(old)}; with {' '.join(new)} it "
        f"keeps its other values: {' '.join(kept)}"
    )
    config = from_flat({key: values[key] for key in values if key not in dropped}, choices)
    return replace(config, sweep=sweep), notice
