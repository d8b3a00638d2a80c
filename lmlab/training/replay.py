"""Trains a run again, to check whether its losses are the same bits."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmlab import files, machine, numbers
from lmlab.config.check import Config
from lmlab.errors import UserError
from lmlab.numbers import EXCERPT_LOSS, EXCERPT_TOKENS, SOURCE_TOKENS
from lmlab.runs.code import code_of
from lmlab.runs.folder import (
    read_history,
    read_metrics,
    read_tokenizer,
    text_sha256,
    timestamp,
)
from lmlab.runs.provenance import differences
from lmlab.training import experiment

# The step of a loss, its name, over how many steps it is a mean, and whether it is of an excerpt.
Point = tuple[int, str, int, bool]

# What an evaluation notes beside a loss if that is of an excerpt.
MARKS = {"val/loss": EXCERPT_TOKENS, "val/loss_source": SOURCE_TOKENS}


def replay(path: Path, config: Config, command: str) -> bool:
    """Trains the run at `path` again in a new folder; returns whether all losses are the same bits.

    If they are not, it prints the first step at which they differ. Raises UserError, before it
    trains, if the run has no losses.
    """
    history = read_history(path)
    marks = {mark for mark in MARKS.values() for line in history if mark in line}
    before = losses(history, marks)  # a run of before has no mark of val/loss_source
    if not before:
        raise UserError(f"replay={path}: that run has noted no losses; there is nothing to compare")
    metrics = read_metrics(path)
    sha256 = text_sha256(metrics, path)
    if config.run.max_minutes:  # as many steps as there was time for
        steps = max((step for step, *_ in before), default=1)
        run = replace(config.run, max_steps=max(1, steps), max_minutes=None)
        config = replace(config, run=run)
    new_path = files.expanded(config.run.out) / config.run.name / timestamp()
    config = machine.resolve(config)
    tokenizer = read_tokenizer(path)
    start = metrics.get("init_sha256")
    _, new_path = experiment.run(
        config, new_path, command, sha256, tokenizer=tokenizer, init_sha256=start
    )
    now = losses(read_history(new_path), marks)
    common = sorted({*before} & {*now})
    parted = next((point for point in common if before[point] != now[point]), None)
    if parted:
        step, name, *_ = parted
        verdict = (
            f"the first difference is at step {step}: {name} was {before[parted]!r} and is "
            f"{now[parted]!r} now"
        )
    elif common:
        verdict = f"all {len(common)} losses, up to step {common[-1][0]}, are the same to the bit"
        if len(before) > len(common):
            more = len(before) - len(common)
            verdict += f"; {more} more cannot be compared, since that run was changed when resumed"
    else:
        verdict = "no step of that run with a loss is one of this run"
    if parted and "changed" in metrics:
        verdict += f"; that run was changed when it was resumed: {metrics['changed']}"
    changes = differences(metrics, read_metrics(new_path))
    codes = code_of(metrics)
    if parted and "+" in codes:
        verdict += f"; that run was made by several codes of the lab, one after the other: {codes}"
    if changes:
        verdict += f"; not as it was then: {'; '.join(changes)}"
    print(f"\nreplay of {path}: {verdict}")
    return bool(common) and not parted


def losses(lines: Iterable[dict[str, Any]], marks: Collection[str]) -> dict[Point, float | None]:
    """Returns the losses in the `lines` of a run's history.

    A loss on an excerpt and one on the whole text, as at the end of a run, are two points. `marks`
    are those by which they are told apart.
    """
    found: dict[Point, float | None] = {}
    for line in lines:
        for name in numbers.losses():
            if name in line:
                mark = MARKS.get(name, "")
                is_excerpt = mark in marks and line.get(mark) is not None
                found[line["step"], name, line.get("steps", 0), is_excerpt] = line[name]
        if EXCERPT_LOSS in line:
            found[line["step"], "val/loss", 0, True] = line[EXCERPT_LOSS]
    return found
