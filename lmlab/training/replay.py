"""Trains a run again, to check whether its losses are the same bits."""

from dataclasses import replace
from pathlib import Path

from lmlab import files, machine, numbers
from lmlab.config.check import Config
from lmlab.errors import UserError
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


def replay(path: Path, config: Config, command: str) -> bool:
    """Trains the run at `path` again in a new folder; returns whether all losses are the same bits.

    If they are not, it prints the first step at which they differ. Raises UserError, before it
    trains, if the run has no losses.
    """
    before = losses(path)
    if not before:
        raise UserError(f"replay={path}: that run has noted no losses; there is nothing to compare")
    sha256 = text_sha256(read_metrics(path), path)
    if config.run.max_minutes:  # as many steps as there was time for
        steps = max((step for step, *_ in before), default=1)
        run = replace(config.run, max_steps=max(1, steps), max_minutes=None)
        config = replace(config, run=run)
    new_path = files.expanded(config.run.out) / config.run.name / timestamp()
    config = machine.resolve(config)
    tokenizer = read_tokenizer(path)
    _, new_path = experiment.run(config, new_path, command, sha256, tokenizer=tokenizer)
    now = losses(new_path)
    common = sorted({*before} & {*now})
    parted = next((point for point in common if before[point] != now[point]), None)
    if parted:
        step, name, _ = parted
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
    metrics = read_metrics(path)
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


def losses(path: Path) -> dict[tuple[int, str, int], float | None]:
    """Returns the losses in a run's history, by step, name, and number of averaged steps."""
    return {
        (line["step"], name, line.get("steps", 0)): line[name]
        for line in read_history(path)
        for name in numbers.losses()
        if name in line
    }
