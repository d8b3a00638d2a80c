"""Where each measured number is shown, and which of them a search may look for. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from lmlab.registry import load

HUGE = 1e7  # from here on a number is written with a power of ten


def decimal(value: float, digits: int = 4) -> str:
    """Returns a number as text with `digits` after the point; a zero has no sign."""
    if abs(value) >= HUGE:
        return f"{value:.{digits}e}"
    return f"{value:z.{digits}f}"


@dataclass(frozen=True)
class Number:
    """Where a measured number is shown, and how a search uses it.

    A number that has no row is only written to history.jsonl, metrics.json and TensorBoard.
    """

    label: str = ""
    """The title of its column in the report; if empty, its name."""

    is_loss: bool = False
    """Whether it stands in the line of an evaluation, and a replay compares it bit for bit."""

    ranks: bool = False
    """Whether the leaderboard may be sorted by it, lowest first, and the report draws its curve."""

    in_end_table: bool = False
    """Whether a run shows it when it ends."""

    in_leaderboard: bool = False
    """Whether the leaderboard has its mean over the finished seeds."""

    in_report: bool = False
    """Whether that mean is a column of the printed leaderboard, and of the report, too."""

    is_objective: bool = False
    """Whether a search may look for its best value."""

    can_prune: bool = False
    """Whether a search for its best value may prune a trial by it."""

    better: Literal["lower", "higher"] = "lower"
    """Which of two numbers is the better one."""

    instrument: str = ""
    """The key that switches it on, if it is measured only then."""

    evaluation: str = ""
    """The name of somebody's own evaluation that returns it."""


UPDATE_RATIO = "update_ratio/"  # before the name of a matrix: by what share a step changes it

SHARE = Number(
    in_end_table=True, in_leaderboard=True, in_report=True, is_objective=True, better="higher"
)
"""The row of what is better the more of it there is, such as the share of right answers."""

# In the order of the leaderboard's columns.
NUMBERS = {
    "val/loss": Number(
        is_loss=True,
        ranks=True,
        in_end_table=True,
        in_leaderboard=True,
        is_objective=True,
        can_prune=True,
    ),
    "val/loss_source": Number(is_loss=True, in_end_table=True),
    "val/perplexity": Number(in_end_table=True),
    "best/val/loss": Number(
        "best val/loss", in_leaderboard=True, in_report=True, is_objective=True, can_prune=True
    ),
    "val/bits_per_byte": Number(
        in_end_table=True, in_leaderboard=True, is_objective=True, can_prune=True
    ),
    "test/loss": Number(in_leaderboard=True, in_report=True),
    "train/loss": Number(
        is_loss=True, ranks=True, in_end_table=True, in_leaderboard=True, is_objective=True
    ),
    "train_seconds": Number(in_leaderboard=True),
    "tokens_per_second": Number(is_objective=True, better="higher"),
    "val/context_gain": replace(SHARE, instrument="by_position"),
    "val/calibration_error": Number(
        in_end_table=True,
        in_leaderboard=True,
        in_report=True,
        is_objective=True,
        instrument="calibration",
    ),
    "val/minimal_pairs": replace(SHARE, instrument="minimal_pairs"),
    "val/answer_accuracy": SHARE,
    "val/whole_answers": SHARE,
    "sample/copied": Number(in_end_table=True, in_leaderboard=True, in_report=True),
    "sample/longest_copy": Number(in_end_table=True, in_leaderboard=True),
    "train/noise_scale": Number(in_end_table=True, in_leaderboard=True, in_report=True),
}
METRIC = Number(
    in_end_table=True, in_leaderboard=True, in_report=True, is_objective=True, can_prune=True
)
"""The row of most metrics: in all tables, and an objective of searches, by which they may prune."""

EXCERPT_LOSS = "val/loss_excerpt"  # of the last evaluation: the loss on what earlier ones looked at
EXCERPT_TOKENS = "val/tokens"  # that were predicted; it is there if val/loss is that of an excerpt
SOURCE_TOKENS = "val/tokens_source"  # the same for val/loss_source
OF_EXCERPTS = (EXCERPT_LOSS, EXCERPT_TOKENS, SOURCE_TOKENS)  # numbers that no board shows

# Names in metrics.json and columns of tables, which no key of somebody's own may have.
COLUMNS = frozenset(
    [
        "cell",
        "changed",
        "ci95",
        "code",
        "code_sha256",
        "command",
        "data_sha256",
        "difference",
        "difference_high",
        "difference_low",
        "documents",
        "flops",
        "flops_per_token",
        "git_commit",
        "git_dirty",
        "group",
        "hydra_core",
        "init_sha256",
        "label",
        "left_out",
        "like_best",
        "lmlab",
        "machine",
        "n",
        "n_params",
        "not_finished",
        "numpy",
        "optuna",
        "p",
        "plugin_sha256",
        "python",
        "pytorch_lightning",
        "reason",
        "record_difference",
        "record_difference_high",
        "record_difference_low",
        "record_p",
        "record_seeds_needed",
        "record_test",
        "se",
        "seeds",
        "seeds_needed",
        "skipped_steps",
        "source_sha256",
        "started",
        "status",
        "step",
        "tensorboard",
        "test",
        "tokenizer_sha256",
        "tokenizers",
        "tokens",
        "tokens_per_second",
        "torch",
        "train_seconds",
        "working_folder",
    ]
)

# What simple models reach on the same text, best first, in words. `order` is reference/order, and
# `unit` is what a token is called.
REFERENCES = {
    "reference/ngram": "counting {order:.0f} {unit}s at a time",
    "reference/bigram": "counting pairs",
    "reference/unigram": "counting single {unit}s",
    "reference/uniform": "guessing",
}


def learn_numbers(names: Iterable[str]) -> None:
    """Adds the rows of registered evaluations to NUMBERS if one of `names` may be among them.

    This imports torch, so it is done only for a number of an evaluation that has no row.
    """
    if any(name.startswith("val/") and name not in NUMBERS for name in names):
        load("lmlab.inference.evaluations:EVALUATIONS")


def numbers_where(property: str) -> list[str]:
    """Returns the names of the numbers that have a property, such as "ranks"."""
    return [name for name, number in NUMBERS.items() if getattr(number, property)]


def objectives() -> list[str]:
    """Returns the names of the numbers that a search may optimize."""
    return numbers_where("is_objective")


def training_first(names: Iterable[str]) -> list[str]:
    """Returns `names` in the order in which the terminal shows them: train/… first."""
    return sorted(names, key=lambda name: not name.startswith("train/"))


def losses() -> list[str]:
    """Returns the names of the losses in the line of an evaluation, in its order."""
    return training_first(numbers_where("is_loss"))
