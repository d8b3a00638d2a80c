"""Trains or resumes one run, from a checked configuration to the results in its folder."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lmlab import files, machine, plugins, ranks
from lmlab.config.check import Config
from lmlab.data.batches import BatchModule
from lmlab.data.splits import own_rule, shortened
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError, reason_of, system_error
from lmlab.inference import evaluations
from lmlab.inference.evaluations import Subject
from lmlab.inference.references import references
from lmlab.isolation import isolated
from lmlab.register import PRESENT
from lmlab.registry import folder_kept, variables_hidden
from lmlab.runs import checkpoints
from lmlab.runs.checkpoints import SealedCheckpointIO
from lmlab.runs.folder import (
    EVENTS,
    LIMITS,
    AnyDirectory,
    RunDirectory,
    SilentDirectory,
    is_complete,
    read_config,
    read_metrics,
    read_tokenizer,
    text_sha256,
    to_json,
    write_config,
)
from lmlab.runs.provenance import provenance
from lmlab.runs.typed import command as command_of
from lmlab.signals import Interrupted, StopSignals, after_stops
from lmlab.terminal import after_a_second, tell
from lmlab.training import companions, distributed, launch, state, summary
from lmlab.training.counting import count
from lmlab.training.overhead import (
    NoProfiler,
    leave_signals_alone,
    mute_lightning,
    spare_memory_filling,
)
from lmlab.training.preparation import (
    Prepared,
    check_start,
    inherit,
    load_start,
    other_tokens,
    source_text,
)
from lmlab.training.recorder import Ending, Recorder, Watch
from lmlab.training.resumption import (
    Resumable,
    check_callbacks,
    check_plugins,
    check_resumable,
    finished_already,
    is_over,
    note_resumption,
    other_values,
    restore,
    with_prefix,
)
from lmlab.training.step import LanguageModule

END_BYTES = 2**20  # of files, that a training may write after its last checkpoint
SAMPLE = 300  # tokens of the sample at the end

TRAINERS = (
    "PL_TRAINER_"  # begins the variables in which Lightning looks for its Trainer's arguments
)

COUNTING = "counting the text, for the losses of simple models …"


@isolated()
@plugins.exits_as_errors()
def run(
    config: Config,
    path: Path,
    command: str,
    sha256: str | None = None,
    cell: dict[str, Any] | None = None,
    watch: Watch | None = None,
    tokenizer: Tokenizer | None = None,
    init_sha256: str | None = None,
) -> tuple[str, Path]:
    """Trains a new run; returns its status ('finished', 'diverged', 'pruned') and its folder.

    `config` has the device, precision and threads of this machine. The folder is `path`, or, if it
    exists, `path` with a number. `sha256` is the checksum that the text must have. `cell` holds facts
    about the sweep for metrics.json. `tokenizer` is that of the run that is replayed, `init_sha256`
    the checksum of the weights from which that run started. If the run needs several processes, they
    are started. Raises UserError before it makes a folder.
    """
    if launch.is_needed(config.device):
        arguments = (config, path, command, sha256, cell, watch, tokenizer, init_sha256)
        with noting_ranks(is_cell=cell is not None) as notice:
            status, path = launch.launch(config.device, run, *arguments, notice=notice)
        return status, path
    start = load_start(config.run.init_from)
    other = ""
    if start:
        check_start(start, init_sha256)
        tokenizer = start.tokenizer
        other = other_tokens(config, start)
    prepared = Prepared(config, tokenizer, sha256)
    facts = dict(cell or {})
    source = None
    unknown = ""
    if start:
        inherit(prepared.model, start)
        facts["init_sha256"] = start.sha256
        if not start.is_foreign:  # else there is no text to come back to
            try:
                facts["source_sha256"] = text_sha256(read_metrics(start.path), start.path)
                source = start.config.as_saved()
            except UserError:  # its weights are as good as ever
                unknown = f"{start.path / 'metrics.json'} does not say which text that run has read"
    elif not prepared.text.tokenizer.per_character:
        facts["tokenizer_sha256"] = prepared.text.tokenizer.sha256()
    if prepared.text.dropped:
        facts["left_out"] = prepared.text.dropped
    facts |= first_facts(prepared, command)
    with (
        disk_errors(path),
        closing(
            RunDirectory.create(path, prepared.saved_config, prepared.text.tokenizer, facts, source)
        ) as directory,
    ):
        distributed.note_folder(directory.typed)
        directory.say(summary.introduction(prepared, directory.typed))
        for line in summary.left_out(prepared.text):
            directory.warn(line)
        if prepared.warning:
            directory.warn(prepared.warning)
        if other:
            directory.warn(other)
        if unknown:
            directory.warn(f"val/loss_source is not tracked: {unknown}")
        return train(directory, prepared, watch=watch), directory.typed


@folder_kept()
def first_facts(prepared: Prepared, command: str) -> dict[str, Any]:
    """Returns the entries of metrics.json before the first step of a run."""
    return {
        "status": "running",
        "started": time.time(),
        "working_folder": str(Path.cwd()),
        "seed": prepared.run.seed,
        "n_params": sum(weight.numel() for weight in prepared.model.parameters()),
        "data_sha256": prepared.text.sha256,
        **own_rule(prepared.config),
        "flops_per_token": prepared.model.flops_per_token(),
        **with_prefix("config/", prepared.saved_config),
        **provenance(command),
    }


@isolated()
@plugins.exits_as_errors()
def resume(path: Path, config: Config, command: str, watch: Watch | None = None) -> str:
    """Resumes the run at `path` as if it had never stopped; returns its status.

    `config` is the run's configuration; keys that may change may have new values. Raises UserError.
    """
    with keeping_device(path):
        device = machine.devices_of(config)
    if launch.is_needed(device):
        with noting_ranks(path):
            status: str = launch.launch(device, resume, path, config, command, watch)
        return status
    with disk_errors(path), closing(RunDirectory(path)) as directory:
        tokenizer = read_tokenizer(path)
        metrics = read_metrics(path)
        asked = other_values(path, config)
        with keeping_device(path):
            config = machine.resolve(config)
        check_plugins(path, metrics)
        checkpoint = checkpoints.latest(path, config, tokenizer, directory.say)
        saved = checkpoint["lmlab"] if checkpoint else None
        check_resumable(path, metrics, saved)
        has_steps = config.model.has_steps
        over = saved is not None and is_over(saved, config, has_steps)
        if saved is not None and over and is_complete(metrics, config):
            can_go_on = has_steps and "cell" not in metrics  # a cell is identified by its end, too
            directory.say(finished_already(path, saved, config.run, can_go_on, asked))
            return "finished"
        start = saved or state.UNTRAINED | {
            "data_sha256": text_sha256(metrics, path),
            "metrics": metrics,
        }
        directory.check_history(start["history_bytes"])
        step = start["step"]
        if not over and step >= config.run.max_steps and "waiting" not in start:
            raise UserError(
                f"max_steps={config.run.max_steps}: the run has already made {step} steps; needs a "
                "larger number"
            )
        prepared = Prepared(config, tokenizer, start["data_sha256"])
        if checkpoint:
            last = path / "checkpoints/last.ckpt"
            check_callbacks(checkpoint, prepared, config, last)
            restore(checkpoint, prepared, over, last)
            del checkpoint  # Lightning reads it again, and no more memory than that is needed
        else:
            parent = load_start(prepared.run.init_from)
            if parent:
                inherit(prepared.model, parent)
        with staying_finished(directory.path, metrics, start["history_bytes"]):
            directory.metrics = start["metrics"]
            if config != read_config(path):
                write_config(path, prepared.saved_config)
            directory.rewind(start["history_bytes"], start.get("events"))
            where = f" at step {step} of {config.run.max_steps}" if has_steps else ""
            changes = note_resumption(directory, prepared.flat_config, provenance(command), step)
            directory.say(f"{path}: continues{where}{changes}")
            return train(directory, prepared, saved, over, watch)


@contextmanager
def noting_ranks(path: Path | None = None, is_cell: bool = False) -> Iterator[launch.Notice]:
    """A context in which the error of a rank is noted in the folder of the run at `path`.

    Rank 0, which writes there, has ended with the others, and did not know which of them was at
    fault. A new run tells its folder by the notice. For a run by itself the error says how it goes
    on.
    """
    notice = launch.Notice(path)
    try:
        yield notice
    except SystemExit:
        if notice.folder is not None and not notice.has_result:
            with suppress(UserError):  # on a full disk, or in a folder that was damaged meanwhile
                note_signal(notice.folder, is_cell)
        raise
    except UserError as error:
        path = notice.folder
        if path is None or not (path / "metrics.json").exists():
            raise
        metrics = read_metrics(path)
        is_fault = not isinstance(error, launch.RankFailed)
        if metrics.get("status") == "interrupted":
            metrics |= {"status": "failed" if is_fault else "interrupted", "reason": str(error)}
            with suppress(UserError):  # on a full disk
                files.write(path / "metrics.json", to_json(metrics, indent=2).encode())
        if is_fault or is_cell or not (path / checkpoints.LAST).exists():
            raise
        raise UserError(
            f"{error}; to continue from the last checkpoint: {command_of('train', resume=path)}"
        ) from None


def note_signal(path: Path, is_cell: bool) -> None:
    """Notes that a signal has ended the run at `path`, which rank 0 could not, and says how it goes on.

    A finished run that was to be made longer stays as it is.
    """
    metrics = read_metrics(path)
    if metrics.get("status") != "interrupted":  # as which it is read if it says running
        return
    files.write(path / "metrics.json", to_json(metrics, indent=2).encode())
    if not is_cell:
        print(f"interrupted; to continue: {command_of('train', resume=path)}")


@contextmanager
def staying_finished(path: Path, metrics: Mapping[str, Any], rewound: int) -> Iterator[None]:
    """A context that leaves a finished run as it was if going on fails before anything is trained.

    `rewound` is the length of history.jsonl at the checkpoint, from which the run goes on.
    """
    history = path / "history.jsonl"
    config, noted = (
        files.read(path / name, LIMITS[name]) for name in ("config.yaml", "metrics.json")
    )
    ends = {file: end_of(file) for file in (history, *path.glob(EVENTS))}
    try:
        yield
    except Exception:
        if metrics.get("status") == "finished" and history.stat().st_size <= rewound:
            with suppress(UserError, OSError):  # on a full disk
                files.write_sealed(path / "config.yaml", config)
                files.write(path / "metrics.json", noted)
                for file, (size, end) in ends.items():
                    cut = size - file.stat().st_size
                    if 0 < cut <= len(end):
                        with open(file, "ab") as appended:
                            appended.write(end[-cut:])
        raise


def end_of(file: Path) -> tuple[int, bytes]:
    """Returns the size of a file, and its last bytes, which the end of a training has written."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        opened.seek(max(0, size - END_BYTES))
        return size, opened.read()


@contextmanager
def keeping_device(path: Path) -> Iterator[None]:
    """A context in which the error of a machine without the device says what the run can do."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error}. The run at {path} keeps its device; a new run on another one can start from "
            f"its weights: init_from={path}"
        ) from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns OSErrors, such as a full disk, into UserErrors. Files saved before are intact.

    Those of a plug-in's own code stay as they are, since they are about files of its own.
    """

    def hook(thread: threading.ExceptHookArgs) -> None:
        """Prints no traceback for an OSError; TensorBoard raises it again at its next call."""
        if not issubclass(thread.exc_type, OSError):
            hook_before(thread)

    hook_before = threading.excepthook
    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if plugins.own_frames(error):
            raise
        raise UserError(system_error(error, path)) from None
    finally:
        threading.excepthook = hook_before


def train(
    directory: RunDirectory,
    prepared: Prepared,
    saved: dict[str, Any] | None = None,
    over: bool = False,
    watch: Watch | None = None,
) -> str:
    """Trains to the end and returns the status. Other ranks, if there are any, take part.

    `saved` is the entry of the checkpoint to start from. `over` means that the training is complete
    and only the results are missing.

    Raises SystemExit(128 + n) after signal n.
    """
    if not over:
        distributed.lead(directory, prepared, saved, take_part)
    with StopSignals(distributed.message(launch.STOPPING)) as stop:
        with noting_failures(directory), plugins.exits_as_errors():
            subject = prepared.subject(source_text(directory, prepared.text.tokenizer))
            ending = learn(directory, prepared, subject, stop, saved, over, watch)
            directory.update(status=ending.status, **ending.totals)
        run = prepared.run
        if ending.status == "finished" and 0 < ending.step < run.max_steps:
            reason = ending.reason or f"max_minutes={run.max_minutes:g}"
            directory.say(f"{reason}: over at step {ending.step} of {run.max_steps}")
        say_results(directory, subject, ending, stop)
    if stop.number is not None:
        raise SystemExit(128 + stop.number)
    return ending.status


@isolated()
@plugins.exits_as_errors()
def take_part(task: distributed.Task) -> None:
    """Trains as one of the ranks that rank 0 leads. It writes nothing."""
    with shortened(task.longest):
        prepared = Prepared(task.config, task.tokenizer, task.sha256)
    ranks.here().wait()
    directory = SilentDirectory(task.path, task.metrics)
    with StopSignals("") as stop, plugins.exits_as_errors():
        subject = prepared.subject(source_text(directory, prepared.text.tokenizer))
        learn(directory, prepared, subject, stop, task.saved, False, None)


def learn(
    directory: AnyDirectory,
    prepared: Prepared,
    subject: Subject,
    stop: StopSignals,
    saved: dict[str, Any] | None,
    over: bool,
    watch: Watch | None,
) -> Ending:
    """Makes the steps of a run, or counts, and writes all numbers; `train` explains the rest."""
    identity = {
        "config": prepared.flat_config,
        "tokenizer": prepared.text.tokenizer.to_json(),
        "data_sha256": prepared.text.sha256,
    }
    if prepared.batches is None:
        return count(
            directory, subject, identity, stop, saved if over else None, prepared.companions
        )
    recorder = Recorder(
        directory,
        prepared.run,
        subject,
        identity,
        stop,
        saved,
        watch,
        prepared.companions,
        prepared.callbacks,
        ranks.here(),
    )
    if over:
        recorder.close_finished()
    else:
        first = recorder.meter.step * prepared.run.grad_accumulation
        module = LanguageModule(
            prepared.model,
            prepared.optimizer,
            prepared.run,
            prepared.precision,
            prepared.device,
            ranks.here(),
            first,
        )
        batches = BatchModule(prepared.batches, first)
        make_steps(recorder, module, batches, prepared, directory, saved is not None)
    return recorder.ending()


def say_results(
    directory: RunDirectory, subject: Subject, ending: Ending, stop: StopSignals
) -> None:
    """Prints the results of a run, its sample, and the losses of counting on the same text.

    After a signal the sample and the losses of counting are left out; `resume=` adds the losses.
    """
    if ending.status == "interrupted":
        directory.say(
            f"interrupted at step {ending.step}; to continue: {resume_command(directory)}"
        )
        return
    sample = ""
    try:
        with stop.interrupting():
            if ending.status == "finished":
                add_references(directory, subject)
            if ending.status != "diverged":
                sample = final_sample(directory, subject)
    except Interrupted:
        sample = (
            f"(stopped before all results were there; to add them: {resume_command(directory)})"
        )
    unit = subject.tokenizer.unit
    directory.say(summary.results(directory.metrics, ending.status, sample, unit))
    directory.say(summary.whereabouts(directory.typed, subject.model.has_page))


def final_sample(directory: RunDirectory, subject: Subject) -> str:
    """Returns the sample at the end of a run. A failure is only a warning."""
    try:
        with plugins.exits_as_errors():
            return evaluations.draw_sample(subject, SAMPLE)
    except Exception as error:
        directory.warn(f"no sample: {plugins.explained('sample', error)}")
        return ""


def add_references(directory: RunDirectory, subject: Subject) -> None:
    """Writes the losses of models that count the same text. A failure is only a warning."""
    try:
        with after_a_second(partial(directory.say, COUNTING)):
            counted = references(subject.text)
    except Exception as error:
        why = plugins.explained("references", error)
        directory.warn(f"no losses of counting to compare with: {why}")
        return
    directory.update(**counted)


@contextmanager
def noting_failures(directory: RunDirectory) -> Iterator[None]:
    """Writes to metrics.json that a run was interrupted or failed, and raises the error again."""

    def note(status: str, **facts: str) -> None:
        with suppress(UserError):  # on a full disk the status cannot be written either
            directory.update(status=status, **facts)

    def note_stop() -> None:
        note("interrupted")
        directory.say(f"stopped; to continue from the last checkpoint: {resume_command(directory)}")

    try:
        yield
    except KeyboardInterrupt:
        note_stop()
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit:
        note_stop()
        raise
    except ranks.LostContact as error:
        note("interrupted", reason=str(error))
        raise
    except BaseException as error:
        note("failed", reason=reason_of(error))
        explained = isinstance(error, UserError | OSError) and not plugins.own_frames(error)
        has_checkpoint = (directory.path / checkpoints.LAST).exists()
        if explained and has_checkpoint and "cell" not in directory.metrics:
            with suppress(UserError, OSError):  # on a full disk train.log cannot be written
                directory.say(
                    f"failed; to continue from the last checkpoint: {resume_command(directory)}"
                )
        raise


def resume_command(directory: RunDirectory) -> str:
    """Returns the command that resumes the run."""
    return command_of("train", resume=directory.typed)


def make_steps(
    recorder: Recorder,
    module: LanguageModule,
    batches: BatchModule,
    prepared: Prepared,
    directory: AnyDirectory,
    resumed: bool,
) -> None:
    """Lets Lightning make the steps, starting at the checkpoint if the run is resumed."""
    last = directory.path / "checkpoints/last.ckpt"
    max_steps = prepared.run.max_steps
    if recorder.waiting is not None:
        max_steps += 1  # Lightning would not even begin after the last step
    try:
        with plugins.exits_as_errors(), after_stops(recorder.meter.leave_out_stop):
            trainer(recorder, prepared, max_steps).fit(
                module, batches, ckpt_path=last if resumed else None, weights_only=True
            )
            recorder.check_end()
    except BaseException as error:
        with suppress(UserError):  # on a full disk nothing can be written
            directory.update(**recorder.totals())
        if isinstance(error, SystemExit | KeyboardInterrupt):  # Lightning makes Ctrl-C an exit(1)
            raised = error.__context__
            if isinstance(raised, KeyboardInterrupt) and plugins.is_exit_of_own_code(raised):
                why = plugins.exit_of(raised)
                raise RuntimeError(why).with_traceback(raised.__traceback__) from None
            raise SystemExit(128 + (recorder.stop.number or signal.SIGINT)) from None
        failed = companions.failed_one(error, prepared.callbacks)
        if failed and not plugins.own_frames(error):
            why = f"callback {failed}: {reason_of(error)}"
            raise UserError(f"{plugins.named_plugins()}{why}") from error
        is_of_ranks = ranks.here().size > 1 and not plugins.own_frames(error)
        if is_of_ranks and ranks.is_lost(error):
            raise ranks.lost_contact(error) from None
        if recorder.started or not resumed or isinstance(error, OSError | UserError):
            raise
        if plugins.own_frames(error):  # it is no fault of the checkpoint
            raise
        raise UserError(f"{last}: cannot be restored ({error!r})") from error


def trainer(recorder: Recorder, prepared: Prepared, max_steps: int) -> pl.Trainer:
    """Returns Lightning's Trainer. Everything that the Recorder does is switched off in it."""
    mute_lightning()
    spare_memory_filling()
    device = prepared.device
    check = Resumable(prepared) if PRESENT else None
    keys = prepared.config.device
    is_one_of_several = ranks.here().size > 1
    with variables_hidden(TRAINERS) as found:
        if found and ranks.here().rank == 0:
            names = " ".join(found)
            tell(f"warning: {names}: has no effect; the lab's keys say how a run is trained")
        made = pl.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=keys.per_node if is_one_of_several else 1,
            num_nodes=keys.nodes if is_one_of_several else 1,
            strategy=distributed.strategy(prepared) if is_one_of_several else "auto",
            callbacks=[*recorder.callbacks, recorder],
            deterministic=device == "cpu",
            max_epochs=-1,
            max_steps=max_steps,
            profiler=NoProfiler(),
            plugins=[
                SealedCheckpointIO(prepared.model.largest_checkpoint(), check),
                distributed.environment(),
            ],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    leave_signals_alone(made)
    return made
