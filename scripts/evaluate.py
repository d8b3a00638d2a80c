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

from lmlab.cli import one_line_errors, parse_script


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    split: Literal["train", "val", "test"] = "val"
    data: Literal["sentence", "tales", "pydoc", "shakespeare", "file"] | None = None
    path: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    from lmlab import evaluate, runs  # imports torch: after the arguments hold

    run = runs.load(Path(options.run), options.checkpoint, options.device)
    tokens, sha256 = evaluate.text_of(run, options.split, options.data, options.path)
    answers = evaluate.log_probs(run.model, tokens, run.config.model.block_size, run.config.device.precision)
    numbers = evaluate.metrics(answers, tokens, run.tokenizer)
    part = options.path or options.data or options.split
    numbers = {f"{'text' if options.data or options.path else part}/{key}": value for key, value in numbers.items()}
    print(f"{run.path} ({run.checkpoint}.ckpt) on {part}: {len(tokens):,} characters", file=sys.stderr)
    for key, value in numbers.items():
        print(f"{key:<20}{value:.6f}")
    with open(run.path / "evaluations.jsonl", "a") as file:
        about = {"checkpoint": run.checkpoint, "text": part, "sha256": sha256}
        file.write(runs.to_json(about | numbers) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
