"""Several models as one: a weighted mean of their probabilities, token by token."""

import torch
from torch import Tensor

from lmlab.errors import UserError
from lmlab.runs.checkpoints import Run
from lmlab.runs.folder import read_metrics, text_sha256

UNREAD = ("val", "test")  # the parts of a text that no model of a mixture has read, nor its weights


def check(members: list[Run], split: str | None) -> None:
    """Raises UserError if the runs cannot be mixed, or the mixture not evaluated on `split`.

    All runs must be trained on the same part of one text. No run may be trained on `split` (None:
    another text) or on the holdout part, which is used to fit the weights of the mixture.
    """
    if split is not None and split not in UNREAD:
        raise UserError(
            f"split={split}: a mixture was trained or fitted on it; allowed are {', '.join(UNREAD)}"
        )
    for run in members:
        if run.is_foreign:
            raise UserError(
                f"run={run.path}: is a model of Hugging Face's, and nobody knows which text it was "
                "trained on; a mixture needs runs of one text"
            )
    first = trained_on(members[0])
    for run in members:
        if not run.config.data.holdout_fraction:
            raise UserError(
                f"run={run.path}: has holdout_fraction=0, but a mixture's weights are fitted on "
                "text that none of its models was trained on; needs runs with holdout_fraction "
                "above 0, such as 0.05"
            )
        if run.config.run.init_from:
            raise UserError(
                f"run={run.path}: started from the weights of {run.config.run.init_from}, which "
                "may have been trained on the text that decides the mixture's weights; allowed are "
                "runs without init_from"
            )
        if trained_on(run) != first:
            raise UserError(
                f"run={run.path}: was trained on another text than {members[0].path}, or on "
                "another part of it; allowed are runs of one text, val_fraction, test_fraction, "
                "holdout_fraction, separator and score_after"
            )
        if run.tokenizer.to_json() != members[0].tokenizer.to_json():
            raise UserError(
                f"run={run.path}: has another tokenizer than {members[0].path}; allowed are runs with "
                "the same tokens"
            )


def trained_on(run: Run) -> tuple[object, ...]:
    """Returns a key that identifies the training part of the text of `run`."""
    data = run.config.data
    return (
        text_sha256(read_metrics(run.path), run.path),
        data.val_fraction,
        data.test_fraction,
        data.holdout_fraction,
        run.config.run.separator,
        run.config.run.score_after,
    )


def fit(log_probs: Tensor) -> Tensor:
    """Returns the shares (M,) of M models in the mixture that makes a text most likely, in float64.

    `log_probs` (M, N) are the models' log-probabilities of the N tokens. The method is expectation
    maximisation (Jelinek and Mercer 1980). There is only one maximum, and the method finds it.
    """
    log_probs = log_probs.double()
    weights = torch.full((len(log_probs),), 1 / len(log_probs), dtype=torch.float64)
    for _ in range(1000):
        shares = (log_probs + weights.log()[:, None]).softmax(0)  # (M, N): whose guess a token was
        previous = weights
        weights = shares.mean(1)
        if (weights - previous).abs().max() < 1e-9:
            break
    return weights


def mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Returns the log-probabilities (N,) of the mixture, from those of its models (M, N)."""
    return (log_probs.double() + weights.log()[:, None]).logsumexp(0)
