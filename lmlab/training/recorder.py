"""Decides after each step whether a point, an evaluation, a checkpoint or the end is due."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor

from lmlab import plugins
from lmlab.config.keys import RunConfig
from lmlab.errors import UserError
from lmlab.inference import evaluations
from lmlab.inference.evaluations import Detail, Subject
from lmlab.isolation import set_random_state
from lmlab.models.base import evaluating
from lmlab.numbers import EXCERPT_LOSS, EXCERPT_TOKENS
from lmlab.ranks import ALONE, Ranks
from lmlab.runs import checkpoints
from lmlab.runs.board import Board
from lmlab.runs.folder import AnyDirectory
from lmlab.signals import Interrupted, StopSignals
from lmlab.training import state
from lmlab.training.companions import Hooks, loggers
from lmlab.training.meter import Meter
from lmlab.training.results import Results
from lmlab.training.step import LanguageModule, no_early_end

RATE = (
    "a callback has changed the optimizer's lr, which has no effect: schedule= sets it before each "
    "step, and register.schedule adds one"
)
PICTURES = 5  # of attention, after the one of step 0
LIGHTNINGS = ("state_dict", "loops", "optimizer_states", "callbacks")  # entries of a checkpoint

# From a step and the numbers of its evaluation: whether the run shall continue.
Watch = Callable[[int, Mapping[str, float]], bool]


@dataclass(frozen=True)
class Due:
    """The actions that are due after a step."""

    point: bool
    evaluation: bool
    checkpoint: bool
    end: bool


class Schedule:
    """Computes what is due after a step, from the intervals of `run`."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        evaluations_in_all = math.ceil(run.max_steps / run.eval_interval)
        every = max(1, math.ceil(evaluations_in_all / PICTURES))
        self.picture_interval = every * run.eval_interval
        self.saved_at = time.monotonic()

    def due(self, step: int, is_late: bool, is_overdue: bool = False) -> Due:
        """Returns the actions that are due after `step` steps.

        `is_late` says that the time of the run is over, and `is_overdue` that of a checkpoint.
        """
        run = self.run
        end = step >= run.max_steps or is_late
        evaluation = end or step % run.eval_interval == 0
        at_interval = step % run.checkpoint_interval == 0
        return Due(
            point=evaluation or step % run.log_interval == 0,
            evaluation=evaluation,
            checkpoint=end or at_interval or is_overdue,
            end=end,
        )

    def is_out_of_time(self, seconds: float) -> bool:
        """Returns whether `max_minutes` of training are over."""
        minutes = self.run.max_minutes
        return minutes is not None and seconds >= 60 * minutes

    def is_overdue(self) -> bool:
        """Returns whether the last checkpoint was written `checkpoint_minutes` ago."""
        minutes = (time.monotonic() - self.saved_at) / 60
        return minutes >= self.run.checkpoint_minutes

    def evaluates_after(self, step: int) -> bool:
        """Returns whether an evaluation follows `step`, if this is known in advance."""
        return step % self.run.eval_interval == 0 or step == self.run.max_steps

    def draws_attention(self, step: int) -> bool:
        """Returns whether the evaluation after `step` draws attention, which takes long."""
        return step % self.picture_interval == 0

    def checkpoint_saved(self) -> None:
        """Restarts the clock of `checkpoint_minutes`."""
        self.saved_at = time.monotonic()


@dataclass(frozen=True)
class Ending:
    """How a run has ended: 'finished', 'diverged', 'pruned', or 'interrupted' by `signal`."""

    status: str
    step: int
    totals: dict[str, float]
    """What metrics.json says of all steps together."""

    signal: int | None = None
    reason: str = ""
    """Why a callback has ended the run, in words."""


class Recorder(Callback):
    """Decides after each step which actions are due, and calls the functions that do them.

    `subject` is what all evaluations look at. `identity` holds the facts that tell which run a
    checkpoint belongs to. `saved` is the `lmlab` entry of the checkpoint to resume from. `watch` is
    called after an evaluation and returns whether to continue. After a signal that `stop` receives
    the run ends: with the step that is being made, or in the middle of an evaluation, which the
    resumed run then repeats. `companions` are the keys of callbacks and loggers, by their names;
    `callbacks` are called before the Recorder itself. Several `ranks` have a Recorder each, and all
    decide alike; that of rank 0 writes.
    """

    def __init__(
        self,
        directory: AnyDirectory,
        run: RunConfig,
        subject: Subject,
        identity: dict[str, Any],
        stop: StopSignals,
        saved: dict[str, Any] | None = None,
        watch: Watch | None = None,
        companions: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.callbacks = [*callbacks]
        self.hooks = Hooks(self.callbacks)
        self.directory = directory
        self.subject = subject
        self.identity = identity
        self.saved = saved
        self.watch = watch
        self.schedule = Schedule(run)
        flops_per_token = directory.metrics.get("flops_per_token", 0)
        self.meter = Meter(run, subject.block_size, flops_per_token, directory.console, saved)
        self.stop = stop
        boards: list[Any] = []
        if ranks.leads:
            board = Board(directory.path, directory.warn, state.first_new_step(saved))
            boards = [board, *loggers(directory.path, companions or {}, directory.warn)]
        self.results = Results(directory, boards, (saved or state.UNTRAINED)["best"])
        self.before: dict[str, Tensor] = {}  # the matrices before a step that is measured
        self.waiting: dict[str, float] | None = (saved or {}).get("waiting")  # see `state.entry`
        self.started = False  # whether a step was made
        self.last = False  # whether the step was the run's last
        self.diverged = False
        self.pruned = False
        # By a callback. Of a resumed run: if that was to end after one step more.
        self.asked_to_end = bool(saved and saved.get("ended_by_callback") and not saved["last"])
        self.stopping = False  # after a signal that any rank has received
        self.end_reason = ""
        self.rate_was_told = False  # that changing it has no effect
        self.rate_in_step_was_told = False
        self.unscored_was_told = False

    # Lightning calls these

    def on_fit_start(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        """Notes the wish of a callback to end the run, which Lightning would not hear yet."""
        self.note_wish(trainer)

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        """Restores the state that Lightning does not save, or evaluates the untrained model."""
        self.note_wish(trainer)
        self.stop.listen()  # Lightning has just set its own handlers
        self.meter.bar.start()
        self.schedule.checkpoint_saved()
        if self.saved:
            if trainer.global_step != self.meter.step:
                raise ValueError("its parts are of different steps")
            module.loss_sum.fill_(self.own_loss_sum(self.saved))
            module.losses = self.saved["losses"]
            set_random_state(self.saved["random_state"])
        self.results.describe(self.identity["config"], self.meter.step)
        if self.waiting is not None:
            late, _ = self.agree(self.schedule.is_out_of_time(self.meter.seconds()))
            self.last = self.schedule.due(self.meter.step, late).end
        if self.saved is None or self.waiting is not None:
            self.evaluate(trainer, module)
            self.note_logged(module)
            self.save(trainer, module)
        module.logged = {}  # of a resumed run: what is logged at its start, the whole run would lack
        self.keep_matrices(module)
        self.meter.start()
        self.agree()
        trainer.should_stop = self.last or self.pruned or self.stopping

    def own_loss_sum(self, saved: Mapping[str, Any]) -> float:
        """Returns the sum of losses with which this rank goes on from a checkpoint."""
        of_ranks = saved.get("loss_sums", ())
        if len(of_ranks) == self.ranks.size:
            return float(of_ranks[self.ranks.rank])
        return float(saved["loss_sum"])

    def agree(self, is_late: bool = False, is_overdue: bool = False) -> tuple[bool, bool]:
        """Lets all ranks take the wishes and signals of each for their own.

        `is_late` says that the time of the run is over, and `is_overdue` that of a checkpoint, by the
        clock of this rank. Returns what is true for all.
        """
        votes = (self.asked_to_end, is_late, is_overdue)
        ended, late, overdue, number = self.ranks.agree(*map(int, votes), self.stop.number or 0)
        self.asked_to_end = bool(ended)
        if number:  # else a signal may have come meanwhile
            self.stopping = True
            self.stop.number = number
        return bool(late), bool(overdue)

    def on_train_epoch_start(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        """Raises UserError for a second epoch: the batches of the first have no end."""
        if trainer.current_epoch > 0:
            raise UserError(
                f"{plugins.named_plugins()}a callback has raised StopIteration, which ends the epoch"
            )
        if not (self.last or self.pruned or self.stopping):  # else the wish is the Recorder's own
            self.note_wish(trainer)

    def note_wish(self, trainer: Trainer) -> None:
        """Notes whether a callback wants to end the run. It ends after the next step, as any other."""
        self.asked_to_end |= trainer.should_stop
        trainer.should_stop = False

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:  # type: ignore[override]  # our module
        """Does the actions that are due after a step."""
        self.note_wish(trainer)
        if trainer.global_step == self.meter.step:
            return  # one of several batches of a step
        self.started = True
        self.meter.step = trainer.global_step
        late, overdue = self.agree(
            self.schedule.is_out_of_time(self.meter.seconds()), self.schedule.is_overdue()
        )
        due = self.schedule.due(self.meter.step, late, overdue)
        if self.asked_to_end:
            due = Due(point=True, evaluation=True, checkpoint=True, end=True)
        self.last = due.end
        if due.point:
            self.note_point(trainer, module)
        if due.evaluation or due.checkpoint or self.stopping:
            with self.meter.paused(module):  # what is done here is no training time
                if due.evaluation:
                    self.evaluate(trainer, module)
                self.note_logged(module)
                # asked once: a signal that comes while saving waits for the next step
                self.agree()
                if due.checkpoint or self.stopping or self.last:
                    self.save(trainer, module)
        self.note_logged(module)
        self.keep_matrices(module)
        trainer.should_stop = self.last or self.diverged or self.pruned or self.stopping

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        module: LanguageModule,  # type: ignore[override]  # our module
        checkpoint: dict[str, Any],
    ) -> None:
        """Adds the state that an exact resume needs and Lightning does not save.

        Raises UserError if a callback has taken out what Lightning saves.
        """
        missing = [name for name in LIGHTNINGS if name not in checkpoint]
        if missing:
            raise UserError(
                f"{plugins.named_plugins()}a callback's on_save_checkpoint has taken {', '.join(missing)} out of "
                "the checkpoint, which a run cannot be resumed without"
            )
        checkpoint["lmlab"] = state.entry(
            self.identity,
            self.directory,
            module.device.type,
            step=self.meter.step,
            last=self.last,
            best=self.results.best,
            train_seconds=self.meter.train_seconds,
            train_loss=self.meter.train_loss,
            **self.loss_sums(module),
            losses=module.losses,
            **({} if self.waiting is None else {"waiting": self.waiting}),
            **({"ended_by_callback": True} if self.asked_to_end else {}),
        )

    def loss_sums(self, module: LanguageModule) -> dict[str, Any]:
        """Returns the sum of losses, and if there are several ranks those of each.

        Raises UserError if their weights are no longer the same.
        """
        if self.ranks.size == 1:
            return {"loss_sum": module.loss_sum.item()}
        self.check_equal(module)
        sums = self.ranks.gather(module.loss_sum.item())
        return {"loss_sum": sum(sums) / len(sums), "loss_sums": sums}

    def check_equal(self, module: LanguageModule) -> None:
        """Raises UserError unless all ranks have the same weights. It compares their sums."""
        own = sum(float(weight.detach().double().sum()) for weight in module.parameters())
        sums = self.ranks.gather(own)
        for rank, other in enumerate(sums):
            are_no_numbers = math.isnan(other) and math.isnan(sums[0])
            if other != sums[0] and not are_no_numbers:
                raise UserError(
                    f"{plugins.named_plugins()}after step {self.meter.step} rank {rank} has other weights than "
                    "rank 0: all of them must change the weights alike, without random numbers or times "
                    "of their own"
                )

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        module: LanguageModule,  # type: ignore[override]  # our module
        checkpoint: dict[str, Any],
    ) -> None:
        """Makes a checkpoint of the lab's version 0.1 fit this version."""
        state.move_step_count(checkpoint)

    def on_exception(self, *_: object) -> None:
        self.meter.stop()
        self.meter.stop_drawing()
        self.results.close()

    # What is done when it is due

    def note_point(self, trainer: Trainer, module: LanguageModule) -> None:
        """Writes a point of the training curves, and checks that the loss is finite."""
        self.keep_threads()
        if module.rate_was_changed and not self.rate_was_told:
            self.rate_was_told = True
            self.directory.warn(f"{plugins.named_plugins()}{RATE}")
        if module.rate_in_step is not None and not self.rate_in_step_was_told:
            self.rate_in_step_was_told = True
            self.directory.warn(
                f"{plugins.named_plugins()}the optimizer has set lr={module.rate_in_step:g} in its own "
                "step, in the place of what schedule= had set; the curve of lr shows the optimizer's"
            )
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        has_loss = module.losses > 0
        numbers, others = self.meter.point(module, lr)
        self.results.add_point(self.meter.step, numbers, others)
        self.diverged = has_loss and not math.isfinite(self.meter.train_loss)
        if not has_loss and not self.unscored_was_told:
            self.unscored_was_told = True
            self.directory.warn(
                f"step {self.meter.step}: no token of the last steps was scored, so train/loss is nan; it "
                "is once more a number when one is (a larger batch_size or log_interval has some)"
            )

    def keep_threads(self) -> None:
        """Sets the number of threads of the run again, if somebody's own code has set another one."""
        threads = self.schedule.run.threads
        found = torch.get_num_threads()
        if threads and found != threads:
            torch.set_num_threads(threads)
            self.directory.warn(
                f"{plugins.named_plugins()}torch.set_num_threads({found}) was called: threads={threads} stands "
                f"again after step {self.meter.step}; the last bits of the losses before it may be others"
            )

    @no_early_end()
    def evaluate(self, trainer: Trainer, module: LanguageModule) -> None:
        """Evaluates the model, writes the values, and saves best.ckpt at the lowest val/loss."""
        if not self.is_finite(module):
            return
        for buffer in module.model.buffers():  # training may change those of a person's own model
            self.ranks.copy_first(buffer)
        step = self.meter.step
        slow = self.last or self.schedule.draws_attention(step)
        subject = replace(
            self.subject, step=step, before=self.before, with_attention=slow, is_last=self.last
        )
        # Of the weights that were trained; a callback may let other weights be evaluated.
        ratios = self.update_ratios(subject)
        subject = replace(subject, before={})
        with evaluating(module):  # for the hooks, too, as Lightning does
            self.hooks.before(trainer, module)
            values, fault = self.values_of(subject, ratios)
            if fault is None:
                self.hooks.after(trainer, module, evaluations.numbers_of(values))
        if fault is not None:
            self.hooks.broken_off(trainer, module, fault)
            if isinstance(fault, Interrupted):
                self.waiting = {name: float(ratio) for name, ratio in ratios.items()}
            else:
                self.diverged = True
            return
        (asked,) = self.ranks.agree(int(trainer.should_stop))
        if asked:  # after one step more if there was none yet, or if this was of an excerpt
            self.asked_to_end = True
            self.last = step > 0 and EXCERPT_TOKENS not in values
        values |= {name: Detail(ratio) for name, ratio in (self.waiting or {}).items()}
        self.waiting = None
        self.before = {}
        best_path = self.directory.path / "checkpoints/best.ckpt"
        numbers = self.results.add_evaluation(
            step,
            values,
            self.totals(),
            train_loss=None if step == 0 else self.meter.train_loss,
            save_best=lambda: trainer.save_checkpoint(best_path),
        )
        if self.watch and not self.last:
            self.pruned = not self.watch(step, numbers)
        (pruned,) = self.ranks.agree(int(self.pruned))
        self.pruned = bool(pruned)

    def values_of(
        self, subject: Subject, ratios: Mapping[str, Any]
    ) -> tuple[dict[str, Any], BaseException | None]:
        """Returns the values of an evaluation, or why there are none: Interrupted or NotFinite.

        Several ranks compute the losses together, and rank 0 all else. The others get its numbers.
        """
        values: dict[str, Any] = {}
        fault: BaseException | None = None
        try:
            with self.meter.evaluating():
                if self.ranks.size > 1:
                    subject = evaluations.compute_together(
                        subject, self.ranks, lambda: self.stop.came
                    )
                if self.ranks.leads:
                    with self.stop.interrupting():
                        values = evaluations.evaluate(subject, self.directory.warn)
                        values |= self.whole_loss_of_best(subject, values)
        except (Interrupted, evaluations.NotFinite) as error:
            fault = error
        if self.ranks.size > 1:
            of_leader = self.ranks.share((evaluations.numbers_of(values), fault))
            if not self.ranks.leads:
                values, fault = of_leader
        return {**values, **ratios}, fault

    def whole_loss_of_best(
        self, subject: Subject, values: Mapping[str, Any]
    ) -> Mapping[str, float]:
        """Returns best/val/loss and its like on the whole text, at the end of a run.

        They are there if they are known of an excerpt alone. A failure is only a warning.
        """
        known = self.directory.metrics.get(f"best/{EXCERPT_TOKENS}")
        if not known or values.get(EXCERPT_LOSS, -math.inf) < self.results.best:
            return {}
        try:
            best = checkpoints.load(self.directory.path, "best", choice=subject.model.device.type)
            numbers = evaluations.loss_on(replace(subject, model=best.model), "val")
        except Exception as error:
            why = plugins.explained("best.ckpt", error)
            self.directory.warn(f"best/val/loss is that of {known:,} tokens: {why}")
            return {}
        return {f"best/{name}": value for name, value in numbers.items()}

    def update_ratios(self, subject: Subject) -> Mapping[str, Any]:
        """Returns how much the last step changed each matrix. A failure is only a warning."""
        try:
            return evaluations.update_ratios(subject)
        except Exception as error:
            why = plugins.explained("update_ratio", error)
            self.directory.warn(f"no update_ratio of this step: {why}")
            return {}

    def save(self, trainer: Trainer, module: LanguageModule) -> None:
        """Saves last.ckpt, from which the run can resume without any difference."""
        if not self.is_finite(module):
            return
        self.directory.update(**self.totals())
        self.results.flush()
        trainer.save_checkpoint(self.directory.path / "checkpoints/last.ckpt")
        self.schedule.checkpoint_saved()

    def note_logged(self, module: LanguageModule) -> None:
        """Writes the numbers that callbacks have logged at this step."""
        if module.logged:
            numbers = {name: float(value) for name, value in module.logged.items()}
            module.logged = {}
            self.results.warn_of_infinite(numbers)
            self.results.add_point(self.meter.step, numbers, {})

    def totals(self) -> dict[str, float]:
        """Returns what metrics.json says of all steps together.

        Before the first step the counts of a resumed run's callbacks stand there already.
        """
        totals = self.meter.totals()
        if self.started:
            for callback in self.callbacks:
                totals |= getattr(callback, "lmlab_totals", dict)()
        return totals

    def keep_matrices(self, module: LanguageModule) -> None:
        """Copies the matrices if an evaluation, which measures their change, comes next."""
        if not self.schedule.evaluates_after(self.meter.step + 1):
            return
        try:
            weights = evaluations.matrices(module.model)
            self.before = {name: weight.clone() for name, weight in weights}
        except Exception as error:
            why = plugins.explained("update_ratio", error)
            self.directory.warn(f"no update_ratio of the next step: {why}")

    def is_finite(self, module: LanguageModule) -> bool:
        """Returns whether loss and weights are finite. If not, nothing is evaluated or saved.

        Also sets `diverged`.
        """
        if not all(torch.isfinite(weight).all() for weight in module.parameters()):
            self.diverged = True
        (diverged,) = self.ranks.agree(int(self.diverged))
        self.diverged = bool(diverged)
        return not self.diverged

    # How it ends

    @property
    def status(self) -> str:
        """'finished', 'diverged', 'pruned', or 'interrupted' before any of these."""
        if self.diverged:
            return "diverged"
        if self.pruned:
            return "pruned"
        if self.last and self.waiting is None:
            return "finished"
        return "interrupted"

    def check_end(self) -> None:
        """Raises UserError if the steps have ended although nothing has asked for it."""
        asked = self.last or self.diverged or self.pruned or self.stopping or self.stop.came
        if not asked and self.waiting is None:
            raise UserError(
                f"{plugins.named_plugins()}a callback has ended Lightning's loop after step {self.meter.step} of "
                f"{self.schedule.run.max_steps}, and nothing was saved there; trainer.should_stop = True ends a run"
            )

    def ending(self) -> Ending:
        """Returns the status at the end of the run, and the signal that stopped it."""
        return Ending(
            self.status, self.meter.step, self.totals(), self.stop.number, self.end_reason
        )

    def on_train_end(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        if self.asked_to_end:
            self.end_reason = module.end_reason
        self.note_logged(module)
        self.close()

    def close_finished(self) -> None:
        """Ends a run whose steps were all made before; only its results may be missing."""
        self.last = True
        self.close()

    def close(self) -> None:
        """Stops clock and bar, and ends the results."""
        self.meter.stop()
        self.meter.stop_drawing()
        self.results.end(self.status, self.identity["config"], self.meter.step)
