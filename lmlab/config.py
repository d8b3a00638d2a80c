"""What a run is: the types and ranges of its keys. Their values stand in conf/ and only there.

No torch here, so that a wrong key is answered at once.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


class UserError(Exception):
    """Something the user can put right, in one line: the key, the value, what is allowed."""


# The text is the allowed interval, checked by `check_value` and shown in its error.
Count = Annotated[int, "[1, inf)"]
CountOrZero = Annotated[int, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
PositiveOrZero = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]


@dataclass(frozen=True)
class BigramConfig:
    block_size: Count


@dataclass(frozen=True)
class GPTConfig:
    block_size: Count
    n_layer: Count
    n_head: Count
    n_embd: Count
    dropout: Share
    bias: bool

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise UserError(
                f"n_embd={self.n_embd} n_head={self.n_head}: n_embd must be a multiple of n_head, "
                "since each head gets an equal slice of it"
            )


@dataclass(frozen=True)
class CorpusConfig:
    val_fraction: Share
    test_fraction: Share

    def __post_init__(self) -> None:
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"val_fraction={self.val_fraction} test_fraction={self.test_fraction}: "
                "together they must stay below 1, or nothing is left to train on"
            )


@dataclass(frozen=True)
class FileConfig(CorpusConfig):
    path: str


@dataclass(frozen=True)
class DeviceConfig:
    precision: Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True)
class SGDConfig:
    lr: Positive
    momentum: Share
    weight_decay: PositiveOrZero


@dataclass(frozen=True)
class AdamWConfig:
    lr: Positive
    beta1: Share
    beta2: Share
    weight_decay: PositiveOrZero


@dataclass(frozen=True)
class RunConfig:
    name: str
    seed: Annotated[int, "[0, 4294967296)"]
    threads: Count | None
    max_steps: Count
    max_minutes: Positive | None
    batch_size: Count
    grad_accumulation: Count
    grad_clip: PositiveOrZero
    schedule: Literal["cosine", "constant"]
    warmup_steps: CountOrZero
    decay_steps: Count
    min_lr: PositiveOrZero
    log_interval: Count
    eval_interval: Count

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.,=+-]*", self.name):
            raise UserError(f"name={self.name!r}: letters, digits and _ . , = + - only; it names a folder")


# Which choices each group has, and the keys each choice takes.
GROUPS: dict[str, dict[str, type]] = {
    "model": {
        "bigram": BigramConfig,
        "gpt": GPTConfig,
        "gpt_nano": GPTConfig,
        "gpt_baby": GPTConfig,
        "gpt2": GPTConfig,
    },
    "data": {
        "sentence": CorpusConfig,
        "tales": CorpusConfig,
        "pydoc": CorpusConfig,
        "shakespeare": CorpusConfig,
        "file": FileConfig,
    },
    "device": {choice: DeviceConfig for choice in ("auto", "cpu", "cuda", "mps")},
    "optimizer": {"sgd": SGDConfig, "adamw": AdamWConfig},
}


@dataclass(frozen=True)
class Config:
    """A checked run. `choices` holds what was chosen of each group, the rest what that choice takes."""

    choices: dict[str, str]
    run: RunConfig
    model: Any
    data: CorpusConfig
    device: DeviceConfig
    optimizer: Any

    def flat(self) -> dict[str, Any]:
        """Choices and keys as one flat mapping: what config.yaml holds."""
        parts = (self.run, self.model, self.data, self.device, self.optimizer)
        return self.choices | {key: value for part in parts for key, value in asdict(part).items()}


def keys_of(part: type) -> list[str]:
    return [field.name for field in fields(part)]


def all_keys() -> set[str]:
    """Every key that some choice takes."""
    parts = [RunConfig, *(part for choices in GROUPS.values() for part in choices.values())]
    return {key for part in parts for key in keys_of(part)}


def nearest(word: str, words: Any) -> str:
    """' (did you mean …?)', or nothing where no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def check_key(key: str, choices: dict[str, str]) -> None:
    """Raises UserError unless the run or one of the choices takes `key`."""
    if any(key in keys_of(GROUPS[group][choices[group]]) for group in GROUPS) or key in keys_of(RunConfig):
        return
    for group, parts in GROUPS.items():
        takers = [choice for choice, part in parts.items() if key in keys_of(part)]
        if takers:
            choice = choices[group]
            raise UserError(
                f"{key}: {group}={choice} doesn't take it; it takes {', '.join(keys_of(parts[choice]))} "
                f"({key} goes with {group}={'|'.join(takers)})"
            )
    raise UserError(f"{key}: there is no such key{nearest(key, all_keys() | {*GROUPS, 'experiment'})}; "
                    "python train.py --help lists them")


def check_value(key: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the annotated type and in range, else UserError. Integers pass as floats."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    if value is None and kinds != [hint]:
        return None
    hint = kinds[0]
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{key}={value}: allowed are {', '.join(get_args(hint))}")
    kind, interval = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        where = f" in {interval}" if interval else ""
        quoting = f"""; text that looks like something else is quoted: {key}="'{value}'\"""" if kind is str else ""
        raise UserError(f"{key}={value}: needs {words[kind]}{where}{quoting}")
    if interval:
        low, high = (float(end) for end in interval[1:-1].split(","))
        if not (low < value < high or (value == low and interval[0] == "[")):
            raise UserError(f"{key}={value}: out of range; allowed is {interval}")
    return value


def build(part: type, values: dict[str, Any]) -> Any:
    """The dataclass `part` from its keys among `values`, each checked."""
    hints = get_type_hints(part, include_extras=True)
    return part(**{key: check_value(key, values.get(key), hints[key]) for key in keys_of(part)})


def from_flat(values: dict[str, Any], choices: dict[str, str]) -> Config:
    """The one way from names and values, typed or read from config.yaml, to a `Config`.

    Raises UserError for a key that nothing takes, a wrong type, a value out of range, an
    impossible combination, or an interpolation (a value is data, never a lookup elsewhere).
    """
    for group, parts in GROUPS.items():
        if choices.get(group) not in parts:
            raise UserError(f"{group}={choices.get(group)}: allowed are {', '.join(parts)}")
    for key, value in values.items():
        check_key(key, choices)
        if "${" in str(value):
            raise UserError(f"{key}={value}: no interpolation; write the value itself")
        if value == "???":
            raise UserError(f"{key}: {' '.join(f'{g}={c}' for g, c in choices.items() if g == 'data')} needs {key}=…")
    values = dict(values)
    optimizer = build(GROUPS["optimizer"][choices["optimizer"]], values)
    if values.get("name") is None:
        values["name"] = choices["model"]
    if values.get("decay_steps") is None:
        values["decay_steps"] = values.get("max_steps")
    if values.get("min_lr") is None:
        values["min_lr"] = optimizer.lr / 10
    parts = {group: build(GROUPS[group][choices[group]], values) for group in ("model", "data", "device")}
    run = build(RunConfig, values)
    if run.min_lr > optimizer.lr:
        raise UserError(f"min_lr={run.min_lr} lr={optimizer.lr}: min_lr can't be above lr")
    return Config(dict(choices), run, optimizer=optimizer, **parts)
