"""The tables that a run prints at its start and at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lmlab.config.grammar import typed_value
from lmlab.data.documents import counting
from lmlab.data.splits import Splits
from lmlab.inference.evaluations import excerpt_tokens
from lmlab.numbers import REFERENCES, decimal, numbers_where, training_first
from lmlab.runs.typed import board_command, command
from lmlab.training.preparation import Prepared

NAMED = 20  # characters that are named
LOOKED_AT = 2**22  # tokens of a part, for what is only a hint


def introduction(prepared: Prepared, path: Path) -> str:
    """Returns the table at the start: model, text, device, length of training, folder."""
    keys = prepared.flat_config
    model = prepared.model
    typed = [f"{key}={typed_value(key, value)}" for key, value in vars(model.config).items()]
    size = ""
    if model.n_params() > 0:  # an n-gram has no numbers yet
        size = f", {model.size()}"
    processes = prepared.config.device.processes
    threads = f"{prepared.run.threads} threads"
    if processes > 1:
        threads = f"{processes} processes, each with {threads} and {prepared.run.batch_size // processes} rows of a batch"
    rows = [
        ("model", f"{keys['model']}{size}: {' '.join(typed)}"),
        ("data", f"{keys['data']}, {described(prepared.text)}"),
        (
            "device",
            f"{prepared.device}, precision {prepared.precision}, {threads}",
        ),
        *evaluated(prepared),
        ("training", prepared.length),
        ("run", f"{path}\n"),
    ]
    return table(rows)


def evaluated(prepared: Prepared) -> list[tuple[str, str]]:
    """Returns the row that says of what val/loss is before the end, or none if of all tokens."""
    seen = excerpt_tokens(replace(prepared.subject(), is_last=False), "val")
    if seen is None:
        return []
    counts = counting(prepared.text.documents.get("val"))
    whole = len(prepared.text.val) - 1 if counts is None else int(counts.sum())
    return [("val/loss", f"before the end on {seen:,} tokens, at the end on all {whole:,}")]


def described(text: Splits) -> str:
    """Returns the sizes of a text and its parts."""
    sizes = ", ".join(
        f"{name} {len(tokens):,}"
        for name, tokens in text.parts.items()
        if len(tokens) > 0 or name != "holdout"
    )
    return f"{text.tokenizer.vocab_size} distinct {text.tokenizer.unit}s: {sizes}"


def left_out(text: Splits) -> list[str]:
    """Returns what of a text was left out, or may not be meant to be there, in words."""
    lines = []
    if text.dropped:
        kind = "characters" if text.tokenizer.per_character else "bytes"
        names = ", ".join(map(repr, text.lacking[:NAMED]))
        more = f" and {len(text.lacking) - NAMED:,} more" if len(text.lacking) > NAMED else ""
        line = f"{text.dropped:,} {kind} that the vocabulary lacks were left out"
        lines.append(f"{line}: {names}{more}" if names else line)
    if text.unmarked:
        lines.append(
            f"of {text.unmarked:,} documents without score_after nothing is trained or scored"
        )
    tokenizer = text.tokenizer
    if tokenizer.per_character and "\r" in tokenizer.names():
        windows, alone = returns_in(text)
        if windows:
            lines.append(
                "the text has line ends of Windows, so \\r is one of its characters; without it: "
                "sed 's/\\r$//' your.txt > unix.txt"
            )
        if alone:
            lines.append(
                "the text has \\r without \\n after it, as old Macs ended lines; with \\n instead: "
                "tr '\\r' '\\n' < your.txt > unix.txt"
            )
    return lines


def returns_in(text: Splits) -> tuple[int, int]:
    """Returns how many \\r of the beginnings of a text's parts stand before a \\n, and how many do not."""
    names = text.tokenizer.names()
    ids = {name: names.index(name) for name in "\r\n" if name in names}
    n_all = n_pairs = 0
    for whole in (text.holdout, text.train, text.val, text.test):
        part = whole[:LOOKED_AT]
        is_return = part[:-1] == ids["\r"]  # of the last token nobody knows what follows
        n_all += int(is_return.sum())
        if "\n" in ids:
            n_pairs += int((is_return & (part[1:] == ids["\n"])).sum())
    return n_pairs, n_all - n_pairs


def results(metrics: Mapping[str, Any], status: str, sample: str, unit: str) -> str:
    """Returns the table at the end, with the best evaluation of the run, and a sample.

    `unit` is what a token is called.
    """
    if status == "diverged":
        clip = metrics.get("config/grad_clip")
        is_clipped = isinstance(clip, int | float) and 0 < clip <= 1
        advice = "or more warmup_steps" if is_clipped else "more warmup_steps, or grad_clip=1"
        return (
            f"diverged: at step {metrics['step']} the loss or a weight is not finite. Try a "
            f"smaller lr{'' if is_clipped else ','} {advice}. What is saved is from before."
        )
    columns = [("final", "")]
    if metrics.get("step", 0) > 0 and "best/step" in metrics:
        columns.append((f"best, step {metrics['best/step']}", "best/"))
    rows = [("", *(title for title, _ in columns))]
    for name in training_first(numbers_where("in_end_table")):
        if number(metrics, name):
            rows.append((name, *(number(metrics, prefix + name) for _, prefix in columns)))
    seconds = f"{metrics['train_seconds']:.1f} s"
    rows.append(("training", seconds, f"{metrics['tokens_per_second']:,.0f} tokens/s"))
    return f"\n{table(rows)}\n{skipped(metrics)}{compared(metrics, unit)}\n\n{sample}"


def skipped(metrics: Mapping[str, Any]) -> str:
    """Returns the line with the number of steps that skip_spikes= has left out, or ""."""
    n = metrics.get("skipped_steps", 0)
    if not n:
        return ""
    factor = typed_value("skip_spikes", metrics.get("config/skip_spikes"))
    return f"skip_spikes={factor}: {n:,} of {metrics['step']:,} steps were left out\n"


def number(metrics: Mapping[str, Any], name: str) -> str:
    """Returns a number of metrics.json as text, or "" if it is missing."""
    value = metrics.get(name)
    if not isinstance(value, int | float):
        return ""
    return decimal(value)


def whereabouts(path: Path, has_page: bool) -> str:
    """Returns the lines that show the run's folder and the commands to look at the run.

    `has_page` says whether a page of HTML can hold the model.
    """
    lines = [
        f"\nsaved in      {path}",
        f"curves        {board_command(path)}",
        f"more samples  {command('sample', run=path)}",
    ]
    if has_page:
        lines.append(f"in a page     {command('page', run=path)}")
    return "\n".join(lines)


def compared(final: Mapping[str, Any], unit: str) -> str:
    """Returns the line with the losses of counting on the same text, to compare val/loss with."""
    losses = []
    for name, words in REFERENCES.items():
        if name in final:
            counted = words.format(order=final.get("reference/order"), unit=unit)
            counted = counted.removeprefix("counting ")
            losses.append(f"{counted} {final[name]:.3f}")
    if not losses:
        return ""
    line = f"by counting   {', '.join(losses)}"
    if final.get("config/holdout_fraction"):
        line += " (the part that was held out was counted, too)"
    return line


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns the rows as lines with aligned columns. A row may have fewer columns."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
