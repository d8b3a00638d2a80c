"""The same run again: whether its losses come out the same to the bit."""

from dataclasses import replace
from pathlib import Path

from lmlab.config.check import Config
from lmlab.runs.folder import read_history, read_metrics, text_sha256, timestamp
from lmlab.training import experiment


def replay(path: Path, config: Config, command: str) -> bool:
    """Runs the run at `path` anew, in a folder of its own, and says at which step the losses part,
    if they do.
    """
    old, metrics = losses(path), read_metrics(path)
    if config.run.max_minutes:  # as many steps as there was time for
        steps = max((step for step, *_ in old), default=1)
        config = replace(config, run=replace(config.run, max_steps=max(1, steps), max_minutes=None))
    place = Path("outputs", config.run.name, timestamp())
    _, place = experiment.run(config, place, command, text_sha256(metrics, path))
    new = losses(place)
    both = sorted({*old} & {*new})
    parted = next((point for point in both if old[point] != new[point]), None)
    if parted:
        verdict = f"the losses part at step {parted[0]}: {parted[1]} {old[parted]!r} there, {new[parted]!r} here"
    elif both:
        verdict = f"all {len(both)} losses, up to step {both[-1][0]}, are the same to the bit"
        if len(old) > len(both):
            verdict += f"; {len(old) - len(both)} more have no counterpart, since that run was changed on its way"
    else:
        verdict = "that run has noted no loss"
    print(f"\nreplay of {path}: {verdict}")
    return bool(both) and not parted


def losses(path: Path) -> dict[tuple[int, str, int], float | None]:
    """By step, name, and how many steps it is the mean of, the losses that the run at `path` noted."""
    keys = ("train/loss", "val/loss", "val/loss_source")
    return {
        (line["step"], key, line.get("steps", 0)): line[key]
        for line in read_history(path)
        for key in keys
        if key in line
    }
