"""Measures how good a trained model, or a mixture of several, is on its own text or another.

  python scripts/evaluate.py run=outputs/gpt/2026-11-22_10-00-00
  python scripts/evaluate.py run=outputs/gpt data=file path=my.txt
  python scripts/evaluate.py run=outputs/gpt,outputs/ngram
  python scripts/evaluate.py run=outputs/gpt calibration=true

run         the folder of a run, or a folder of runs, whose newest run is used (outputs); several
            with commas between them are a mixture, whose weights are fitted on the holdout part
split       train | holdout | val | test: which part of the run's own text (val)
data, path  another text, as for train.py; all of it is read. path alone: where the run's own text
            is now, if it was moved
plugin      the files or modules with which the run was made, as for train.py (null)
checkpoint  last | best (last)
device      auto | cpu | cuda | mps (auto)

by_position, calibration, novelty, minimal_pairs, noise_scale
            true measures that, too, of one run; docs/instruments.md says what each is (false)

Prints the numbers, and appends them as a line of JSON to evaluations.jsonl in the folder of the
(first) run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lmlab import plugins
from lmlab.catalogue import INSTRUMENTS, CorpusConfig
from lmlab.commands.door import Device
from lmlab.commands.options import named_folders, parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.config.check import build, check_key, check_positions, check_stories
from lmlab.config.composition import compose
from lmlab.config.keys import (
    bases_of,
    choices_of,
    config_class,
    idle_keys,
    keys_of,
    switched_on,
)
from lmlab.errors import UserError
from lmlab.markers import OneOf, PathText
from lmlab.registry import importing, load
from lmlab.runs.code import code_of, is_other_code, own_code, plugins_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lmlab.data.documents import Documents
    from lmlab.data.splits import Splits
    from lmlab.inference.evaluations import Value
    from lmlab.runs.checkpoints import Run


Corpus = Annotated[str, OneOf(lambda: choices_of("data"))]  # presets too


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    run: PathText = "outputs"
    split: Literal["train", "holdout", "val", "test"] | None = None
    data: Corpus | None = None
    path: PathText | None = None
    plugin: PathText | None = None
    checkpoint: Literal["best", "last"] | None = None
    device: Device = "auto"
    by_position: bool = False
    calibration: bool = False
    novelty: bool = False
    minimal_pairs: bool = False
    noise_scale: bool = False


@dataclass(frozen=True)
class Target:
    """The tokens to evaluate, from a text or a part of it, and the name of the text."""

    tokens: np.ndarray
    sha256: str
    title: str
    prefix: str
    """The first half of the numbers' names, such as val of val/loss."""

    split: str | None
    """The part of the run's own text; None for another text."""

    documents: Documents | None
    """Those of `tokens`, if the run divides its text into documents."""


@with_own_choices
def main(argv: list[str]) -> None:
    """Evaluates one run or a mixture, prints the numbers and saves them. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    members, target, numbers = measured(options)
    from lmlab.data.documents import extent

    for key, value in numbers.items():
        print(f"{key + ' ':<22}{value:.6f}")
    first = members[0]
    named = ", ".join(str(member.path) for member in members)
    length = extent(target.tokens, first.tokenizer.unit, target.documents)
    weights = all_named([member.file.name for member in members])
    print(f"({named}, {weights}, {target.title}: {length})", file=sys.stderr)


def all_named(names: list[str]) -> str:
    """Returns the one name that all have, or each one's, in their order."""
    return names[0] if len({*names}) == 1 else ", ".join(names)


def measured(options: Options) -> tuple[list[Run], Target, dict[str, float]]:
    """Returns the runs, what they were evaluated on, and the numbers, which it also saves.

    If they cannot be saved, it says so. Prints the weights of a mixture. Raises UserError.
    """
    with importing():  # torch: after the arguments hold
        from lmlab.inference.evaluations import numbers_of, texts_of
        from lmlab.inference.loss import keep_evaluation, loss_metrics
        from lmlab.runs import checkpoints

    members = [
        checkpoints.load(path, options.checkpoint, options.device, usual="last")
        for path in run_folders(options.run)
    ]
    first = members[0]
    for member in members:
        tell_of_other_code(member)
    asked = switched_on(options)
    check_instruments(asked, members, options)
    target = (
        part_of_own_text(members, options) if options.data is None else other_text(first, options)
    )
    about: dict[str, str | int] = {
        "checkpoint": all_named([member.file.stem for member in members]),
        "step": first.step,
        "text": target.title,
        "sha256": target.sha256,
    }
    if len(members) == 1:
        log_probs = predictions(first, target.tokens, target.documents)
    else:
        log_probs, weights = mixed(members, target, options)
        for member, weight in zip(members, weights, strict=True):
            about[f"weight of {member.path}"] = f"{weight:.6f}"
    numbers = loss_metrics(
        log_probs, target.tokens, first.tokenizer, target.prefix, target.documents
    )
    if len(members) == 1:
        numbers |= answered(first, target)
    if asked:
        values = examined(first, target, asked, options)
        numbers |= numbers_of(values)
        about |= texts_of(values)
    if not first.is_foreign:
        try:
            keep_evaluation(first.path, about, numbers)
        except UserError as error:  # a read-only folder is no reason to lose what was measured
            print(f"warning: {error}", file=sys.stderr)
    return members, target, numbers


def tell_of_other_code(run: Run) -> None:
    """Prints a line if a run was trained by other code of the lab than evaluates it."""
    from lmlab.runs.checkpoints import readable_metrics

    metrics = {} if run.is_foreign else readable_metrics(run.path)
    if not metrics:
        return
    if plugins_of(metrics) != plugins.sha256():  # which was said when it was loaded
        return
    if is_other_code(own_code(), metrics):
        print(
            f"warning: {run.path}: was trained by other code of the lab or its plug-ins "
            f"({code_of(metrics)}, now {own_code()}), which may compute another loss",
            file=sys.stderr,
        )


def answered(run: Run, target: Target) -> dict[str, float]:
    """Returns the shares of answers that are right, if the text says what they are.

    If it does not, and the run was trained on answers alone, it says that all is scored.
    """
    from lmlab.inference.answers import answer_numbers

    config = run.config
    documents = target.documents
    if documents is not None and documents.scored is not None:
        numbers = answer_numbers(
            run.model, target.tokens, config.model.block_size, config.device.precision, documents
        )
        return {
            name.replace("val/", f"{target.prefix}/"): value
            for name, value in numbers.items()
            if name.startswith("val/")
        }
    if config.data.scores_itself():
        print(
            f"warning: {target.title}: all its {run.tokenizer.unit}s are scored, but the run was "
            "trained on answers alone",
            file=sys.stderr,
        )
    return {}


def check_instruments(asked: tuple[str, ...], members: list[Run], options: Options) -> None:
    """Raises UserError if an instrument cannot examine what is evaluated."""
    first = members[0]
    for name in asked:
        if len(members) > 1:
            raise UserError(f"{name}=true: examines one model; run= names {len(members)}")
        if name in idle_keys(first.config.built_on()):
            raise UserError(
                f"{name}=true: model={first.config.choices['model']} is trained by counting and "
                "has no gradient"
            )
        if INSTRUMENTS[name].reads_training and first.is_foreign:
            raise UserError(f"{name}=true: needs the training text, which {first.path} has not")
    if options.by_position:
        check_positions(first.config.model.block_size)
    if options.minimal_pairs:
        choice = options.data or first.config.choices["data"]
        base = bases_of("data")[choice] if options.data else first.config.base("data")
        check_stories(base, choice)


def examined(
    run: Run, target: Target, asked: tuple[str, ...], options: Options
) -> dict[str, Value]:
    """Returns the values of the instruments `asked` for. Raises UserError."""
    import numpy as np

    from lmlab.inference.loss import own_text, with_text_at
    from lmlab.inference.specimen import Specimen

    train = np.zeros(0, np.uint8)
    train_documents = None
    if any(INSTRUMENTS[name].reads_training for name in asked):
        path = options.path if options.data is None else None
        text = own_text(with_text_at(run, path))
        train, train_documents = text.train, text.documents.get("train")
    config = run.config
    specimen = Specimen(
        model=run.model,
        tokens=target.tokens,
        documents=target.documents,
        tokenizer=run.tokenizer,
        block_size=config.model.block_size,
        precision=config.device.precision,
        align=config.run.align,
        seed=config.run.seed,
        train=train,
        train_documents=train_documents,
        part=target.prefix,
    )
    values: dict[str, Value] = {}
    for name in asked:
        values |= load(INSTRUMENTS[name].builder)(specimen)
    return values


def run_folders(text: str) -> list[Path]:
    """Returns the folders in `text`, with commas between them. If it names none, `text` is one path.

    Loading that will say that no run is there. Raises UserError if only the last ones are none.
    """
    folders, rest = named_folders(text, ",")
    if rest and folders:
        raise UserError(f"run={text}: there is no folder {rest}")
    if rest or "" in folders:
        return [Path(text)]
    return [Path(folder) for folder in folders]


def part_of_own_text(members: list[Run], options: Options) -> Target:
    """Returns a part of the first run's own text. Raises UserError."""
    split = options.split or "val"
    from lmlab.inference.loss import own_text, with_text_at
    from lmlab.inference.mixture import UNREAD

    text = own_text(with_text_at(members[0], options.path))
    tokens = part_of(text, split, UNREAD if len(members) > 1 else tuple(text.parts))
    return Target(tokens, text.sha256, split, split, split, text.documents.get(split))


def other_text(run: Run, options: Options) -> Target:
    """Returns the whole of a text that the run was not trained on. Raises UserError."""
    from lmlab.data.splits import Splits

    choice = options.data or ""
    if options.split:
        raise UserError(
            f"split={options.split}: needs the run's own text; of data={choice} all is read"
        )
    config = corpus_config(run, choice, options.path)
    text = Splits(bases_of("data")[choice], config, run.tokenizer, run=run.config.run)
    title = options.path or choice
    if len(text.train) < 2:
        raise UserError(f"data={choice}: {title} has fewer than two {text.tokenizer.unit}s")
    tokens = text.train
    if text.unmarked:
        print(
            f"warning: {title}: of {text.unmarked:,} documents without score_after nothing is scored",
            file=sys.stderr,
        )
    return Target(tokens, text.sha256, title, "text", None, text.documents.get("train"))


def corpus_config(run: Run, choice: str, path: str | None) -> CorpusConfig:
    """Returns the keys of another text, with all of it in the part `train`.

    A preset, conf/data/mine.yaml, may name its path. Of the run's own kind of text it takes the
    run's keys, such as n_digits, but not the path. Raises UserError.
    """
    composed, _, _ = compose((f"data={choice}",))
    wanted = dict(composed)
    if choice == run.config.choices["data"]:
        wanted |= {key: value for key, value in vars(run.config.data).items() if key != "path"}
    if path:
        check_key("path", path, run.config.built_on() | {"data": choice})
        wanted["path"] = path
    wanted |= dict.fromkeys(keys_of(CorpusConfig), 0.0)
    for key in keys_of(config_class("data", choice)):
        if wanted[key] == "???":
            raise UserError(f"{key}: data={choice} needs {key}=…")
    return build(config_class("data", choice), wanted)


def part_of(text: Splits, split: str, fitting: Sequence[str]) -> np.ndarray:
    """Returns the token ids of a part, (N,). Raises UserError if they are fewer than two.

    The error names those of the `fitting` parts that have more.
    """
    if len(text.parts[split]) < 2:
        allowed = ", ".join(name for name in fitting if len(text.parts[name]) > 1)
        raise UserError(
            f"split={split}: has fewer than two {text.tokenizer.unit}s; allowed are {allowed or 'none'}"
        )
    return text.parts[split]


def predictions(run: Run, tokens: np.ndarray, documents: Documents | None) -> Tensor:
    """Returns the log-probabilities of tokens 2 to N, (N - 1,)."""
    from lmlab.inference.loss import aligned, log_probs

    config = run.config
    within = aligned(documents, config.run.align)
    return log_probs(run.model, tokens, config.model.block_size, config.device.precision, within)


def mixed(members: list[Run], target: Target, options: Options) -> tuple[Tensor, list[float]]:
    """Returns the log-probabilities of a mixture (N - 1,), and its weights.

    Prints each model's weight and loss. Raises UserError if the models cannot be mixed.
    """
    import torch

    from lmlab.data.documents import counting
    from lmlab.inference import mixture
    from lmlab.inference.loss import loss_metrics, own_text, with_text_at

    mixture.check(members, target.split)
    path = options.path if options.data is None else None
    text = own_text(with_text_at(members[0], path))
    holdout = part_of(text, "holdout", ())
    documents = text.documents.get("holdout")
    on_holdout = torch.stack([predictions(member, holdout, documents) for member in members])
    counts = counting(documents)
    if counts is not None:
        on_holdout = on_holdout[:, torch.tensor(counts)]
    weights = mixture.fit(on_holdout)
    answers = torch.stack(
        [predictions(member, target.tokens, target.documents) for member in members]
    )  # (M, N - 1)
    for member, weight, answer in zip(members, weights.tolist(), answers, strict=True):
        numbers = loss_metrics(
            answer, target.tokens, member.tokenizer, target.prefix, target.documents
        )
        name = f"{target.prefix}/loss"
        print(f"{weight:.3f} of a model of {name} {numbers[name]:.6f}: {member.path}")
    return mixture.mix(answers, weights), weights.tolist()
