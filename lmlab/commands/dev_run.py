"""fast_dev_run=true: tries what is asked for in two steps and one evaluation, and keeps nothing."""

import io
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from lmlab import plugins
from lmlab.config.check import Config
from lmlab.config.grammar import key_of
from lmlab.config.overrides import Asked
from lmlab.errors import OwnCodeError, UserError, memory_errors, reason_of
from lmlab.notebook import hidden
from lmlab.registry import importing
from lmlab.runs.folder import read_metrics

STEPS = 2
TOKENS = 20_000  # of each part of a text that are used, at least


def try_out(asked: Asked) -> list[str]:
    """Tries each configuration of a command with its first seed; returns what is wrong with some.

    Prints a line for each. If there is only one, it raises its error.
    """
    first, _ = asked.runs[0]
    if first.sweep and first.sweep.dry_run:
        raise UserError("dry_run=true fast_dev_run=true: allowed is one of them")
    distinct: dict[str, tuple[Config, list[str]]] = {}
    for config, own in asked.runs:
        without_seed = config.flat() | {"seed": None}
        distinct.setdefault(repr(without_seed), (config, own))
    faults = []
    for config, own in distinct.values():
        varied = [text for text in own if key_of(text) in asked.swept and key_of(text) != "seed"]
        label = " ".join(varied) or f"model={config.choices['model']}"
        try:
            with plugins.own_errors():
                line = tried(config)
        except Exception as error:  # whatever it is, the others are tried
            if len(distinct) == 1:
                raise
            if isinstance(error, OwnCodeError):
                error.show_frames()
            faults.append(f"{label}: {reason_of(error)}")
            print(f"error: {faults[-1]}", file=sys.stderr)
            continue
        print(f"{label}: {line}", flush=True)
    print("tried only; nothing was kept")
    return faults


def longest(config: Config) -> int | None:
    """Returns how many tokens of each part of a text are used: a window fits, and so do marks."""
    if config.run.score_after is not None:  # what is scored may come late
        return None
    return max(TOKENS, 2 * config.flat().get("block_size", 0))


def tried(config: Config) -> str:
    """Trains a configuration for two steps; returns its losses and its time, in words.

    Of what the run prints, only warnings are seen. Raises UserError, also if the loss is not finite.
    """
    with importing():
        from lmlab import machine
        from lmlab.data.splits import shortened
        from lmlab.training import experiment
    started = time.monotonic()
    config = machine.resolve(config)
    run = replace(
        config.run,
        max_steps=STEPS,
        max_minutes=None,
        eval_interval=STEPS,
        log_interval=1,
        checkpoint_interval=STEPS,
    )
    with tempfile.TemporaryDirectory(prefix="lmlab-") as folder:
        path = Path(folder) / "run"
        quiet = redirect_stdout(io.StringIO())
        with quiet, hidden(), shortened(longest(config)), memory_errors():
            status, path = experiment.run(replace(config, run=run), path, "")
        metrics = read_metrics(path)
    if status == "diverged":
        raise UserError(f"after {metrics['step']} steps the loss or a weight is not finite")
    losses = [
        f"{key} {metrics[key]:.4f}"
        for key in ("train/loss", "val/loss")
        if metrics.get(key) is not None
    ]
    made = f"{STEPS} steps and an evaluation" if metrics["step"] else "counted"
    return f"{made} in {time.monotonic() - started:.1f} s, {', '.join(losses)}"
