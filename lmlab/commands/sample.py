"""Draws text from a trained model and writes it at the same time.

  python scripts/sample.py run=outputs/gpt/2026-11-22_10-00-00 prompt="The cat"

run          the folder of a run, or a folder of runs, whose newest run is used (outputs)
prompt       how the text begins ("": at the start of a line)
max_tokens   how many tokens to draw (500)
samples      how many texts (1)
temperature  below 1 safer, above 1 wilder; 0: always the most likely token (0.8)
top_k        draw only from the k most likely tokens (null: all)
top_p        draw only from the most likely tokens that together have probability p (null: all)
stop         the text ends before this string (null: no such string)
seed         the same seed draws the same text (null: a new seed, which is printed)
plugin       the files or modules with which the run was made, as for train.py (null)
checkpoint   best | last (best)
device       auto | cpu | cuda | mps (auto)

The text goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lmlab.commands.door import Device
from lmlab.commands.options import parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.errors import UserError, printable
from lmlab.markers import Count, LinesText, PathText, PositiveOrZero
from lmlab.registry import importing

if TYPE_CHECKING:
    from lmlab.runs.checkpoints import Run


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    run: PathText = "outputs"
    prompt: LinesText = ""
    max_tokens: Count = 500
    samples: Annotated[int, "[1, 10000]"] = 1
    temperature: PositiveOrZero = 0.8
    top_k: Count | None = None
    top_p: Annotated[float, "(0, 1]"] | None = None
    stop: LinesText | None = None
    seed: Annotated[int, "[0, 4294967296)"] | None = None
    plugin: PathText | None = None
    checkpoint: Literal["best", "last"] | None = None
    device: Device = "auto"


@with_own_choices
def main(argv: list[str]) -> None:
    """Draws the samples and writes them. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_greedy(options)
    with importing():  # torch: after the arguments hold
        from lmlab.runs import checkpoints

    run = checkpoints.load(Path(options.run), options.checkpoint, options.device)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    stream = drawn(run, options, seed)
    # A file gets what was drawn; a terminal gets nothing that steers it.
    readable = printable if sys.stdout.isatty() else str
    is_random = options.temperature > 0
    if is_random and options.seed is None:
        stream = announcing(stream, seed)
    texts = write_first(stream, [options.prompt] * options.samples, readable)
    for n, text in enumerate(texts[1:], start=2):  # only one text can be written as it is drawn
        print(f"--- {n} of {options.samples}", file=sys.stderr)
        print(readable(text))
    shown = f"seed={seed}" if is_random else "temperature=0"
    print(f"({run.path}, {run.file.name}, {shown})", file=sys.stderr)


def drawn(run: Run, options: Options, seed: int) -> Iterator[list[str]]:
    """Yields the new text of each sample, piece by piece. Raises UserError."""
    from lmlab.inference import generate

    return generate.stream(
        run.model,
        run.tokenizer,
        options.prompt,
        options.max_tokens,
        run.config.model.block_size,
        samples=options.samples,
        seed=seed,
        stop=options.stop,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        precision=run.config.device.precision,
    )


def check_greedy(options: Options) -> None:
    """Raises UserError for options that have no effect at temperature 0, and warns of a seed."""
    for key in ("top_k", "top_p"):
        value = getattr(options, key)
        if options.temperature == 0 and value is not None:
            raise UserError(
                f"{key}={value}: has no effect with temperature=0, which takes the likeliest token"
            )
    if options.temperature == 0 and options.seed is not None:
        print(f"warning: seed={options.seed}: has no effect with temperature=0", file=sys.stderr)
    if options.temperature == 0 and options.samples > 1:
        raise UserError(
            f"samples={options.samples}: with temperature=0 all of them would be the same text"
        )


def announcing(stream: Iterable[list[str]], seed: int) -> Iterator[list[str]]:
    """Yields the pieces of a stream. It writes the seed with the first: the rest may be stopped."""
    for n, pieces in enumerate(stream):
        if n == 0:
            print(f"(seed={seed})", file=sys.stderr)
        yield pieces


def write_first(
    stream: Iterable[list[str]], texts: list[str], readable: Callable[[str], str]
) -> list[str]:
    """Writes the first text while it grows. Returns all texts, each with its prompt."""
    written = 0
    for pieces in stream:
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        print(readable(texts[0][written:]), end="", flush=True)
        written = len(texts[0])
    print()
    return texts
