"""Reaches the lowest validation loss on tiny-shakespeare that three minutes on two cores allow.

  time python scripts/shakespeare_3min.py seed=0

seed  the seed of the transformer's weights and batches (0)

Trains `experiment=shakespeare_3min` and counts n-grams on the same text. Then it fits the shares of
the two models on characters that neither was trained on, and evaluates the mixture once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands import evaluate, train
    from lmlab.commands.door import run_command
    from lmlab.commands.options import parse_script

MEMBERS = {
    "shakespeare_3min": ["experiment=shakespeare_3min"],
    "shakespeare_3min-ngram": [
        "model=ngram",
        "data=shakespeare",
        "order=10",
        "holdout_fraction=0.01",
    ],
}


@dataclass(frozen=True)
class Options:
    """The options of the script; --help explains them."""

    seed: Annotated[int, "[0, 4294967296)"] = 0


def main(argv: list[str]) -> None:
    """Trains the two models and evaluates their mixture. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    for name, arguments in MEMBERS.items():
        train.main([*arguments, f"seed={options.seed}", f"name={name}"])
    folders = ",".join(f"outputs/{name}" for name in MEMBERS)
    evaluate.main([f"run={folders}"])


if __name__ == "__main__":
    run_command(main)
