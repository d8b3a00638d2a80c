"""Checks keys and values, and builds the checked `Config` of a run. Imports no torch."""

import re
from dataclasses import asdict, dataclass, field
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lmlab.catalogue import GROUPS, DeviceConfig, MuonConfig, TransformerConfig
from lmlab.config.keys import CHOICES, COUNTED, RunConfig, SweepConfig, keys_of
from lmlab.errors import UserError, nearest


@dataclass(frozen=True)
class Config:
    """A checked run. `choices` says what was chosen of each group, the parts hold what that choice
    takes. `sweep` is None where it is read from a run's folder.
    """

    choices: dict[str, str]
    run: RunConfig
    model: Any
    data: Any
    device: DeviceConfig
    optimizer: Any
    sweep: SweepConfig | None = field(default=None, compare=False)

    @property
    def counted(self) -> bool:
        """Whether the model is trained by counting, all at once, and has no steps."""
        return self.choices["model"] in COUNTED

    def flat(self) -> dict[str, Any]:
        """Choices and keys as one flat mapping: what config.yaml holds."""
        return self.choices | {
            k: v for part in ("run", *GROUPS) for k, v in asdict(vars(self)[part]).items()
        }


def check_key(key: str, value: Any, choices: dict[str, str]) -> None:
    """Raises UserError unless the run or one of the choices takes `key`."""
    known = {*CHOICES, *keys_of(RunConfig), *keys_of(SweepConfig)}
    for group, parts in GROUPS.items():
        takers = [choice for choice, part in parts.items() if key in keys_of(part)]
        if takers and choices[group] not in takers:
            taken = ", ".join(keys_of(parts[choices[group]]))
            raise UserError(
                f"{key}={value}: {group}={choices[group]} doesn't take {key}, it takes {taken}; "
                f"{key} goes with {group}={'|'.join(takers)}"
            )
        known.update(*map(keys_of, parts.values()))
    if key not in known:
        raise UserError(
            f"{key}={value}: there is no key {key}{nearest(key, known)}; --help lists them all"
        )


def check_value(key: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the annotated type and in range, else UserError. A whole number passes as
    float.
    """
    if NoneType in get_args(hint):
        if value is None:
            return None
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        words = [str(word) for word in get_args(hint)]
        raise UserError(
            f"{key}={value}: allowed are {', '.join(words)}{nearest(str(value), words)}"
        )
    kind, interval = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    given, value = value, float(str(value)) if kind is float and type(value) is int else value
    if type(value) is not kind or value != value:
        needed = {
            int: f"a whole number in {interval}",
            float: f"a number in {interval}",
            bool: "true or false",
            str: f"text; what looks like something else is quoted twice: {key}=\"'{value}'\"",
        }
        raise UserError(f"{key}={given}: needs {needed[kind]}")
    if kind is str and len(value.splitlines()) > 1:
        raise UserError(f"{key}={value}: needs text of one line")
    if interval:
        low, high = (float(end) for end in interval[1:-1].split(","))
        if not (
            low < value < high
            or (value == low and interval[0] == "[")
            or (value == high and interval[-1] == "]")
        ):
            raise UserError(f"{key}={given}: out of range; allowed is {interval}")
    return value


def build(part: type, values: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass `part` from its keys among `values`, each checked; errors name them with the
    prefix.
    """
    hints = get_type_hints(part, include_extras=True)
    return part(
        **{key: check_value(prefix + key, values.get(key), hints[key]) for key in keys_of(part)}
    )


def derived(values: dict[str, Any]) -> dict[str, Any]:
    """The values of keys that are null where nobody gave them one."""
    return {
        "decay_steps": values["max_steps"],
        "min_lr": values["lr"] / 10,
        "adam_lr": values["lr"],
    }


def from_flat(values: dict[str, Any], choices: dict[str, str]) -> Config:
    """The one way from keys and values, typed or read from a config.yaml, to a `Config`. Raises
    UserError.
    """
    for key, value in values.items():
        check_key(key, value, choices)
        if "${" in str(value):
            raise UserError(f"{key}={value}: no interpolation; write the value itself")
        if value == "???":
            raise UserError(f"{key}: data={choices['data']} needs {key}=…")
    optimizer = build(GROUPS["optimizer"][choices["optimizer"]], values)
    usual = derived(values | {"lr": optimizer.lr}) | {"name": choices["model"]}
    values = values | {key: value for key, value in usual.items() if values.get(key) is None}
    parts = {group: build(GROUPS[group][choices[group]], values) for group in GROUPS}
    sweep = build(SweepConfig, values) if "retries" in values else None
    config = Config(choices, build(RunConfig, values), **parts, sweep=sweep)
    run, model, data = config.run, config.model, config.data
    if isinstance(model, TransformerConfig):
        times = model.n_head * (
            1 + (getattr(model, "positions", "") == "rotary")
        )  # which turns pairs of channels
        if model.n_embd % times:
            twice = " twice" * (times > model.n_head)
            raise UserError(
                f"n_embd={model.n_embd} n_head={model.n_head}: n_embd must be a multiple of{twice} n_head"
            )
    if data.val_fraction + data.test_fraction + data.holdout_fraction >= 1:
        raise UserError(
            f"val_fraction={data.val_fraction} test_fraction={data.test_fraction} holdout_fraction="
            f"{data.holdout_fraction}: the sum must be below 1"
        )
    if run.unknown == "drop" and not run.init_from:
        raise UserError("unknown=drop: goes with init_from=…, whose vocabulary may lack characters")
    if run.hold_steps and run.schedule == "constant":
        raise UserError(
            f"hold_steps={run.hold_steps}: goes with schedule=cosine or linear; constant never falls"
        )
    if run.hold_steps and run.warmup_steps + run.hold_steps >= run.decay_steps:
        raise UserError(
            f"hold_steps={run.hold_steps} warmup_steps={run.warmup_steps} decay_steps={run.decay_steps}: "
            "the first two together must be below the third (null: max_steps), or nothing is left to decay"
        )
    if isinstance(optimizer, MuonConfig) and not isinstance(model, TransformerConfig):
        raise UserError(
            f"optimizer=muon: is for the matrices of a transformer; model={choices['model']} has none, "
            "allowed are sgd, adamw"
        )
    if run.min_lr > optimizer.lr:
        raise UserError(f"min_lr={run.min_lr} lr={optimizer.lr}: min_lr can't be above lr")
    if not re.fullmatch(r"\w[\w.,=+-]*", run.name):
        raise UserError(
            f"name={run.name}: it names a folder; allowed are letters, digits and _ . , = + -"
        )
    return config
