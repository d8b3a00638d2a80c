"""Comparisons that were planned: levels of one key, each at its best, within levels of another.

For example: optimizers, each at its best learning rate, within each width. What is tested is what
was asked, so the correction is for these tests alone, not for all rows of a leaderboard.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmlab.config.keys import marked
from lmlab.errors import UserError, nearest
from lmlab.markers import UNTOUCHING
from lmlab.sweeps import table as tables
from lmlab.sweeps.claims import Difference, difference, from_number, half_width
from lmlab.sweeps.table import Entry
from lmlab.sweeps.words import (
    SEEDS,
    TO_BEST,
    TO_RECORD,
    decimal,
    explained,
    interval,
    needed,
    plain,
    share,
)

OF_DATA = ("path", "data_sha256")  # what the column data is made of
SIZES = ("n_params", "tokens")  # columns beside the keys whose values can be levels


@dataclass(frozen=True)
class Chosen:
    """The configuration that stands for its levels: the best one of several values of other keys.

    `levels` are the values by key. `edges` says of each key whose best value is the smallest or the
    largest of those tried that it is. It was chosen from `n` configurations.
    """

    levels: dict[str, Any]
    entry: Entry
    n: int = 1
    edges: list[str] = field(default_factory=list)


def keys_in(option: str, text: str | None, board: pd.DataFrame) -> list[str]:
    """Returns the keys that the text of an option names, with commas between them.

    Raises UserError for a key in which the configurations do not differ.
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    columns = [*board.columns[1 : board.columns.get_loc("n")], *SIZES]
    known = [name for name in columns if name in board and tables.distinct(board[name]) > 1]
    for n, name in enumerate(names):
        if name == "seed":
            raise UserError(
                f"{option}={text}: seeds are what is averaged; allowed are {', '.join(known)}"
            )
        if name in OF_DATA and "data" in known:
            raise UserError(
                f"{option}={text}: {name} has no column; that of data tells the texts apart"
            )
        if name in marked(UNTOUCHING) and name not in known:
            raise UserError(
                f"{option}={text}: runs that differ in {name} alone are one row; the rows differ in "
                f"{', '.join(known) or 'nothing'}"
            )
        if name not in known:
            raise UserError(
                f"{option}={text}: the runs do not differ in {name or 'a key without a name'}"
                f"{nearest(name, known)}; they differ in {', '.join(known) or 'nothing but seeds'}"
            )
        if name in names[:n]:
            raise UserError(f"{option}={text}: {name} is there twice")
    return names


def refuse_shared(**options: list[str]) -> None:
    """Raises UserError if a key stands in two options."""
    seen: dict[str, str] = {}
    for option, names in options.items():
        for name in names:
            if name in seen:
                raise UserError(
                    f"{option}={name}: is in {seen[name]}= already; a key is in one of them"
                )
            seen[name] = option


def choose(
    entries: Sequence[Entry], levels: Sequence[str], best: Sequence[str], asked: str
) -> list[Chosen]:
    """Returns for each combination of levels the configuration with the lowest mean loss.

    `entries` are in the order of their loss, and `asked` are the options as they were typed. Raises
    UserError if configurations differ in another key than those of `levels` and `best`: it would be
    a choice that nobody asked for.
    """
    by_levels: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        by_levels.setdefault(values_of(entry, levels), []).append(entry)
    chosen = []
    for members in by_levels.values():
        refuse_doubles(members, [*levels, *best], asked)
        first = members[0]
        edges = []
        if first.losses:
            edges = [edge for key in best if (edge := edge_of(key, first, members))]
        values = {key: first.row[key] for key in levels}
        n = sum(one.ended for one in members)  # one that diverged was tried, too
        chosen.append(Chosen(values, first, n, edges))
    return chosen


def values_of(entry: Entry, keys: Iterable[str]) -> tuple[str, ...]:
    """Returns the values of keys as texts, by which configurations are grouped."""
    return tuple(plain(entry.row[key]) for key in keys)


def columns_of(entry: Entry) -> list[str]:
    """Returns the keys in which the configurations differ: the columns before those of numbers."""
    names = [*entry.row]
    return names[1 : names.index("n")]


def refuse_doubles(members: Sequence[Entry], keys: Sequence[str], asked: str) -> None:
    """Raises UserError if two configurations are equal in all these keys."""
    seen: dict[tuple[str, ...], Entry] = {}
    for entry in members:
        values = values_of(entry, keys)
        other = seen.setdefault(values, entry)
        if other is entry:
            continue
        others = [
            key for key in columns_of(entry) if plain(entry.row[key]) != plain(other.row[key])
        ]
        same = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        hint = "best= takes the best of them"
        if "code" in others:
            hint += ", and same_code=true calls all code of the lab equal"
        raise UserError(
            f"{asked}: several configurations have {same}; they differ in "
            f"{', '.join(others) or 'their texts or first weights'}; {hint}"
        )


def edge_of(key: str, first: Entry, members: Sequence[Entry]) -> str:
    """Returns that the best value of a key is the smallest or largest of those tried, or "".

    Values that diverged were tried. A key without numbers has no edge, nor has a single value.
    """
    tried = {entry.row[key] for entry in members if entry.ended and is_number(entry.row[key])}
    value = first.row[key]
    if len(tried) < 2 or not is_number(value):
        return ""
    if value == max(tried):
        return f"the best {key}={plain(value)} is the largest of {len(tried)} tried"
    if value == min(tried):
        return f"the best {key}={plain(value)} is the smallest of {len(tried)} tried"
    return ""


def is_number(value: Any) -> bool:
    """Returns whether a value of a key is a finite number; true and false are none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def order(value: Any) -> tuple[bool, float, str]:
    """Returns the sort key of a level: numbers by size, before texts by letters."""
    if is_number(value):
        return False, float(value), ""
    return True, 0.0, plain(value)


def comparisons(
    table: pd.DataFrame,
    vary: str,
    within: str | None = None,
    best: str | None = None,
    record: float | None = None,
) -> pd.DataFrame:
    """Returns the planned comparisons: a row for each level of `vary` within each level of `within`.

    Each is the configuration with the lowest mean loss over the values of the keys in `best`. Within
    a level the best comes first, and the others have their difference to the best that was validated
    on the same text, as in the leaderboard.
    `p` is corrected (Holm 1979) for the tests of this table alone. `edge` says which best value lies
    at the edge of those tried. Raises UserError for keys that do not vary, or are not enough.
    """
    entries = tables.configurations(table)
    board = tables.as_table([entry.row for entry in entries])
    varied = keys_in("vary", vary, board)
    inside = keys_in("within", within, board)
    chosen_by = keys_in("best", best, board)
    refuse_shared(vary=varied, within=inside, best=chosen_by)
    asked = typed(vary=vary, within=within, best=best)
    families: dict[tuple[str, ...], list[Chosen]] = {}
    for one in choose(entries, [*inside, *varied], chosen_by, asked):
        families.setdefault(values_of(one.entry, inside), []).append(one)
    chosen = []
    differences: list[Difference | None] = []
    for members in sorted(families.values(), key=lambda one: place_of(one[0], inside)):
        bests: dict[tuple[str, ...], Entry] = {}  # by text; losses on other texts are no scale
        for one in members:
            best_entry = bests.setdefault(one.entry.text, one.entry)
            is_best = best_entry is one.entry
            chosen.append(one)
            differences.append(None if is_best else difference(one.entry.losses, best_entry.losses))
    loss = tables.objective(table)
    rows = [row_of(one, chosen_by, loss) for one in chosen]
    tables.add_differences(rows, differences)
    if record is not None:
        to_record = [from_number(one.entry.losses, record) for one in chosen]
        tables.add_differences(rows, to_record, "record_")
    plan = tables.as_table(rows)
    plan.attrs["unnamed"] = unnamed(families.values(), [*varied, *inside, *chosen_by])
    return plan


def unnamed(compared: Iterable[Sequence[Chosen]], keys: Sequence[str]) -> list[str]:
    """Returns the keys beside `keys` in which configurations that are compared differ.

    A key that one of two models does not have makes no difference between them.
    """
    found: dict[str, None] = {}
    for members in compared:
        rows = [one.entry.row for one in members]
        for key in columns_of(members[0].entry):
            values = {plain(row[key]) for row in rows if row[key] is not None}
            if key not in keys and len(values) > 1:
                found[key] = None
    return list(found)


def confounded(keys: Sequence[str]) -> list[str]:
    """Returns a warning that what is compared differs in keys that no option names, or none."""
    if not keys:
        return []
    return [
        f"what is compared differs in {', '.join(keys)} as well, which no option names: the difference "
        "may be theirs"
    ]


def typed(**options: str | None) -> str:
    """Returns options as they were typed."""
    return " ".join(f"{name}={value}" for name, value in options.items() if value is not None)


def place_of(one: Chosen, keys: Sequence[str]) -> list[tuple[bool, float, str]]:
    """Returns the sort key of a chosen configuration by some of its levels."""
    return [order(one.levels[key]) for key in keys]


def row_of(one: Chosen, chosen_by: Sequence[str], loss: str) -> dict[str, Any]:
    """Returns the row of a chosen configuration, without its differences."""
    row = one.entry.row
    keys = {**one.levels, **{key: row[key] for key in chosen_by}}
    return {
        "group": row["group"],
        **keys,
        "n": row["n"],
        loss: row[loss],
        "se": row["se"],
        "ci95": half_width([*one.entry.losses.values()]),
        "seeds": row["seeds"],
        "not_finished": row["not_finished"],
        "of": one.n,
        "edge": "; ".join(one.edges),
    }


def keys_of(plan: pd.DataFrame) -> list[str]:
    """Returns the columns of planned comparisons that are keys: levels, then what was chosen."""
    return [str(name) for name in plan.columns[1 : plan.columns.get_loc("n")]]


def texts_of(plan: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Returns planned comparisons with readable names and values: all are texts."""
    rows = []
    for row in tables.records(plan):
        texts = {key: plain(row[key]) for key in keys_of(plan)}
        texts |= {
            loss: decimal(row[loss]),
            "±": decimal(row["se"]),
            "n": str(row["n"]),
            TO_BEST: interval(row) or ("best" if row["n"] else ""),
            "p": share(row["p"]),
            SEEDS: needed(row),
        }
        if "record_difference" in row:
            texts[TO_RECORD] = interval(row, "record_")
        texts["not finished"] = row["not_finished"]
        rows.append(texts)
    shown = pd.DataFrame(rows)
    sparse = (SEEDS, "p", "not finished")
    return shown.drop(columns=[name for name in sparse if not any(shown[name])])


def these_alone(n: int) -> str:
    """Returns what was corrected for, if there are n planned comparisons."""
    return "this comparison alone" if n == 1 else f"these {n} comparisons alone"


def footnote_of(plan: pd.DataFrame, loss: str, best: str | None) -> str:
    """Returns the explanation of the columns of planned comparisons."""
    sentences = [f"{loss} at the end: mean over n seeds, ± its standard error."]
    sentences += explained(tables.records(plan), these_alone)
    if best is not None and plan["of"].max() > 1:
        sentences.append(
            f"Each row is the best of up to {plan['of'].max()} in {best}, by these same losses, "
            "which flatters it; fresh seeds at the chosen values would not."
        )
    return " ".join(sentences)


def warnings_of(plan: pd.DataFrame) -> list[str]:
    """Returns a warning for each best value at the edge of those tried, and of unnamed keys."""
    levels = keys_of(plan)
    lines = confounded(plan.attrs.get("unnamed", []))
    for row in tables.records(plan):
        if row["edge"]:
            where = " ".join(f"{key}={plain(row[key])}" for key in levels)
            lines.append(f"{where}: {row['edge']}; try values beyond it")
    return lines
