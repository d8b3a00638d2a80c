"""Several models as one: a weighted mean of their probabilities, token by token."""

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.runs.checkpoints import Run
from lmlab.runs.folder import read_metrics, text_sha256


def check(members: list[Run], split: str | None) -> None:
    """Raises UserError unless all were trained on the same characters, and none on those that
    decide the weights or on `split` (None: another text).
    """
    if split in ("train", "holdout"):
        raise UserError(
            f"split={split}: a mixture was trained or fitted on it; allowed are val, test"
        )
    read = []
    for run in members:
        data, sha256 = run.config.data, text_sha256(read_metrics(run.path), run.path)
        read.append(
            (
                run.tokenizer.to_json(),
                sha256,
                data.val_fraction,
                data.test_fraction,
                data.holdout_fraction,
            )
        )
        if not data.holdout_fraction:
            raise UserError(
                f"run={run.path}: has holdout_fraction=0, but a mixture's weights are fitted on text that "
                "none of its models was trained on; allowed are runs with, say, holdout_fraction=0.05"
            )
        if run.config.run.init_from:
            raise UserError(
                f"run={run.path}: started from the weights of {run.config.run.init_from}, which may have "
                "read what decides the mixture's weights; allowed are runs without init_from"
            )
        if read[-1] != read[0]:
            raise UserError(
                f"run={run.path}: was trained on another text than {members[0].path}, or on another part "
                "of it; allowed are runs of one text, val_fraction, test_fraction and holdout_fraction"
            )


def fit(answers: Tensor) -> Tensor:
    """The weights (M,) that make a text likeliest, float64, from the log-probabilities (M, N) that
    M models give its tokens: expectation maximisation (Jelinek and Mercer 1980), which finds the
    only maximum.
    """
    answers, weights = (
        answers.double(),
        torch.full((len(answers),), 1 / len(answers), dtype=torch.float64),
    )
    for _ in range(1000):
        shares = (answers + weights.log()[:, None]).softmax(0)  # whose guess each token was
        before, weights = weights, shares.mean(1)
        if (weights - before).abs().max() < 1e-9:
            break
    return weights


def mix(answers: Tensor, weights: Tensor) -> Tensor:
    """The log-probabilities (N,) of the mixture."""
    return (answers.double() + weights.log()[:, None]).logsumexp(0)
