"""Checks whether activations keep their size when a model gets wider, as rates that carry over need.

  python scripts/coordinates.py model=gpt optimizer=adamw lr=1e-2 out=coordinates.png

widths       values of n_embd, with commas between them (32,64,128,256,512)
base_n_embd  the width at which parametrization=mup is the standard one (null: the smallest of widths)
steps        how many steps of training (10)
seeds        values of seed, whose sizes are averaged (0,1,2)
out          the picture, .png, .svg, .pdf, .eps or .jpg (coordinates.png)

All other arguments are as for train.py: the model, the text, the optimizer and their keys, and
batch_size, align, grad_clip, threads, plugin. The rate stays at lr in all steps.

Each width is trained with parametrization=standard and with mup. The table shows how many times
larger an activation, its mean |x|, is at the largest width than at the smallest, in the step where
that is most; then there is a verdict on each parametrization. The names are those of the model's
parts, with a mean over its blocks; scores are those of attention.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from lmlab.commands.options import parse_script, with_dashes
from lmlab.commands.own_choices import with_own_choices
from lmlab.commands.picture import check_picture, new_figure, save_picture
from lmlab.config.check import Config, suggestion
from lmlab.config.composition import chosen, compose
from lmlab.config.grammar import parse, typed_lines
from lmlab.config.keys import GROUPS, keys_taken
from lmlab.config.overrides import resolved
from lmlab.errors import UserError
from lmlab.markers import PathText
from lmlab.registry import importing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEADY = 1.3  # times that an activation may be larger, and be called as large
OF_RANKS = ("devices", "nodes")  # this check is made by one process
TAKEN = ("batch_size", "align", "grad_clip", "threads", "plugin")  # keys of a run with an effect
SET = {  # and those of a model or a device that the check itself sets
    "n_embd": "widths= names all of them",
    "parametrization": "both are checked",
    "precision": "sizes are those of float32",
}

Table = dict[str, np.ndarray]  # sizes by activation: (widths, steps + 1), means over seeds


@dataclass(frozen=True)
class Options:
    """The options of the command that train.py does not have; --help explains them."""

    widths: str = "32,64,128,256,512"
    base_n_embd: Annotated[int | None, "[1, 100000]"] = None
    steps: Annotated[int, "[1, 1000]"] = 10
    seeds: str = "0,1,2"
    out: PathText = "coordinates.png"


@with_own_choices
def main(argv: list[str]) -> None:
    """Draws the picture, and prints table and verdicts. Raises UserError."""
    own = {field.name for field in fields(Options)}
    asks = {"-h", "--help"} & {*argv}
    mine = [word for word in argv if asks or "=" not in word or word.partition("=")[0] in own]
    options: Options = parse_script(Options, __doc__, mine)
    check_picture(options.out)
    widths = whole_numbers("widths", options.widths)
    if len(widths) < 2:
        raise UserError(f"widths={options.widths}: needs two widths or more")
    seeds = whole_numbers("seeds", options.seeds)
    typed = [word for word in argv if word not in mine]
    for word in typed:
        if word.startswith("-"):
            raise with_dashes(word)
    check_typed(typed, widths[0])
    bases = {"standard": None, "mup": options.base_n_embd or widths[0]}
    configs: dict[str, list[list[Config]]] = {name: [] for name in bases}
    for name, base in bases.items():
        for width in widths:
            configs[name].append([configured(typed, width, seed, base) for seed in seeds])
    tables = {name: measured(name, rows, options.steps) for name, rows in configs.items()}
    save_picture(drawn(tables, widths), options.out)
    print(f"{'':<24}" + "".join(f"{name:>10}" for name in tables))
    growths = {name: growth_of(table) for name, table in tables.items()}
    for activation in growths["mup"]:
        factors = [growths[name][activation][0] for name in tables]
        print(f"{activation:<24}" + "".join(f"{factor:>10.2f}" for factor in factors))
    print(f"(times from n_embd={widths[0]} to {widths[-1]}, at most, in {options.steps} steps)\n")
    for name, growth in growths.items():
        print(verdict(name, growth))
    print(f"\n{options.out}")


def whole_numbers(key: str, text: str) -> list[int]:
    """Returns the whole numbers in a text, with commas between them, in order. Raises UserError."""
    try:
        numbers = sorted(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"{key}={text}: needs whole numbers with commas between them, such as 32,64"
        ) from None
    for number, next_one in pairwise(numbers):
        if number == next_one:
            raise UserError(f"{key}={text}: {number} is there twice")
    return numbers


def check_typed(typed: list[str], width: int) -> None:
    """Raises UserError for what has no effect on the check, or is wrong in itself.

    `width` is one of those that are asked for.
    """
    overrides = [parse(word) for word in typed]
    for word, override in zip(typed, overrides, strict=True):
        if override.is_sweep_override():
            hint = suggestion(override.key_or_group, ["widths", "seeds"])
            raise UserError(
                f"{word}: has several values{hint}; only widths= and seeds= take several"
            )
    _, choices, _ = compose(typed_lines(chosen(overrides)))
    if not {*SET} <= keys_taken(choices):
        raise UserError(
            f"model={choices['model']}: has no parametrization=mup; allowed are gpt, modern and what "
            "builds on them"
        )
    of_check = [word for word in typed if parse(word).key_or_group not in SET]
    resolved([*of_check, f"n_embd={width}"])
    taken = {*TAKEN, *GROUPS, *keys_taken(choices)} - {*OF_RANKS}
    for word in typed:
        key = parse(word).key_or_group
        if key in SET:
            raise UserError(f"{word}: is not for this command, since {SET[key]}")
        if key not in taken:
            raise UserError(
                f"{word}: has no effect on this check; allowed are {', '.join(TAKEN)}, and the keys "
                f"of {', '.join(GROUPS)} but {' and '.join(OF_RANKS)}"
            )


def configured(typed: list[str], width: int, seed: int, base: int | None) -> Config:
    """Returns the checked configuration of one training, with mup if there is a base width.

    Raises UserError.
    """
    cell = [f"n_embd={width}", f"seed={seed}", "precision=32-true"]
    if base is not None:
        cell += ["parametrization=mup", f"base_n_embd={base}"]
    config, _ = resolved([*typed, *cell])
    return config


def measured(name: str, rows: list[list[Config]], steps: int) -> Table:
    """Trains each width with each seed, and returns the sizes. Raises UserError."""
    with importing():  # torch: after the arguments hold
        from lmlab import machine
        from lmlab.training.coordinates import sizes_of

    means: dict[str, list[Any]] = {}
    for configs in rows:
        print(f"parametrization={name} n_embd={configs[0].model.n_embd} …", file=sys.stderr)
        noted = [sizes_of(machine.resolve(config), steps) for config in configs]
        for activation in noted[0][0]:
            sizes = [[step[activation] for step in of_seed] for of_seed in noted]
            means.setdefault(activation, []).append(np.mean(sizes, axis=0))
    return {activation: np.array(sizes) for activation, sizes in means.items()}


def growth_of(table: Table) -> dict[str, tuple[float, int]]:
    """Returns for each activation how many times larger it is at the largest width, and the step.

    It is the step in which that is most. What is zero at the start, by zero_init, is left out there.
    If a size is no finite number at any width, it is called infinitely many times as large.
    """
    growth = {}
    for activation, sizes in table.items():
        smallest, largest = sizes[0], sizes[-1]
        finite = np.isfinite(sizes).all(axis=0)
        factors = np.where(finite, 0.0, np.inf)
        np.divide(largest, smallest, out=factors, where=finite & (smallest > 0))
        growth[activation] = float(factors.max()), int(factors.argmax())
    return growth


def verdict(name: str, growth: dict[str, tuple[float, int]]) -> str:
    """Returns in words whether learning rates can carry over with a parametrization."""
    activation, (factor, step) = max(growth.items(), key=lambda entry: entry[1][0])
    where = f"({activation}, after {step} steps)"
    if factor == np.inf:
        return (
            f"parametrization={name}: the training diverged {where}: it says nothing of other widths; "
            "needs a lower lr"
        )
    if factor < STEADY:
        return (
            f"parametrization={name}: no activation grows with the width, at most {factor:.2f} times "
            f"{where}: learning rates can carry over"
        )
    return (
        f"parametrization={name}: activations grow with the width, up to {factor:.2f} times {where}: "
        "a wider model needs lower learning rates"
    )


def drawn(tables: dict[str, Table], widths: list[int]) -> Figure:
    """Returns a figure of the sizes: a row for each parametrization, a column for each activation."""
    names = list(next(iter(tables.values())))
    figure = new_figure(width=1.5 * len(names), height=4.5)
    grid = figure.subplots(len(tables), len(names), sharex=True, sharey="col", squeeze=False)
    for row, (parametrization, table) in zip(grid, tables.items(), strict=True):
        row[0].set_ylabel(f"{parametrization}: mean |x|")
        for axes, activation in zip(row, names, strict=True):
            steps = table[activation].shape[1]
            for step, sizes in enumerate(table[activation].T):
                shade = 0.15 + 0.85 * step / max(1, steps - 1)  # later steps are darker
                axes.plot(widths, sizes, color="C0", alpha=shade, marker="o", ms=2, lw=1)
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize="x-small", which="both")
    for axes, activation in zip(grid[0], names, strict=True):
        if any((table[activation] > 0).any() for table in tables.values()):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            widened = max(1.0, (15 * low / high) ** 0.5)  # or what hardly changes would seem to
            axes.set_ylim(low / widened, high * widened)
        axes.set_title(activation.replace("blocks.", ""), fontsize="small")
    figure.supxlabel("n_embd (light: at the start; dark: after the last step)", fontsize="small")
    return figure
