"""Writes the numbers of a table as texts that a person reads."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmlab import numbers
from lmlab.errors import printable
from lmlab.sweeps.claims import ALONE, LEVEL, MOST_SEEDS, WELCH

TO_BEST = "to the best"
TO_RECORD = "to the record"
SEEDS = "seeds needed"
TELLS = "*"  # behind a difference that is one at 5 %, after the correction


def decimal(x: float | None, digits: int = 4) -> str:
    """Returns a number as text with `digits` after the point, or "" if it is missing."""
    if x is None or math.isnan(x):
        return ""
    return numbers.decimal(x, digits)


def share(x: float | None) -> str:
    """Returns a p-value as text with three digits, or "" if it is missing."""
    if x is not None and x < 0.001:
        return "< 0.001"
    return decimal(x, 3)


def whole(x: float | None) -> str:
    """Returns a whole number as text with commas, or "" if it is missing."""
    if x is None or math.isnan(x):
        return ""
    return f"{x:,.0f}"


def plain(x: Any) -> str:
    """Returns the value of a key as text, or "" if the run has no such key."""
    if x is None:
        return "null"
    if not isinstance(x, float | np.floating):
        return printable(str(x))
    if math.isnan(x):
        return ""
    return f"{x:.6g}"


def digits_of(half_width: float) -> int:
    """Returns how many digits after the point show two digits of an interval's half, 2 to 4."""
    if math.isnan(half_width) or half_width == 0:
        return 4
    return min(4, max(2, 1 - math.floor(math.log10(half_width))))


def fixed(x: float, digits: int, sign: str = "") -> str:
    """Returns a number with `digits` after the point, and a power of ten if it is huge.

    With the `sign` "+", a number above zero has one, too.
    """
    return f"{x:{sign}.{digits}{'e' if abs(x) >= numbers.HUGE else 'f'}}"


def interval(row: Mapping[str, Any], prefix: str = "") -> str:
    """Returns a difference with its interval, such as "+0.63 [0.43, 0.83] *", or "" without one.

    `prefix` is that of the columns of the row. A star says that p is below 5 %.
    """
    name = f"{prefix}difference"
    mean, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(mean):
        return ""
    digits = digits_of((high - low) / 2)
    text = fixed(mean, digits, "+")
    if row[f"{prefix}test"] == ALONE:
        return text
    text += f" [{fixed(low, digits)}, {fixed(high, digits)}]"
    if row[f"{prefix}test"] == WELCH:
        text += " w"
    if tells(row, prefix):
        text += f" {TELLS}"
    return text


def tells(row: Mapping[str, Any], prefix: str = "") -> bool:
    """Returns whether the test of a row, after its correction, tells its difference from 0."""
    p = row[f"{prefix}p"]
    return p is not None and p < LEVEL  # nan is not


def is_tested(row: Mapping[str, Any], prefix: str = "") -> bool:
    """Returns whether a row has the test of a difference: p is a number."""
    p = row.get(f"{prefix}p")
    return p is not None and not math.isnan(p)


def needed(row: Mapping[str, Any], prefix: str = "") -> str:
    """Returns how many seeds would tell a difference from 0, or "" if it was told or has no test."""
    if not is_tested(row, prefix) or tells(row, prefix):
        return ""
    seeds = row[f"{prefix}seeds_needed"]
    if row[f"{prefix}difference"] == 0:
        return "–"  # as none would
    if seeds is None:
        return f"> {MOST_SEEDS}"
    return str(seeds)


def explained(rows: Sequence[Mapping[str, Any]], among: Callable[[int], str]) -> list[str]:
    """Returns sentences about the columns of differences of some rows, as far as they have a text.

    `among` says in words what was corrected for, from the number of tests.
    """
    sentences = []
    n = sum(is_tested(row) for row in rows)
    n_to_record = sum(is_tested(row, "record_") for row in rows)
    if n:
        sentences += [
            "In brackets: the 95 % interval of the mean difference, over the seeds that both have.",
            f"{TELLS}: they differ (paired t-test, 5 % after Holm's correction for {among(n)}).",
        ]
    if n_to_record:
        sentences.append(
            f"{TO_RECORD.capitalize()}: the mean less that number, its 95 % interval, and {TELLS} if "
            f"they differ (one-sample t-test, 5 % after Holm's correction for {among(n_to_record)})."
        )
    if any(needed(row) for row in rows):
        sentences.append(
            f"{SEEDS.capitalize()}: with so many a difference of this size would show in 80 % of "
            "cases."
        )
    if any(row["test"] == WELCH for row in rows):
        sentences.append("w: fewer than two seeds are common, so Welch's interval, without pairs.")
    return sentences
