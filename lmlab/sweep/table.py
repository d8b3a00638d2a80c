"""Runs as a table, and configurations over seeds as a leaderboard. Reads run directories and
nothing else.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lmlab import files
from lmlab.catalogue import REFERENCES, UNTOUCHING, learn_numbers, numbers_where
from lmlab.config.check import derived
from lmlab.config.keys import GROUPS, marked
from lmlab.errors import UserError
from lmlab.runs.folder import LIMITS, read_config, read_metrics
from lmlab.sweep.cells import identity
from lmlab.sweep.labels import common_parts, without

TEST = "paired t-test over common seeds, Holm's correction, 5 %"
LEVEL = 0.05
# What metrics.json must hold under these names, if it holds anything.
SIZES = ("step", "tokens", "flops", "n_params", "reference/order")
WORDS = ("label", "group", "reason", "status")


def load_runs(*folders: str | Path) -> pd.DataFrame:
    """A row for each run below the folders: `path`, its configuration (keys as typed), its
    metrics.json, `group` (equal for runs that differ only in seed), `reason` (why it isn't
    finished). What can't be read is left out and told in `.attrs["faults"]`. Raises UserError where
    there is no run.
    """
    found, faults = {}, []
    for folder in map(Path, folders):
        there = sorted({config.parent for config in folder.rglob("config.yaml")})
        if not there:
            raise UserError(f"{folder}: no run there")
        for path in there:
            try:
                found.setdefault(path.resolve(), load_run(path))
            except UserError as error:
                if path.exists():  # else another process is about to begin it anew
                    faults.append(str(error))
    if not found:
        raise UserError(faults[0] if faults else f"{folder}: no run there")
    keys = dict.fromkeys(key for flat, _ in found.values() for key in flat)
    table = pd.DataFrame([flat | others for flat, others in found.values()])
    table = table[[*keys, *(column for column in table if column not in keys)]]
    for name in numbers_where("in_leaderboard"):
        if name in table:  # a column without any number would be one of objects
            table[name] = pd.to_numeric(table[name])
    table.attrs["faults"] = faults
    return table


def load_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a run, and all else of its row."""
    config, metrics = read_config(path), read_metrics(path)
    flat = config.flat()
    learn_numbers(metrics)
    metrics = {
        key: value for key, value in metrics.items() if not key.startswith(("config/", "resumed/"))
    }
    for key, kinds in types().items():
        if not isinstance(metrics.get(key), kinds):
            raise UserError(f"{path / 'metrics.json'}: {key}={metrics[key]} is of another type")
    group = (
        metrics.get("group")
        or identity(flat, str(metrics.get("data_sha256")), metrics.get("init_sha256"))[1]
    )
    step, status = metrics.get("step", 0), metrics.get("status")
    why = {
        "diverged": f"at step {step} the loss or a weight was not finite",
        "running": f"at step {step}",
        "interrupted": f"stopped at step {step}; the sweep's command or resume= goes on",
        "pruned": f"by the search at step {step}",
    }
    if config.data.test_fraction and (path / "evaluations.jsonl").exists():
        metrics |= tested(path)
    label = metrics.get("label") or f"{path.parent.name}/{path.name}"
    about = {"path": str(path), "group": group, "label": label}
    return flat, {"reason": why.get(status, "")} | dict.fromkeys(
        numbers_where("ranks")
    ) | metrics | about


def types() -> dict[str, Any]:
    """Returns the types that named values of metrics.json may have."""
    names = [*numbers_where("in_leaderboard"), *REFERENCES, *SIZES]
    return dict.fromkeys(names, int | float | None) | dict.fromkeys(WORDS, str | None)


def tested(path: Path) -> dict[str, float]:
    """test/loss of the run's last weights, as scripts/evaluate.py noted it last."""
    found = {}
    for line in (
        files.read(path / "evaluations.jsonl", LIMITS["evaluations.jsonl"]).decode().splitlines()
    ):
        try:
            noted = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(noted, dict) and (noted.get("text"), noted.get("checkpoint")) == (
            "test",
            "last",
        ):
            loss = noted.get("test/loss")
            found = {"test/loss": loss} if isinstance(loss, float) else found
    return found


def varied(table: pd.DataFrame) -> list[str]:
    """The keys in which the runs differ, but the seed; without those that nobody typed and that
    follow from others.
    """
    keys = [
        key
        for key in table.columns[: table.columns.get_loc("reason")]
        if key != "seed" and key not in marked(UNTOUCHING)
    ]
    keys = [
        key
        for key in [*keys, "data", "init_from"]
        if key in table and table[key].map(repr).nunique() > 1
    ]
    chosen = table[list(GROUPS)].agg("|".join, axis=1)
    rows = table.to_dict("records")

    def follows(key: str) -> bool:
        same = key in derived(rows[0]) and all(row[key] == derived(row)[key] for row in rows)
        return same or table[key].map(repr).groupby(chosen).nunique().max() == 1

    typed = ",".join(table["label"])
    return [
        key for key in keys if key in GROUPS or re.search(rf"\b{key}=", typed) or not follows(key)
    ]


def leaderboard(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration, best first: by the mean of its finished seeds' last `val/loss`
    (`train/loss` where nothing validates). `se` is the standard error of the mean, nan for one
    seed. `p` is that of the paired t-test against the first row over the seeds that both have,
    corrected by Holm 1979; `like_best` whether it is not below 5 %, None where fewer than two seeds
    are common. Configurations without a finished seed come last.
    """
    loss = objective(table)
    rows = []
    for group, members in table.groupby("group", sort=False):
        done = members[(members["status"] == "finished") & members[loss].notna()].drop_duplicates(
            "seed"
        )
        first = members.iloc[0]
        row = {"group": group, **{key: first[key] for key in varied(table)}, "n": len(done)}
        for key in numbers_where("in_leaderboard"):
            if key in members:
                row[key] = done[key].mean() if len(done) else math.nan
        row["se"] = done[loss].sem() if len(done) > 1 else math.nan
        row |= {
            key: int(first[key])
            for key in ("n_params", "tokens")
            if key in members and first[key] == first[key]
        }
        row |= {
            "seeds": ",".join(map(str, sorted(done["seed"]))),
            "not_finished": ", ".join(
                f"{n} {status}"
                for status, n in members["status"][members["status"] != "finished"]
                .value_counts()
                .items()
            ),
        }
        rows.append((row, dict(zip(done["seed"], done[loss], strict=True))))
    rows.sort(key=lambda pair: (math.isnan(pair[0][loss]), pair[0][loss]))
    best = rows[0][1]
    for row, _ in rows[1:]:  # earlier winners have been tested too
        row |= {"test/loss": math.nan} if "test/loss" in row else {}
    ps = [compare(losses, best) for _, losses in rows]
    for (row, _), p in zip(rows, holm(ps), strict=True):
        row["p"], row["like_best"] = p, None if p is None else bool(p >= LEVEL)
    rows[0][0]["like_best"] = True if best else None
    return pd.DataFrame([row for row, _ in rows])


def objective(table: pd.DataFrame) -> str:
    """Returns the loss that ranks the runs: val/loss, or train/loss if nothing validates."""
    losses = numbers_where("ranks")
    return next((name for name in losses if table[name].notna().any()), losses[0])


def compare(losses: dict[int, float], best: dict[int, float]) -> float | None:
    """p of the paired t-test over common seeds, two-sided; None for fewer than two of them, or
    against itself.
    """
    common = sorted({*losses} & {*best})
    if losses is best or len(common) < 2:
        return None
    differences = np.array([losses[seed] - best[seed] for seed in common])
    if (
        np.ptp(differences) == 0
    ):  # no spread to measure against: the same, or different whatever the seed
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(ps: list[float | None]) -> list[float | None]:
    """Each p times the number of those not smaller (Holm 1979), never below a smaller one's."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    corrected, highest = list(ps), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, ps[i] * (len(order) - place)))
        corrected[i] = highest
    return corrected


def unfinished(table: pd.DataFrame) -> Iterable[tuple[str, str, str]]:
    """Label, without what all have in it, status and reason of every run that isn't finished."""
    common = common_parts(table["label"])
    for _, run in table[table["status"] != "finished"].iterrows():
        yield without(run["label"], common), run["status"], run["reason"]
