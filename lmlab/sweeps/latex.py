r"""Writes a table of configurations for a paper: a plain tabular of LaTeX, which needs no package.

A mean stands with half of its 95 % interval, $2.270 \pm 0.052$, a difference with both ends.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lmlab.sweeps import table as tables
from lmlab.sweeps.words import digits_of, fixed, interval, plain, tells

ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
ESCAPES |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def escaped(text: str) -> str:
    """Returns a text in which the signs that LaTeX reads as commands are printed instead."""
    return re.sub(r"[\\~^<>|&%$#_{}]", lambda match: ESCAPES[match[0]], text)


def tabular(table: pd.DataFrame, keys: Sequence[str], loss: str, doubts: Sequence[str] = ()) -> str:
    """Returns a leaderboard, or planned comparisons, as a tabular.

    Above it a comment says what the columns are, and each of `doubts` (report.doubts).
    """
    has_record = "record_difference" in table
    heads = [*map(escaped, keys), escaped(loss), "$n$", "to the best"]
    if has_record:
        heads.append("to the record")
    lines = [
        "% mean +- half of its 95 % interval over n seeds; differences with their 95 % intervals;",
        "% a star: they differ at 5 % after Holm's correction for the tests of the column",
        *(f"% {' '.join(doubt.split())}" for doubt in doubts),
        rf"\begin{{tabular}}{{{'l' * len(keys)}rrl{'l' * has_record}}}",
        r"\hline",
        line_of(heads),
        r"\hline",
    ]
    for row in tables.records(table):
        cells = [escaped(plain(row[key])) for key in keys]
        cells += [mean_of(row, loss), str(row["n"]), difference_of(row)]
        if has_record:
            cells.append(difference_of(row, "record_"))
        lines.append(line_of(cells))
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def line_of(cells: Sequence[str]) -> str:
    """Returns a line of the tabular."""
    return " & ".join(cells) + r" \\"


def mean_of(row: Mapping[str, Any], loss: str) -> str:
    """Returns a mean with half of its interval, or "--" without a finished seed."""
    if math.isnan(row[loss]):
        return "--"
    if math.isnan(row["ci95"]):
        return f"${fixed(row[loss], 4)}$"
    digits = digits_of(row["ci95"])
    return rf"${fixed(row[loss], digits)} \pm {fixed(row['ci95'], digits)}$"


def difference_of(row: Mapping[str, Any], prefix: str = "") -> str:
    """Returns a difference with its interval, a star behind it if p is below 5 %."""
    text = interval(row, prefix).removesuffix(" *")
    if not text:
        return "--"
    mean, *rest = text.removesuffix(" w").split(" ", 1)
    star = "^{*}" if tells(row, prefix) else ""
    return f"${mean}{star}$" + "".join(f" $[{ends[1:-1]}]$" for ends in rest)
