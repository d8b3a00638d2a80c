"""Registers what a person adds to the lab: models, texts, optimizers, evaluations and more.

A plug-in calls these functions, most of them as decorators, as examples/my_lab.py shows:

    @lmlab.register.model("rnn", RNNConfig)
    class RNN(lmlab.LanguageModel): ...

What is registered exists while the plug-in is active: while a command runs that names it. What a
program registers itself, outside of a plug-in, exists from then on in its process. Every function
raises UserError, with file and line, if a name is taken or the keys cannot be used.
"""

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from hydra.core.config_store import ConfigStore
from omegaconf.errors import OmegaConfBaseException

from lmlab import markers
from lmlab.catalogue import (
    CALLBACKS,
    CATALOGUE,
    LOGGERS,
    OWN_EVALUATIONS,
    SCHEDULES,
    VALUES,
    AnyModelConfig,
    Choice,
    CorpusConfig,
    OptimizerConfig,
    TokenizerConfig,
)
from lmlab.errors import UserError, reason_of
from lmlab.markers import plain_kind
from lmlab.numbers import METRIC, NUMBERS
from lmlab.own_code import code_of
from lmlab.registry import forget

Thing = TypeVar("Thing", bound=Callable[..., Any])

USUAL: dict[str, dict[str, Any]] = {  # the defaults of keys that the lab's own classes have
    "model": {"block_size": 64},
    "tokenizer": {},
    "data": {"val_fraction": 0.1, "test_fraction": 0.0, "holdout_fraction": 0.0},
    "optimizer": {"weight_decay": 0.0},
}
BASES: dict[str, type] = {  # what the classes of keys inherit from
    "model": AnyModelConfig,
    "tokenizer": TokenizerConfig,
    "data": CorpusConfig,
    "optimizer": OptimizerConfig,
}
TABLES: dict[str, dict[str, Any]] = {
    **CATALOGUE,
    "schedule": SCHEDULES,
    "evaluation": OWN_EVALUATIONS,
    "number": NUMBERS,
    "callback": CALLBACKS,
    "logger": LOGGERS,
}
HYDRAS = ("defaults", "hydra")  # names that have a meaning in a YAML file
NAME = r"\w[\w.-]*"  # a name is also part of a folder's
NUMBER = r"(?:-?\d+(?:\.\d+)?(?:e-?\d+)?|-?inf)"
RANGE = rf"[\[(]{NUMBER}, ?{NUMBER}[\])]"


@dataclass(frozen=True)
class Addition:
    """A row that is added to a table of the catalogue, and the values of its keys.

    `place` is the file and line of the plug-in that registered it.
    """

    kind: str
    name: str
    row: Any
    place: str
    values: Mapping[str, Any] | None = None
    """The content of a YAML file, for a choice of a group."""

    of_plugin: bool = False

    def put(self) -> None:
        """Adds the row, or raises UserError and leaves everything as it was."""
        with all_or_nothing():
            for other in [one for one in PRESENT if self.replaces(one)]:
                other.take_out()
            self.check()
            if self.values is not None:
                self.store(self.values)
            if self.row is not None:
                TABLES[self.kind][self.name] = self.row
            PRESENT.append(self)
        forget()

    def check(self) -> None:
        """Raises UserError if the name or the class of the keys is taken."""
        table = TABLES[self.kind]
        taken = table.get(self.name) or VALUES.get(self.kind, {}).get(self.name)
        if taken is not None:
            raise UserError(
                f"{self.place}: {self.kind} {self.name}: the name is taken, by {owner_of(self)}; "
                f"needs another, such as my_{self.name}"
            )
        if self.kind in ("model", "optimizer") and self.row is not None:
            for name, other in table.items():  # the class of the keys says who builds
                if other.config is self.row.config:
                    raise UserError(
                        f"{self.place}: {self.kind} {self.name}: {other.config.__name__} is the "
                        f"class of the keys of {name}; write another class, or a preset"
                    )

    def store(self, values: Mapping[str, Any]) -> None:
        """Adds the values of the keys. Raises UserError if a YAML file could not hold them."""
        try:
            ConfigStore.instance().store(
                name=self.name, node=dict(values), group=self.kind, package="_global_"
            )
        except OmegaConfBaseException as error:
            raise UserError(
                f"{self.place}: {self.kind} {self.name}: {reason_of(error)}; allowed as the value of "
                "a key are None and Python's own numbers, texts, True and False"
            ) from None
        VALUES.setdefault(self.kind, {})[self.name] = dict(values)

    def replaces(self, other: "Addition") -> bool:
        """Returns whether this is the same thing anew, as of a notebook's cell that is run again."""
        if self.of_plugin or other.of_plugin:
            return False
        one, two = (
            (addition.kind, addition.name, title_of(addition.row)) for addition in (self, other)
        )
        return one == two

    def take_out(self) -> None:
        """Removes the row again."""
        if self.row is not None:
            del TABLES[self.kind][self.name]
        if self.values is not None:
            del VALUES[self.kind][self.name]
            del ConfigStore.instance().repo[self.kind][f"{self.name}.yaml"]
        PRESENT.remove(self)
        forget()


PRESENT: list[Addition] = []  # those that exist now
COLLECTIONS: list[list[Addition]] = []  # of the plug-in that is being imported, if there is one


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """A context that leaves what exists as it was if an error is raised in it."""
    before = [*PRESENT]
    try:
        yield
    except BaseException:
        for addition in [one for one in PRESENT if id(one) not in map(id, before)]:
            addition.take_out()
        for addition in [one for one in before if id(one) not in map(id, PRESENT)]:
            addition.put()
        raise


def is_own(kind: str, name: str) -> bool:
    """Returns whether a person, and not the lab, has registered something of this kind and name."""
    return any((one.kind, one.name) == (kind, name) for one in PRESENT)


def unlisted() -> list[Addition]:
    """Returns what a program has registered itself, outside of any plug-in."""
    return [addition for addition in PRESENT if not addition.of_plugin]


def unlisted_code() -> list[bytes]:
    """Returns, for each thing that a program has registered itself, what it does, as bytes."""
    parts = []
    for addition in unlisted():
        about = addition.kind, addition.name, sorted((addition.values or {}).items())
        parts.append(repr(about).encode() + code_of(built_by(addition.row)))
    return parts


def built_by(row: Any) -> Any:
    """Returns the class or function in a row of the catalogue, or the row itself."""
    return getattr(row, "builder", row)


def title_of(row: Any) -> str:
    """Returns the name under which the class or function of a row was written, or ""."""
    return str(getattr(built_by(row), "__qualname__", ""))


def owner_of(addition: Addition) -> str:
    """Returns who has the name of an addition: another plug-in, or the lab itself."""
    for other in PRESENT:
        if (other.kind, other.name) == (addition.kind, addition.name):
            return other.place
    return "the lab itself"


@contextmanager
def collecting(additions: list[Addition]) -> Iterator[None]:
    """A context in which what is registered is added to a list, and to nothing else."""
    COLLECTIONS.append(additions)
    try:
        yield
    finally:
        COLLECTIONS.pop()


def add(
    kind: str, name: str, row: Any, place: str, values: Mapping[str, Any] | None = None
) -> None:
    """Registers a row: for the plug-in that is being imported, or else at once."""
    if kind != "number" and (not re.fullmatch(NAME, name) or name.endswith(".yaml")):
        raise UserError(
            f"{place}: {kind} {name!r}: allowed in a name are letters, digits and _ . -, but not the "
            "ending .yaml"
        )
    addition = Addition(kind, name, row, place, values, bool(COLLECTIONS))
    if COLLECTIONS:
        COLLECTIONS[-1].append(addition)
    else:
        addition.put()


def caller() -> str:
    """Returns "file: line N" of the code outside of the lab that called a function of this file."""
    frame: Any = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}: line {frame.f_lineno}"


def as_dataclass(config: type, place: str) -> type:
    """Returns a class of keys as a frozen dataclass. Raises UserError for a type without meaning."""
    if not inspect.isclass(config):
        raise UserError(f"{place}: {config!r}: needs a class of keys")
    check_annotations(config, place)
    for kind in reversed(config.__mro__):  # dataclasses pass over the keys of a base that is none
        has_keys = kind is config or bool(inspect.get_annotations(kind))
        if has_keys and "__dataclass_params__" not in vars(kind):
            dataclass(frozen=True, kw_only=True)(kind)
    for one in dataclasses.fields(config):  # type: ignore[arg-type]  # it has become one above
        is_function = any(inspect.isfunction(vars(kind).get(one.name)) for kind in config.__mro__)
        if one.name in HYDRAS or is_function:
            raise UserError(
                f"{place}: {config.__name__}.{one.name}: has a meaning of its own in a file of keys, or "
                "is a function of the class; needs another name"
            )
    return config


def check_annotations(config: type, place: str) -> None:
    """Raises UserError if no value of a key can have its annotation, or nobody can type its default."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        if hint is ClassVar or get_origin(hint) is ClassVar:
            continue
        fault = fault_of(hint)
        default = getattr(config, name, None)
        if not fault and type(default).__hash__ is None:  # dataclass refuses it with other words
            fault = f"{default!r} is no value of this type"
        if fault:
            raise UserError(f"{place}: {config.__name__}.{name}: {fault}")


def fault_of(hint: Any) -> str:
    """Returns why no value of a key can have an annotation, or ""."""
    if not is_kind(hint):
        return (
            "its type cannot be checked; allowed are int, float, bool, str, Literal[…], these or "
            "None, and Annotated[int, '[1, 100]']"
        )
    kind = plain_kind(hint)
    if get_origin(kind) is Literal and not get_args(kind):
        return "Literal[()] allows no value; needs at least one, such as Literal['a', 'b']"
    for extra in extras_in(hint):
        if not isinstance(extra, str) and type(extra).__module__ != markers.__name__:
            return f"{extra!r} in its annotation has no effect; a range is a text, '[1, 100]'"
    ranges = [extra for extra in extras_in(hint) if isinstance(extra, str)]
    if len(ranges) > 1:
        return f"has the ranges {' and '.join(map(repr, ranges))}; needs one, in which both are met"
    for range_ in ranges:
        if not re.fullmatch(RANGE, range_):
            return (
                f"{range_!r} is no range; that is two numbers or inf in brackets, '[0, 1)' without "
                "the 1"
            )
        if kind not in (int, float):
            return f"the range {range_!r} has no effect; it is for int and float"
        if is_empty(range_, kind):
            return f"no {kind.__name__} lies in {range_!r}; the smallest value comes first"
    return ""


def extras_in(hint: Any) -> list[Any]:
    """Returns what an annotation says beside the type: ranges, which are texts, and markers."""
    if get_origin(hint) is not Annotated:
        return [extra for one in get_args(hint) for extra in extras_in(one)]
    kind, *extras = get_args(hint)
    return [*extras_in(kind), *extras]


def is_empty(range_: str, kind: type) -> bool:
    """Returns whether no number, or no whole one, lies in a range such as "[0, 1)"."""
    low, high = (float(end) for end in range_[1:-1].split(","))
    if kind is float or math.isinf(low) or math.isinf(high):
        return low > high or (low == high and range_[0] + range_[-1] != "[]")
    smallest = math.floor(low) + 1 if range_[0] == "(" else math.ceil(low)
    largest = math.ceil(high) - 1 if range_[-1] == ")" else math.floor(high)
    return smallest > largest


def is_kind(hint: Any) -> bool:
    """Returns whether the values of an annotation can be typed on the command line."""
    if get_origin(hint) is Annotated:
        return is_kind(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return True
    if get_origin(hint) in (Union, UnionType):
        alternatives = [one for one in get_args(hint) if one is not NoneType]
        return len(alternatives) == 1 and is_kind(alternatives[0])
    return hint in (int, float, bool, str)


def defaults_of(config: type, group: str, place: str) -> dict[str, Any]:
    """Returns the default of each key. Raises UserError if a key has none."""
    values = {}
    for one in dataclasses.fields(config):
        value = one.default
        if value is dataclasses.MISSING:
            value = USUAL.get(group, {}).get(one.name, dataclasses.MISSING)
        if value is dataclasses.MISSING:
            raise UserError(f"{place}: {config.__name__}.{one.name}: needs a default value")
        values[one.name] = value
    return values


def check_decorator(kind: str, name: Any, place: str, prefix: str = "") -> None:
    """Raises UserError if a decorator was written without its name, with `prefix`, in parentheses."""
    if not isinstance(name, str):
        kind = "corpus" if kind == "data" else kind
        written = getattr(name, "__name__", repr(name))
        raise UserError(
            f"{place}: {kind} {written}: the name is missing; write "
            f'@lmlab.register.{kind}("{prefix}{written}")'
        )


def choice(group: str, name: str, config: type) -> Callable[[Thing], Thing]:
    """Returns a decorator that registers a choice of a group with its keys."""
    place = caller()
    check_decorator(group, name, place)
    if not (inspect.isclass(config) and issubclass(config, BASES[group])):
        raise UserError(
            f"{place}: {group} {name}: the class of its keys is {config!r}; it must inherit from "
            f"lmlab.{BASES[group].__name__.removeprefix('Any')}"
        )
    keys = as_dataclass(config, place)
    values = defaults_of(keys, group, place)

    def register(builder: Thing) -> Thing:
        add(group, name, Choice(keys, builder), place, values)
        return builder

    return register


def model(name: str, config: type) -> Callable[[Thing], Thing]:
    """Registers a class of models, a subclass of `lmlab.LanguageModel`, with the class of its keys.

    The class of keys inherits from `lmlab.ModelConfig`, which has `block_size` (64 unless the
    class says otherwise). Its annotations are types and ranges, its values are the defaults.
    """
    return choice("model", name, config)


def optimizer(name: str, config: type) -> Callable[[Thing], Thing]:
    """Registers a function from `Weights`, the keys and the precision to a torch optimizer.

    The class of keys inherits from `lmlab.OptimizerConfig`, which has `lr` and `weight_decay`.
    """
    return choice("optimizer", name, config)


def corpus(name: str, config: type = CorpusConfig) -> Callable[[Thing], Thing]:
    """Registers a text: a function from its keys that yields it in pieces.

    It must yield the same pieces each time it is called: a text is read twice. The class of keys
    inherits from `lmlab.CorpusConfig`, which has the shares of the text's parts.
    """
    return choice("data", name, config)


def tokenizer(name: str, config: type = TokenizerConfig) -> Callable[[Thing], Thing]:
    """Registers a class of tokenizers, a subclass of `lmlab.Tokenizer`, with the class of its keys.

    Its `train` makes it from a text; `to_values` and `from_values` are what tokenizer.json holds.
    """
    decorate = choice("tokenizer", name, config)

    def register(kind: Thing) -> Thing:
        decorate(kind)
        kind.kind = name  # type: ignore[attr-defined]  # of the class that is decorated
        return kind

    return register


def preset(group: str, name: str, base: str, **values: Any) -> None:
    """Registers a choice that differs from the choice `base` only in some values.

    preset("model", "rnn_big", "rnn", n_embd=512) is what a YAML file in conf/model would be.
    """
    place = caller()
    if group not in USUAL:
        raise UserError(f"{place}: preset {group}: allowed are {', '.join(USUAL)}")
    add(group, name, None, place, {"defaults": [base, "_self_"], **values})


def schedule(name: str) -> Callable[[Thing], Thing]:
    """Registers how the learning rate falls: a function of a number from 0 to 1.

    The number is the share of the fall that is over; the function returns the share of the way
    from `min_lr` to `lr` that is left: 1 is `lr`, 0 is `min_lr`.
    """
    place = caller()
    check_decorator("schedule", name, place)

    def register(function: Thing) -> Thing:
        add("schedule", name, function, place)
        return function

    return register


def evaluation(
    *names: str, better: Literal["lower", "higher"] = "lower"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function that every evaluation of a run calls, and the numbers that it returns.

    The function takes the model and the `Subject` of the evaluation, and returns named numbers,
    texts or pictures. `names` are those of its numbers that the leaderboard has and a search may
    look for, by default "val/" and the function's own name. They begin with val/. `better` says
    which of two numbers is the better one.
    """
    place = caller()
    for written in names:
        check_decorator("evaluation", written, place, "val/")
    if better not in ("lower", "higher"):
        raise UserError(f"{place}: evaluation: better={better!r}: allowed are lower, higher")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        numbers: Sequence[str] = names or (f"val/{function.__name__}",)
        for number in numbers:
            if not number.startswith("val/"):
                raise UserError(f"{place}: evaluation {number}: its name must begin with val/")
            if not number.isprintable():
                raise UserError(
                    f"{place}: evaluation {number!r}: its name may have no line break, nor another "
                    "character that cannot be shown"
                )
        declared = dataclasses.replace(METRIC, better=better, evaluation=function.__name__)
        with all_or_nothing():
            add("evaluation", function.__name__, function, place)
            for number in numbers:
                add("number", number, declared, place)
        return function

    return register


def callback(name: str, config: type | None = None) -> Callable[[Thing], Thing]:
    """Registers a class of Lightning's callbacks, which takes part in every run.

    With a class of keys each run has these keys, and the callback is built with an object of that
    class: in `__init__(self, keys)`, the value of a key `every` is `keys.every`. A function that
    returns a callback, or None for none in this run, may stand for the class. What
    `state_dict` returns is part of each checkpoint; `load_state_dict` gets it in a resumed run.
    """
    return companion("callback", name, config)


def logger(name: str, config: type | None = None) -> Callable[[Thing], Thing]:
    """Registers a function from the folder of a run to one of Lightning's loggers.

    The logger gets every number that TensorBoard gets. With a class of keys, the function also takes
    an object of that class, as in `csv(path, keys)`. If it returns None, the run is without it.
    """
    return companion("logger", name, config)


def companion(kind: str, name: str, config: type | None) -> Callable[[Thing], Thing]:
    """Returns a decorator that registers a callback or a logger."""
    place = caller()
    check_decorator(kind, name, place)
    keys = as_dataclass(config or NoKeys, place)
    defaults_of(keys, kind, place)

    def register(builder: Thing) -> Thing:
        add(kind, name, Choice(keys, builder), place)
        return builder

    return register


@dataclass(frozen=True)
class NoKeys:
    """The keys of a callback or a logger without keys."""


__all__ = [
    "callback",
    "corpus",
    "evaluation",
    "logger",
    "model",
    "optimizer",
    "preset",
    "schedule",
    "tokenizer",
]
