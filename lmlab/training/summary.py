"""What a run says of itself on the terminal: at its start what it is, at its end what came of it."""

from pathlib import Path
from typing import Any

from lmlab.config.check import Config
from lmlab.data.text import Splits
from lmlab.runs.folder import RunDirectory
from lmlab.training.recorder import Recorder
from lmlab.training.step import LanguageModule


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


def results(directory: RunDirectory, recorder: Recorder, module: LanguageModule) -> str:
    """The table at the end, with the best validation on the way, and a sample."""
    if recorder.diverged:
        return (
            f"diverged: at step {recorder.step} the loss or a weight is not finite. Try a smaller lr, more "
            "warmup_steps, or grad_clip=1. What is saved is from before."
        )
    final, keys = (
        directory.metrics,
        ("train/loss", "val/loss", "val/loss_source", "val/perplexity", "val/bits_per_byte"),
    )
    several = "best/step" in final and not recorder.config.counted
    rows = [("", "final", f"best, step {final['best/step']}" if several else "")]
    shown = {key: f"{value:.4f}" for key, value in final.items() if isinstance(value, float)}
    rows += [
        (key, shown[key], shown.get(f"best/{key}", "") * several) for key in keys if key in shown
    ]
    rows.append(
        (
            "training",
            f"{final['train_seconds']:.1f} s",
            f"{final['tokens_per_second']:,.0f} tokens/s",
        )
    )
    return f"\n{table(rows)}\n{compared(final)}\n\n{recorder.sample(module, 300)}"


def compared(final: dict[str, Any]) -> str:
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
