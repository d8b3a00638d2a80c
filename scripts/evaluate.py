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
from typing import TYPE_CHECKING, Literal

from lmlab import runs
from lmlab.cli import importing, one_line_errors, parse_script
from lmlab.config import UserError, from_flat

if TYPE_CHECKING:
    from lmlab.checkpoints import Run
    from lmlab.data import CharDataModule


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    split: Literal["train", "val", "test"] | None = None
    data: Literal["sentence", "tales", "pydoc", "shakespeare", "file"] | None = None
    path: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    with importing():  # torch: after the arguments hold
        from lmlab import checkpoints, evaluate

    run = checkpoints.load(Path(options.run), options.checkpoint, options.device)
    text, split = text_of(run, options)
    tokens = text.splits[split]
    answers = evaluate.log_probs(run.model, tokens, run.config.model.block_size, run.config.device.precision)
    part = options.path or options.data or split
    prefix = "text" if options.data else split
    numbers = evaluate.metrics(answers, tokens, run.tokenizer, prefix)
    for key, value in numbers.items():
        print(f"{key:<20}{value:.6f}")
    print(f"({run.path}, {run.checkpoint}.ckpt, {part}: {len(tokens):,} characters)", file=sys.stderr)
    about = {"checkpoint": run.checkpoint, "text": part, "sha256": text.sha256}
    evaluate.keep(run.path, about, numbers)


def text_of(run: Run, options: Options) -> tuple[CharDataModule, str]:
    """The run's own text and the part of it to read, or another text, of which all is read."""
    from lmlab.data import CharDataModule

    if options.data and options.split:
        raise UserError(f"split={options.split}: goes with the run's own text; data={options.data} is read whole")
    if options.data:
        other = {"val_fraction": 0.0, "test_fraction": 0.0, "init_from": None, "unknown": "error"}
        other |= {"path": options.path or "???"} if options.data == "file" or options.path else {}
        kept = {key: value for key, value in run.config.flat().items()
                if key not in (*run.config.choices, *vars(run.config.data))}
        config = from_flat(kept | other, run.config.choices | {"data": options.data})
        text, split = CharDataModule(config, run.tokenizer), "train"
    elif options.path:
        raise UserError(f"path={options.path}: goes with data=file")
    else:
        expected = runs.text_sha256(runs.read_metrics(run.path), run.path)
        text, split = CharDataModule(run.config, run.tokenizer, expected), options.split or "val"
    if len(text.splits[split]) < 2:
        there = ", ".join(name for name, tokens in text.splits.items() if len(tokens) > 1)
        raise UserError(f"split={split}: there are no two characters of it; allowed are {there or 'none'}")
    return text, split


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
