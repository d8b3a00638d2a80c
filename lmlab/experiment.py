"""One run from end to end: a checked configuration in, a run directory and a results table out."""

from __future__ import annotations

import logging
import math
import platform
import shlex
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lmlab import device
from lmlab.callbacks import Recorder
from lmlab.config import Config
from lmlab.data import CharDataModule
from lmlab.models import build_model
from lmlab.module import LanguageModule
from lmlab.runs import AtomicCheckpointIO, RunDirectory
from lmlab.terminal import Terminal, grid

FINAL_TOKENS = 300  # length of the sample at the end


def run(config: Config, path: Path) -> str:
    """Trains, and returns the status: 'finished' or 'diverged'.

    The directory, `path` or the next free name, comes into being once all that can be wrong with
    the configuration, the device and the text has been checked. Raises UserError before that.
    """
    config = device.resolve(config)
    torch.set_num_threads(config.run.threads)
    data = CharDataModule(config)
    pl.seed_everything(config.run.seed, verbose=False)
    module = LanguageModule(build_model(config.model, data.tokenizer.vocab_size), config)
    directory = RunDirectory(path, config, data.tokenizer)
    terminal = Terminal(directory.path / "train.log", config.run.max_steps)
    n_params = sum(weight.numel() for weight in module.parameters())
    terminal.say(introduction(config, data, n_params, directory.path))
    directory.update(
        status="running",
        seed=config.run.seed,
        n_params=n_params,
        data_sha256=data.sha256,
        device=config.choices["device"],
        **versions(),
    )
    recorder = Recorder(directory, data, terminal)
    try:
        trainer(config, recorder).fit(module, data)
    except BaseException as error:
        interrupted = isinstance(error, (SystemExit, KeyboardInterrupt))  # Lightning turns Ctrl-C into exit(1)
        directory.update(status="interrupted" if interrupted else "failed", **recorder.totals())
        raise
    status = "finished" if recorder.diverged is None else "diverged"
    directory.update(status=status, **recorder.totals())
    if recorder.diverged is not None:
        terminal.say(
            f"diverged: the loss is no finite number at step {recorder.diverged}. Try a smaller lr "
            f"(it was {config.optimizer.lr:g}), a longer warmup_steps, or grad_clip=1. "
            "Checkpoints are from before."
        )
    else:
        terminal.say(results(directory.metrics, recorder))
        terminal.say("\nA sample:\n" + recorder.sample(module, FINAL_TOKENS))
    where = shlex.quote(str(directory.path))
    terminal.say(
        f"\nSaved in {directory.path}\n"
        f"More samples:  python scripts/sample.py run={where}\n"
        f"Curves:        tensorboard --logdir {shlex.quote(str(directory.path.parent))}"
    )
    return status


def trainer(config: Config, recorder: Recorder) -> pl.Trainer:
    """Lightning's Trainer, with everything off that the Recorder does."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on workers and loggers
    cpu = config.choices["device"] == "cpu"
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every new tensor
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(config.choices["device"], config.choices["device"]),
        devices=1,
        precision=config.device.precision,
        max_epochs=-1,
        max_steps=config.run.max_steps,
        accumulate_grad_batches=config.run.grad_accumulation,
        deterministic=cpu,
        callbacks=[recorder],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def introduction(config: Config, data: CharDataModule, n_params: int, path: Path) -> Any:
    size = {split: f"{len(tokens):,}" for split, tokens in data.splits.items()}
    shape = ", ".join(f"{key} {value}" for key, value in vars(config.model).items())
    run = config.run
    return grid([
        ("model", f"{config.choices['model']}: {n_params:,} parameters ({shape})"),
        ("data", f"{config.choices['data']}: {size['train']} characters train, {size['val']} validate, "
                 f"{data.tokenizer.vocab_size} distinct"),
        ("device", f"{config.choices['device']}, {run.threads} threads, precision {config.device.precision}"),
        ("training", f"{run.max_steps:,} steps of {run.batch_size * run.grad_accumulation} x {config.model.block_size}"
                     f" characters, {config.choices['optimizer']}, lr {config.optimizer.lr:g}, seed {run.seed}"),
        ("run", str(path)),
    ])


def results(metrics: dict[str, Any], recorder: Recorder) -> Any:
    """The table at the end: the final numbers, and the best validation loss on the way."""
    rows = [("train/loss", f"{metrics['train/loss']:.4f}", "")]
    if "val/loss" in metrics:
        best = metrics["best/val/loss"]
        rows += [
            ("val/loss (nats per character)", f"{metrics['val/loss']:.4f}", f"{best:.4f} at step {metrics['best/step']}"),
            ("val/perplexity", f"{metrics['val/perplexity']:.3f}", f"{math.exp(best):.3f}"),
            ("val/bits_per_byte", f"{metrics['val/bits_per_byte']:.4f}", ""),
        ]
    rows.append(("training", f"{metrics['train_seconds']:.1f} s", f"{metrics['tokens_per_second']:,.0f} tokens/s"))
    return grid(rows, header=("", "final", "best" if "val/loss" in metrics else ""))


def versions() -> dict[str, str | None]:
    """What the numbers may depend on, beside the configuration."""
    root = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "git_commit": git.stdout.strip() or None,
    }
