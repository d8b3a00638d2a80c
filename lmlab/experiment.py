"""One run from end to end: a checked configuration in, a run directory and its results out."""

import logging
import math
import platform
import shlex
import subprocess
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

from lmlab import device
from lmlab.callbacks import Recorder
from lmlab.config import Config
from lmlab.data import CharDataModule
from lmlab.models import build_model
from lmlab.module import LanguageModule
from lmlab.runs import AtomicCheckpointIO, RunDirectory
from lmlab.terminal import Terminal, table


def run(config: Config, path: Path) -> str:
    """Trains, and returns the status: 'finished' or 'diverged'.

    The directory, `path` or the next free name, comes into being once the device and the text are
    known to do. Raises UserError before that.
    """
    config = device.resolve(config)
    torch.set_num_threads(config.run.threads)
    data = CharDataModule(config)
    data.setup("fit")
    pl.seed_everything(config.run.seed, verbose=False)
    module = LanguageModule(build_model(config.model, data.tokenizer.vocab_size), config)
    directory = RunDirectory(path, config, data.tokenizer)
    terminal = Terminal(directory.path / "train.log", config.run.max_steps)
    recorder = Recorder(directory, data, terminal)
    n_params = sum(weight.numel() for weight in module.parameters())
    directory.update(status="running", seed=config.run.seed, n_params=n_params, data_sha256=data.sha256, **versions())
    terminal.say(introduction(config, data, n_params, directory.path))
    try:
        trainer(config, recorder).fit(module, data)
        status = "diverged" if recorder.diverged else "finished"
        directory.update(status=status, **recorder.totals())
        terminal.say(trouble(recorder) if recorder.diverged else results(directory, recorder, module))
        where, above = (shlex.quote(str(folder)) for folder in (directory.path, directory.path.parent))
        terminal.say(f"\nsaved in      {directory.path}\nmore samples  python scripts/sample.py run={where}\n"
                     f"curves        tensorboard --logdir {above}")
    except BaseException as error:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)  # Lightning turns Ctrl-C into exit(1)
        directory.update(status="interrupted" if stopped else "failed", **recorder.totals())
        raise
    finally:
        directory.history.close()
        terminal.close()
    return status


def trainer(config: Config, recorder: Recorder) -> pl.Trainer:
    """Lightning's Trainer, with all that the Recorder does switched off."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers
    torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over every new tensor, for nothing
    kind = config.choices["device"]
    return pl.Trainer(
        accelerator="gpu" if kind == "cuda" else kind, devices=1, precision=config.device.precision,
        deterministic=kind == "cpu", max_epochs=-1, max_steps=config.run.max_steps,
        accumulate_grad_batches=config.run.grad_accumulation, callbacks=[recorder], plugins=[AtomicCheckpointIO()],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )


def introduction(config: Config, data: CharDataModule, n_params: int, path: Path) -> str:
    choices, keys, shape = config.choices, config.run, " ".join(f"{k}={v}" for k, v in vars(config.model).items())
    train, val = (f"{len(data.splits[split]):,}" for split in ("train", "val"))
    size = f"{keys.batch_size * keys.grad_accumulation} x {config.model.block_size}"
    return table([
        ("model", f"{choices['model']}, {n_params:,} parameters: {shape}"),
        ("data", f"{choices['data']}: {train} characters train, {val} validate; {data.tokenizer.vocab_size} distinct"),
        ("device", f"{choices['device']}, precision {config.device.precision}, {keys.threads} threads"),
        ("training", f"{keys.max_steps:,} steps of {size} characters, {choices['optimizer']}, seed {keys.seed}"),
        ("run", f"{path}\n"),
    ])


def results(directory: RunDirectory, recorder: Recorder, module: LanguageModule) -> str:
    """The table at the end, with the best validation on the way, and a sample."""
    final = directory.metrics
    rows = [("train/loss", f"{final['train/loss']:.4f}", "")]
    if "val/loss" in final:
        best = final["best/val/loss"]
        rows = [("", "final", f"best, step {final['best/step']}"), *rows,
                ("val/loss", f"{final['val/loss']:.4f}", f"{best:.4f}"),
                ("val/perplexity", f"{final['val/perplexity']:.3f}", f"{math.exp(best):.3f}"),
                ("val/bits_per_byte", f"{final['val/bits_per_byte']:.4f}", "")]
    rows.append(("training", f"{final['train_seconds']:.1f} s", f"{final['tokens_per_second']:,.0f} tokens/s"))
    return f"\n{table(rows)}\n\n{recorder.sample(module, 300)}"


def trouble(recorder: Recorder) -> str:
    return (f"diverged: at step {recorder.step} the loss is not finite. Try a smaller lr (it was "
            f"{recorder.config.optimizer.lr:g}), more warmup_steps or grad_clip=1. What is saved is from before.")


def versions() -> dict[str, str | None]:
    """What the numbers depend on beside the configuration."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {"python": platform.python_version(), "torch": torch.__version__, "pytorch_lightning": pl.__version__,
            "git_commit": commit or None}
