"""Trains a model without steps, such as the n-gram: it counts the text once."""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from lmlab.inference import evaluations
from lmlab.inference.evaluations import Subject
from lmlab.runs.board import Board
from lmlab.runs.checkpoints import SealedCheckpointIO
from lmlab.runs.folder import AnyDirectory
from lmlab.signals import Interrupted, StopSignals
from lmlab.terminal import after_a_second
from lmlab.threads import call_in_thread
from lmlab.training import state
from lmlab.training.companions import loggers
from lmlab.training.meter import speed
from lmlab.training.recorder import Ending
from lmlab.training.results import Results

COUNTING = "counting the text …"


def count(
    directory: AnyDirectory,
    subject: Subject,
    identity: dict[str, Any],
    stop: StopSignals,
    saved: dict[str, Any] | None,
    companions: Mapping[str, Any],
) -> Ending:
    """Trains a model without steps: it counts the text once, is evaluated and saved.

    A signal ends it, and nothing is saved: the resumed run counts again. If `saved`, the entry of
    its checkpoint, is given, all this was done before.
    """
    board = Board(directory.path, directory.warn, state.first_new_step(saved))
    results = Results(directory, [board, *loggers(directory.path, companions, directory.warn)])
    if saved is not None:
        totals = totals_of(subject, saved["train_seconds"])
    else:
        try:
            with stop.interrupting(), after_a_second(partial(directory.say, COUNTING)):
                started = time.perf_counter()
                call_in_thread(subject.model.count, subject.text.train)
                totals = totals_of(subject, time.perf_counter() - started)
                values = evaluations.evaluate(subject, directory.warn)
        except Interrupted:
            results.close()
            return Ending("interrupted", 0, {})
        directory.update(n_params=subject.model.n_params())
        write(results, subject, values, identity, totals)
    results.end("finished", identity["config"], 0)
    return Ending("finished", 0, totals)


def totals_of(subject: Subject, seconds: float) -> dict[str, float]:
    """Returns what metrics.json says of a model that has counted the text in `seconds`."""
    tokens = len(subject.text.train)
    return {
        "step": 0,
        "tokens": tokens,
        "flops": 0,
        "train_seconds": seconds,
        "tokens_per_second": speed(tokens, seconds),
    }


def write(
    results: Results,
    subject: Subject,
    values: Mapping[str, evaluations.Value],
    identity: dict[str, Any],
    totals: dict[str, float],
) -> None:
    """Writes the evaluation of a counted model, and saves its checkpoints."""

    def save(name: str) -> None:
        entry = state.entry(
            identity,
            results.directory,
            subject.model.device.type,
            step=0,
            last=True,
            best=results.best,
            train_seconds=totals["train_seconds"],
            train_loss=math.nan,
            loss_sum=0.0,
            losses=0,
        )
        path = results.directory.path / "checkpoints" / name
        checkpoint = {"state_dict": subject.model.state_dict(prefix="model."), "lmlab": entry}
        SealedCheckpointIO(subject.model.largest_checkpoint()).save_checkpoint(checkpoint, path)

    results.add_evaluation(0, values, totals, None, save_best=lambda: save("best.ckpt"))
    results.flush()
    save("last.ckpt")
