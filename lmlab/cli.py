"""The door of train.py: what was typed is checked as a whole before anything starts.

Hydra composes the configuration and runs the sweeps; its complaints, and ours, become one line
and exit status 2. torch is imported only after the check.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmlab.config import GROUPS, Config, UserError, all_keys, check_key, from_flat, keys_of, nearest

CONF = Path(__file__).parent.parent / "conf"
OUTPUTS = Path("outputs")
CHOICES = (*GROUPS, "experiment")


def main(argv: list[str] | None = None) -> None:
    """What train.py does. Exits with 2 after one line on stderr for anything a user can get wrong."""
    argv = sys.argv[1:] if argv is None else argv
    with one_line_errors():
        parser = get_args_parser()
        parser.error = usage_error
        args = parser.parse_args(argv)
        if args.help:
            print(help_page())
            return
        sys.argv = ["train.py", *argv, *checked(args)]
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()


def usage_error(message: str) -> None:
    raise UserError(f"{message}; see python train.py --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A UserError becomes its line and exit status 2; HYDRA_FULL_ERROR=1 shows the trace as well."""
    try:
        yield
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def task(cfg: DictConfig) -> None:
    """One run, as Hydra calls it: for the command itself, or for each cell of a sweep."""
    job = HydraConfig.get()
    with one_line_errors():
        config, _ = read(OmegaConf.to_container(cfg, resolve=False), chosen(job))
        # idle threads wait awake, which saves a tenth of a small step; to be said before torch comes
        os.environ.setdefault("OMP_WAIT_POLICY", "active")
        from lmlab import experiment

        if job.mode == RunMode.MULTIRUN:
            cell = ",".join(o for o in job.overrides.task if not o.startswith("name="))
            experiment.run(config, Path(job.sweep.dir) / (cell.replace("/", "_") or config.choices["model"]))
        else:
            now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            if experiment.run(config, OUTPUTS / config.run.name / now) == "diverged":
                raise SystemExit(1)


def chosen(hydra_config: Any) -> dict[str, str]:
    return {group: hydra_config.runtime.choices[group] for group in CHOICES}


def checked(args: argparse.Namespace) -> list[str]:
    """Raises UserError unless every run that `args` asks for holds. Returns what a sweep adds for Hydra."""
    for flag in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')}: not taken; what can be chosen stands in {CONF}")
    overrides = parse(args.overrides)
    cells = BasicSweeper.split_arguments(overrides, None)[0] if args.multirun else [args.overrides]
    swept = [o.key_or_group for o in overrides if o.is_sweep_override()]
    if swept and not args.multirun:
        raise UserError(f"{swept[0]}: several values make a sweep; add -m, or quote the value: {swept[0]}=\"'…'\"")
    if "name" in swept:
        raise UserError("name: a sweep has one name; sweep another key")
    notices: dict[str, None] = {}
    composed: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, str]]] = {}
    for cell in cells:
        typed = parse(cell)
        groups = tuple(o.input_line for o in typed if o.key_or_group in CHOICES or is_hydras(o))
        if groups not in composed:
            composed[groups] = compose(list(groups))
        values, choices = composed[groups]
        own = {o.key_or_group: o.value() for o in typed if o.input_line not in groups}
        for override in typed:
            if override.input_line not in groups:
                check_key(override.key_or_group, choices)
            if not is_hydras(override) and (override.is_add() or override.is_delete() or override.is_force_add()):
                raise UserError(f"{override.input_line}: every key has a value; write {override.key_or_group}=…")
        config, notice = read(values | own, choices)
        notices |= dict.fromkeys(notice)
    for notice in notices:
        print(notice)
    if not args.multirun:
        return []
    name = own.get("name") or "-".join(swept) or config.run.name
    return [*([] if "name" in own else [f"name={name}"]), f"hydra.sweep.dir={OUTPUTS / 'sweeps' / name}"]


def is_hydras(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of what was typed, each key known and each choice there."""
    parsed = []
    for text in overrides:
        if "${" in text:
            raise UserError(f"{text}: no interpolation; write the value itself")
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            key, _, value = text.partition("=")
            raise UserError(f"{text}: not of the form key=value; a value with spaces, commas, quotes "
                            f"or braces is quoted twice: {key}=\"'{value}'\"") from None
        key = override.key_or_group
        if override.package is not None or (not is_hydras(override) and key not in {*CHOICES, *all_keys()}):
            raise UserError(f"{text}: there is no such key{nearest(key.split('.')[-1], {*CHOICES, *all_keys()})}; "
                            "python train.py --help lists them")
        if key in CHOICES and not override.is_delete():
            there = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            for value in values:
                if value not in there and not (key == "experiment" and value is None):
                    raise UserError(f"{key}={value}: there is no such {key}{nearest(str(value), there)}; "
                                    f"allowed are {', '.join(there) or 'none'}")
        parsed.append(override)
    return parsed


def compose(overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys and choices that Hydra composes for these choices of groups."""
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", overrides, return_hydra_config=True)
            choices = chosen(cfg.hydra)
        values = OmegaConf.to_container(cfg, resolve=False)
        del values["hydra"]
        return values, choices
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error)) from None


def read(values: dict[str, Any], choices: dict[str, str]) -> tuple[Config, list[str]]:
    """The checked configuration, and what to tell about an experiment of which a part was replaced.

    Keys that the experiment sets for its own model or optimizer, and that the one put in its
    place doesn't take, are left out; the notice says so.
    """
    if not choices["experiment"]:
        return from_flat(values, choices), []
    recipe = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{choices['experiment']}.yaml"))
    defaults = {key.removeprefix("override /"): value for entry in recipe.pop("defaults", []) for key, value in entry.items()}
    replaced = {group: own for group, own in defaults.items() if choices[group] != own}
    if not replaced:
        return from_flat(values, choices), []
    taken = {key for group in GROUPS for key in keys_of(GROUPS[group][choices[group]])}
    of_replaced = {key for group, own in replaced.items() for key in keys_of(GROUPS[group][own])}
    dropped = [key for key in recipe if key in of_replaced - taken]
    kept = " ".join(f"{key}={values[key]}" for key in recipe if key not in dropped)
    notice = (
        f"experiment={choices['experiment']} is made for {' '.join(f'{g}={own}' for g, own in replaced.items())}; "
        f"with {' '.join(f'{g}={choices[g]}' for g in replaced)} it keeps its other values ({kept})"
        + (f" and leaves out {', '.join(dropped)}" if dropped else "")
    )
    return from_flat({key: value for key, value in values.items() if key not in dropped}, choices), [notice]


def help_page() -> str:
    """What can be typed, read from conf/ itself."""
    return ""
