"""A search's memory: Optuna's study in a database, which searches, their cells and other machines
share.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lmlab.config.keys import SearchConfig
from lmlab.errors import UserError

if TYPE_CHECKING:
    import optuna


def open_study(about: dict[str, Any]) -> "optuna.Study":
    """The study that `about` describes, made if it isn't there. Raises UserError for a database
    that can't be had.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first, steps = about["steps"]
    pruner = {
        "median": lambda: optuna.pruners.MedianPruner(),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min(first, steps), max(first, steps)),
        "none": lambda: optuna.pruners.NopPruner(),
    }[about["pruner"]]()
    options = {"connect_args": {"timeout": 60}} if about["storage"].startswith("sqlite") else {}
    for last in (False, False, True):
        try:
            storage = optuna.storages.RDBStorage(about["storage"], engine_kwargs=options)
            return optuna.create_study(
                study_name=about["study"],
                storage=storage,
                pruner=pruner,
                direction=about["direction"],
                load_if_exists=True,
            )
        except (
            Exception
        ) as error:  # whatever a database has to say; also to two that make its tables at once
            if last:
                said = " ".join(str(error).split())[:200]
                place = f"hydra.sweeper.storage={about['storage']}"
                raise UserError(f"{place}: no study can be kept there ({said})") from None
            time.sleep(0.5)
    raise AssertionError


def sampler(settings: SearchConfig, number: int) -> "optuna.samplers.BaseSampler":
    """One for each trial, seeded by its number: so a search that was stopped goes on as it would
    have.
    """
    import optuna

    seed = (settings.seed * 1_000_003 + number) % 2**32
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def tell(
    study: "optuna.Study", trial: "optuna.Trial", value: float | None, state: str | None
) -> None:
    import optuna

    chosen = (
        optuna.trial.TrialState[state]
        if state
        else None
        if value is not None
        else optuna.trial.TrialState.FAIL
    )
    study.tell(trial, value if chosen is None else None, chosen, skip_if_finished=True)


@contextmanager
def watching(trial: str | None) -> Iterator[Callable[[int, float], bool] | None]:
    """What tells the study a trial's losses on the way, and whether the trial should go on. None
    outside a search.
    """
    if trial is None or (about := json.loads(trial))["pruner"] == "none":
        yield None
        return
    import optuna

    study = open_study(about)
    own = optuna.trial.Trial(study, about["trial"])

    def watch(step: int, loss: float) -> bool:
        if step == 0:  # nothing has been learned yet
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed trial may tell a step again
            own.report(loss, step)
        return not own.should_prune()

    yield watch
