"""Stores the trials of a search: Optuna's study in a database.

Searches and their cells share the database, also on several machines.
"""

import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
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


@contextmanager
def watching(note: str | None) -> Iterator[Callable[[int, Mapping[str, float]], bool] | None]:
    """Yields a function that reports the numbers of an evaluation, and returns whether to continue.

    `note` is the value of the key `trial` of a cell. Yields None if the cell belongs to no search,
    or to a search that does not prune.
    """
    if note is None or json.loads(note)["pruner"] == "none":
        yield None
        return
    import optuna

    about = json.loads(note)
    try:
        trial = optuna.trial.Trial(open_study(about), about["trial"])
    except Exception as error:  # the run can do without
        print(
            f"warning: the trial is not pruned, its study cannot be opened: {reason_of(error)}",
            file=sys.stderr,
        )
        yield None
        return

    objective = about["objective"].removeprefix("best/")

    def watch(step: int, numbers: Mapping[str, float]) -> bool:
        """Reports the objective, and returns whether the trial should continue."""
        value = numbers.get(objective)
        if step == 0 or value is None:  # nothing has been learned yet
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

    yield watch


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
