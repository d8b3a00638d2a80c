"""What is typed, checked as a whole before anything starts, torch included. Hydra composes and sweeps."""

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmlab.config import CHOICES, GROUPS, Config, UserError, check_key, check_value, from_flat, keys_of, nearest

CONF = Path(__file__).parent.parent / "conf"

@contextmanager
def one_line_errors() -> Iterator[None]:
    """A UserError becomes its line and exit status 2, or with HYDRA_FULL_ERROR=1 its trace."""
    try:
        yield
    except (UserError, HydraException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None

def main(argv: list[str] | None = None) -> None:
    """What train.py does."""
    argv, parser = sys.argv[1:] if argv is None else argv, get_args_parser()
    parser.prog, parser.print_usage = "train.py", lambda _: None  # a wrong flag too gets one line
    args = parser.parse_args(argv)
    if args.help:
        return print(help_page())
    with one_line_errors():
        flags = [argument for argument in argv if argument not in args.overrides]
        sys.argv = ["train.py", *flags, *args.overrides, *checked(args.overrides, args.multirun)]
    return hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(task)()

def task(cfg: DictConfig) -> None:
    """One run, as Hydra calls it: for the command itself, or for each cell of a sweep."""
    job = HydraConfig.get()
    with one_line_errors():
        config, _ = read(OmegaConf.to_container(cfg), {group: job.runtime.choices[group] for group in CHOICES})
        from lmlab import experiment
        path = Path("outputs", config.run.name, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        if job.mode.name == "MULTIRUN":
            typed = [text for text in job.overrides.task if not text.lstrip("+").startswith("name=")]
            cell = ",".join(typed).replace("/", "_")
            path = Path("outputs", "sweeps", config.run.name, cell or path.name)
        if experiment.run(config, path) == "diverged" and job.mode.name == "RUN":
            raise SystemExit(1)

def checked(arguments: list[str], multirun: bool) -> list[str]:
    """Raises UserError unless every run that was asked for holds. Returns what Hydra is told beside."""
    overrides = [parse(text) for text in arguments]
    swept = {o.key_or_group: o.input_line for o in overrides if o.is_sweep_override()}
    for key, text in swept.items():
        if not multirun or key == "name":
            raise UserError(f"{text}: several values are a sweep, of any key but name; add -m, or quote the value "
                            f"twice: {key}=\"'…'\"")
    notices = {}
    for cell in itertools.product(*([f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
                                    if o.is_sweep_override() else [o.input_line] for o in overrides)):
        typed = [parse(text) for text in cell]
        hydras = [o for o in typed if o.key_or_group.startswith(("hydra.", "hydra/"))]
        signed = [o for o in typed if o.input_line[0] in "+~" and o not in hydras]
        groups = [o for o in typed if o.key_or_group in CHOICES and o not in signed]
        recipes = [None, *sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))]
        for o in groups:
            check_value(o.key_or_group, o.value(), Literal[*GROUPS.get(o.key_or_group, recipes)])
        values, choices = compose(tuple(o.input_line for o in hydras + groups))
        plain = {o.key_or_group: o.value() for o in typed if o not in hydras and o.key_or_group not in CHOICES}
        for key, value in plain.items():
            check_key(key, value, choices)
        for o in signed:
            raise UserError(f"{o.input_line}: keys are not added or removed; give {o.key_or_group}=… a value")
        config, notice = read(values | plain, choices)
        notices[notice] = None
    print("".join(f"{notice}\n" for notice in notices if notice), end="")
    name = config.run.name if "name" in plain or not swept else "-".join(swept)
    return [f"++name='{name}'", f"hydra.sweep.dir='{tempfile.gettempdir()}/lmlab'"] if multirun else []

def parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        raise UserError(f"{text}: not of the form key=value; a value with spaces, commas, quotes or braces is "
                        f"quoted twice: {text.partition('=')[0]}=\"'…'\"") from None

@lru_cache
def compose(overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys and the choices that Hydra composes from choices of groups."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            values = OmegaConf.to_container(hydra.compose("config", list(overrides), return_hydra_config=True))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(str(error).split("Config search path")[0]) from None
    chosen = values.pop("hydra")["runtime"]["choices"]
    return values, {group: chosen[group] for group in CHOICES}

def read(values: dict[str, Any], choices: dict[str, str]) -> tuple[Config, str]:
    """The checked configuration; and, where a choice replaces one of the experiment's own, what of the rest stays."""
    path = CONF / "experiment" / f"{choices['experiment']}.yaml"
    recipe = yaml.safe_load(path.read_text()) if choices["experiment"] else {"defaults": []}
    entries = [entry for entry in recipe.pop("defaults", []) if isinstance(entry, dict)]
    made_for = {key.removeprefix("override /"): own for entry in entries for key, own in entry.items()}
    replaced = {group: own for group, own in made_for.items() if choices[group] != own}
    taken = {key for group in GROUPS for key in keys_of(GROUPS[group][choices[group]])}
    lost = {key for group, own in replaced.items() for key in keys_of(GROUPS[group][own])} & {*recipe} - taken
    old, new = (" ".join(f"{g}={chosen[g]}" for g in replaced) for chosen in (made_for, choices))
    kept = " ".join(f"{key}={values[key]}" for key in recipe if key not in lost)
    notice = f"experiment={choices['experiment']} is made for {old}; with {new} it keeps its other values: {kept}"
    return from_flat({key: values[key] for key in values if key not in lost}, choices), notice if replaced else ""

def help_page() -> str:
    """conf/help.txt, then what the files of conf/ themselves say."""
    page = (CONF / "help.txt").read_text()
    for group in CHOICES:
        page += f"\n{group}=\n"
        for p in sorted((CONF / group).glob("*.yaml")):
            page += f"  {p.stem:<18}{p.read_text().splitlines()[1][2:]}\n"
    for name in ("config", "model/gpt", "optimizer/adamw", "optimizer/sgd", "data/file", "device/auto"):
        page += f"\nKeys of {'every run' if name == 'config' else name.replace('/', '=')}\n"
        lines = (CONF / f"{name}.yaml").read_text().split("\nhydra:")[0].splitlines()
        page += "".join(f"  {line}\n" for line in lines if line[:1].islower() and line != "defaults:")
    return page

def parse_script(options: type, page: str, argv: list[str]) -> Any:
    """The dataclass `options` from key=value arguments, split at the first `=` and checked; --help prints `page`."""
    if {"-h", "--help"} & set(argv):
        print(page.strip())
        raise SystemExit
    hints, values = get_type_hints(options, include_extras=True), {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals or key not in hints:
            raise UserError(f"{argument}: needs key=value{nearest(key, hints)}; keys are {', '.join(hints)}")
        is_text = "str" in str(hints[key]) or "Literal" in str(hints[key])
        values[key] = check_value(key, text if is_text else parse(argument).value(), hints[key])
    return options(**values)
