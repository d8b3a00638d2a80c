"""One run from end to end: a checked configuration in, a run directory and its results out."""

import logging
import shlex
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
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
from lmlab.inference.references import references
from lmlab.models.base import build_model
from lmlab.runs import checkpoints
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
from lmlab.training import state
from lmlab.training.counting import CountRecorder
from lmlab.training.recorder import Recorder
from lmlab.training.step import LanguageModule
from lmlab.training.summary import introduction, results

Watch = Callable[[int, float], bool]  # is told step and val/loss, and says whether to go on


def run(
    config: Config,
    path: Path,
    command: str,
    sha256: str | None = None,
    cell: dict[str, Any] | None = None,
    watch: Watch | None = None,
) -> tuple[str, Path]:
    """Trains; returns 'finished', 'diverged' or 'pruned', and the run's folder: `path` or one
    beside it. `sha256` is what the text has to have, `cell` what metrics.json shall say of the
    run's place in a sweep. Raises UserError before a folder is made.
    """
    config, start, facts = machine.resolve(config), None, dict(cell or {})
    if config.run.init_from:
        start = checkpoints.load(Path(config.run.init_from), choice="cpu")
        config = replace(config, run=replace(config.run, init_from=str(start.path)))
        facts["init_sha256"] = start.sha256
        facts["source_sha256"] = text_sha256(read_metrics(start.path), start.path)
    data, module = prepare(config, start and start.tokenizer, sha256)
    if start:
        inherit(module, start)
    n_params = sum(weight.numel() for weight in module.parameters())
    facts |= {
        "status": "running",
        "seed": config.run.seed,
        "n_params": n_params,
        "data_sha256": data.sha256,
        "flops_per_token": module.model.flops_per_token(),
    }
    facts |= {f"config/{key}": value for key, value in config.flat().items()} | provenance(command)
    with (
        disk_errors(path),
        closing(
            RunDirectory.create(path, config, data.tokenizer, facts, start and start.config)
        ) as directory,
    ):
        directory.say(introduction(config, data, n_params, directory.path))
        return train(directory, config, data, module, None, watch=watch), directory.path


def resume(path: Path, config: Config, command: str, watch: Watch | None = None) -> str:
    """Goes on with the run at `path` as if it had never stopped; `config` is its own, but for what
    may change.
    """
    with disk_errors(path), closing(RunDirectory(path)) as directory:
        tokenizer, metrics, config = (
            read_tokenizer(path),
            read_metrics(path),
            machine.resolve(config),
        )
        last = path / "checkpoints/last.ckpt"
        checkpoint = checkpoints.latest(path, config, tokenizer, directory.say)
        saved = checkpoint["lmlab"] if checkpoint else None
        if not saved and metrics.get("step"):
            raise UserError(f"{last}: is missing, and so is previous.ckpt")
        if metrics.get("status") == "diverged":
            raise UserError(
                f"resume={path}: the run diverged, and would again; start anew with a smaller lr"
            )
        step, keys = saved["step"] if saved else 0, config.run
        late = bool(saved and keys.max_minutes and saved["train_seconds"] >= 60 * keys.max_minutes)
        over = bool(saved and saved["last"] and (late or step == keys.max_steps or config.counted))
        if over and metrics.get("status") == "finished":
            longer = f"max_minutes={2 * keys.max_minutes:g}" if late else f"max_steps={2 * step}"
            ends = "cell" in metrics or config.counted  # a sweep's cell is known by when it ends
            hint = "" if ends else f"; {longer} would go on"
            directory.say(f"{path}: finished already{f', at step {step}' if step else ''}{hint}")
            return "finished"
        if not over and step >= keys.max_steps:
            raise UserError(
                f"max_steps={keys.max_steps}: the run has made {step} steps; allowed are more than that"
            )
        data, module = prepare(
            config, tokenizer, saved["data_sha256"] if saved else text_sha256(metrics, path)
        )
        if checkpoint:
            if over:
                module.load_state_dict(checkpoint["state_dict"])
            else:
                state.check_optimizer(checkpoint, module.configure_optimizers(), last)
            del checkpoint  # Lightning reads it again, and no more memory than that is needed
        elif config.run.init_from:
            inherit(module, checkpoints.load(Path(config.run.init_from), choice="cpu"))
        directory.metrics = saved["metrics"] if saved else metrics
        directory.metrics.pop("reason", None)
        if config != read_config(path):
            write_config(path, config)
        directory.rewind(saved["history_bytes"] if saved else 0)
        now = provenance(command)
        changed = "; ".join(differences(directory.metrics, now))
        directory.update(
            status="running",
            **{f"config/{key}": value for key, value in config.flat().items()},
            **{f"resumed/{key}": value for key, value in now.items()},
        )
        at = f" at step {step} of {keys.max_steps}" * (not config.counted)
        directory.say(
            f"{path}: goes on{at}"
            + f"; the last bits may come out differently, since something changed: {changed}"
            * bool(changed)
        )
        return train(directory, config, data, module, saved, over, watch)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, or a folder that can't be read or written, is one line. What was saved before is
    intact.
    """

    def hook(thread: threading.ExceptHookArgs) -> None:
        """TensorBoard's writing thread prints its error, and hands it on to the next call."""
        issubclass(thread.exc_type, OSError) or before(thread)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    finally:
        threading.excepthook = before


def prepare(
    config: Config, tokenizer: Tokenizer | None, sha256: str | None
) -> tuple[Splits, LanguageModule]:
    """The text and the untrained model. All that is random in a run follows from the seed that is
    set here.
    """
    torch.set_num_threads(config.run.threads)
    data = Splits.of_run(config, tokenizer, sha256)
    if not config.counted:
        training_batches(config, data)  # raises UserError for a text that is too short
    pl.seed_everything(config.run.seed, verbose=False)
    return data, LanguageModule(build_model(config.model, data.tokenizer.vocab_size), config)


def training_batches(config: Config, text: Splits) -> Batches:
    """Returns the batches of a run. Raises UserError if the text is too short for `block_size`."""
    run = config.run
    return Batches(text.train, run.batch_size, config.model.block_size, run.seed)


def inherit(module: LanguageModule, start: checkpoints.Run) -> None:
    """The weights of another run. Raises UserError if they don't fit."""
    try:
        module.model.load_state_dict(start.model.state_dict())
    except RuntimeError:
        raise UserError(
            f"init_from={start.path}: its weights fit only a model like its own, "
            + " ".join(f"{key}={value}" for key, value in vars(start.config.model).items())
        ) from None


def source_tokens(directory: RunDirectory, tokenizer: Tokenizer) -> np.ndarray | None:
    """What the run that the weights come from was validated on; None, which is said, if its text
    can't be had.
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


def train(
    directory: RunDirectory,
    config: Config,
    data: Splits,
    module: LanguageModule,
    saved: dict[str, Any] | None,
    over: bool = False,
    watch: Watch | None = None,
) -> str:
    """Steps until the end, from `saved` on; returns 'finished', 'diverged' or 'pruned'. `over`:
    only the results are missing.
    """
    path, recorder = shlex.quote(str(directory.path)), None
    try:
        kind = CountRecorder if config.counted else Recorder
        recorder = kind(
            directory, config, data, source_tokens(directory, data.tokenizer), saved, watch
        )
        if config.counted and not over:
            recorder.count(module)
        elif not over:
            last = directory.path / "checkpoints/last.ckpt" if saved else None
            steps_made = saved["step"] if saved else 0
            batches = BatchModule(
                training_batches(config, data), steps_made * config.run.grad_accumulation
            )
            trainer(config, recorder).fit(module, batches, ckpt_path=last, weights_only=True)
        else:
            recorder.last = True
            recorder.on_train_end()
        ended = recorder.last or recorder.diverged or recorder.pruned
        status = recorder.status() if ended else "interrupted"
        directory.update(status=status, **recorder.totals())
    except BaseException as error:
        stopped = isinstance(
            error, SystemExit | KeyboardInterrupt
        )  # Lightning turns Ctrl-C into exit(1)
        with suppress(UserError):  # on a full disk the status can't be written either
            directory.update(
                status="interrupted" if stopped else "failed",
                **(recorder.totals() if recorder else {}),
            )
        if stopped:
            directory.say(
                f"stopped; from what was saved last it goes on with: python train.py resume={path}"
            )
            raise SystemExit(128 + ((recorder and recorder.signal) or signal.SIGINT)) from None
        if (
            saved
            and not (recorder and recorder.started)
            and not isinstance(error, OSError | UserError)
        ):
            raise UserError(
                f"{directory.path / 'checkpoints/last.ckpt'}: can't be restored ({error!r})"
            ) from error
        raise
    if ended:
        status == "finished" and directory.update(**references(data))
        directory.say(results(directory, recorder, module))
        directory.say(
            f"\nsaved in      {directory.path}\ncurves        tensorboard --logdir outputs\n"
            f"more samples  python scripts/sample.py run={path}"
        )
    if recorder.signal:
        ended or directory.say(
            f"interrupted at step {recorder.step}; to go on: python train.py resume={path}"
        )
        raise SystemExit(128 + recorder.signal)
    return status


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
