"""How good a trained model is, or several as a mixture, on their own text or on another:

  python scripts/evaluate.py run=outputs/gpt/2026-11-22_10-00-00
  python scripts/evaluate.py run=outputs/gpt data=file path=my.txt
  python scripts/evaluate.py run=outputs/gpt,outputs/ngram

run         a run's folder, or a folder of runs, of which the newest is taken (outputs); several
with commas between

            them are a mixture, its weights fitted on the text that holdout_fraction= kept from their training

split       train | holdout | val | test: which part of the run's own text (val) data, path  another
text, as for train.py, all of it checkpoint  last | best (last) device      auto | cpu | cuda | mps
(auto)

Prints the numbers and appends them, one line of JSON, to evaluations.jsonl in the (first) run's
folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmlab.catalogue import GROUPS, CorpusConfig
from lmlab.commands.options import parse_script
from lmlab.config.check import build, check_key
from lmlab.config.keys import keys_of
from lmlab.errors import UserError, one_line_errors
from lmlab.registry import importing
from lmlab.runs.folder import read_metrics, text_sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lmlab.data.text import Splits
    from lmlab.runs.checkpoints import Run


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    split: Literal["train", "holdout", "val", "test"] | None = None
    data: Literal["sentence", "tales", "pydoc", "shakespeare", "file"] | None = None
    path: str | None = None
    checkpoint: Literal["last", "best"] = "last"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    with importing():  # torch: after the arguments hold
        import torch

        from lmlab.inference import mixture
        from lmlab.inference.loss import keep_evaluation, loss_metrics
        from lmlab.runs import checkpoints

    members = [
        checkpoints.load(path, options.checkpoint, options.device) for path in paths(options.run)
    ]
    run = members[0]
    text, split = text_of(run, options)
    tokens = text.parts[split]
    part, prefix = options.path or options.data or split, "text" if options.data else split
    about = {"checkpoint": run.checkpoint, "text": part, "sha256": text.sha256}
    if len(members) > 1:
        mixture.check(members, None if options.data else split)
        holdout = text_of(run, Options(split="holdout"))[0].holdout
        weights = mixture.fit(torch.stack([predictions(member, holdout) for member in members]))
        each = torch.stack([predictions(member, tokens) for member in members])
        answers = mixture.mix(each, weights)
        for member, weight, own in zip(members, weights.tolist(), each, strict=True):
            loss = loss_metrics(own, tokens, run.tokenizer, prefix)[f"{prefix}/loss"]
            print(f"{weight:.3f} of a model of {prefix}/loss {loss:.6f}: {member.path}")
            about[f"weight of {member.path}"] = f"{weight:.6f}"
    else:
        answers = predictions(run, tokens)
    numbers = loss_metrics(answers, tokens, run.tokenizer, prefix)
    for key, value in numbers.items():
        print(f"{key:<20}{value:.6f}")
    of = ", ".join(str(member.path) for member in members)
    print(f"({of}, {run.checkpoint}.ckpt, {part}: {len(tokens):,} characters)", file=sys.stderr)
    keep_evaluation(run.path, about, numbers)


def paths(text: str) -> list[Path]:
    """The folders that are named with commas between them; a sweep's cells have commas in their own
    names.
    """
    found, begun = [], ""
    for piece in text.split(","):
        begun = f"{begun},{piece}" if begun else piece
        if not begun:
            break
        if Path(begun).is_dir():
            found, begun = [*found, Path(begun)], ""
    else:
        if found and not begun:
            return found
    return [Path(text)]  # which will be refused by name if there is none


def predictions(run: Run, tokens: np.ndarray) -> Tensor:
    from lmlab.inference.loss import log_probs

    return log_probs(run.model, tokens, run.config.model.block_size, run.config.device.precision)


def text_of(run: Run, options: Options) -> tuple[Splits, str]:
    """The run's own text and the part of it to read, or another text, of which all is read."""
    from lmlab.data.text import Splits

    if options.data and options.split:
        raise UserError(
            f"split={options.split}: goes with the run's own text; data={options.data} is read whole"
        )
    if options.data:
        text = Splits(options.data, corpus_config(run, options), run.tokenizer)
        split = "train"
    elif options.path:
        raise UserError(f"path={options.path}: goes with data=file")
    else:
        expected = text_sha256(read_metrics(run.path), run.path)
        text, split = Splits.of_run(run.config, run.tokenizer, expected), options.split or "val"
    if len(text.parts[split]) < 2:
        there = ", ".join(name for name, tokens in text.parts.items() if len(tokens) > 1)
        raise UserError(
            f"split={split}: there are no two characters of it; allowed are {there or 'none'}"
        )
    return text, split


def corpus_config(run: Run, options: Options) -> CorpusConfig:
    """Returns the keys of another text, all of which is one part. Raises UserError."""
    config_class = GROUPS["data"][options.data]
    values: dict[str, Any] = dict.fromkeys(keys_of(CorpusConfig), 0.0)
    if options.path:
        check_key("path", options.path, run.config.choices | {"data": options.data})
        values["path"] = options.path
    for key in keys_of(config_class):
        if key not in values:
            raise UserError(f"{key}: data={options.data} needs {key}=…")
    return build(config_class, values)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
