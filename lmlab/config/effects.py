"""Refuses what a command gives that would have no effect, and settings out of their place."""

from collections.abc import Collection
from typing import Any

from hydra.core.override_parser.types import Override

from lmlab.config.check import Config, build, check_value
from lmlab.config.composition import LISTED
from lmlab.config.grammar import decimal_point, is_hydras, is_signed
from lmlab.config.keys import (
    SETTINGS,
    RunConfig,
    SweepConfig,
    bases_of,
    config_class,
    idle_keys,
    keys_of,
    marked,
)
from lmlab.errors import UserError, nearest
from lmlab.markers import ONCE

RUNS = {"init_from", "resume", "replay"}  # keys that name one run, whose name may have commas
COUNTING = ("auto", "cpu")  # the devices of models without steps


def check_settings(kind: str, choice: str, values: dict[str, Any]) -> None:
    """Raises UserError if a setting of one of lmlab's launchers or sweepers is wrong."""
    if choice not in SETTINGS:
        return
    settings = {key: value for key, value in values.items() if key != "_target_"}
    known = keys_of(SETTINGS[choice])
    for key, value in settings.items():
        if key not in known:
            hint = nearest(key, known)
            raise UserError(f"hydra.{kind}.{key}={value}: there is no such key{hint}")
    build(SETTINGS[choice], settings, f"hydra.{kind}.")
    if settings.get("storage") is not None:
        check_storage(settings["storage"])


def check_storage(url: str) -> None:
    """Raises UserError for no database, or one that ends with its process, as SQLite's in memory.

    A search is continued by the same command, and shared by several processes.
    """
    if not url:
        raise UserError(
            "hydra.sweeper.storage=: is empty; needs the URL of a database, or null for study.db in "
            "the folder of the sweep"
        )
    engine, _, place = url.partition("://")
    is_sqlite = engine.partition("+")[0] == "sqlite"
    if is_sqlite and (
        not place.partition("?")[0].strip("/") or ":memory:" in place or "mode=memory" in place
    ):
        raise UserError(
            f"hydra.sweeper.storage={url}: is a database in memory, which ends with the command; needs "
            "a file, such as sqlite:////home/me/study.db, or another database's URL"
        )


def check_hydra(override: Override, searching: bool) -> None:
    """Raises UserError for a setting of Hydra that would have no effect, such as hydra.run.dir."""
    key = override.key_or_group
    if override.package is not None:
        raise UserError(f"{override.input_line}: has no effect here; a key has no @ in it")
    if key.startswith("hydra.sweeper.") and not searching:
        raise UserError(
            f"{override.input_line}: needs hydra/sweeper=search; a grid is written as key=value,value"
        )
    if key in ("hydra/launcher", "hydra/sweeper"):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: needs one value, for the whole sweep")
        check_value(key, override.value(), str)
    if key == "hydra/sweeper" and override.value() == LISTED:
        raise UserError(f"{override.input_line}: has no effect here; sweep=… names a file of runs")
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        raise UserError(f"{override.input_line}: has no effect here; out=… says where runs go")
    used = ("hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.")
    if is_hydras(override) and not key.startswith(used):
        raise UserError(
            f"{override.input_line}: has no effect here; of Hydra's settings allowed are "
            "hydra/launcher, hydra.launcher.…, hydra/sweeper and hydra.sweeper.…"
        )


def check_place(override: Override, multirun: bool, sweeper: str) -> None:
    """Raises UserError for values or settings of sweeps where they are not allowed."""
    key = override.key_or_group
    text = override.input_line
    if override.is_sweep_override():
        if not multirun or key in marked(ONCE) or is_hydras(override):
            once = " ".join(sorted(marked(ONCE) | RUNS))
            raise UserError(
                f"{text}: several values need a sweep (add -m), and a key other than {once}; one "
                f"value with commas is quoted twice: {key}=\"'…'\"{decimal_point(str(text))}"
            )
        if sweeper != "search" and not override.is_discrete_sweep():
            raise UserError(
                f"{text}: a sweep needs a list of values; to search in a range, add "
                "hydra/sweeper=search"
            )
        if key == "seed" and not override.is_discrete_sweep():
            raise UserError(
                f"{text}: a search takes the mean over seeds, and would choose the luckiest one of a "
                "range; needs a list: seed=0,1,2"
            )
    of_commands = {*keys_of(SweepConfig)} - {"fast_dev_run"}
    if (key in of_commands or is_hydras(override)) and not multirun:
        raise UserError(f"{text}: is a key of sweeps; add -m")
    if key == "trial":
        raise UserError(f"{text}: only hydra/sweeper=search sets this key")


def refuse_pruner(override: Override, swept: list[Override]) -> None:
    """Raises UserError for a pruner of a search over several seeds, which prunes nothing."""
    for other in swept:
        if other.key_or_group == "seed":
            raise UserError(
                f"{override.input_line}: has no effect with {other.input_line}, since the mean over "
                "seeds is known only when all have ended; allowed is none"
            )


def warm_until_the_end(run: RunConfig, asked: int | None) -> str:
    """Returns a warning if `asked`, the value given for decay_steps, lies within the warm-up, or "".

    It is not refused: a longer run may have to fall where a shorter one did, which was all warm-up.
    """
    if asked is None or asked > run.warmup_steps or run.schedule == "constant":
        return ""
    return (
        f"warning: decay_steps={asked} warmup_steps={run.warmup_steps}: the first has no effect; lr "
        f"rises until step {run.warmup_steps}, and min_lr follows at once"
    )


def unseen_context(values: Any, given: Collection[str]) -> str:
    """Returns a warning if a typed context is longer than the windows that a model is trained on.

    It is not refused: what is empty there changes no loss, and such runs exist.
    """
    context = getattr(values, "context", None)
    if "context" not in given or context is None or context <= values.block_size:
        return ""
    return (
        f"warning: context={context} block_size={values.block_size}: a window has no more characters "
        "than block_size, so what lies further back is always empty"
    )


def unused_excerpt(config: Config, given: Collection[str]) -> str:
    """Returns a warning if a typed eval_tokens has no validation text to choose from, or "".

    It is not refused: a sweep may have cells with and without such a text.
    """
    tokens = config.run.eval_tokens
    if "eval_tokens" not in given or tokens is None or config.data.val_fraction > 0:
        return ""
    return f"warning: eval_tokens={tokens}: has no effect, since val_fraction is 0"


def unused_masks(values: Any, given: Collection[str]) -> str:
    """Returns a warning if masks are to be drawn fast and no mask is drawn, or "".

    It is not refused: a sweep may have cells with and without dropout.
    """
    if "dropout_masks" not in given or getattr(values, "dropout", None) != 0:
        return ""
    if values.dropout_masks == "torch":  # as is noted where none is drawn
        return ""
    return f"warning: dropout_masks={values.dropout_masks}: has no effect, since dropout is 0"


def spikes_too_early(config: Config) -> str:
    """Returns a warning if a run ends before skip_spikes= leaves out any step, or "".

    It is not refused: such a run can be continued with more steps.
    """
    spikes = config.companions["skip_spikes"]
    max_steps = config.run.max_steps
    if spikes.skip_spikes is None or max_steps > spikes.begin:
        return ""
    return (
        f"warning: skip_spikes={spikes.skip_spikes:.15g} max_steps={max_steps}: the first has no effect; "
        f"the first {spikes.begin} steps are never left out"
    )


def mean_never_full(config: Config) -> str:
    """Returns a warning if a run ends before a step keeps the share `ema` of the mean, or "".

    It is not refused: such a run can be continued with more steps.
    """
    average = config.companions["ema"]
    ema = average.ema
    steps = config.run.max_steps
    most = average.most_kept(steps)
    if ema is None or ema <= most:
        return ""
    return (
        f"warning: ema={ema} max_steps={steps}: is as ema={most:.5f}; step t keeps at most "
        "(1+t)/(10+t) of the mean"
    )


def patience_too_long(config: Config) -> str:
    """Returns a warning if a run ends before patience= can end it, or "".

    It is not refused: such a run can be continued with more steps.
    """
    patience = config.companions["patience"].patience
    run = config.run
    between = (run.max_steps - 1) // run.eval_interval  # evaluations after step 0, before the end
    if patience is None or patience <= between:
        return ""
    return (
        f"warning: patience={patience} eval_interval={run.eval_interval} max_steps={run.max_steps}: the "
        f"first has no effect; the evaluations between the run's first step and its last are {between}"
    )


def check_step_keys(typed: list[Override], choices: dict[str, str]) -> None:
    """Raises UserError if a key of training by steps is given for a model without steps."""
    model = choices["model"]
    for override in typed:
        if override.key_or_group == "device" and idle_keys(choices):
            check_counting_device(override, model)
        elif override.key_or_group in idle_keys(choices):
            own = ", ".join(keys_of(config_class("model", model)))
            others = ", ".join(key for key in keys_of(RunConfig) if key not in idle_keys(choices))
            raise UserError(
                f"{override.input_line}: has no effect on model={model}, which is trained by counting, "
                f"without steps; its keys are {own}, {others}, and those of data and tokenizer"
            )


def check_counting_device(override: Override, model: str) -> None:
    """Raises UserError for a device on which nothing is counted.

    Some people type device=cpu with every command, and for a model without steps it is true.
    """
    bases = bases_of("device")
    fitting = [name for name, base in bases.items() if base in COUNTING]
    if override.value() not in fitting:
        raise UserError(
            f"{override.input_line}: model={model} is trained by counting, which the CPU does; "
            f"allowed are {', '.join(fitting)}"
        )


def check_sign(override: Override) -> None:
    """Raises UserError if an override adds or removes a key."""
    if is_signed(override):
        raise UserError(
            f"{override.input_line}: keys cannot be added or removed; write "
            f"{override.key_or_group}=…"
        )
