"""How good a trained model is, on its own text or on another:

  python scripts/evaluate.py run=outputs/gpt/2026-11-22_10-00-00
  python scripts/evaluate.py run=outputs/gpt data=file path=my.txt

run         a run's folder, or a folder of runs, of which the newest is taken (outputs)
split       train | val | test: which part of the run's own text (val)
data, path  another text, as for train.py, all of it
checkpoint  last | best (last)
device      auto | cpu | cuda | mps (auto)

Prints the numbers and appends them, one line of JSON, to evaluations.jsonl in the run's folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmlab.arguments import one_line_errors, parse


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    split: Literal["train", "val", "test"] | None = None
    data: Literal["sentence", "tales", "pydoc", "shakespeare", "file"] | None = None
    path: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse(Options, __doc__, argv)
    from lmlab import evaluate, runs  # imports torch: after the arguments hold

    run = runs.load(Path(options.run), options.checkpoint, options.device)
    text = evaluate.text_of(run, options.split, options.data, options.path)
    answers = evaluate.log_probs(run.model, text.tokens, run.config.model.block_size, run.precision)
    numbers = evaluate.metrics(answers, text.tokens, run.tokenizer)
    numbers = {f"{text.split}/{key}": value for key, value in numbers.items()}
    where = f"{run.path} ({run.checkpoint}.ckpt) on {text.name}, {text.split}: {len(text.tokens):,} characters"
    print(where, file=sys.stderr)
    for key, value in numbers.items():
        print(f"{key:<20}{value:.6f}")
    run.append("evaluations.jsonl", checkpoint=run.checkpoint, text=text.name, sha256=text.sha256, **numbers)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
