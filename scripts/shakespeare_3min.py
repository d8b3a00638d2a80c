"""The lowest validation loss on tiny-shakespeare that the lab reaches in three minutes on two
cores:

  time python scripts/shakespeare_3min.py seed=0

seed  of the transformer's weights and batches (0)

Trains `experiment=shakespeare_3min`, counts n-grams on the same text, fits the two's shares on
characters that neither was trained on, and evaluates the mixture once, all in one process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import evaluate

from lmlab import errors
from lmlab.commands import train as cli
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
    seed: Annotated[int, "[0, 4294967296)"] = 0


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    for name, arguments in MEMBERS.items():
        cli.main([*arguments, f"seed={options.seed}", f"name={name}"])
    evaluate.main([f"run={','.join(f'outputs/{name}' for name in MEMBERS)}"])


if __name__ == "__main__":
    with errors.one_line_errors():
        main(sys.argv[1:])
