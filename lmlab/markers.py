"""What else is true of a key than its type: its range, and markers in its annotation. No torch.

log_interval: Annotated[Count, CHANGEABLE, UNTOUCHING]
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Marker:
    """A property of a key."""

    meaning: str


@dataclass(frozen=True)
class Neutral:
    """Marks a key that was added after version 0.1 with the value at which it changes nothing.

    If a config.yaml lacks the key, the key has this value. The names of cells leave it out.
    """

    value: Any


@dataclass(frozen=True)
class CountsBeside:
    """Marks an untouching key that touches what a run computes once the key `key` has a value.

    Then it is part of a cell's name, unless it has the value `usual`, that of conf/config.yaml.
    """

    key: str
    usual: Any

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Returns whether the marked key counts beside the values of all keys."""
        return values.get(self.key) is not None


@dataclass(frozen=True)
class OneOf:
    """Marks a key whose value is one of the words that `words` returns at the time of the check."""

    words: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class OrWord:
    """Marks a key whose value may also be this word."""

    word: str


@dataclass(frozen=True)
class Follows:
    """Marks a key whose default is the value of the key `source`, divided by `divisor`."""

    source: str
    divisor: int = 1

    def value(self, values: Mapping[str, Any]) -> Any:
        """Returns the value of the key, computed from the values of all keys."""
        value = values[self.source]
        if self.divisor == 1:
            return value
        return value / self.divisor


@dataclass(frozen=True)
class FollowsUse(Follows):
    """Marks a key whose default is `used` if the key `source` is not zero, and else `unused`."""

    used: str = ""
    unused: str = ""

    def value(self, values: Mapping[str, Any]) -> Any:
        """Returns the value of the key, computed from the values of all keys."""
        return self.used if values.get(self.source) else self.unused


CHANGEABLE = Marker("a resumed run may have another value")
UNTOUCHING = Marker("the key names, places or watches a run, and does not touch what it computes")
LAST_BITS = Marker("with another value the last bits of a run come out otherwise")
STEPWISE = Marker("the key belongs to training by steps: an n-gram has no use for it")
OF_THE_RUN = Marker("the key belongs to a single run, and is no column of hyper-parameters")
ONCE = Marker("a sweep has one value of the key")
FILLED = Marker("the value may not be empty: it names a file or folder")
LINES = Marker("the text may have several lines")
SHAPELESS = Marker("the key does not change the shape of any weight of the model")

# The text is the interval that `check_value` allows and names.
Count = Annotated[int, "[1, inf)"]
Positive = Annotated[float, "(0, inf)"]
PositiveOrZero = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]
PathText = Annotated[str, FILLED]
LinesText = Annotated[str, LINES]


def plain_kind(annotation: Any) -> Any:
    """Returns an annotation without markers and without None."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    for alternative in get_args(annotation):
        if get_origin(annotation) is not Literal and alternative is not NoneType:
            return plain_kind(alternative)
    return annotation
