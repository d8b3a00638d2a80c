"""Composes the overrides of a command with Hydra; check.py then checks each configuration."""

import itertools
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmlab.config.check import Config, NotTaken, build, check_key, check_value, from_flat
from lmlab.config.conf_files import ADDED, CONF, names_in, vanishing
from lmlab.config.keys import (
    CHOICES,
    SETTINGS,
    RunConfig,
    SweepConfig,
    bases_of,
    choices_of,
    companion_keys,
    config_class,
    idle_keys,
    keys_of,
    keys_taken,
    kind_of,
    marked,
)
from lmlab.config.recipes import check_preset, read_recipe
from lmlab.errors import UserError, about, nearest
from lmlab.markers import ONCE
from lmlab.registry import remembered
from lmlab.terminal import after_a_second, tell

LISTED = "list"  # the sweeper that the lab itself chooses, for grids and for sweeps from files
COUNTING = ("auto", "cpu")  # the devices of models without steps
OF_DECAY = {"min_lr", "decay_steps"}  # keys of a learning rate that falls
EACH_ITS_OWN = (
    "a sweep of both is a file with a line for each, as conf/sweep/vocabulary.yaml is for "
    "sweep=vocabulary"
)
MOST = 100_000  # values of a range, and cells of a sweep
SEARCH_LIMIT = 4096  # of combinations, up to which each that a search may begin with is checked


@dataclass(frozen=True)
class Asked:
    """A checked command.

    `runs` holds the configuration of each run with its overrides. `name` is the name of the sweep
    or of the run. `swept` are the keys with several values. `hydra` are Hydra's own settings.
    """

    runs: list[tuple[Config, list[str]]]
    name: str
    swept: tuple[str, ...]
    launcher: str
    sweeper: str
    hydra: dict[str, Any]


def checked(arguments: list[str], multirun: bool) -> Asked:
    """Checks a command and all its runs. Raises UserError if one of them is wrong.

    For a search, the values at the ends of its ranges are checked.
    """
    overrides = [parse(text) for text in arguments]
    searching = any(str(o.input_line) == "hydra/sweeper=search" for o in overrides)
    for override in overrides:
        with about(override.key_or_group):
            check_hydra(override, searching)
    fixed = [o for o in overrides if not o.is_sweep_override()]
    swept = [o for o in overrides if o.is_sweep_override()]
    _, choices, settings = compose(typed_lines([o for o in fixed if is_hydras(o)] + chosen(fixed)))
    launcher = str(choices["hydra/launcher"])
    sweeper = str(choices["hydra/sweeper"])
    check_settings("launcher", launcher, settings["launcher"])
    check_settings("sweeper", sweeper, settings["sweeper"])
    for override in overrides:
        key = override.key_or_group
        with about(key):
            if override.is_sweep_override() and "/" not in key and "." not in key:
                typed = str(override.input_line).partition("=")[2]
                with suppress(NotTaken):  # the choice that takes it may be swept
                    check_key(key, typed, {group: str(choices[group]) for group in CHOICES})
            check_place(override, multirun, sweeper)
        if override.key_or_group == "hydra.sweeper.pruner" and override.value() != "none":
            refuse_pruner(override, swept)
        if override.key_or_group == "hydra.sweeper.batch" and launcher in ("local", "basic"):
            raise UserError(
                f"{override.input_line}: has no effect with hydra/launcher={launcher}, which begins a "
                "trial whenever it can run one"
            )
    runs = all_runs(overrides, searching=sweeper == "search", in_sweep=multirun)
    keys = tuple(o.key_or_group for o in swept)
    name = runs[0][0].run.name
    if swept and not any(o.key_or_group == "name" for o in overrides):
        name = re.sub(r"[^\w.,=+-]", ".", "-".join(keys))
    runs = [(replace(config, run=replace(config.run, name=name)), cell) for config, cell in runs]
    return Asked(runs, name, keys, launcher, sweeper, settings)


def joined(parts: list[Asked]) -> Asked:
    """Returns the command that asks for the runs of several commands, as those of one sweep.

    Raises UserError if one of several is a search, or for keys of steps if no model has steps.
    """
    runs = [run for part in parts for run in part.runs]
    if all(idle_keys(config.choices) for config, _ in runs):
        for config, own_overrides in runs:
            check_step_keys([parse(text) for text in own_overrides], config.choices)
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        if part.sweeper != "basic":
            raise UserError(
                f"hydra/sweeper={part.sweeper}: a file of several lines has no search; a file of one "
                "line may have one"
            )
    varied = {key for part in parts for key in part.swept}
    texts = [{key_of(text): text for text in overrides} for _, overrides in runs]
    for key in {key for own in texts for key in own}:
        if len({own.get(key) for own in texts}) > 1:
            varied.add(key)
    first = parts[0]
    runs = list({repr(config.flat()): (config, own) for config, own in runs}.values())
    return replace(first, runs=runs, swept=tuple(sorted(varied)), sweeper=LISTED)


def typed_lines(overrides: Iterable[Override]) -> tuple[str, ...]:
    """Returns overrides as the user typed them."""
    return tuple(str(override.input_line) for override in overrides)


def all_runs(
    overrides: list[Override], searching: bool, in_sweep: bool
) -> list[tuple[Config, list[str]]]:
    """Returns the configuration and the overrides of each run that a command asks for.

    Prints a notice once if the user typed a choice, such as model=gpt, that replaces a choice of
    the experiment's file. Raises UserError.
    """
    limit = SEARCH_LIMIT if searching else None
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    values = []
    for override in overrides:
        with about(override.key_or_group):
            values.append(texts_of(override, searching))
    runs = []
    notices: dict[str, None] = {}  # each once, in order
    n = math.prod(map(len, values))
    if limit is not None:
        n = min(n, limit)
    if n > MOST:
        raise UserError(f"{' '.join(sorted(swept))}: {n:,} cells; allowed are {MOST:,} in a sweep")
    with after_a_second(lambda: tell(f"checking {n} cells …")):
        for cell in combinations(values, limit):
            try:
                config, notice = resolved(cell, in_sweep)
            except NotTaken as error:
                if searching or error.group not in swept:
                    raise
                error.args = (f"{error}; {EACH_ITS_OWN}",)
                raise
            runs.append((config, [text for text in cell if not is_hydras(parse(text))]))
            notices[notice] = None
    if not searching:
        same = len(runs) - len({repr(config.flat()) for config, _ in runs})
        if same:
            notices[f"{same} of {len(runs)} cells are the same as another, and run once"] = None
    for notice in filter(None, notices):
        print(notice, file=sys.stderr)
    return runs


def texts_of(override: Override, searching: bool) -> list[str]:
    """Returns an override for each of its values that is checked. Raises UserError."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return ends(override) if searching else listed(override)


def check_settings(kind: str, choice: str, values: dict[str, Any]) -> None:
    """Raises UserError if a setting of one of lmlab's launchers or sweepers is wrong."""
    if choice not in SETTINGS:
        return
    settings = {key: value for key, value in values.items() if key != "_target_"}
    known = keys_of(SETTINGS[choice])
    for key, value in settings.items():
        if key not in known:
            hint = nearest(key, known)
            raise UserError(f"hydra.{kind}.{key}={value}: there is no such key{hint}")
    build(SETTINGS[choice], settings, f"hydra.{kind}.")


def check_hydra(override: Override, searching: bool) -> None:
    """Raises UserError for a setting of Hydra that would have no effect, such as hydra.run.dir."""
    key = override.key_or_group
    if override.package is not None:
        raise UserError(f"{override.input_line}: has no effect here; a key has no @ in it")
    if key.startswith("hydra.sweeper.") and not searching:
        raise UserError(
            f"{override.input_line}: needs hydra/sweeper=search; a grid is written as key=value,value"
        )
    if key in ("hydra/launcher", "hydra/sweeper"):
        check_value(key, override.value(), str)
    if key == "hydra/sweeper" and override.value() == LISTED:
        raise UserError(f"{override.input_line}: has no effect here; sweep=… names a file of runs")
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        raise UserError(f"{override.input_line}: has no effect here; out=… says where runs go")
    used = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.")
    if is_hydras(override) and not key.startswith(used):
        raise UserError(
            f"{override.input_line}: has no effect here; of Hydra's settings allowed are "
            "hydra/launcher, hydra.launcher.…, hydra/sweeper and hydra.sweeper.…"
        )


def check_place(override: Override, multirun: bool, sweeper: str) -> None:
    """Raises UserError for values or settings of sweeps where they are not allowed."""
    key = override.key_or_group
    text = override.input_line
    if override.is_sweep_override():
        if not multirun or key in marked(ONCE) or is_hydras(override):
            once = " ".join(sorted(marked(ONCE)))
            raise UserError(
                f"{text}: several values need a sweep (add -m), and a key other than {once}; one "
                f"value with commas is quoted twice: {key}=\"'…'\"{decimal_point(str(text))}"
            )
        if sweeper != "search" and not override.is_discrete_sweep():
            raise UserError(
                f"{text}: a sweep needs a list of values; to search in a range, add "
                "hydra/sweeper=search"
            )
        if key == "seed" and not override.is_discrete_sweep():
            raise UserError(
                f"{text}: a search takes the mean over seeds, and would choose the luckiest one of a "
                "range; needs a list: seed=0,1,2"
            )
    of_commands = {*keys_of(SweepConfig)} - {"fast_dev_run"}
    if (key in of_commands or is_hydras(override)) and not multirun:
        raise UserError(f"{text}: is a key of sweeps; add -m")
    if key == "trial":
        raise UserError(f"{text}: only hydra/sweeper=search sets this key")


def refuse_pruner(override: Override, swept: list[Override]) -> None:
    """Raises UserError for a pruner of a search over several seeds, which prunes nothing."""
    for other in swept:
        if other.key_or_group == "seed":
            raise UserError(
                f"{override.input_line}: has no effect with {other.input_line}, since the mean over "
                "seeds is known only when all have ended; allowed is none"
            )


def decimal_point(text: str) -> str:
    """Returns a hint for a number with a decimal comma, or ""."""
    if re.fullmatch(r"\w+=-?\d+,\d+", text):
        return f"; a number has a decimal point: {text.replace(',', '.')}"
    return ""


def combinations(values: list[list[str]], limit: int | None) -> Iterable[Sequence[str]]:
    """Returns all combinations of one value from each list.

    If there are more than `limit`, it returns only two: all first values, and all last values.
    """
    if limit is not None and math.prod(map(len, values)) > limit:
        return [texts[0] for texts in values], [texts[-1] for texts in values]
    return itertools.product(*values)


def resolved(cell: Sequence[str], in_sweep: bool = True) -> tuple[Config, str]:
    """Returns the checked configuration of one run's overrides, and a notice (or "").

    Keys of training by steps have no effect on a model without steps, but that the folder of a
    single run notes device=cpu. (In sweeps the names of cells were made without it.) Raises
    UserError.
    """
    typed = [o for o in map(parse, cell) if not is_hydras(o)]
    values, choices, _ = compose(typed_lines(chosen(typed)))
    for override in typed:
        if override.key_or_group not in CHOICES:
            with about(override.key_or_group):
                check_key(override.key_or_group, override.value(), choices)
    for override in typed:
        with about(override.key_or_group):
            check_sign(override)
    idle = idle_keys(choices)
    if not in_sweep:
        idle = idle - {"device"}
    typed = [o for o in typed if o.key_or_group not in idle]
    values, choices, _ = compose(typed_lines(chosen(typed)))
    given = {o.key_or_group: o.value() for o in typed if o.key_or_group not in CHOICES}
    values = values | given
    config, notice = read(values, {group: choices[group] for group in CHOICES})
    for key in OF_DECAY & {*given}:
        if config.run.schedule == "constant" and given[key] is not None:
            with about(key):
                raise UserError(
                    f"{key}={given[key]}: has no effect with schedule=constant, which never falls"
                )
    asked = None if "decay_steps" in idle else values["decay_steps"]
    return config, " ".join(filter(None, [notice, warm_until_the_end(config.run, asked)]))


def warm_until_the_end(run: RunConfig, asked: int | None) -> str:
    """Returns a warning if `asked`, the value given for decay_steps, lies within the warm-up, or "".

    It is not refused: a longer run may have to fall where a shorter one did, which was all warm-up.
    """
    if asked is None or asked > run.warmup_steps or run.schedule == "constant":
        return ""
    return (
        f"warning: decay_steps={asked} warmup_steps={run.warmup_steps}: the first has no effect; lr "
        f"rises until step {run.warmup_steps}, and min_lr follows at once"
    )


def check_step_keys(typed: list[Override], choices: dict[str, str]) -> None:
    """Raises UserError if a key of training by steps is given for a model without steps."""
    model = choices["model"]
    for override in typed:
        if override.key_or_group == "device" and idle_keys(choices):
            check_counting_device(override, model)
        elif override.key_or_group in idle_keys(choices):
            keys = ", ".join(keys_of(config_class("model", model)))
            raise UserError(
                f"{override.input_line}: model={model} is trained by counting, without steps; its "
                f"keys are {keys} and data, name, seed"
            )


def check_counting_device(override: Override, model: str) -> None:
    """Raises UserError for a device on which nothing is counted.

    Some people type device=cpu with every command, and for a model without steps it is true.
    """
    bases = bases_of("device")
    fitting = [name for name, base in bases.items() if base in COUNTING]
    if override.value() not in fitting:
        raise UserError(
            f"{override.input_line}: model={model} is trained by counting, which the CPU does; "
            f"allowed are {', '.join(fitting)}"
        )


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


def is_hydras(override: Override) -> bool:
    """Returns whether an override belongs to Hydra itself, not to a run."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def is_signed(override: Override) -> bool:
    """Returns whether an override adds or removes a key, like `+key=…` or `~key`."""
    return str(override.input_line).startswith(("+", "~"))


def check_sign(override: Override) -> None:
    """Raises UserError if an override adds or removes a key."""
    if is_signed(override):
        raise UserError(
            f"{override.input_line}: keys cannot be added or removed; write "
            f"{override.key_or_group}=…"
        )


def ends(override: Override) -> list[str]:
    """Returns the overrides with which a search's range of values is checked.

    For an interval these are its two ends, else all values.
    """
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, IntervalSweep):
        low = float(value.start or 0)
        high = float(value.end or 0)
        if kind_of(key) is int and low.is_integer() and high.is_integer():
            return [f"{key}={int(low)}", f"{key}={int(high)}"]
        return [f"{key}={low}", f"{key}={high}"]
    return listed(override)


def listed(override: Override) -> list[str]:
    """Returns an override for each value of a list, a range or a choice. Raises UserError."""
    key = override.get_key_element()
    n = values_in(override.value())
    if n > MOST:
        raise UserError(
            f"{override.input_line}: has {n:,.0f} values; allowed are {MOST:,}; a search takes "
            f"{key}='interval(low,high)'"
        )
    try:
        texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except (ValueError, TypeError, HydraException, OmegaConfBaseException):
        texts = []  # such as range(0,3,0), or a range within a list
    if not texts:
        raise UserError(
            f"{override.input_line}: has no values; a list is {key}=1,2 or {key}='range(1,3)'"
        )
    return texts


def values_in(value: Any) -> float:
    """Returns about how many values a range has, and 0 for anything else."""
    if not isinstance(value, RangeSweep) or not value.step:
        return 0
    assert value.start is not None and value.stop is not None  # the parser needs both
    return (value.stop - value.start) / value.step


def last_of_each(arguments: list[str]) -> list[str]:
    """Returns the arguments without those whose key is given again later. A notice names them."""
    last = {key_of(argument): n for n, argument in enumerate(arguments)}
    for argument in arguments:
        counts = arguments[last[key_of(argument)]]
        if argument != counts:
            print(
                f"warning: {argument}: has no effect, since {counts} comes after it",
                file=sys.stderr,
            )
    return [arguments[n] for n in sorted(last.values())]


def key_of(argument: str) -> str:
    """Returns the part of an argument before the equals sign."""
    return argument.partition("=")[0]


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


@lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    """Parses an argument as one of Hydra's overrides. Raises UserError."""
    with about(key_of(text).lstrip("+~")):
        return parsed(text)


def parsed(text: str) -> Override:
    """Returns an argument as one of Hydra's overrides. Raises UserError."""
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError):  # Python reads no number of over 4,300 digits
        pair = re.fullmatch(r"([a-zA-Z_]\w*)\s*[:=]?\s*(\S*)", text)
        if pair and "=" not in text.strip(" ="):
            raise UserError(
                f"{text}: needs the form key=value, without blanks: {pair[1]}={pair[2] or '…'}"
            ) from None
        if "=" not in text:
            raise UserError(f"{text}: needs the form key=value, without blanks") from None
        raise UserError(
            f"{text}: needs the form key=value; a value with spaces, commas, quotes or braces is "
            f"quoted twice: {text.partition('=')[0]}=\"'…'\""
        ) from None
    tiny = vanishing(text)
    if tiny:
        raise UserError(
            f"{text}: {tiny} is too small for a computer's numbers; write 0 if you mean 0"
        )
    return override


def typed_value(key: str, value: Any) -> str:
    """Returns a value of Python as it would be typed. Raises UserError if it cannot be."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        shown = repr(value)[:100]
    except ValueError:  # a number of 5,000 digits
        shown = "…"
    if isinstance(value, int | float) and shown != "…":
        return repr(value)
    try:
        text = os.fspath(value)
    except TypeError:
        text = b""
    if isinstance(text, bytes) or "\0" in text:
        raise UserError(
            f"{key}={shown}: allowed are text, numbers, True, False, None and lists of them"
        )
    return text if is_plain(key, text) else quoted(text)


def is_plain(key: str, text: str) -> bool:
    """Returns whether Hydra's grammar reads a text as it is."""
    try:
        override = parse(f"{key}={text}")
    except UserError:
        return False
    return not override.is_sweep_override() and override.value() == text


def quoted(text: str) -> str:
    """Returns a text in the quotes of Hydra's grammar."""
    escaped = re.sub(r"\\*'|\\+$", lambda match: "".join(f"\\{c}" for c in match[0]), text)
    return f"'{escaped}'"


@remembered
def compose(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Returns the keys' values, all choices, and Hydra's own settings, as Hydra composes them.

    `overrides` are choices of groups. Raises UserError.
    """
    try:
        with initialized():
            composed = hydra.compose(
                primary(), [*overrides, *search_path()], return_hydra_config=True
            )
            values: Any = OmegaConf.to_container(composed)
    except MissingConfigException as error:
        raise UserError(missing_choice(error, overrides)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra goes on to recommend +key=…, which the lab refuses.
        reason = re.split("Config search path|To append to your config", str(error))[0]
        hint = ""
        if "Could not override 'hydra." in reason:
            hint = "; there is no such key, --help lists those of local and search"
        raise UserError(reason.rstrip(". \n") + hint) from None
    settings = values.pop("hydra")
    return values, settings["runtime"]["choices"], settings


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
