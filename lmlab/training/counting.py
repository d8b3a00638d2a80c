"""Trains a model without steps, such as the n-gram: it counts the text once."""

import math
import time
from typing import Any

from lmlab.inference import evaluations
from lmlab.inference.evaluations import Subject
from lmlab.runs.board import Board
from lmlab.runs.checkpoints import SealedCheckpointIO
from lmlab.runs.folder import RunDirectory
from lmlab.training import state
from lmlab.training.meter import speed
from lmlab.training.recorder import Ending
from lmlab.training.results import Results


def count(
    directory: RunDirectory,
    subject: Subject,
    identity: dict[str, Any],
    saved: dict[str, Any] | None,
) -> Ending:
    """Trains a model without steps: it counts the text once, is evaluated and saved.

    If `saved`, the entry of its checkpoint, is given, all this was done before.
    """
    model = subject.model
    train_tokens = subject.text.train
    board = Board(directory.path, purge_step=state.first_new_step(saved))
    results = Results(directory, board)
    started = time.perf_counter()
    if saved is None:
        model.count(train_tokens)
    seconds = saved["train_seconds"] if saved else time.perf_counter() - started
    totals = {
        "step": 0,
        "tokens": len(train_tokens),
        "flops": 0,
        "train_seconds": seconds,
        "tokens_per_second": speed(len(train_tokens), seconds),
    }
    if saved is None:
        directory.update(n_params=model.n_params())
        evaluate_counted(results, subject, identity, totals)
    results.end("finished", identity["config"], 0)
    return Ending("finished", 0, totals)


def evaluate_counted(
    results: Results, subject: Subject, identity: dict[str, Any], totals: dict[str, float]
) -> None:
    """Evaluates a counted model, writes the numbers, and saves its checkpoints."""

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
        SealedCheckpointIO().save_checkpoint(checkpoint, path)

    values = evaluations.evaluate(subject)
    results.add_evaluation(0, values, totals, None, save_best=lambda: save("best.ckpt"))
    results.board.flush()
    save("last.ckpt")
