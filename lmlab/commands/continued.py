"""Commands that continue from an earlier run: resume=, replay= and init_from=."""

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from lmlab import files
from lmlab.config.check import Config, check_key, check_value, from_flat
from lmlab.config.effects import check_step_keys
from lmlab.config.grammar import escaped, is_signed, parse, quoted, typed_value
from lmlab.config.keys import (
    CHOICES,
    DIVIDING,
    SweepConfig,
    choices_of,
    config_class,
    keys_of,
    marked,
    marked_in,
    markers_of,
)
from lmlab.errors import UserError
from lmlab.markers import CHANGEABLE, SHAPELESS, UNTOUCHING, FollowsUse, PathText
from lmlab.runs import hugging_face
from lmlab.runs.folder import check_outside, newest, read_config, read_metrics
from lmlab.terminal import tell

Overrides = dict[str, Override]  # by key


def literal(argument: str) -> str:
    """Returns an argument that names a run, a text or a choice, with the quotes that Hydra needs.

    Such names may contain characters that have a meaning in Hydra's grammar. A `path=` that Hydra
    reads as text stays as it is, since it may be several values.
    """
    key, _, text = argument.partition("=")
    if text == "null" or text[:1] in ("'", '"'):
        return argument
    has_blanks = text != text.strip()  # at its ends, which Hydra would take away
    if key in DIVIDING:
        is_quoted = has_blanks or not is_text(argument)
        text = escaped(text)
    elif key in ("path", "tokenizer_path", "name"):
        is_quoted = has_blanks or not is_text(argument)
    elif key in CHOICES:
        names = text.split(",") if is_text(argument) and not re.search(r"[\[({]", text) else [text]
        named = [name if is_text(f"{key}={name}") else quoted(name) for name in names]
        return f"{key}={','.join(named)}"
    else:
        is_quoted = key in ("resume", "replay", "init_from", "plugin", "out", "sweep")
    if not is_quoted:
        return argument
    return f"{key}={quoted(text)}"


def is_text(argument: str) -> bool:
    """Returns whether Hydra's grammar reads an argument as text, or as several values."""
    try:
        override = parse(argument)
    except UserError:
        return False
    return override.is_sweep_override() or isinstance(override.value(), str)


def by_key(arguments: list[str]) -> Overrides:
    """Returns the parsed arguments by their keys. Raises UserError."""
    return {override.key_or_group: override for override in map(parse, arguments)}


def inherited(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments, in which init_from= names one run, and additional arguments.

    The additional arguments choose the model and the tokenizer of that run. Raises UserError if the
    user typed another one.
    """
    overrides = by_key(arguments)
    start = None
    if "init_from" in overrides:
        start = overrides["init_from"].value()
    if start is None:
        return arguments, []
    typed = check_value("init_from", start, PathText)
    check_one_run("init_from", typed)
    path = newest(Path(typed), "init_from")
    saved = read_config(path)
    kept: dict[str, Any] = {}
    for group, values in (("model", saved.model), ("tokenizer", saved.tokenizer)):
        name = saved.choices[group]
        if name not in choices_of(group):  # a preset that is missing here
            name = saved.base(group)
        kept |= {group: name, **vars(values)}
    shapeless = marked_in(config_class("model", kept["model"]), SHAPELESS)
    for key, value in kept.items():
        if key in overrides and key not in shapeless and overrides[key].value() != value:
            raise UserError(
                f"{overrides[key].input_line}: the run at {path} has {key}={value}, which its "
                "weights need"
            )
    resolved = []
    for text in arguments:
        if parse(text).key_or_group == "init_from":
            text = literal(f"init_from={path}")
        resolved.append(text)
    anew = {  # keys that had their default there, which follows a key that was typed here
        key
        for key, marker in markers_of(FollowsUse).items()
        if marker.source in overrides and kept.get(key) == marker.value(kept)
    }
    added = [
        f"{key}={typed_value(key, value)}"
        for key, value in kept.items()
        if key not in {*overrides, *anew}
    ]
    return resolved, added


def check_one_run(key: str, typed: str) -> None:
    """Raises UserError if a key that names a run was given several of them.

    The name of a folder may have commas: it is not cut if it is there.
    """
    choice = re.fullmatch(r"choice\((.*)\)", typed)
    names = [name.strip() for name in (choice[1] if choice else typed).split(",")]
    if os.path.exists(typed) or len(names) < 2:
        return
    if all(name == "null" or (name and os.path.exists(name)) for name in names):
        raise UserError(f"{key}={typed}: takes one run, also in a sweep; needs a command for each")


def repeated(arguments: list[str], flags: list[str]) -> tuple[str, Path, Config] | None:
    """Returns which of resume= and replay= was typed, the run's folder, and its configuration.

    The configuration contains the typed values of keys that a resumed run may change. Returns None
    if the user typed neither resume= nor replay=. Raises UserError.
    """
    overrides = by_key(arguments)
    for verb in ("resume", "replay"):
        if verb in overrides and overrides[verb].value() is not None:
            break
    else:
        return None
    others = {key: override for key, override in overrides.items() if key != verb}
    refuse_unfit(verb, overrides, flags)
    path = run_folder(verb, overrides[verb].value())
    return verb, path, changed(path, others)


def refuse_unfit(verb: str, overrides: Overrides, flags: list[str]) -> None:
    """Raises UserError for flags and overrides that are not allowed with resume= or replay=."""
    unfit = list(flags)
    for key, override in overrides.items():
        alone = verb == "replay" or key in ("replay", "init_from", *keys_of(SweepConfig))
        # path and plugin: where the run's text and its own code are now
        other = alone and key not in (verb, "path", "plugin")
        if override.is_sweep_override() or is_signed(override) or other:
            unfit.append(str(override.input_line))
    if unfit:
        raise UserError(
            f"{unfit[0]}: not allowed with {verb}=…, which uses the run's own configuration"
        )


def run_folder(verb: str, value: Any) -> Path:
    """Returns the folder that resume= or replay= names. Raises UserError if it is no run."""
    typed = check_value(verb, value, PathText)
    check_one_run(verb, typed)
    path = Path(typed)
    if typed and (path / "config.yaml").exists():
        return path
    if typed and hugging_face.is_foreign(path):
        raise hugging_face.no_run(f"{verb}={typed}", path)
    check_outside(verb, path)
    found = files.named_below(path, "config.yaml", lambda why: tell(f"left out: {why}"))
    below = [str(config.parent) for config in found]
    example = max(below, default="outputs/<name>/<time>")
    raise UserError(f"{verb}={typed}: is not the folder of a run, such as {example}")


def changed(path: Path, overrides: Overrides) -> Config:
    """Returns the configuration of the run at `path`, with new values for some of its keys.

    Raises UserError for keys that the run must keep.
    """
    saved = read_config(path)
    values = saved.flat()
    check_step_keys([*overrides.values()], saved.built_on())
    for key, override in overrides.items():
        value = override.value()
        check_key(key, value, saved.built_on())
        if value == values[key]:
            continue
        typed, before = (f"{key}={typed_value(key, x)}" for x in (value, values[key]))
        if key not in marked(CHANGEABLE):
            raise UserError(
                f"{typed}: the run was started with {before}, which cannot change; "
                f"a new run with another value can start from its weights: init_from={path}"
            )
        if key not in marked(UNTOUCHING) and "cell" in read_metrics(path):
            raise UserError(
                f"{typed}: the run is a cell of a sweep, started with {before}; "
                "repeat the sweep's command with the other value instead"
            )
        values[key] = value
    run_keys = {key: values[key] for key in values if key not in CHOICES}
    return from_flat(run_keys, saved.choices, saved.bases)
