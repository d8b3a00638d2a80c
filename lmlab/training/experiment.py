"""One run from end to end: a checked configuration in, a run directory and its results out."""

import logging
import math
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.profilers import PassThroughProfiler

from lmlab import machine
from lmlab.config.check import Config
from lmlab.data.batches import Batches, BatchModule
from lmlab.data.text import Splits
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.inference import evaluations
from lmlab.inference.evaluations import Subject
from lmlab.inference.references import references
from lmlab.models.base import LanguageModel, build_model
from lmlab.runs import checkpoints
from lmlab.runs.board import Board
from lmlab.runs.checkpoints import SealedCheckpointIO
from lmlab.runs.folder import (
    RunDirectory,
    read_config,
    read_metrics,
    read_tokenizer,
    text_sha256,
    write_config,
)
from lmlab.runs.provenance import differences, provenance
from lmlab.training import recorder as recorders
from lmlab.training import state, summary
from lmlab.training.optimizers import build_optimizer
from lmlab.training.recorder import Recorder, Watch
from lmlab.training.step import LanguageModule


def run(
    config: Config,
    path: Path,
    command: str,
    sha256: str | None = None,
    cell: dict[str, Any] | None = None,
    watch: Watch | None = None,
) -> tuple[str, Path]:
    """Trains a new run; returns its status ('finished', 'diverged', 'pruned') and its folder.

    The folder is `path`, or `path` with a number where that exists. `sha256` is the checksum that
    the text must have, `cell` the run's place in a sweep for metrics.json. Raises UserError before
    a folder is made.
    """
    config = machine.resolve(config)
    facts = dict(cell or {})
    start = None
    if config.run.init_from:
        start = checkpoints.load(Path(config.run.init_from), choice="cpu")
        config = replace(config, run=replace(config.run, init_from=str(start.path)))
        facts["init_sha256"] = start.sha256
        facts["source_sha256"] = text_sha256(read_metrics(start.path), start.path)
    text, model = prepare(config, start.tokenizer if start else None, sha256)
    if start:
        inherit(model, start)
    n_params = sum(weight.numel() for weight in model.parameters())
    facts |= {
        "status": "running",
        "seed": config.run.seed,
        "n_params": n_params,
        "data_sha256": text.sha256,
        "flops_per_token": model.flops_per_token(),
    }
    facts |= config_facts(config) | provenance(command)
    source = start.config if start else None
    with (
        disk_errors(path),
        closing(RunDirectory.create(path, config, text.tokenizer, facts, source)) as directory,
    ):
        directory.say(summary.introduction(config, text, n_params, directory.path))
        return train(directory, text, model, config, watch=watch), directory.path


def resume(path: Path, config: Config, command: str, watch: Watch | None = None) -> str:
    """Resumes the run at `path` as if it had never stopped; returns its status.

    `config` is the run's own, but for keys that may change. Raises UserError.
    """
    with disk_errors(path), closing(RunDirectory(path)) as directory:
        tokenizer = read_tokenizer(path)
        metrics = read_metrics(path)
        config = machine.resolve(config)
        checkpoint = checkpoints.latest(path, config, tokenizer, directory.say)
        saved = checkpoint["lmlab"] if checkpoint else None
        check_resumable(path, metrics, saved)
        over = saved is not None and is_over(saved, config)
        if over and metrics.get("status") == "finished":
            directory.say(finished_already(path, config, saved, is_cell="cell" in metrics))
            return "finished"
        step = saved["step"] if saved else 0
        if not over and step >= config.run.max_steps:
            raise UserError(
                f"max_steps={config.run.max_steps}: the run has made {step} steps; allowed are more "
                "than that"
            )
        sha256 = saved["data_sha256"] if saved else text_sha256(metrics, path)
        text, model = prepare(config, tokenizer, sha256)
        if checkpoint:
            check_restorable(path, checkpoint, model, config, over)
            del checkpoint  # Lightning reads it again, and no more memory than that is needed
        elif config.run.init_from:
            inherit(model, checkpoints.load(Path(config.run.init_from), choice="cpu"))
        reopen(directory, config, metrics, saved, command)
        return train(directory, text, model, config, saved, over, watch)


def check_resumable(path: Path, metrics: dict[str, Any], saved: dict[str, Any] | None) -> None:
    """Raises UserError for a run that nothing can be done with: its checkpoint is lost, or it diverged."""
    if saved is None and metrics.get("step"):
        raise UserError(f"{path / 'checkpoints/last.ckpt'}: is missing, and so is previous.ckpt")
    if metrics.get("status") == "diverged":
        raise UserError(
            f"resume={path}: the run diverged, and would again; start anew with a smaller lr"
        )


def is_out_of_time(saved: dict[str, Any], config: Config) -> bool:
    """Returns whether `max_minutes` had passed when the checkpoint was saved."""
    minutes = config.run.max_minutes
    return minutes is not None and saved["train_seconds"] >= 60 * minutes


def is_over(saved: dict[str, Any], config: Config) -> bool:
    """Returns whether the checkpoint is that of the run's end."""
    all_steps_made = config.counted or saved["step"] == config.run.max_steps
    return saved["last"] and (all_steps_made or is_out_of_time(saved, config))


def finished_already(path: Path, config: Config, saved: dict[str, Any], is_cell: bool) -> str:
    """Returns the line for a run that is over, with what would let it go on."""
    step = saved["step"]
    where = f", at step {step}" if step else ""
    if is_cell or config.counted:  # a sweep's cell is identified by when it ends, among others
        return f"{path}: finished already{where}"
    if is_out_of_time(saved, config):
        longer = f"max_minutes={2 * config.run.max_minutes:g}"
    else:
        longer = f"max_steps={2 * step}"
    return f"{path}: finished already{where}; {longer} would go on"


def check_restorable(
    path: Path, checkpoint: dict[str, Any], model: LanguageModel, config: Config, over: bool
) -> None:
    """Raises UserError unless the optimizer's state fits. A run that is `over` gets its weights."""
    if over:
        weights = checkpoint["state_dict"].items()
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights})
    else:
        optimizer = build_optimizer(model, config.optimizer, config.device.precision)
        state.check_optimizer(checkpoint, optimizer, path / "checkpoints/last.ckpt")


def reopen(
    directory: RunDirectory,
    config: Config,
    metrics: dict[str, Any],
    saved: dict[str, Any] | None,
    command: str,
) -> None:
    """Takes the run's folder back to the checkpoint, and says what has changed since."""
    directory.metrics = saved["metrics"] if saved else metrics
    directory.metrics.pop("reason", None)
    if config != read_config(directory.path):
        write_config(directory.path, config)
    directory.rewind(saved["history_bytes"] if saved else 0)
    now = provenance(command)
    resumed = {f"resumed/{key}": value for key, value in now.items()}
    directory.update(status="running", **config_facts(config), **resumed)
    step = saved["step"] if saved else 0
    where = "" if config.counted else f" at step {step} of {config.run.max_steps}"
    changes = differences(directory.metrics, now)
    warning = ""
    if changes:
        warning = "; the last bits may come out differently, since something changed: "
    directory.say(f"{directory.path}: goes on{where}{warning}{'; '.join(changes)}")


def config_facts(config: Config) -> dict[str, Any]:
    """Returns the configuration as metrics.json holds it."""
    return {f"config/{key}": value for key, value in config.flat().items()}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns OSErrors into UserErrors of one line: a full disk, a folder without permission.

    What was saved before is intact.
    """

    def hook(thread: threading.ExceptHookArgs) -> None:
        """TensorBoard's writing thread prints its error, and hands it on to the next call."""
        if not issubclass(thread.exc_type, OSError):
            hook_before(thread)

    hook_before = threading.excepthook
    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    finally:
        threading.excepthook = hook_before


def prepare(
    config: Config, tokenizer: Tokenizer | None, sha256: str | None
) -> tuple[Splits, LanguageModel]:
    """Returns the text and the untrained model.

    All that is random in a run follows from the seed that is set here.
    """
    torch.set_num_threads(config.run.threads)
    text = Splits.of_run(config, tokenizer, sha256)
    if not config.counted:
        training_batches(config, text)  # raises UserError for a text that is too short
    pl.seed_everything(config.run.seed, verbose=False)
    return text, build_model(config.model, text.tokenizer.vocab_size)


def training_batches(config: Config, text: Splits) -> Batches:
    """Returns the batches of a run. Raises UserError if the text is too short for `block_size`."""
    run = config.run
    return Batches(text.train, run.batch_size, config.model.block_size, run.seed)


def lightning_module(model: LanguageModel, config: Config) -> LanguageModule:
    """Returns the model with its training step."""
    return LanguageModule(model, config)


def inherit(model: LanguageModel, start: checkpoints.Run) -> None:
    """Gives the model the weights of another run. Raises UserError if they do not fit."""
    try:
        model.load_state_dict(start.model.state_dict())
    except RuntimeError:
        raise UserError(
            f"init_from={start.path}: its weights fit only a model like its own, "
            + " ".join(f"{key}={value}" for key, value in vars(start.config.model).items())
        ) from None


def source_tokens(directory: RunDirectory, tokenizer: Tokenizer) -> np.ndarray | None:
    """Returns the validation tokens of the run that the weights come from.

    None, with a line that says so, if its text cannot be had.
    """
    if not (directory.path / "source.yaml").exists():
        return None
    try:
        source = read_config(directory.path, "source.yaml")
        sha256 = text_sha256(directory.metrics, directory.path, "source_sha256")
        tokens = Splits.of_run(source, tokenizer, sha256).val
        return tokens if len(tokens) else None
    except UserError as error:
        directory.say(f"val/loss_source is not tracked: {error}")
        return None


@dataclass(frozen=True)
class Ending:
    """How a run has ended: 'finished', 'diverged', 'pruned', or 'interrupted' by `signal`."""

    status: str
    step: int
    totals: dict[str, float]
    signal: int | None = None


def train(
    directory: RunDirectory,
    text: Splits,
    model: LanguageModel,
    config: Config,
    saved: dict[str, Any] | None = None,
    over: bool = False,
    watch: Watch | None = None,
) -> str:
    """Trains until the end, from `saved` on; returns the status. `over`: only results are missing.

    Raises SystemExit(128 + n) after signal n.
    """
    with noting_failures(directory):
        subject = Subject(
            model,
            text,
            config.model.block_size,
            config.device.precision,
            config.run.seed,
            source_tokens(directory, text.tokenizer),
        )
        identity = {
            "config": config.flat(),
            "tokenizer": text.tokenizer.to_json(),
            "data_sha256": text.sha256,
        }
        if not model.has_steps:
            ending = count(directory, subject, identity, saved if over else None)
        else:
            recorder = Recorder(directory, config.run, subject, identity, saved, watch)
            if over:
                recorder.last = True
                recorder.finish()
            else:
                make_steps(directory, text, model, config, recorder)
            ending = Ending(
                recorder.status, recorder.meter.step, recorder.meter.totals(), recorder.stop.number
            )
        directory.update(status=ending.status, **ending.totals)
    if ending.status == "finished":
        directory.update(**references(text))
    if ending.status == "interrupted":
        directory.say(f"interrupted at step {ending.step}; to go on: {resume_command(directory)}")
    else:
        sample = "" if ending.status == "diverged" else evaluations.draw_sample(subject, 300)
        directory.say(summary.results(directory.metrics, ending.status, sample))
        directory.say(summary.whereabouts(directory.path))
    if ending.signal is not None:
        raise SystemExit(128 + ending.signal)
    return ending.status


@contextmanager
def noting_failures(directory: RunDirectory) -> Iterator[None]:
    """Notes in metrics.json that a run was interrupted or has failed, and lets the error pass."""

    def note(status: str) -> None:
        with suppress(UserError):  # on a full disk the status cannot be written either
            directory.update(status=status)

    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        note("interrupted")
        directory.say(
            f"stopped; from what was saved last it goes on with: {resume_command(directory)}"
        )
        code = error.code if isinstance(error, SystemExit) else 128 + signal.SIGINT
        raise SystemExit(code) from None
    except BaseException:
        note("failed")
        raise


def resume_command(directory: RunDirectory) -> str:
    """Returns the command that resumes the run."""
    return f"python train.py resume={shlex.quote(str(directory.path))}"


def make_steps(
    directory: RunDirectory,
    text: Splits,
    model: LanguageModel,
    config: Config,
    recorder: Recorder,
) -> None:
    """Lets Lightning make the steps, from the checkpoint on if the run is resumed."""
    last = directory.path / "checkpoints/last.ckpt"
    module = lightning_module(model, config)
    batches_made = recorder.meter.step * config.run.grad_accumulation
    batches = BatchModule(training_batches(config, text), batches_made)
    try:
        trainer(config, recorder).fit(
            module, batches, ckpt_path=last if recorder.saved else None, weights_only=True
        )
    except BaseException as error:
        with suppress(UserError):  # on a full disk nothing can be written
            directory.update(**recorder.meter.totals())
        if isinstance(error, SystemExit | KeyboardInterrupt):  # Lightning makes Ctrl-C an exit(1)
            raise SystemExit(128 + (recorder.stop.number or signal.SIGINT)) from None
        if recorder.started or not recorder.saved or isinstance(error, OSError | UserError):
            raise
        raise UserError(f"{last}: can't be restored ({error!r})") from error


def count(
    directory: RunDirectory,
    subject: Subject,
    identity: dict[str, Any],
    saved: dict[str, Any] | None,
) -> Ending:
    """Trains a model without steps: it counts the text once, is evaluated and saved.

    With `saved`, the entry of its checkpoint, all this is done already.
    """
    model = subject.model
    train_tokens = subject.text.train
    board = Board(directory.path, purge_step=saved["step"] + 1 if saved else 0)
    started = time.perf_counter()
    if saved is None:
        model.count(train_tokens)
    seconds = saved["train_seconds"] if saved else time.perf_counter() - started
    totals = {
        "step": 0,
        "tokens": len(train_tokens),
        "flops": 0,
        "train_seconds": seconds,
        "tokens_per_second": len(train_tokens) / seconds if seconds else math.nan,
    }
    if saved is None:
        directory.update(n_params=model.n_params())
        evaluate_counted(directory, board, subject, identity, totals)
    if "group" in directory.metrics:
        board.show_hparams(directory.metrics["group"], identity["config"], "finished", 0)
    board.close()
    return Ending("finished", 0, totals)


def evaluate_counted(
    directory: RunDirectory,
    board: Board,
    subject: Subject,
    identity: dict[str, Any],
    totals: dict[str, float],
) -> None:
    """Evaluates a counted model, notes what was seen, and saves its checkpoints."""
    values = evaluations.evaluate(subject)
    numbers, texts = recorders.note(values, 0, directory, board)
    best = numbers.get("val/loss", math.inf)

    def save(name: str) -> None:
        entry = state.entry(
            identity,
            directory,
            subject.model.device.type,
            step=0,
            last=True,
            best=best,
            train_seconds=totals["train_seconds"],
            train_loss=math.nan,
            loss_sum=0.0,
            losses=0,
        )
        checkpoint = {"state_dict": subject.model.state_dict(prefix="model."), "lmlab": entry}
        SealedCheckpointIO().save_checkpoint(checkpoint, directory.path / "checkpoints" / name)

    as_best = {}
    if "val/loss" in numbers:
        save("best.ckpt")
        as_best = recorders.as_best(numbers, 0)
        board.show({"best/val/loss": best}, 0)
    directory.update(**totals, **numbers, **as_best)
    directory.say(recorders.line(0, numbers, texts["sample"]))
    directory.update(**totals)
    board.flush()
    save("last.ckpt")


class NoProfiler(PassThroughProfiler):
    """Lightning's own makes a generator for each of a step's thirty hooks, to time nothing with."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> nullcontext:
        return self.nothing


def trainer(config: Config, recorder: Recorder) -> pl.Trainer:
    """Lightning's Trainer, with all that the Recorder does switched off."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for module in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)  # advice on loaders, loggers and clusters
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # a pass over every new tensor, for nothing
    )
    kind = config.choices["device"]
    return pl.Trainer(
        accelerator="gpu" if kind == "cuda" else kind,
        devices=1,
        callbacks=[recorder],
        deterministic=kind == "cpu",
        max_epochs=-1,
        max_steps=config.run.max_steps,
        profiler=NoProfiler(),
        plugins=[
            SealedCheckpointIO(),
            LightningEnvironment(),
        ],  # on Slurm too: there submitit alone requeues
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
