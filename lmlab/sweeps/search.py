"""Searches for good values: Optuna proposes them, and cells measure how good they are.

All processes of a search share its study, which is a database. With several seeds a trial has a cell
for each, and its value is their mean.
"""

import json
import math
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmlab import files
from lmlab.config.check import Config, derived
from lmlab.config.grammar import ends, listed, parse
from lmlab.config.keys import (
    DIVIDING,
    VALIDATED,
    SearchConfig,
    keys_of,
    kind_of,
    token_keys,
    untouching,
)
from lmlab.config.overrides import resolved
from lmlab.errors import UserError, one_line_errors
from lmlab.numbers import NUMBERS
from lmlab.runs.code import SameCode, own_code
from lmlab.runs.folder import read_config
from lmlab.sweeps import cluster, study
from lmlab.sweeps.cells import Cell, Sweep, codes_of
from lmlab.sweeps.launcher import LocalLauncher
from lmlab.terminal import after_a_second, showing, tell

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    Distribution = CategoricalDistribution | IntDistribution | FloatDistribution

POLL_SECONDS = 0.5  # between two looks at the trials of other processes
LOCKED_SECONDS = 10  # that opening a study may take without a word
UNCLAIMED_SECONDS = 5  # that a trial may have no owner before it counts as left behind

# What Optuna calls a trial whose cell has ended in this way; "finished" needs the value instead.
STATES = {"pruned": "PRUNED", "diverged": "FAIL", "failed": "FAIL"}

# A seed of a trial (the trial, and the place of the seed in the list), and the overrides of its cell.
Handle = tuple["optuna.Trial", int]
Proposal = tuple[Handle, list[str]]


def waiting() -> None:
    """Says why the study may not be open yet."""
    tell("the study is not open yet; if another process has locked its database, this waits for it")


class SearchSweeper(Sweeper):
    """Hydra's sweeper for hydra/sweeper=search. conf/hydra/sweeper/search.yaml has its settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = SearchConfig(**settings)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Gets the launcher from Hydra, and the sweep from the function that runs a cell."""
        task: Any = task_function
        self.sweep_of: Sweep = task.sweep
        self.faults: list[str] = task.faults
        self.notes: list[str] = task.notes
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @one_line_errors()
    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until the study has `n_trials`. Trials of killed processes are run again."""
        with study.database_errors(self.storage()):
            with (
                showing("opening the study of the search …"),
                after_a_second(waiting, LOCKED_SECONDS),
            ):
                self.begin([parse(text) for text in arguments])
            with files.lock(self.searches / self.search_id):  # held as long as this process lives
                self.run_trials()
                # Another process may die before its trials end, even between two looks at it.
                while {"other", "nobody"} & {self.owner(trial) for trial in self.running()}:
                    time.sleep(POLL_SECONDS)
                    self.run_trials()
            self.conclude()

    def conclude(self) -> None:
        """Notes what the search has found, where the leaderboard does not say it.

        It is a fault of the search if no trial had a value.
        """
        trials = self.counted()
        valued = [(trial.value, trial) for trial in trials if trial.value is not None]
        if trials and not valued:
            self.faults.append(
                f"hydra.sweeper.objective={self.objective}: was a number in none of the "
                f"{len(trials)} trials, so the search has found nothing"
            )
        elif valued and not NUMBERS[self.objective].ranks:
            choose = min if self.direction() == "minimize" else max
            value, best = choose(valued, key=lambda pair: pair[0])
            values = self.values_of(best)
            typed_values = " ".join(f"{key}={value}" for key, value in values.items())
            self.notes.append(
                f"best {self.objective}: {value:.4f}, of {typed_values}; the table above is sorted by "
                "another number"
            )
        elsewhere = [trial for trial in trials if not self.has_runs_here(trial)]
        if elsewhere:
            self.notes.append(
                f"{len(elsewhere)} of the study's {len(trials)} trials have their runs in another "
                f"folder than {self.sweep_of.folder}, and are in no table here"
            )
        lacking = [
            trial
            for trial in trials
            if trial.value is None and trial.user_attrs.get("status") == "finished"
        ]
        if lacking and valued:
            self.notes.append(
                f"{len(lacking)} of {len(trials)} trials finished without {self.objective}; their "
                "warnings are said above, and in their train.log"
            )

    def values_of(self, trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
        """Returns the values that a trial has for all keys that are searched, or were in its time."""
        values = {}
        folder = trial.user_attrs.get("folder")
        if folder and self.has_runs_here(trial):
            first = folder if isinstance(folder, str) else folder[0]
            with suppress(UserError):  # the leaderboard names a damaged one
                values = read_config(self.sweep_of.folder / first).flat()
        keys = [*dict.fromkeys([*self.space, *trial.params])]
        values |= trial.params
        return {key: values[key] for key in keys if key in values}

    def has_runs_here(self, trial: "optuna.trial.FrozenTrial") -> bool:
        """Returns whether the runs of a trial, if it has any, are in the folder of this sweep."""
        named = trial.user_attrs.get("folder", [])
        folders = [named] if isinstance(named, str) else named
        return all((self.sweep_of.folder / folder).is_dir() for folder in folders)

    def begin(self, overrides: list[Override]) -> None:
        """Opens the study. Raises UserError, for example if no key has several values."""
        swept = [override for override in overrides if override.is_sweep_override()]
        seeds = [override for override in swept if override.key_or_group == "seed"]
        swept = [override for override in swept if override not in seeds]
        self.seeds = [*dict.fromkeys(listed(seeds[0]))] if seeds else []  # as overrides
        self.proposed: deque[Proposal] = deque()  # of a trial whose other seeds were given away
        self.ended: dict[int, dict[int, Cell]] = {}  # by number of the trial and place of the seed
        self.fixed = [typed(o) for o in overrides if not o.is_sweep_override()]
        self.space = {override.key_or_group: Dimension(override) for override in swept}
        if not self.space:
            raise UserError(
                "hydra/sweeper=search: needs a key with several values, such as "
                "lr='tag(log,interval(1e-4,1e-2))'"
            )
        first = [ends(override)[0] for override in swept]
        config, _ = resolved([*self.fixed, *first, *self.seeds[:1]])
        objective = self.objective = self.chosen_objective(config)
        if config.data.val_fraction == 0 and "val/" in objective:
            raise UserError(f"hydra.sweeper.objective={objective}: needs val_fraction above 0")
        instrument = NUMBERS[objective].instrument
        if instrument and not getattr(config.run, instrument):
            raise UserError(f"hydra.sweeper.objective={objective}: needs {instrument}=true")
        pruner = "none"
        if NUMBERS[objective].can_prune and len(self.seeds) < 2:  # a mean is known at its end
            pruner = self.settings.pruner
        self.about = {
            "study": self.sweep_of.name,
            "storage": self.storage(),
            "direction": self.direction(),
            "objective": objective,
            "pruner": pruner,
            "steps": [config.run.eval_interval, config.run.max_steps],
        }
        self.check_code()
        self.search_id = uuid.uuid4().hex
        self.searches = self.sweep_of.own / "searches"  # a locked file for each living search
        if not self.settings.storage:  # the database lies in the sweep's folder
            self.searches.mkdir(parents=True, exist_ok=True)
        self.study = study.open_study(self.about)
        self.searches.mkdir(parents=True, exist_ok=True)
        for dimension in self.space.values():
            dimension.check_study(self.study)
        self.keep_setting("objective", objective)
        self.keep_setting("direction", self.direction())
        self.keep_fixed(config)
        self.try_failed_again()
        n_trials = len(self.counted())
        if not self.settings.objective and objective != "val/loss":
            print(f"objective {objective}: the tokenizers differ, and a loss is that of a token")
        if len(self.seeds) > 1:
            print(f"the value of a trial is the mean over {len(self.seeds)} seeds; none is pruned")
        texts = sorted({"data", "path", *VALIDATED} & {*self.space})
        if texts:
            print(
                f"the trials are validated on different text ({', '.join(texts)}), so their losses "
                "cannot be compared"
            )
        if n_trials:
            number = "1 trial" if n_trials == 1 else f"{n_trials} trials"
            print(f"the study has {number}; n_trials={self.settings.n_trials} is for all")

    def counted(self) -> list["optuna.trial.FrozenTrial"]:
        """Returns the trials of the study, of those that were tried again only the last."""
        trials = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get("instead_of") for trial in trials}
        return [trial for trial in trials if trial.number not in replaced]

    def try_failed_again(self) -> None:
        """Queues the values of trials that have failed once more, as a grid tries failed cells.

        A trial that diverged or that cannot be run would do so again.
        """
        with files.lock(self.sweep_of.own / "study.lock", wait=math.inf):
            failed = [
                trial
                for trial in self.counted()
                if trial.user_attrs.get("status") == "failed" and "folder" in trial.user_attrs
            ]
            again = [trial for trial in failed if self.may_propose(trial.params)]
            for trial in again:
                self.study.enqueue_trial(trial.params, user_attrs={"instead_of": trial.number})
        if again:
            print(f"trials that failed and are tried again: {len(again)}")
        if len(again) < len(failed):
            print(
                f"trials that failed and are not tried again: {len(failed) - len(again)}, whose values "
                "are none of those that are typed now"
            )

    def may_propose(self, params: dict[str, Any]) -> bool:
        """Returns whether values are a trial's that the search could propose as it is typed now."""
        return params.keys() == self.space.keys() and all(
            dimension.holds(params[key]) for key, dimension in self.space.items()
        )

    def storage(self) -> str:
        """Returns the URL of the study's database."""
        return self.settings.storage or f"sqlite:///{self.sweep_of.folder}/study.db"

    def direction(self) -> str:
        """Returns "minimize" or "maximize": as asked for, or as is better for the objective."""
        usual = {"lower": "minimize", "higher": "maximize"}
        return self.settings.direction or usual[NUMBERS[self.objective].better]

    def chosen_objective(self, config: Config) -> str:
        """Returns the number to optimize. Raises UserError for a loss of tokens that differ.

        Tokens that are learned from a text also differ with the part that they are learned from.
        """
        typed = self.settings.objective
        deciding = {*token_keys()}
        if config.base("tokenizer") not in ("char", "byte", "file"):
            deciding |= {"data", *DIVIDING, *keys_of(type(config.data))}
        different = sorted(deciding & {*self.space})
        if not different:
            return typed or "val/loss"
        if typed and typed.endswith("/loss"):
            raise UserError(
                f"hydra.sweeper.objective={typed}: {', '.join(different)} has several values, and a "
                "loss is that of a token; val/bits_per_byte compares them"
            )
        return typed or "val/bits_per_byte"

    def check_code(self) -> None:
        """Raises UserError if other code of the lab has made the trials of the search so far."""
        equal = SameCode(self.sweep_of.own).equal_to(own_code())
        others = codes_of(self.sweep_of) - equal
        if others:
            raise UserError(
                f"name={self.sweep_of.name}: other code of the lab made the trials of this search "
                f"({', '.join(sorted(others))}; now {own_code()}); same_code=true goes on with "
                "them, another name= begins anew"
            )

    def keep_setting(self, key: str, value: str) -> None:
        """Writes a setting to the study. Raises UserError if the study has another value."""
        before = self.study.user_attrs.get(key, value)
        if before != value:
            raise UserError(
                f"hydra.sweeper.{key}={value}: the study {self.study.study_name} was started with "
                f"{before}; another name= starts another study"
            )
        self.study.set_user_attr(key, value)

    def keep_fixed(self, config: Config) -> None:
        """Writes the values that are not searched. Raises UserError if the study has others.

        Losses of another text or another model would be no values of the same objective. The value of
        a key that earlier trials have searched is no fact about the study, and is said.
        """
        texts = {"data", "path"}
        if texts & {*self.space}:
            texts = set()
        values = config.flat()
        searched = {*self.space, *untouching(values)} - texts
        usual = derived(values)
        searched |= {key for key in usual if values.get(key) == usual[key]}  # such as min_lr, by lr
        if texts and isinstance(self.launcher, LocalLauncher):  # the text may have been moved
            searched |= texts
            cell = next(iter(self.launcher.survey.cells.values()))
            values["data_sha256"] = cell.data_sha256
        if len(self.seeds) > 1:
            values["seed"] = ",".join(key_value.partition("=")[2] for key_value in self.seeds)
        trials = self.study.get_trials(deepcopy=False)
        once = {key for trial in trials for key in trial.distributions} - {*self.space}
        for key in sorted(once & values.keys()):
            print(f"{key}={values[key]} in all further trials; earlier ones have searched it")
        for key, dimension in self.space.items():
            earlier = [trial.distributions[key] for trial in trials if key in trial.distributions]
            if earlier and earlier[-1] != dimension.distribution:
                now, then = map(interval_of, (dimension.distribution, earlier[-1]))
                print(f"{key} is searched in {now} from now on; earlier trials searched in {then}")
        before = self.study.user_attrs.get("fixed", {})
        for key in sorted(before.keys() & self.space.keys()):
            print(f"{key} is searched from now on; in earlier trials it was {before[key]}")
        fixed = {key: value for key, value in values.items() if key not in searched | once}
        for key, value in fixed.items():
            if key in before and before[key] != value:
                raise UserError(
                    f"{key}={value}: the study {self.study.study_name} was started with "
                    f"{key}={before[key]}; another name= starts another study"
                )
        self.study.set_user_attr("fixed", fixed)

    def run_trials(self) -> None:
        """Runs trials with the launcher until this process can run no more of them."""
        if isinstance(self.launcher, LocalLauncher):
            n_ended = sum(trial.state.is_finished() for trial in self.counted())
            n_left = self.settings.n_trials - n_ended
            self.launcher.stream(self.next_cell, self.end_cell, n_left * max(1, len(self.seeds)))
        elif type(self.launcher).__name__ == "BasicLauncher":  # Hydra loads a copy of the class
            self.run_batches(1)
        else:
            self.run_batches(self.settings.batch)

    def run_batches(self, size: int) -> None:
        """Runs `size` cells at a time, for launchers that need all cells of a batch at once."""
        assert self.launcher is not None  # Hydra has called `setup`
        while batch := self.next_cells(size):
            overrides = [overrides for _, overrides in batch]
            (first_trial, _), _ = batch[0]
            ended = cluster.launch(self.launcher, overrides, first_trial.number, self.faults)
            for place, cell in ended.items():
                handle, _ = batch[place]
                self.end_cell(handle, cell)
            if len(ended) < len(
                batch
            ):  # the other trials stay open; the next command continues them
                return

    def next_cells(self, size: int) -> list[Proposal]:
        """Returns the next `size` cells, or fewer at the end."""
        batch: list[Proposal] = []
        while len(batch) < size and (proposal := self.next_cell()):
            batch.append(proposal)
        return batch

    def next_cell(self) -> Proposal | None:
        """Returns the next seed of a trial with the overrides of its cell, or None at the end."""
        if not self.proposed:
            proposed = self.next_trial()
            if proposed is None:
                return None
            trial, overrides = proposed
            for place, seed in enumerate(self.seeds or [None]):
                own = overrides if seed is None else [seed, *overrides]
                self.proposed.append(((trial, place), own))
        return self.proposed.popleft()

    def running(self) -> list["optuna.trial.FrozenTrial"]:
        """Returns the trials of the study that have not ended."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.state.name == "RUNNING"]

    def owner(
        self, trial: "optuna.trial.FrozenTrial"
    ) -> Literal["me", "other", "nobody", "unknown"]:
        """Returns who runs a trial: this process, another living process, or no process.

        It is unknown if the process that took the trial runs on a machine with another disk.
        """
        search_id = trial.user_attrs.get("by")
        if search_id is None:
            # Its process was killed, or has not yet come to the next line of `next_trial`.
            start = trial.datetime_start
            if start and datetime.now() - start <= timedelta(seconds=UNCLAIMED_SECONDS):
                return "other"
            return "nobody"
        if search_id == self.search_id:
            return "me"
        path = self.searches / search_id
        if not path.exists():
            return "unknown"
        try:
            with files.lock(path):
                return "nobody"
        except files.Locked:
            return "other"

    def next_trial(self) -> tuple["optuna.Trial", list[str]] | None:
        """Returns a trial, of a killed process or a new one, with the overrides of its cells.

        Returns None if the study has all its trials.
        """
        import optuna

        # The lock keeps two processes from counting the same trials.
        with files.lock(self.sweep_of.own / "study.lock", wait=math.inf):
            left = next((trial for trial in self.running() if self.owner(trial) == "nobody"), None)
            if left:
                self.study.sampler = study.sampler(self.settings, left.number)
                trial = optuna.trial.Trial(self.study, left._trial_id)
            else:
                trials = self.counted()
                queued = any(trial.state.name == "WAITING" for trial in trials)
                if len(trials) >= self.settings.n_trials and not queued:
                    return None
                self.study.sampler = study.sampler(self.settings, len(trials))
                trial = self.study.ask()  # the queued ones first
            trial.set_user_attr("by", self.search_id)
            values = [dimension.suggest(trial) for dimension in self.space.values()]
        note = json.dumps(self.about | {"trial": trial._trial_id}).replace("'", "\\'")
        return trial, [*self.fixed, *values, f"trial='{note}'"]

    def end_cell(self, handle: Handle, cell: Cell | None) -> None:
        """Notes the end of a cell, and reports that of its trial to the study if it was the last.

        `cell` is None if the proposed values cannot be run.
        """
        trial, place = handle
        if cell is None:
            trial.set_user_attr("status", "failed")
            study.report_state(self.study, trial, "FAIL")
            return
        cells = self.ended.setdefault(trial.number, {})
        cells[place] = cell
        if len(cells) == max(1, len(self.seeds)):
            self.end_trial(trial, [cells[place] for place in sorted(cells)])

    def end_trial(self, trial: "optuna.Trial", cells: list[Cell]) -> None:
        """Reports the end of a trial, whose value is the mean over its cells, to the study.

        It has failed if one of several seeds did. While one is interrupted, it stays open.
        """
        metrics = [cell.metrics() for cell in cells]
        statuses = [numbers.get("status") for numbers in metrics]
        values = [numbers.get(self.objective) for numbers in metrics]
        worst = next((status for status in statuses if status != "finished"), "finished")
        folders = [cell.find().name for cell in cells]
        trial.set_user_attr("status", worst)
        trial.set_user_attr("folder", folders if len(self.seeds) > 1 else folders[0])
        numbers = [value for value in values if isinstance(value, int | float)]
        if worst == "finished" and len(numbers) == len(cells):
            study.report_value(self.study, trial, math.fsum(numbers) / len(numbers))
        elif worst == "finished":
            study.report_state(self.study, trial, "FAIL")
        elif all(status == "finished" or status in STATES for status in statuses):
            study.report_state(self.study, trial, STATES[str(worst)])


def typed(override: Override) -> str:
    """Returns an override as the user typed it."""
    assert override.input_line is not None  # it was parsed from text
    return override.input_line


def interval_of(distribution: Any) -> str:
    """Returns the interval of Optuna's distribution of numbers, as in "0.1 to 1, step 0.1"."""
    ends = f"{distribution.low:g} to {distribution.high:g}"
    return ends if distribution.step in (None, 1) else f"{ends}, step {distribution.step:g}"


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, or, with a `step`, low, low + step, and so on.

    With `log`, the search compares ratios of numbers, not differences.
    """

    low: float
    high: float
    step: float | None
    log: bool


class Dimension:
    """The values that a search may try for one key: a list, or a range of numbers.

    Raises UserError if it has no value, or only one.
    """

    def __init__(self, override: Override) -> None:
        self.key = override.key_or_group
        self.typed = typed(override)
        self.is_whole = kind_of(self.key) is int
        self.texts: dict[Any, str] = {}  # how each of several values is typed
        self.range: Range | None = None  # of numbers, if there are no single values
        value = override.value()
        assert isinstance(value, ChoiceSweep | RangeSweep | IntervalSweep)  # it has several values
        if getattr(value, "shuffle", False):
            raise UserError(f"{self.typed}: a search chooses its own order; remove shuffle")
        if isinstance(value, ChoiceSweep):
            plain = [text.text if isinstance(text, QuotedString) else text for text in value.list]
            self.texts = dict(zip(plain, override.sweep_string_iterator(), strict=True))
        elif isinstance(value, RangeSweep):
            numbers = sorted(map(float, override.sweep_string_iterator()))
            self.range = Range(numbers[0], numbers[-1], abs(value.step), "log" in value.tags)
        else:
            assert value.start is not None and value.end is not None  # the parser needs both
            self.range = Range(value.start, value.end, None, "log" in value.tags)
        try:
            self.distribution = self.optunas_distribution()
        except ValueError as error:
            raise UserError(f"{self.typed}: {error}") from None
        if self.distribution.single():
            only = (
                next(iter(override.sweep_string_iterator()))
                if self.range is None
                else self.range.low
            )
            raise UserError(
                f"{self.typed}: has one value, {only}; a search needs several, as in "
                f"{self.key}=interval(1e-4,1e-2) or {self.key}=1,2; without a choice it is {self.key}={only}"
            )

    def optunas_distribution(self) -> "Distribution":
        """Returns Optuna's distribution of the values. Raises ValueError if they have none."""
        from optuna import distributions

        if self.range is None:
            return distributions.CategoricalDistribution([*self.texts])
        low = self.range.low
        high = self.range.high
        step = self.range.step
        log = self.range.log
        if self.is_whole:
            return distributions.IntDistribution(int(low), int(high), log, int(step or 1))
        return distributions.FloatDistribution(float(low), float(high), log, step)

    def check_study(self, study: "optuna.Study") -> None:
        """Raises UserError if earlier trials of the study chose this key from other values."""
        from optuna import distributions

        for trial in study.get_trials(deepcopy=False):
            before = trial.distributions.get(self.key, self.distribution)
            try:
                distributions.check_distribution_compatibility(before, self.distribution)
            except ValueError:
                raise UserError(
                    f"{self.typed}: the study {study.study_name} was started with another kind "
                    "of choice; another name= starts another study"
                ) from None

    def holds(self, value: Any) -> bool:
        """Returns whether a trial's value for this key is one of those that may be tried."""
        if self.range is None:
            return value in self.texts
        steps = (value - self.range.low) / self.range.step if self.range.step else 0
        is_on_step = math.isclose(steps, round(steps), abs_tol=1e-8)
        return is_on_step and self.range.low <= value <= self.range.high

    def suggest(self, trial: "optuna.Trial") -> str:
        """Returns the override with the trial's value for this key, which may be chosen now."""
        value: Any
        if self.range is None:
            value = trial.suggest_categorical(self.key, [*self.texts])
            return self.text(value)
        low = self.range.low
        high = self.range.high
        step = self.range.step
        log = self.range.log
        if self.is_whole:
            value = trial.suggest_int(self.key, int(low), int(high), step=int(step or 1), log=log)
        else:
            value = trial.suggest_float(self.key, float(low), float(high), step=step, log=log)
        return self.text(value)

    def text(self, value: Any) -> str:
        """Returns the override that sets the key to `value`."""
        if self.texts:
            return f"{self.key}={self.texts[value]}"
        return f"{self.key}={value!r}"
