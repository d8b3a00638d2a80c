"""Measures how fast the lab is, compared with what people would use instead.

  python scripts/benchmark.py sweep
  python scripts/benchmark.py train sample nanogpt=../nanoGPT

Suites (all of them if none is named):

  startup  the time from the command to the first training step of the default run (its text is in the cache),
           against the time to import torch and pytorch_lightning; and the time until a misspelt key and --help
           are answered
  data     MB of text turned into tokens a second on one core, against nanoGPT's prepare.py; peak memory
  train    a step of lmlab, with bar, points and checkpoints, against a plain PyTorch loop with the same model,
           optimizer and precision; arithmetic as a share of the machine's measured peak. With nanogpt=: whole
           runs of its recipe, in turn with ours (on a GPU the first 1,000 steps of its larger recipe, both
           compiled), and the time of shakespeare_fast to its loss against the time of that recipe's steps
  sample   1,000 characters one by one against the same model without a cache. With nanogpt=: against its generate(),
           and ten texts of 500 against those of its sample.py
  context  a step of 4,096 characters of a GPT and of an LSTM, each of about 200 thousand parameters, against the
           length of the context
  ranks    the tokens a second of two processes that share each batch against one with two threads, for the default
           GPT and a larger one, and the share of time that they spend on each other; on a CPU of two cores at least
  sweep    twelve bigram cells of 300 steps: `python train.py -m …` against a shell loop of twelve `python train.py`,
           and against the same sweep under Hydra's basic launcher; a cell's cost beside its training
  scale    how time and memory grow: with the text (1 to 1,000 MB), a sweep's cells (10 to 10,000), the vocabulary
           (50 to 50,000), and the context (64 to 1,024)

nanogpt  a clone of github.com/karpathy/nanoGPT whose data/shakespeare_char/prepare.py was run
         (null: left out)
repeats  how often each is run, in turn; the figures are medians, for ratios medians over pairs (3)
out      file for the figures as JSON (null: none)

Compare only ratios from one call: machines are noisy, and other work on the cores makes all figures
wrong.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab import files
    from lmlab.commands.door import run_command
    from lmlab.commands.options import check_file, parse_script
    from lmlab.errors import UserError
    from lmlab.markers import Count, PathText
    from lmlab.terminal import tell

SUITES = ("startup", "data", "train", "sample", "context", "ranks", "sweep", "scale")


@dataclass(frozen=True)
class Options:
    """The options after the suites; --help explains them."""

    nanogpt: PathText | None = None
    repeats: Count = 3
    out: PathText | None = None


def main(argv: list[str]) -> None:
    """Measures the named suites and prints their figures. Raises UserError."""
    wanted = [argument for argument in argv if "=" not in argument and argument[:1] != "-"]
    others = [argument for argument in argv if argument not in wanted]
    options = parse_script(Options, __doc__, others)
    if options.out:
        check_file(options.out)
    for suite in wanted:
        if suite not in (*SUITES, "all"):
            allowed = ", ".join(SUITES)
            raise UserError(f"{suite}: unknown suite; allowed are {allowed}, all")
        if wanted.count(suite) > 1:
            raise UserError(f"{suite}: is given {wanted.count(suite)} times; once is enough")
    clone = clone_of_nanogpt(options.nanogpt, wanted)
    suites = wanted if wanted and "all" not in wanted else SUITES
    given = {"repeats": options.repeats, "nanogpt": clone}
    for suite in suites:  # before anything is measured, which takes minutes
        call(suite, "check", given)
    figures = {}
    for suite in suites:
        tell(f"… {suite}: {options.repeats} times")
        figures[suite] = call(suite, "measure", given)
        print(f"{suite}, medians of {options.repeats}")
        for name, figure in figures[suite].items():
            print(f"  {name:<56}{figure:12,.3f}", flush=True)
    if options.out:
        files.write(Path(options.out), json.dumps(figures, indent=2).encode())


def clone_of_nanogpt(path: str | None, wanted: list[str]) -> Path | None:
    """Returns the folder of nanoGPT, if it was named. Raises UserError if it cannot be used."""
    if not path:
        return None
    if wanted and not {"train", "sample", "all"} & {*wanted}:
        raise UserError(f"nanogpt={path}: needs the suite train or sample")
    model = Path(path) / "model.py"
    if not model.exists():
        raise UserError(f"nanogpt={path}: is not a clone of nanoGPT: it has no model.py")
    if "class GPT(" not in model.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"nanogpt={path}: is not a clone of nanoGPT: its model.py has no class GPT")
    return Path(path)


def call(suite: str, name: str, options: dict[str, Any]) -> Any:
    """Calls a function of a suite with the options that it takes, if the suite has it.

    Raises UserError if a command that it measures fails; that has said why.
    """
    function = getattr(importlib.import_module(f"suites.{suite}"), name, None)
    if function is None:
        return None
    try:
        return function(**{key: options[key] for key in inspect.signature(function).parameters})
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{suite}: a command has failed with exit status {error.returncode}: {shlex.join(error.cmd)}"
        ) from None


if __name__ == "__main__":
    run_command(main)
