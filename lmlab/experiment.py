"""One run from end to end: a checked configuration in, a run directory and its results out."""

import logging
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

def run(config: Config, path: Path) -> str:
    """Trains; returns 'finished' or 'diverged'. Raises UserError before a directory is made, at `path` or beside."""
    config = device.resolve(config)
    torch.set_num_threads(config.run.threads)
    data = CharDataModule(config)
    data.setup("fit")
    pl.seed_everything(config.run.seed, verbose=False)
    module = LanguageModule(build_model(config.model, data.tokenizer.vocab_size), config)
    directory = RunDirectory(path, config, data.tokenizer)
    recorder = Recorder(directory, data)
    n_params = sum(weight.numel() for weight in module.parameters())
    directory.update(status="running", seed=config.run.seed, n_params=n_params, data_sha256=data.sha256, **versions())
    directory.say(introduction(config, data, n_params, directory.path))
    try:
        trainer(config, recorder).fit(module, data)
        status = "diverged" if recorder.diverged else "finished"
        directory.update(status=status, **recorder.totals())
        directory.say(results(directory, recorder, module))
        directory.say(f"\nsaved in      {directory.path}\ncurves        tensorboard --logdir outputs\n"
                      f"more samples  python scripts/sample.py run={shlex.quote(str(directory.path))}")
    except BaseException as error:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)  # Lightning turns Ctrl-C into exit(1)
        status = "interrupted" if stopped else "failed"
        directory.update(status=status, **recorder.totals())
        raise
    finally:
        directory.close()
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
    sizes, n = ", ".join(f"{k} {len(v):,}" for k, v in data.splits.items()), keys.batch_size * keys.grad_accumulation
    return table([
        ("model", f"{choices['model']}, {n_params:,} parameters: {shape}"),
        ("data", f"{choices['data']}, {data.tokenizer.vocab_size} distinct characters: {sizes}"),
        ("device", f"{choices['device']}, precision {config.device.precision}, {keys.threads} threads"),
        ("training", f"{keys.max_steps:,} steps of {n} x {config.model.block_size} characters, {choices['optimizer']}"),
        ("run", f"{path}\n"),
    ])

def results(directory: RunDirectory, recorder: Recorder, module: LanguageModule) -> str:
    """The table at the end, with the best validation on the way, and a sample."""
    if recorder.diverged:
        return (f"diverged: at step {recorder.step} the loss or a weight is not finite. Try a smaller lr, more "
                "warmup_steps, or grad_clip=1. What is saved is from before.")
    final, keys = directory.metrics, ("train/loss", "val/loss", "val/perplexity", "val/bits_per_byte")
    rows = [("", "final", f"best, step {final['best/step']}" if "best/step" in final else "")]
    shown = {key: f"{value:.4f}" for key, value in final.items() if isinstance(value, float)}
    rows += [(key, shown[key], shown.get(f"best/{key}", "")) for key in keys if key in shown]
    rows.append(("training", f"{final['train_seconds']:.1f} s", f"{final['tokens_per_second']:,.0f} tokens/s"))
    return f"\n{table(rows)}\n\n{recorder.sample(module, 300)}"

def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

def versions() -> dict[str, str | None]:
    """What the numbers depend on beside the configuration."""
    git = f"git -C {shlex.quote(str(Path(__file__).parent))} rev-parse --verify HEAD"  # in a shell: git may be missing
    return {"python": platform.python_version(), "torch": torch.__version__, "pytorch_lightning": pl.__version__,
            "git_commit": subprocess.run(git, shell=True, capture_output=True, text=True).stdout.strip() or None}
