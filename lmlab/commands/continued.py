"""Commands that continue from an earlier run: resume=, replay= and init_from=."""

import re
from pathlib import Path

from lmlab.catalogue import CHANGEABLE, UNTOUCHING
from lmlab.config.check import Config, check_key, check_value, from_flat
from lmlab.config.keys import CHOICES, SweepConfig, keys_of, marked
from lmlab.config.overrides import check_step_keys, parse
from lmlab.errors import UserError
from lmlab.runs.folder import newest, read_config, read_metrics


def literal(argument: str) -> str:
    """An argument that names a run, quoted for Hydra: folders of sweeps have its signs in their
    names.
    """
    key, _, text = argument.partition("=")
    if key not in ("resume", "replay", "init_from") or text == "null" or text[:1] in ("'", '"'):
        return argument
    escaped = re.sub(r"\\*'|\\+$", lambda found: "".join(f"\\{sign}" for sign in found[0]), text)
    return f"{key}='{escaped}'"


def inherited(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments with init_from= as the folder of one run, and that run's model as further
    arguments. Raises UserError if another model was asked for.
    """
    overrides = {o.key_or_group: o for o in map(parse, arguments)}
    start = overrides["init_from"].value() if "init_from" in overrides else None
    if start is None:
        return arguments, []
    path = newest(Path(check_value("init_from", start, str)), "init_from")
    saved = read_config(path)
    own = {"model": saved.choices["model"], **vars(saved.model)}
    free = {"dropout"} | ({"block_size"} if own["model"] == "bigram" else set())
    for key in own:
        if key in overrides and key not in free and overrides[key].value() != own[key]:
            raise UserError(
                f"{overrides[key].input_line}: the run at {path} has {key}={own[key]}, and its weights fit "
                "no other model"
            )
    resolved = [
        literal(f"init_from={path}") if text.startswith("init_from=") else text
        for text in arguments
    ]
    return resolved, [f"{key}={value}" for key, value in own.items() if key not in overrides]


def repeated(arguments: list[str], flags: list[str]) -> tuple[str, Path, Config] | None:
    """What resume= or replay= asks for: which of them, the run's folder, and its configuration with
    what may change. None if neither is there. Raises UserError.
    """
    overrides = {o.key_or_group: o for o in map(parse, arguments)}
    verb = next(
        (
            key
            for key in ("resume", "replay")
            if key in overrides and overrides[key].value() is not None
        ),
        None,
    )
    if verb is None:
        return None
    others = {key: o for key, o in overrides.items() if key != verb}
    unfit = [
        *flags,
        *(
            o.input_line
            for o in overrides.values()
            if o.is_sweep_override() or o.input_line[0] in "+~"
        ),
        *(
            o.input_line
            for key, o in others.items()
            if verb == "replay" or key in ("replay", "init_from", *keys_of(SweepConfig))
        ),
    ]
    if unfit:
        raise UserError(
            f"{unfit[0]}: can't go with {verb}=…, which takes one run as it was started"
        )
    typed = check_value(verb, overrides[verb].value(), str)
    path = Path(typed)
    if not typed or not (path / "config.yaml").exists():
        such = max(
            (str(found.parent) for found in path.rglob("config.yaml")),
            default="outputs/<name>/<time>",
        )
        raise UserError(f"{verb}={typed}: is not a run's folder, as {such} would be")
    saved = read_config(path)
    values = saved.flat()
    check_step_keys([*others.values()], saved.choices)
    for key, override in others.items():
        check_key(key, override.value(), saved.choices)
        if key not in marked(CHANGEABLE) and override.value() != values[key]:
            raise UserError(
                f"{key}={override.value()}: the run was started with {key}={values[key]} and keeps it; a "
                f"new run can have another, and with init_from={path} its weights"
            )
        if (
            key not in marked(UNTOUCHING)
            and override.value() != values[key]
            and "cell" in read_metrics(path)
        ):
            raise UserError(
                f"{key}={override.value()}: the run is a sweep's cell, known by {key}={values[key]}; a "
                "sweep with another value makes another cell"
            )
        values[key] = override.value()
    return (
        verb,
        path,
        from_flat({key: values[key] for key in values if key not in CHOICES}, saved.choices),
    )
