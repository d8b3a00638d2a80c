"""Draws the loss curves of some runs in one picture, or bits per byte if their tokenizers differ.

  python scripts/plot.py runs="outputs/bigram outputs/gpt" out=curves.png

runs  folders of runs, with spaces between them; it draws the newest run of each, and of the folder
      of a sweep every cell (outputs)
out   the picture, .png, .svg, .pdf, .eps or .jpg (curves.png)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.commands.options import named_folders, parse_script
from lmlab.commands.picture import check_picture, new_figure, save_picture
from lmlab.config.keys import TEXT_KEYS, token_keys
from lmlab.errors import UserError, printable
from lmlab.markers import PathText
from lmlab.numbers import EXCERPT_TOKENS
from lmlab.registry import importing, variables_kept
from lmlab.runs import hugging_face
from lmlab.runs.folder import newest, read_history, read_metrics
from lmlab.sweeps.labels import common_parts, typed_values, without, words_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 50  # characters of a label
BESIDE = 10  # runs whose names stand within the axes, and that have a color each of matplotlib's
NAMED = 40  # runs with a name, at most; more would leave no room for the curves
LISTED = 3  # runs without a curve that are named
LINE = 0.2  # inches of a name
ROOM = 1.05  # of the highest loss, up to the upper edge

STYLES: dict[str, dict[str, Any]] = {  # the number of validation stands last
    "train/loss": {"alpha": 0.35, "lw": 1},
    "val/loss": {"marker": "o", "ms": 4},
}
WORDS = {"train/loss": "faint", "val/loss": "points", "val/bits_per_byte": "points"}
BITS: dict[str, dict[str, Any]] = {"val/bits_per_byte": STYLES["val/loss"]}  # of different tokens


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    runs: PathText = "outputs"
    out: PathText = "curves.png"


@variables_kept()
def main(argv: list[str]) -> None:
    """Writes the picture and prints its path. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    runs = [run for folder in folders_of(options.runs) for run in runs_of(folder)]
    distinct = {run.resolve(): run for run in reversed(runs)}  # of two names for one the first
    save_picture(curves([*reversed(distinct.values())]), options.out)
    print(options.out)


def curves(runs: list[Path]) -> Figure:
    """Returns a figure with the loss curves of runs. Raises UserError if there is none."""
    if not runs:
        raise UserError("no run has a history, so there is nothing to draw")
    n_rows = math.ceil(min(len(runs), NAMED) / 2) if len(runs) > BESIDE else 0
    figure = new_figure(height=4.5 + LINE * n_rows)
    axes = figure.subplots()
    noted = [read_metrics(run) for run in runs]
    labels = [label_of(run, metrics) for run, metrics in zip(runs, noted, strict=True)]
    common = common_parts(labels)
    tokenizers = {tokenizer_of(metrics) for metrics in noted}
    styles = STYLES if len(tokenizers) == 1 else BITS
    unit = "character" if tokenizers == {tokenizer_of({})} else "token"
    drawn: dict[str, list[int]] = {key: [] for key in styles}  # which runs have such a curve
    for n, (run, label) in enumerate(zip(runs, labels, strict=True)):
        shown = label if len(runs) == 1 else without(label, common)
        for key in draw(axes, run, shortened(shown), styles, color_of(n, len(runs))):
            drawn[key].append(n)
    *_, validated = drawn.values()
    differing = different([noted[n] for n in validated], TEXT_KEYS) or different(
        noted, TEXT_KEYS[:1]
    )
    for line in without_curve(runs, drawn):
        print(f"warning: {line}", file=sys.stderr)
    if differing:
        print(
            "warning: not all are of the same text, so their losses cannot be compared: the runs differ "
            f"in {', '.join(differing)}",
            file=sys.stderr,
        )
    if not axes.lines:
        raise UserError(f"{runs[0]}/history.jsonl: has no loss, so there is nothing to draw")
    ylabel = "bits per byte" if styles is BITS else f"loss, nats per {unit}"
    top = ROOM * axes.dataLim.ymax  # matplotlib's own is close to a curve that hardly falls
    axes.set(xlabel="step", ylabel=ylabel, ylim=(0, top or None))
    axes.grid(alpha=0.3)
    if len(runs) <= BESIDE:
        axes.legend(frameon=False, fontsize="small")
    else:
        name_below(axes, ", ".join(f"{key}: {WORDS[key]}" for key in styles))
    return figure


def without_curve(runs: Sequence[Path], drawn: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yields for each number which runs have no curve of it, if others have one."""
    for key, numbers in drawn.items():
        others = [str(run) for n, run in enumerate(runs) if n not in numbers]
        if numbers and others:
            more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
            yield f"there is no curve of {key} for {', '.join(others[:LISTED])}{more}"


def different(noted: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Returns those of `keys` of which runs with these metrics have several values."""
    return [
        key
        for key in keys
        if len({repr(metrics.get(f"config/{key}", metrics.get(key))) for metrics in noted}) > 1
    ]


def label_of(run: Path, metrics: Mapping[str, Any]) -> str:
    """Returns what a run is called: the label of a cell, or folder, time and what was typed."""
    typed = typed_values(words_of(str(metrics.get("command", ""))))
    values = (f"{key}={value}" for key, value in typed.items())
    return printable(
        str(metrics.get("label") or ",".join([f"{run.parent.name}/{run.name}", *values]))
    )


def name_below(axes: Axes, title: str) -> None:
    """Adds a legend below the axes with a line for each run, and says how many runs it leaves out."""
    by_run = {line.get_color(): line for line in axes.lines}  # of each its last line
    named = [*by_run.values()][:NAMED]
    axes.figure.legend(
        named,
        [str(line.get_label()).rpartition("  ")[0] for line in named],
        title=title,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
    )
    if len(by_run) > NAMED:
        left_out = len(by_run) - NAMED
        print(f"warning: {left_out} of the runs are drawn without a name", file=sys.stderr)


def color_of(n: int, total: int) -> Any:
    """Returns the color of run n: for many runs from blue to red in their order, each another one."""
    if total <= BESIDE:
        return f"C{n}"
    with importing():
        from matplotlib import colormaps
    return colormaps["turbo"](n / (total - 1))


def folders_of(typed: str) -> list[Path]:
    """Returns the folders that `typed` names, with spaces between them or in a name."""
    folders, rest = named_folders(typed, " ")
    return [Path(folder) for folder in [*folders, *rest.split()] if folder]


def runs_of(folder: Path) -> list[Path]:
    """Returns the runs to draw of a folder: all cells of a sweep, else the newest run below it.

    Raises UserError if there is none.
    """
    if hugging_face.is_foreign(folder):
        raise hugging_face.no_run(f"runs={folder}", folder)
    if not (folder / ".sweep").is_dir():
        return [newest(folder, "runs", ["history.jsonl"])]
    cells = sorted(history.parent for history in folder.glob("*/history.jsonl"))
    if not cells:
        raise UserError(f"runs={folder}: no cell of the sweep has begun")
    return cells


def shortened(label: str) -> str:
    """Returns a label of at most LONGEST characters, so that the axes keep their place."""
    if len(label) <= LONGEST:
        return label
    return f"{label[: LONGEST - 1]}…"


def tokenizer_of(metrics: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Returns what decides what a token of a run is: keys, and a hash; by default a character."""
    keys = {key: metrics.get(f"config/{key}") for key in sorted(token_keys())}
    keys["tokenizer"] = keys["tokenizer"] or "char"
    keys["tokenizer_sha256"] = metrics.get("tokenizer_sha256")
    return tuple(keys.items())


def draw(
    axes: Axes, run: Path, label: str, styles: dict[str, dict[str, Any]], color: str
) -> list[str]:
    """Draws the curves of one run, one for each number in `styles` that its history has.

    Returns these numbers.
    """
    found = []
    lines = read_history(run)
    excerpts = {line[EXCERPT_TOKENS] for line in lines if line.get(EXCERPT_TOKENS)}
    if excerpts:
        print(
            f"{run}: before the end val/loss is that of {max(excerpts):,} tokens, at the end of all",
            file=sys.stderr,
        )
    for key, style in styles.items():
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            name = f"{label}  {key}"
            if len(points) == 1:  # a line needs two
                style = {"marker": ".", **style}
            axes.plot(*zip(*points, strict=True), color=color, label=name, **style)
            found.append(key)
    return found
