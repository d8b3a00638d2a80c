"""Stores the trials of a search: Optuna's study in a database.

Searches and their cells share the database, also on several machines.
"""

import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lmlab.config.keys import SearchConfig
from lmlab.errors import UserError, reason_of

if TYPE_CHECKING:
    import optuna

TRIES = 3  # to open a database: two processes may create its tables at once
BUSY_SECONDS = 60  # that SQLite waits for another process


def open_study(about: dict[str, Any]) -> "optuna.Study":
    """Opens the study that `about` describes, and creates it if it is missing.

    `about` holds its name ("study"), "storage", "direction", "pruner" and the "steps" of the first
    and the last evaluation. Raises UserError for a database that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = about["storage"]
    options = {}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": BUSY_SECONDS}}
    reason = ""
    for attempt in range(TRIES):
        if attempt > 0:
            time.sleep(0.5)
        try:
            return optuna.create_study(
                study_name=about["study"],
                storage=optuna.storages.RDBStorage(url, engine_kwargs=options),
                pruner=pruner(about["pruner"], *about["steps"]),
                direction=about["direction"],
                load_if_exists=True,
            )
        except Exception as error:  # each kind of database has its own
            reason = " ".join(str(error).split())[:200]
    raise UserError(f"hydra.sweeper.storage={url}: cannot store a study there ({reason})")


def first_cause(error: BaseException) -> BaseException:
    """Returns the error that an error was raised from, and so on: that of the database itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def pruner(name: str, first: int, last: int) -> "optuna.pruners.BasePruner":
    """Returns the pruner of that name, for evaluations from step `first` to step `last`."""
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min(first, last), max(first, last))
    return optuna.pruners.NopPruner()


def sampler(settings: SearchConfig, number: int) -> "optuna.samplers.BaseSampler":
    """Returns the sampler of the trial with this number.

    Each trial has its own sampler, and the trial's number is part of the seed. So a search that was
    stopped and continued proposes the same values as one that was not stopped.
    """
    import optuna

    seed = (settings.seed * 1_000_003 + number) % 2**32
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def report_value(study: "optuna.Study", trial: "optuna.Trial", value: float) -> None:
    """Ends a trial with the value of its objective. Does nothing if the trial has already ended."""
    study.tell(trial, value, skip_if_finished=True)


def report_state(study: "optuna.Study", trial: "optuna.Trial", state: str) -> None:
    """Ends a trial without a value, as "FAIL" or "PRUNED", if it has not already ended."""
    import optuna

    study.tell(trial, state=optuna.trial.TrialState[state], skip_if_finished=True)


class TrialWatch:
    """Reports the numbers of a cell's evaluations to its trial, and says whether to continue.

    `note` is the value of the key `trial` of the cell. The study is opened at the first numbers, in
    the process that has them.
    """

    def __init__(self, note: str) -> None:
        self.about: dict[str, Any] = json.loads(note)
        self.trial: optuna.Trial | None = None
        self.cannot_open = False

    def __call__(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Reports the objective, and returns whether the trial should continue."""
        value = numbers.get(self.about["objective"].removeprefix("best/"))
        if step == 0 or value is None:  # nothing has been learned yet
            return True
        trial = self.opened()
        if trial is None:
            return True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resumed trial may report a step again
                trial.report(value, step)
            return not trial.should_prune()
        except Exception as error:  # each kind of database has its own
            print(
                f"warning: the study cannot tell whether to prune: {reason_of(error)}",
                file=sys.stderr,
            )
            return True

    def opened(self) -> "optuna.Trial | None":
        """Returns the trial, or None if its study cannot be opened, which is said once."""
        if self.trial is None and not self.cannot_open:
            import optuna

            try:
                self.trial = optuna.trial.Trial(open_study(self.about), self.about["trial"])
            except Exception as error:  # the run can do without
                self.cannot_open = True
                print(
                    f"warning: the trial is not pruned, its study cannot be opened: {reason_of(error)}",
                    file=sys.stderr,
                )
        return self.trial


def watch_of(note: str | None) -> TrialWatch | None:
    """Returns what watches a cell, or None if it is of no search, or of one that does not prune.

    `note` is the value of its key `trial`.
    """
    if note is None or json.loads(note)["pruner"] == "none":
        return None
    return TrialWatch(note)


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """A context in which an error of Optuna or of its database becomes a UserError.

    A damaged database can end Optuna's own code with any error.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        names = [frame.filename for frame in frames]
        if not any(re.search(r"[/\\](optuna|sqlalchemy)[/\\]", name) for name in names):
            raise
        raise UserError(
            f"hydra.sweeper.storage={url}: the study cannot be read or written "
            f"({reason_of(first_cause(error))[:200]}); the same command goes on when it can"
        ) from None
