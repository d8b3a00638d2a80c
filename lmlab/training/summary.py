"""What a run says of itself on the terminal: at its start what it is, at its end what came of it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.config.check import Config
from lmlab.data.text import Splits

SHOWN = ("train/loss", "val/loss", "val/loss_source", "val/perplexity", "val/bits_per_byte")


def introduction(config: Config, data: Splits, n_params: int, path: Path) -> str:
    choices, keys, shape = (
        config.choices,
        config.run,
        " ".join(f"{k}={v}" for k, v in vars(config.model).items()),
    )
    sizes = ", ".join(
        f"{name} {len(part):,}"
        for name, part in data.parts.items()
        if len(part) or name != "holdout"
    )
    n = keys.batch_size * keys.grad_accumulation
    return table(
        [
            (
                "model",
                f"{choices['model']}{f', {n_params:,} parameters' * (not config.counted)}: {shape}",
            ),
            (
                "data",
                f"{choices['data']}, {data.tokenizer.vocab_size} distinct characters: {sizes}"
                + f"; {data.dropped:,} characters that the vocabulary lacks were left out"
                * bool(data.dropped),
            ),
            (
                "device",
                f"{choices['device']}, precision {config.device.precision}, {keys.threads} threads",
            ),
            (
                "training",
                "by counting"
                if config.counted
                else f"{keys.max_steps:,} steps of {n} x "
                f"{config.model.block_size} characters, {choices['optimizer']}",
            ),
            ("run", f"{path}\n"),
        ]
    )


def results(metrics: Mapping[str, Any], status: str, sample: str) -> str:
    """Returns the table at the end, with the best evaluation on the way, and a sample."""
    if status == "diverged":
        return (
            f"diverged: at step {metrics['step']} the loss or a weight is not finite. Try a smaller lr, more "
            "warmup_steps, or grad_clip=1. What is saved is from before."
        )
    has_best = metrics.get("step", 0) > 0 and "best/step" in metrics
    rows = [("", "final", f"best, step {metrics['best/step']}" if has_best else "")]
    for name in SHOWN:
        if isinstance(metrics.get(name), float):
            best = (
                f"{metrics[f'best/{name}']:.4f}" if has_best and f"best/{name}" in metrics else ""
            )
            rows.append((name, f"{metrics[name]:.4f}", best))
    seconds = f"{metrics['train_seconds']:.1f} s"
    rows.append(("training", seconds, f"{metrics['tokens_per_second']:,.0f} tokens/s"))
    return f"\n{table(rows)}\n{compared(metrics)}\n\n{sample}"


def whereabouts(path: Path) -> str:
    """Returns the lines that say where the run lies, and how to go on with it."""
    return (
        f"\nsaved in      {path}\ncurves        tensorboard --logdir outputs\n"
        f"more samples  python scripts/sample.py run={shlex.quote(str(path))}"
    )


def compared(final: Mapping[str, Any]) -> str:
    """What counting reaches on the same text, so that one can tell how good a val/loss is."""
    names = {
        "ngram": f"{final.get('reference/order')} characters at a time",
        "bigram": "pairs",
        "unigram": "single characters",
        "uniform": "guessing",
    }
    known = [
        f"{name} {final[f'reference/{key}']:.3f}"
        for key, name in names.items()
        if f"reference/{key}" in final
    ]
    return f"by counting   {', '.join(known)}" if known else ""


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
