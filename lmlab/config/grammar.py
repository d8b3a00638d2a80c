"""Reads a typed argument with Hydra's grammar, lists its values, and writes values as they are typed."""

import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lmlab.config.check import spelled
from lmlab.config.conf_files import vanishing
from lmlab.config.keys import kind_of
from lmlab.errors import UserError, about

MOST = 100_000  # values of a range, and cells of a sweep

ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}  # as they are typed in the keys DIVIDING


def typed_lines(overrides: Iterable[Override]) -> tuple[str, ...]:
    """Returns overrides as the user typed them."""
    return tuple(str(override.input_line) for override in overrides)


def escaped(text: str) -> str:
    """Returns a text with ESCAPES in place of the characters themselves."""
    return "".join(ESCAPES.get(character, character) for character in text)


def texts_of(override: Override, searching: bool) -> list[str]:
    """Returns an override for each of its values that is checked. Raises UserError."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    check_tags(override, searching)
    if searching:
        check_interval(override)
    return ends(override) if searching else listed(override)


def check_tags(override: Override, searching: bool) -> None:
    """Raises UserError for a tag without effect. A search knows `log`, for intervals and ranges."""
    value: Any = override.value()
    has_log = searching and isinstance(value, IntervalSweep | RangeSweep)
    for tag in sorted(value.tags - ({"log"} if has_log else set())):
        allowed = (
            "allowed are log" if has_log else "only an interval or a range of a search has one"
        )
        raise UserError(f"{override.input_line}: the tag {tag} has no effect; {allowed}")


def check_interval(override: Override) -> None:
    """Raises UserError for an interval or a range of a search from which nothing can be drawn."""
    value: Any = override.value()
    if not isinstance(value, IntervalSweep | RangeSweep):
        return
    low = value.start or 0
    high = value.end if isinstance(value, IntervalSweep) else value.stop
    if isinstance(value, IntervalSweep) and low > (high or 0):
        raise UserError(
            f"{override.input_line}: the smaller end comes first: interval({high},{low})"
        )
    if "log" not in value.tags:
        return
    if min(low, high or 0) <= 0:
        raise UserError(f"{override.input_line}: with tag(log,…) all numbers must be above 0")
    is_whole = kind_of(override.get_key_element()) is int
    if isinstance(value, RangeSweep) and (abs(value.step) != 1 or not is_whole):
        raise UserError(
            f"{override.input_line}: with tag(log,…) steps other than 1 are not possible; "
            "interval(low,high) has none"
        )


def decimal_point(text: str) -> str:
    """Returns a hint for a number with a decimal comma, or ""."""
    if re.fullmatch(r"\w+=-?\d+,\d+", text):
        return f"; a number has a decimal point: {text.replace(',', '.')}"
    return ""


def is_hydras(override: Override) -> bool:
    """Returns whether an override belongs to Hydra itself, not to a run."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def is_signed(override: Override) -> bool:
    """Returns whether an override adds or removes a key, like `+key=…` or `~key`."""
    return str(override.input_line).startswith(("+", "~"))


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


@lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    """Parses an argument as one of Hydra's overrides. Raises UserError."""
    with about(key_of(text).lstrip("+~")):
        return parsed(text)


def parsed(text: str) -> Override:
    """Returns an argument as one of Hydra's overrides. Raises UserError."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise not_parsed(text, str(error)) from None
    except ValueError as error:  # Python reads no number of over 4,300 digits
        raise not_parsed(text, str(error)) from None
    tiny = vanishing(text)
    if tiny:
        raise UserError(
            f"{text}: {tiny} is too small for a computer's numbers; write 0 if you mean 0"
        )
    return override


def not_parsed(text: str, why: str) -> UserError:
    """Returns the error for an argument that Hydra cannot parse; `why` is what it says."""
    if text != text.lstrip():
        return UserError(f"{text!r}: an argument begins without a blank")
    pair = re.fullmatch(r"([a-zA-Z_]\w*)(?:\s*[:=]\s*|\s+|$)(\S*)", text)
    if pair and "=" not in text.strip(" ="):
        return UserError(
            f"{text}: needs the form key=value, without blanks: {pair[1]}={pair[2] or '…'}"
        )
    if "=" not in text:
        return UserError(f"{text}: needs the form key=value, without blanks")
    key, _, value = text.partition("=")
    if re.search(r"\s", key.strip()):
        return UserError(f"{text}: needs the form key=value; a key has no blanks")
    reason = re.fullmatch(r"\w+ while evaluating '.*?': (.*)", why.partition("\n")[0])
    if reason and re.match(r"[a-z]+\(", value):
        return UserError(f"{text}: cannot be computed ({reason[1]})")
    return UserError(
        f"{text}: needs the form key=value; a value with spaces, commas, quotes or braces is "
        f"quoted twice: {key}=\"'…'\""
    )


def typed_value(key: str, value: Any) -> str:
    """Returns a value of Python as it would be typed. Raises UserError if it cannot be."""
    if value is None or isinstance(value, bool):
        return str(spelled(value))
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
