"""A search instead of a grid: Optuna proposes, cells answer. The study's database is what all
processes share.
"""

import fcntl
import json
import time
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmlab.catalogue import NUMBERS
from lmlab.config.keys import SearchConfig, kind_of
from lmlab.config.overrides import ends, parse, resolved
from lmlab.errors import UserError, one_line_errors
from lmlab.sweep import study
from lmlab.sweep.cells import Cell, Sweep
from lmlab.sweep.launcher import LocalLauncher

if TYPE_CHECKING:
    import optuna


class SearchSweeper(Sweeper):
    """Hydra's sweeper, hydra/sweeper=search; settings as in conf/hydra/sweeper/search.yaml."""

    def __init__(self, **settings: Any) -> None:
        self.settings = SearchConfig(**settings)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.sweep_of: Sweep = task_function.sweep
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Trials until the study has `n_trials`. What a dead process left behind is taken up."""
        with one_line_errors():
            self.begin([parse(text) for text in arguments])
        with open(self.sweep_of.own / "searches" / self.me, "w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # while this process lives
            while True:
                if isinstance(self.launcher, LocalLauncher):
                    done = sum(
                        trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False)
                    )
                    self.launcher.stream(self.following, self.ended, self.settings.n_trials - done)
                else:
                    one_by_one = (
                        type(self.launcher).__name__ == "BasicLauncher"
                    )  # Hydra loads a copy of the class
                    self.batch(1 if one_by_one else self.settings.batch)
                if not any(self.owner(trial) == "other" for trial in self.running()):
                    break
                time.sleep(0.5)  # another process is at work on the last ones, and may die

    def begin(self, overrides: list[Override]) -> None:
        """Opens the study. Raises UserError if there is nothing to search, or no place for it."""
        self.fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        self.space = {o.key_or_group: Dimension(o) for o in overrides if o.is_sweep_override()}
        if not self.space:
            raise UserError(
                "hydra/sweeper=search: needs a key with several values, as "
                "lr='tag(log,interval(1e-4,1e-2))'"
            )
        config, _ = resolved(
            [*self.fixed, *(ends(o)[0] for o in overrides if o.is_sweep_override())]
        )
        if config.data.val_fraction == 0 and "val/" in self.settings.objective:
            raise UserError(
                f"hydra.sweeper.objective={self.settings.objective}: needs val_fraction above 0"
            )
        url = self.settings.storage or f"sqlite:///{self.sweep_of.folder}/study.db"
        pruner = "none"
        if NUMBERS[self.settings.objective].can_prune:
            pruner = self.settings.pruner
        self.about = {
            "study": self.sweep_of.name,
            "storage": url,
            "direction": self.settings.direction,
            "pruner": pruner,
            "steps": [config.run.eval_interval, config.run.max_steps],
        }
        self.me, folder = uuid.uuid4().hex, self.sweep_of.own / "searches"
        if not self.settings.storage:
            folder.mkdir(parents=True, exist_ok=True)
        self.study = study.open_study(self.about)
        folder.mkdir(parents=True, exist_ok=True)
        for dimension in self.space.values():
            dimension.fits(self.study)
        for key, value in (
            ("objective", self.settings.objective),
            ("direction", self.settings.direction),
        ):
            before = self.study.user_attrs.get(key, value)
            if before != value:
                raise UserError(
                    f"hydra.sweeper.{key}={value}: the study {self.study.study_name} was begun with "
                    f"{before}; another name= begins another"
                )
            self.study.set_user_attr(key, value)

    def batch(self, n: int) -> None:
        """For launchers that want to know all their cells at once: n at a time."""
        while batch := [one for one in (self.following() for _ in range(n)) if one]:
            answers = self.launcher.launch(
                [overrides for _, overrides in batch], initial_job_idx=batch[0][0].number
            )
            for (trial, _), answer in zip(batch, answers, strict=True):
                self.ended(trial, answer.return_value)

    def running(self) -> list["optuna.trial.FrozenTrial"]:
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name == "RUNNING"
        ]

    def owner(self, trial: "optuna.trial.FrozenTrial") -> str:
        """Who runs a trial: 'me', an 'other' process that lives, 'nobody', or 'unknown', on a disk
        that isn't seen.
        """
        by = trial.user_attrs.get("by")
        if by is None:  # killed, or on another machine between two lines of `following`
            return (
                "nobody"
                if datetime.now() - trial.datetime_start > timedelta(seconds=5)
                else "other"
            )
        if by == self.me:
            return "me"
        path = self.sweep_of.own / "searches" / by
        if not path.exists():
            return "unknown"
        with open(path, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return "nobody"
            except BlockingIOError:
                return "other"

    def following(self) -> tuple[Any, list[str]] | None:
        """A trial that nobody runs any more, else a new one, else None; and its overrides."""
        import optuna

        with open(self.sweep_of.own / "study.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # so that no two processes count the same trials
            left = next((trial for trial in self.running() if self.owner(trial) == "nobody"), None)
            count = len(self.study.get_trials(deepcopy=False))
            if left is None and count >= self.settings.n_trials:
                return None
            self.study.sampler = study.sampler(self.settings, left.number if left else count)
            trial = optuna.trial.Trial(self.study, left._trial_id) if left else self.study.ask()
            trial.set_user_attr("by", self.me)
            chosen = [dimension.suggest(trial) for dimension in self.space.values()]
        note = json.dumps(self.about | {"trial": trial._trial_id}).replace("'", "\\'")
        return trial, [*self.fixed, *chosen, f"trial='{note}'"]

    def ended(self, trial: Any, cell: Cell | None) -> None:
        """Tells the study what came of a trial; None: it was no run. One that was interrupted stays
        open.
        """
        if cell is None:
            trial.set_user_attr("status", "failed")
            study.tell(self.study, trial, None, "FAIL")
            return
        metrics = cell.metrics()
        value, status = metrics.get(self.settings.objective), metrics.get("status")
        for key, told in (("status", status), ("folder", cell.find().name)):
            trial.set_user_attr(key, told)
        state = {"finished": None, "pruned": "PRUNED", "diverged": "FAIL", "failed": "FAIL"}
        if status in state:
            study.tell(self.study, trial, value if status == "finished" else None, state[status])


class Dimension:
    """What a search may give one key: one of several values, or a number of a range. Raises
    UserError if there is none such.
    """

    def __init__(self, override: Override) -> None:
        import optuna

        self.key, self.typed, value = override.key_or_group, override.input_line, override.value()
        log, self.texts = "log" in value.tags, {}
        if getattr(value, "shuffle", False):
            raise UserError(f"{self.typed}: a search has its own order; leave shuffle out")
        if isinstance(value, IntervalSweep):
            low, high, step = value.start, value.end, None
        elif isinstance(value, RangeSweep):
            numbers = sorted(map(float, override.sweep_string_iterator()))
            low, high, step = numbers[0], numbers[-1], abs(value.step)
        else:
            plain = [text.text if isinstance(text, QuotedString) else text for text in value.list]
            self.texts = dict(zip(plain, override.sweep_string_iterator(), strict=True))
        try:
            if self.texts:
                self.distribution = optuna.distributions.CategoricalDistribution(list(self.texts))
            elif kind_of(self.key) is int:
                self.distribution = optuna.distributions.IntDistribution(
                    int(low), int(high), log, int(step or 1)
                )
            else:
                self.distribution = optuna.distributions.FloatDistribution(
                    float(low), float(high), log, step
                )
        except ValueError as error:
            raise UserError(f"{self.typed}: {error}") from None

    def fits(self, study: "optuna.Study") -> None:
        """Raises UserError if the study has chosen the key from something else so far."""
        import optuna

        for trial in study.get_trials(deepcopy=False):
            before = trial.distributions.get(self.key, self.distribution)
            try:
                optuna.distributions.check_distribution_compatibility(before, self.distribution)
            except ValueError:
                raise UserError(
                    f"{self.typed}: the study {study.study_name} was begun with another kind of choice; "
                    "another name= begins another"
                ) from None

    def suggest(self, trial: "optuna.Trial") -> str:
        """The override with the value that the trial has for the key, or is given now."""
        one = self.distribution
        if self.texts:
            return self.text(trial.suggest_categorical(self.key, one.choices))
        suggest = trial.suggest_int if isinstance(one.low, int) else trial.suggest_float
        return self.text(suggest(self.key, one.low, one.high, step=one.step, log=one.log))

    def text(self, value: Any) -> str:
        """The override that gives the key a value."""
        return f"{self.key}={self.texts[value] if self.texts else repr(value)}"
