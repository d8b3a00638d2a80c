"""Computes the leaderboard of runs: means over seeds, and how far each row is from the best.

The numbers are read from the folders of runs.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmlab import files
from lmlab.config.check import derived
from lmlab.config.keys import (
    GROUPS,
    TEXT_KEYS,
    choices_of,
    idle_keys,
    marked,
    markers_of,
    token_keys,
)
from lmlab.errors import UserError, printable
from lmlab.markers import UNTOUCHING, CountsBeside
from lmlab.numbers import REFERENCES, learn_numbers, numbers_where
from lmlab.runs import hugging_face
from lmlab.runs.code import SameCode, code_of, is_other_code, plugins_of, short
from lmlab.runs.folder import (
    LIMITS,
    WEIGHTS,
    is_locked,
    read_config,
    read_metrics,
    started_at,
    text_sha256,
)
from lmlab.sweeps.cells import ENDED, identity
from lmlab.sweeps.claims import (
    LEVEL,
    Difference,
    corrected,
    difference,
    from_number,
    half_width,
)
from lmlab.sweeps.labels import common_parts, without
from lmlab.sweeps.words import plain
from lmlab.terminal import after_a_second, tell

BITS = "val/bits_per_byte"
LARGEST = 1e100  # number, whose square can still be added up

RECORDS = ("config.yaml", "metrics.json")  # a folder with one of them is that of a run

# Numbers and texts of metrics.json that may be missing, but not of another type.
SIZES = ("step", "tokens", "flops", "n_params", "reference/order", "skipped_steps")
TEXTS = ("label", "group", "reason", "status")
STATUSES = ("running", "interrupted", "finished", "diverged", "pruned", "failed")
MANY = 100  # runs, which may take a moment to read
NAMED = 3  # runs that cannot be read, of which the reasons are told
SOURCES = ("init_sha256", "tokenizer_sha256", "documents")  # of a run, beside its text
Row = tuple[dict[str, Any], dict[str, Any]]  # the configuration of a run, and its other values
Reader = Callable[[Path], Row]

DIGITS = 8  # of such a hash in a row


def load_runs(
    *folders: str | Path, same_code: bool = False, read: Reader | None = None
) -> pd.DataFrame:
    """Returns a table with a row for each run below the folders.

    Its columns are the configuration (keys as typed), `reason` (why the run is not finished),
    metrics.json, `path`, `group` (equal for runs that differ only in seed), `label` and `code` (a
    hash of the lab's files that made the run). Runs of different code are in different groups,
    unless `same_code` says that the difference does not matter. Runs that cannot be read are left
    out, and `.attrs["faults"]` holds their errors; `.attrs["called_equal"]` holds the names of
    different code that somebody has called equal. `read` is called in the place of `load_run`.
    Raises UserError if there is no run.
    """
    read = read or load_run
    if not folders:
        raise UserError("no folder is given; needs folders of runs, such as outputs/sweeps/depth")
    runs: dict[Path, Row] = {}
    faults: list[str] = []
    for folder in map(Path, folders):
        unreadable: dict[str, None] = {}
        found = []
        for name in RECORDS:
            found += files.named_below(folder, name, unreadable.setdefault)
        faults += unreadable
        paths = sorted({file.parent for file in found})  # a run may have one of the two
        if not paths and hugging_face.is_foreign(folder):
            raise hugging_face.no_run(str(folder), folder)
        if not paths:
            raise UserError(next(iter(unreadable), f"{folder}: no run there"))
        with telling_of_many(paths if read is load_run else []):
            for path in paths:
                try:
                    runs.setdefault(path.resolve(), read(path))
                except UserError as error:
                    if path.exists() and not is_beginning(path):
                        faults.append(str(error))
    if faults and not runs:
        raise UserError(faults[0])
    if not runs:
        raise UserError(f"{folders[-1]}: no run there")
    keys = dict.fromkeys(key for configuration, _ in runs.values() for key in configuration)
    table = pd.DataFrame([configuration | others for configuration, others in runs.values()])
    others = [column for column in table if column not in keys]
    table = table[[*keys, *others]]
    averaged = [name for name in numbers_where("in_leaderboard") if name in table]
    # Without this, a column that has no number would be one of objects.
    table = table.assign(**{name: pd.to_numeric(table[name]) for name in averaged})
    different = sorted({code for code in table["code"] if "=" in code})
    if same_code:
        different = sorted({*table["code"]}) if table["code"].nunique() > 1 else different
        table["code"] = ""
    split_groups(table)
    table.attrs["faults"] = faults
    table.attrs["called_equal"] = different
    return table


@contextmanager
def telling_of_many(paths: Sequence[Path]) -> Iterator[None]:
    """A context that says, if reading takes more than a second, of how many runs."""
    if len(paths) < MANY:
        yield
        return
    with after_a_second(partial(tell, f"reading {len(paths):,} runs …")):
        yield


def is_beginning(path: Path) -> bool:
    """Returns whether another process makes the folder of a run just now."""
    return not (path / "config.yaml").exists() and is_locked(path)


def split_groups(table: pd.DataFrame) -> None:
    """Gives the runs of a group that were made by different code groups of their own."""
    codes = table.groupby("group")["code"].transform("nunique")
    split = table["group"] + " " + table["code"]
    table["group"] = table["group"].where(codes == 1, split)


def load_run(path: Path) -> Row:
    """Returns the configuration of a run, and all other values of its row.

    Raises UserError if the run cannot be read.
    """
    config = read_config(path)
    configuration = config.flat()
    noted = read_metrics(path)
    metrics = {
        name: printable(value) if isinstance(value, str) else value
        for name, value in noted.items()
        if not name.startswith(("config/", "resumed/")) and name not in configuration
    }
    learn_numbers(metrics)
    check_types(path, metrics)
    sources = {"data_sha256": text_sha256(metrics, path)}
    sources |= {key: metrics[key] for key in SOURCES if metrics.get(key)}
    group = metrics.get("group")
    if not group:
        _, group = identity(configuration, sources)
    if "path" in configuration:  # the column `path` is the folder of the run
        configuration["data"] += f" {configuration.pop('path')}"
    if config.data.test_fraction and (path / "evaluations.jsonl").exists():
        metrics |= tested(path, noted)
    # A run that ended before it noted anything has made no step.
    defaults = {"reason": reason(metrics, path), "step": 0} | dict.fromkeys(numbers_where("ranks"))
    label = metrics.get("label") or f"{path.parent.name}/{path.name}"
    code = SameCode(path.parent / ".sweep").name(code_of(noted))
    names = {"path": str(path), "group": group, "label": label, "code": code}
    return configuration, defaults | metrics | names | {"started": started_at(path)}


def check_types(path: Path, metrics: dict[str, Any]) -> None:
    """Raises UserError if a number or text that the table needs has the wrong type or size."""
    place = path / "metrics.json"
    numbers = (*numbers_where("in_leaderboard"), *REFERENCES, *SIZES)
    types = dict.fromkeys(numbers, int | float | None) | dict.fromkeys(TEXTS, str | None)
    for name, kinds in types.items():
        value = metrics.get(name)
        if not isinstance(value, kinds):
            raise UserError(f"{place}: {name}={value} has the wrong type")
        if name in SIZES and value is not None and not value >= 0:
            raise UserError(f"{place}: {name}={value}: allowed are numbers from 0")
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise UserError(
                f"{place}: {name}={value}: is too large to be averaged; allowed are numbers up to "
                f"{LARGEST:g}"
            )
    status = metrics.get("status")
    if status not in STATUSES:
        raise UserError(f"{place}: status={status}: allowed are {', '.join(STATUSES)}")


def reason(metrics: dict[str, Any], path: Path) -> str:
    """Returns why the run at `path` is not finished, or "" if it is finished.

    The step of one that was killed is that of its last evaluation, which its checkpoint may not reach.
    """
    step = metrics.get("step", 0)
    how = "the sweep's command or resume=" if (path.parent / ".sweep").is_dir() else "resume="
    stopped = f"stopped after step {step}; {how} continues it from its last checkpoint"
    if not any((path / name).exists() for name in WEIGHTS):
        stopped = "stopped before its first checkpoint; the same command begins it anew"
    reasons = {
        "diverged": f"at step {step} the loss or a weight was not finite",
        "running": f"at step {step} or later",
        "interrupted": stopped,
        "pruned": f"by the search at step {step}",
    }
    return reasons.get(metrics.get("status", ""), "")


def tested(path: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the newest test/loss of the run's last weights, which scripts/evaluate.py wrote.

    If other code of the lab than the run's measured it, `tested_by` is its short hash. A run may have
    been resumed since an evaluation. Those of before version 0.2 do not say their step; of a run that
    was resumed, they do not count. Nor do those of other plug-ins than the run's, and of mixtures.
    """
    has_gone_on = any(name.startswith("resumed/") for name in metrics)
    unsaid = None if has_gone_on else metrics.get("step")
    made_with = plugins_of(metrics)
    losses: dict[str, Any] = {}
    for note in evaluations_of(path):
        if any(str(name).startswith("weight of ") for name in note):
            continue
        weights = note.get("text"), note.get("checkpoint"), note.get("step", unsaid)
        is_of_last_weights = weights == ("test", "last", metrics.get("step"))
        if made_with and note.get("plugin_sha256", made_with) != made_with:
            continue  # what is the lab's own, a plug-in cannot change
        if is_of_last_weights and isinstance(note.get("test/loss"), float):
            losses = {"test/loss": note["test/loss"]}
            code = short(note.get("code_sha256", metrics.get("code_sha256")))
            if is_other_code(code, metrics):
                losses["tested_by"] = code
    return losses


def evaluations_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of the run's evaluations.jsonl, without an incomplete last line."""
    content = files.read(path / "evaluations.jsonl", LIMITS["evaluations.jsonl"])
    for line in content.decode(errors="replace").splitlines():
        try:
            note = json.loads(line)
        except ValueError:
            continue
        if isinstance(note, dict):
            yield note


def configuration_keys(table: pd.DataFrame) -> list[str]:
    """Returns the columns of a table of runs that hold the configuration."""
    columns = list(table.columns)
    return columns[: columns.index("reason")]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows of a table, each as a dict by column name."""
    names = [str(name) for name in table.columns]
    rows = table.to_numpy(dtype=object).tolist()  # `to_dict` takes fifty times as long
    return [dict(zip(names, map(native, row), strict=True)) for row in rows]


def native(value: Any) -> Any:
    """Returns a value as Python's own type, if it is one of numpy."""
    return value.item() if isinstance(value, np.generic) else value


def varied(table: pd.DataFrame) -> list[str]:
    """Returns the keys, without the seed, in which the runs differ.

    It leaves out keys that nobody typed and whose values other keys determine. Where equal keys are
    of different files, the hash of these is one more.
    """
    hidden = (marked(UNTOUCHING) | {"seed"}) - {"tokenizer_path"}
    for key, beside in markers_of(CountsBeside).items():
        if beside.key in table and table[beside.key].notna().any():
            hidden = hidden - {key}
    keys = [key for key in configuration_keys(table) if key not in hidden]
    keys += [key for key in ("data", "init_from", "code") if key in table]
    typed = ",".join(table["label"])
    usual = keys_derived(table)

    def is_shown(key: str) -> bool:
        """Returns whether the key differs between runs, and other keys do not determine it."""
        if distinct(used_values(table, key)) < 2:
            return False
        if key in (*GROUPS, "code") or re.search(rf"\b{key}=", typed):
            return True
        return not (key in usual or follows_from_choices(table, key))

    shown = [key for key in keys if is_shown(key)]
    for hashed, told_by in (
        ("tokenizer_sha256", token_keys() & {*shown}),
        ("data_sha256", shown),
        ("init_sha256", shown),
    ):
        if hashed in table and tells_apart(table, hashed, [*told_by]):
            shown.append(hashed)
    return shown


def tells_apart(table: pd.DataFrame, key: str, others: list[str]) -> bool:
    """Returns whether runs with equal values of `others` have different values of a key."""
    if not others:
        return table[key].nunique() > 1
    values = [table[other].map(repr) for other in others]
    return bool((table.groupby(values)[key].nunique() > 1).any())


def used_values(table: pd.DataFrame, key: str) -> pd.Series:
    """Returns the values of a key in all runs whose model uses the key."""
    idle = [model for model in table["model"].unique() if key in unused_keys(model)]
    return table[key][~table["model"].isin(idle)]


def unused_keys(model: str) -> frozenset[str]:
    """Returns the keys of a configuration that a model does not use."""
    if model not in choices_of("model"):
        return frozenset()
    return idle_keys({"model": model})


def distinct(values: pd.Series) -> int:
    """Returns the number of different values; 1 and 1.0, or None and nan, are different."""
    return values.map(repr).nunique()


def keys_derived(table: pd.DataFrame) -> set[str]:
    """Returns the keys that have, in every run, the default that other keys determine."""
    keys = {str(name) for name in table.columns}
    for run in records(table):
        usual = derived(run)
        keys = {key for key in keys if key in usual and run[key] == usual[key]}
    return keys


def follows_from_choices(table: pd.DataFrame, key: str) -> bool:
    """Returns whether equal model, text, device and optimizer always mean an equal value."""
    choices = table[list(GROUPS)].agg("|".join, axis=1)
    return all(distinct(values) == 1 for _, values in table[key].groupby(choices))


@dataclass
class Entry:
    """A configuration in the leaderboard: its row, and the loss of each of its finished seeds.

    `ended` says whether a run of it came to an end of its own, finished or not. `text` tells the
    validation text from others.
    """

    row: dict[str, Any]
    losses: dict[int, float]
    ended: bool
    text: tuple[str, ...] = ()

    def rank(self, loss: str) -> tuple[bool, float]:
        """Returns the sort key of an entry: its mean loss, or infinity without one."""
        mean = self.row[loss]
        return math.isnan(mean), mean


def configurations(table: pd.DataFrame) -> list[Entry]:
    """Returns an entry for each configuration, best first; without a finished seed it is last.

    They are ranked by the mean, over finished seeds, of the last number that `objective` names.
    """
    loss = objective(table)
    keys = varied(table)
    runs = counted(table, loss)
    names = [name for name in numbers_where("in_leaderboard") if name in table]
    means = runs.groupby("group")[names].mean()
    means["se"] = runs.groupby("group")[loss].sem()
    means_by_group = dict(zip(means.index, records(means), strict=True))
    runs_by_group = by_group(runs)
    missing = dict.fromkeys([*names, "se"], math.nan)
    entries = []
    for group, members in by_group(table).items():
        losses = {run["seed"]: run[loss] for run in runs_by_group.get(group, [])}
        ended = any(run["status"] in ENDED for run in members)
        row = row_of(members, list(losses), means_by_group.get(group, missing), keys)
        entries.append(Entry(row, losses, ended, text_of(members[0])))
    entries.sort(key=lambda entry: entry.rank(loss))
    return entries


def leaderboard(table: pd.DataFrame, record: float | None = None) -> pd.DataFrame:
    """Returns a table with a row for each configuration, best first, as `configurations` ranks them.

    If they were validated on several texts, each text has its own best: the rows of a text follow
    each other, and what is said of the best is said of the first of them.

    `se` is the standard error of the mean, and `ci95` half of its 95 % interval; both are nan for
    one seed. `difference` is that to the best over the seeds that both have, with its interval
    (`difference_low`, `difference_high`), by Student's t-test, or by Welch's if they have fewer than
    two in common (`test`). `p` is that of the test after the correction of Holm (1979) for all rows.
    `like_best` is true if p is at least 5 %, and None without a test. With a `record`, the columns
    `record_…` say the same of the difference to this number.
    """
    by_text: dict[tuple[str, ...], list[Entry]] = {}
    for entry in configurations(table):
        by_text.setdefault(entry.text, []).append(entry)
    entries = [entry for members in by_text.values() for entry in members]
    entries.sort(key=lambda entry: not entry.losses)
    bests = {text: members[0] for text, members in by_text.items()}
    to_best: list[Difference | None] = []
    for entry in entries:
        best = bests[entry.text]
        to_best.append(None if entry is best else difference(entry.losses, best.losses))
        if entry is not best and "test/loss" in entry.row:  # earlier winners have been tested, too
            entry.row["test/loss"] = math.nan
    rows = [entry.row for entry in entries]
    for row in rows:
        row |= {"p": None, "like_best": None}  # before the columns that came after version 0.1
    add_differences(rows, to_best)
    for entry in entries:
        p = entry.row["p"]
        entry.row["like_best"] = None if p is None else p >= LEVEL
        entry.row["ci95"] = half_width([*entry.losses.values()])
    for best in bests.values():
        if best.losses:
            best.row["like_best"] = True
    if record is not None:
        add_differences(rows, [from_number(entry.losses, record) for entry in entries], "record_")
    return as_table(rows)


def are_best(board: pd.DataFrame) -> pd.Series:
    """Returns for each row of a leaderboard whether it is the best of its text, (rows,).

    Such a row has seeds that count and no difference to the best.
    """
    return (board["n"] > 0) & board["difference"].isna()


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Returns rows as a table in which numbers of seeds stay whole, also where some are missing."""
    board = pd.DataFrame(rows)
    for name in board.columns:
        if name.endswith("seeds_needed"):
            board[name] = pd.Series([row[name] for row in rows], dtype=object)
    return board


def difference_columns(one: Difference | None, prefix: str = "") -> dict[str, Any]:
    """Returns the columns of a table that say a difference; all are empty for None."""
    name = f"{prefix}difference"
    one = one or Difference(math.nan, n=0, how="")
    return {
        name: one.mean,
        f"{name}_low": one.low,
        f"{name}_high": one.high,
        f"{prefix}test": one.how,
        f"{prefix}seeds_needed": one.seeds_needed,
    }


def add_differences(
    rows: list[dict[str, Any]], differences: list[Difference | None], prefix: str = ""
) -> None:
    """Adds to rows the columns of their differences, and p corrected for all of them (Holm)."""
    for row, one, p in zip(rows, differences, corrected(differences), strict=True):
        row[f"{prefix}p"] = p
        row |= difference_columns(one, prefix)


def counted(table: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Returns the finished runs with a loss, of several of a configuration's seed the newest."""
    ordered = finished(table, loss).sort_values("started")
    again = ordered[["group", "seed"]].duplicated(keep="last")  # of two columns it is fast
    return ordered[~again].sort_index()


def unreadable(table: pd.DataFrame) -> list[str]:
    """Returns sentences about the runs that cannot be read."""
    faults = table.attrs.get("faults", [])
    sentences = [f"Left out: {fault}." for fault in faults[:NAMED]]
    if len(faults) > NAMED:
        sentences.append(f"{len(faults) - NAMED:,} others cannot be read either.")
    return sentences


def left_out(table: pd.DataFrame, loss: str) -> list[str]:
    """Returns sentences about the runs that `counted` leaves out, and those that cannot be read."""
    sentences = unreadable(table)
    counts = table["status"][table["status"] != "finished"].value_counts()
    if len(counts):
        named = ", ".join(f"{n} {status}" for status, n in counts.items())
        sentences.append(
            f"{counts.sum()} of {len(table)} runs are not finished and are left out: {named}."
        )
    return [*sentences, *without_loss(table, loss), *doubled(table, loss)]


def without_loss(table: pd.DataFrame, loss: str) -> list[str]:
    """Returns a sentence about the finished runs that have no loss, or none."""
    losses = table.loc[table["status"] == "finished", loss]
    if not losses.isna().any():
        return []
    return [
        f"{losses.isna().sum()} of {len(losses)} finished runs have no {loss}: their text has no part "
        "for validation, or their train.log says why."
    ]


def tested_by_others(table: pd.DataFrame) -> list[str]:
    """Returns a sentence about the runs whose test/loss other code of the lab measured, or none."""
    if "tested_by" not in table:
        return []
    codes = table.loc[table["status"] == "finished", "tested_by"].dropna()
    if codes.empty:
        return []
    return [
        f"test/loss of {len(codes)} runs was measured by other code of the lab than trained them "
        f"({', '.join(sorted(codes.unique()))})."
    ]


def ended_early(table: pd.DataFrame) -> list[str]:
    """Returns sentences about the finished runs that made fewer steps than asked for, or none."""
    return [*stopped(table), *skipped(table)]


def stopped(table: pd.DataFrame) -> list[str]:
    """Returns a sentence about the finished runs that ended before max_steps, or none."""
    runs = table[table["status"] == "finished"]
    if not {"step", "max_steps"} <= {*table}:
        return []
    by_steps = [model for model in runs["model"].unique() if "max_steps" not in unused_keys(model)]
    runs = runs[runs["model"].isin(by_steps)]
    early = runs.loc[runs["step"] < runs["max_steps"], "step"]
    if early.empty:
        return []
    first, last = int(early.min()), int(early.max())
    where = f"at step {first:,}" if first == last else f"at steps {first:,} to {last:,}"
    return [
        f"{len(early)} of {len(runs)} finished runs ended before max_steps, as max_minutes, patience or "
        f"a callback asked: {where}."
    ]


def skipped(table: pd.DataFrame) -> list[str]:
    """Returns a sentence about the finished runs of which skip_spikes= left out steps, or none."""
    if "skipped_steps" not in table:
        return []
    runs = table[table["status"] == "finished"]
    some = runs[runs["skipped_steps"] > 0]
    if some.empty:
        return []
    most = max(records(some), key=lambda run: run["skipped_steps"])
    return [
        f"Of {len(some)} of {len(runs)} finished runs skip_spikes left out steps, at most "
        f"{int(most['skipped_steps']):,} of {int(most['step']):,}."
    ]


def doubled(table: pd.DataFrame, loss: str) -> list[str]:
    """Returns a sentence about the finished runs whose seed another run has as well, or none."""
    runs = finished(table, loss)
    several = runs[runs.duplicated(["group", "seed"], keep=False)]
    if several.empty:
        return []
    by_seed = several.groupby(["group", "seed"])[loss]
    differ = ", though their losses differ" if (by_seed.nunique() > 1).any() else ""
    return [
        f"Of several runs of one seed the one that started last counts{differ}; "
        f"left out: {len(several) - len(by_seed)}."
    ]


def text_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what tells the validation text of a run from others, as texts."""
    return tuple(repr(run.get(key)) for key in TEXT_KEYS)


def other_texts(table: pd.DataFrame) -> list[str]:
    """Returns a sentence if the runs were validated on different text, or none."""
    keys = differing(table, TEXT_KEYS)
    if not keys:
        return []
    return [
        "Not all were validated on the same text, so their losses cannot be compared: the runs differ "
        f"in {', '.join(keys)}."
    ]


def differing(table: pd.DataFrame, keys: Iterable[str]) -> list[str]:
    """Returns those of `keys` that have several values in a table."""
    return [key for key in keys if key in table and table[key].nunique(dropna=False) > 1]


def check_alike(table: pd.DataFrame, keys: Sequence[str], about: str) -> None:
    """Raises UserError if runs with equal values of `keys` differ in more than their seed.

    `about` names the sweep in the error.
    """
    for values, members in table.groupby([*keys], observed=True):
        if members["group"].nunique() > 1:
            named = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
            others = ", ".join(varied(members)) or "the text or the weights they began with"
            raise UserError(
                f"{about}: the runs with {named} differ in {others}; needs runs that differ in "
                f"{', '.join(keys)} and seed alone"
            )


def partly_measured(table: pd.DataFrame, loss: str) -> list[str]:
    """Returns a sentence about the numbers that not all finished runs of a row have, or none."""
    runs = counted(table, loss)
    names = [name for name in numbers_where("in_leaderboard") if name in runs]
    shares = runs[names].notna().groupby(runs["group"]).mean()
    partly = [name for name in names if shares[name].between(0, 1, inclusive="neither").any()]
    if not partly:
        return []
    return [f"Not all seeds of a row have {', '.join(partly)}: the mean is over those that do."]


def finished(table: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Returns the finished runs that have a loss."""
    return table[(table["status"] == "finished") & table[loss].notna()]


def by_group(table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Returns the runs of each configuration, in the order of the table."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in records(table):
        groups.setdefault(run["group"], []).append(run)
    return groups


def row_of(
    members: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    means: Mapping[str, float],
    keys: Iterable[str],
) -> dict[str, Any]:
    """Returns the row of a configuration in the leaderboard, without the tests.

    `seeds` are those of its `members` that count, `means` the means over them.
    """
    first = members[0]
    row = {"group": first["group"]}
    unused = unused_keys(first["model"])
    for key in keys:
        row[key] = None if key in unused else shared([member[key] for member in members])
        if key in ("data_sha256", *SOURCES):
            row[key] = str(first[key])[:DIGITS] if pd.notna(first[key]) else None
    row["n"] = len(seeds)
    row |= means
    for name in ("n_params", "tokens"):
        if pd.notna(first.get(name)):
            row[name] = int(first[name])
    row["seeds"] = ",".join(map(str, sorted(seeds)))
    counts = Counter(run["status"] for run in members if run["status"] != "finished")
    row["not_finished"] = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    return row


def shared(values: Sequence[Any]) -> Any:
    """Returns the value of a key in the runs of a row, or all as a text if they differ.

    They do in a key that only watches, such as eval_tokens, but makes other rows of the table differ.
    """
    different = {repr(value): value for value in values}
    if len(different) == 1:
        return values[0]
    return ", ".join(plain(value) or "null" for value in different.values())


def objective(table: pd.DataFrame) -> str:
    """Returns the number that ranks the runs: val/loss, or train/loss without validation.

    Losses of different tokens cannot be compared: then it is val/bits_per_byte.
    """
    if BITS in table and table[BITS].notna().any() and differ_in_tokens(table):
        return BITS
    losses = numbers_where("ranks")
    return next((name for name in losses if table[name].notna().any()), losses[0])


def differ_in_tokens(table: pd.DataFrame) -> bool:
    """Returns whether the runs, or the rows of a leaderboard, have different tokenizers.

    Equal keys may be of different ones: of another file, or learned from another part of the text.
    """
    if "tokenizer_sha256" in table and table["tokenizer_sha256"].nunique() > 1:
        return True
    return any(distinct(table[key]) > 1 for key in token_keys() if key in table)


def unfinished(table: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yields the label, status and reason of each run that is not finished.

    The labels leave out overrides that all labels have.
    """
    common = common_parts(table["label"])
    for run in records(table[table["status"] != "finished"]):
        yield without(run["label"], common), run["status"], run["reason"]
