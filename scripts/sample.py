"""Text from a trained model, written as it is drawn:

  python scripts/sample.py run=outputs/gpt/2026-11-22_10-00-00 prompt="The cat"

run          a run's folder, or a folder of runs, of which the newest is taken (outputs)
prompt       how the text begins ("": at a line's start)
max_tokens   how many tokens to draw (500)
samples      how many texts (1)
temperature  below 1 safer, above 1 wilder; 0: always the likeliest (0.8)
top_k        draw from the k likeliest only (null: all)
top_p        draw from the likeliest that together have probability p (null: all)
stop         end before this string (null: never)
seed         the same seed draws the same text (null: a new one, which is told)
checkpoint   best | last (best)
device       auto | cpu | cuda | mps (auto)

The text goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lmlab.catalogue import Count, PositiveOrZero
from lmlab.commands.options import parse_script
from lmlab.errors import one_line_errors, printable
from lmlab.registry import importing


@dataclass(frozen=True)
class Options:
    run: str = "outputs"
    prompt: str = ""
    max_tokens: Count = 500
    samples: Count = 1
    temperature: PositiveOrZero = 0.8
    top_k: Count | None = None
    top_p: Annotated[float, "(0, 1]"] | None = None
    stop: str | None = None
    seed: Annotated[int, "[0, 4294967296)"] | None = None
    checkpoint: Literal["best", "last"] = "best"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    with importing():  # torch: after the arguments hold
        from lmlab.inference import generate
        from lmlab.runs import checkpoints

    run = checkpoints.load(Path(options.run), options.checkpoint, options.device)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    texts, begun = [options.prompt] * options.samples, False
    shown = (
        printable if sys.stdout.isatty() else str
    )  # a file gets what was drawn, a terminal nothing that steers it
    for pieces in generate.stream(
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
    ):
        print(shown(pieces[0] if begun else options.prompt + pieces[0]), end="", flush=True)
        begun = True
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    print()
    for n, text in enumerate(texts[1:], start=2):  # only one text can be written as it is drawn
        print(f"--- {n} of {options.samples}", file=sys.stderr)
        print(shown(text))
    print(f"({run.path}, {run.checkpoint}.ckpt, seed={seed})", file=sys.stderr)


if __name__ == "__main__":
    try:
        with one_line_errors():
            main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the text has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
