"""From what is typed to checked configurations: each run that a command asks for."""

import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.types import Override

from lmlab.config.check import Config, NotTaken, check_key
from lmlab.config.composition import LISTED, chosen, compose, read
from lmlab.config.effects import (
    check_hydra,
    check_place,
    check_settings,
    check_sign,
    check_step_keys,
    mean_never_full,
    patience_too_long,
    refuse_pruner,
    spikes_too_early,
    unseen_context,
    unused_excerpt,
    unused_masks,
    warm_until_the_end,
)
from lmlab.config.grammar import (
    MOST,
    is_hydras,
    key_of,
    parse,
    texts_of,
    typed_lines,
)
from lmlab.config.keys import CHOICES, idle_keys
from lmlab.errors import UserError, about
from lmlab.terminal import after_a_second, tell

OF_DECAY = {"min_lr", "decay_steps"}  # keys of a learning rate that falls
EACH_ITS_OWN = (
    "a sweep of both is a file with a line for each, as conf/sweep/vocabulary.yaml is for "
    "sweep=vocabulary"
)
SEARCH_LIMIT = 4096  # of combinations, up to which each that a search may begin with is checked


@dataclass(frozen=True)
class Asked:
    """A checked command.

    `runs` holds the configuration of each run with its overrides. `name` is the name of the sweep
    or of the run. `swept` are the keys with several values. `hydra` are Hydra's own settings.
    """

    runs: list[tuple[Config, list[str]]]
    name: str
    swept: tuple[str, ...]
    launcher: str
    sweeper: str
    hydra: dict[str, Any]


def checked(arguments: list[str], multirun: bool) -> Asked:
    """Checks a command and all its runs. Raises UserError if one of them is wrong.

    For a search, the values at the ends of its ranges are checked.
    """
    overrides = [parse(text) for text in arguments]
    searching = any(str(o.input_line) == "hydra/sweeper=search" for o in overrides)
    for override in overrides:
        with about(override.key_or_group):
            check_hydra(override, searching)
    fixed = [o for o in overrides if not o.is_sweep_override()]
    swept = [o for o in overrides if o.is_sweep_override()]
    _, choices, settings = compose(typed_lines([o for o in fixed if is_hydras(o)] + chosen(fixed)))
    launcher = str(choices["hydra/launcher"])
    sweeper = str(choices["hydra/sweeper"])
    check_settings("launcher", launcher, settings["launcher"])
    check_settings("sweeper", sweeper, settings["sweeper"])
    for override in overrides:
        key = override.key_or_group
        with about(key):
            if override.is_sweep_override() and "/" not in key and "." not in key:
                typed = str(override.input_line).partition("=")[2]
                with suppress(NotTaken):  # the choice that takes it may be swept
                    check_key(key, typed, {group: str(choices[group]) for group in CHOICES})
            check_place(override, multirun, sweeper)
        if override.key_or_group == "hydra.sweeper.pruner" and override.value() != "none":
            refuse_pruner(override, swept)
        if override.key_or_group == "hydra.sweeper.batch" and launcher in ("local", "basic"):
            raise UserError(
                f"{override.input_line}: has no effect with hydra/launcher={launcher}, which begins a "
                "trial whenever it can run one"
            )
    runs = all_runs(overrides, searching=sweeper == "search", in_sweep=multirun)
    keys = tuple(o.key_or_group for o in swept)
    name = runs[0][0].run.name
    if swept and not any(o.key_or_group == "name" for o in overrides):
        name = re.sub(r"[^\w.,=+-]", ".", "-".join(keys))
    runs = [(replace(config, run=replace(config.run, name=name)), cell) for config, cell in runs]
    return Asked(runs, name, keys, launcher, sweeper, settings)


def joined(parts: list[Asked]) -> Asked:
    """Returns the command that asks for the runs of several commands, as those of one sweep.

    Raises UserError if one of several is a search, or for keys of steps if no model has steps.
    """
    runs = [run for part in parts for run in part.runs]
    if all(idle_keys(config.choices) for config, _ in runs):
        for config, own_overrides in runs:
            check_step_keys([parse(text) for text in own_overrides], config.choices)
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        if part.sweeper != "basic":
            raise UserError(
                f"hydra/sweeper={part.sweeper}: a file of several lines has no search; a file of one "
                "line may have one"
            )
    varied = {key for part in parts for key in part.swept}
    texts = [{key_of(text): text for text in overrides} for _, overrides in runs]
    for key in {key for own in texts for key in own}:
        if len({own.get(key) for own in texts}) > 1:
            varied.add(key)
    first = parts[0]
    unique = list({repr(config.flat()): (config, own) for config, own in runs}.values())
    if len(unique) < len(runs):
        tell_of_equal(len(runs) - len(unique), len(runs))
    return replace(first, runs=unique, swept=tuple(sorted(varied)), sweeper=LISTED)


def all_runs(
    overrides: list[Override], searching: bool, in_sweep: bool
) -> list[tuple[Config, list[str]]]:
    """Returns the configuration and the overrides of each run that a command asks for.

    Prints a notice once if the user typed a choice, such as model=gpt, that replaces a choice of
    the experiment's file. Raises UserError.
    """
    limit = SEARCH_LIMIT if searching else None
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    values = []
    for override in overrides:
        with about(override.key_or_group):
            values.append(texts_of(override, searching))
    runs = []
    notices: dict[str, None] = {}  # each once, in order
    n = math.prod(map(len, values))
    if limit is not None:
        n = min(n, limit)
    if n > MOST:
        raise UserError(f"{' '.join(sorted(swept))}: {n:,} cells; allowed are {MOST:,} in a sweep")
    with after_a_second(lambda: tell(f"checking {n} cells …")):
        for cell in combinations(values, limit):
            try:
                config, notice = resolved(cell, in_sweep)
            except NotTaken as error:
                if searching or error.group not in swept:
                    raise
                error.args = (f"{error}; {EACH_ITS_OWN}",)
                raise
            runs.append((config, [text for text in cell if not is_hydras(parse(text))]))
            notices[notice] = None
    for notice in filter(None, notices):
        print(notice, file=sys.stderr)
    same = len(runs) - len({repr(config.flat()) for config, _ in runs})
    if same and not searching:
        tell_of_equal(same, len(runs))
    return runs


def tell_of_equal(same: int, n: int) -> None:
    """Prints that some of the cells that were asked for are the same as others."""
    print(f"{same} of {n} cells are the same as another, and run once", file=sys.stderr)


def combinations(values: list[list[str]], limit: int | None) -> Iterable[Sequence[str]]:
    """Returns all combinations of one value from each list.

    If there are more than `limit`, it returns only two: all first values, and all last values.
    """
    if limit is not None and math.prod(map(len, values)) > limit:
        return [texts[0] for texts in values], [texts[-1] for texts in values]
    return itertools.product(*values)


@contextmanager
def as_typed(overrides: Iterable[Override]) -> Iterator[None]:
    """A context whose errors name numbers as they were typed: 1e1, not 10.0."""
    try:
        yield
    except UserError as error:
        why = str(error)
        for override in overrides:
            shown = f"{override.key_or_group}={override.value()}:"
            if isinstance(override.value(), float) and why.startswith(shown):
                raise UserError(f"{override.input_line}:{why.removeprefix(shown)}") from error
        raise


def resolved(cell: Sequence[str], in_sweep: bool = True) -> tuple[Config, str]:
    """Returns the checked configuration of one run's overrides, and a notice (or "").

    Keys of training by steps have no effect on a model without steps, but that the folder of a
    single run notes device=cpu. (In sweeps the names of cells were made without it.) Raises
    UserError.
    """
    typed = [o for o in map(parse, cell) if not is_hydras(o)]
    values, choices, _ = compose(typed_lines(chosen(typed)))
    for override in typed:
        if override.key_or_group not in CHOICES:
            with about(override.key_or_group):
                check_key(override.key_or_group, override.value(), choices)
    for override in typed:
        with about(override.key_or_group):
            check_sign(override)
    idle = idle_keys(choices)
    if not in_sweep:
        idle = idle - {"device"}
    typed = [o for o in typed if o.key_or_group not in idle]
    values, choices, _ = compose(typed_lines(chosen(typed)))
    given = {o.key_or_group: o.value() for o in typed if o.key_or_group not in CHOICES}
    values = values | given
    with as_typed(typed):
        config, notice = read(values, {group: choices[group] for group in CHOICES})
    for key in OF_DECAY & {*given}:
        if config.run.schedule == "constant" and given[key] is not None:
            with about(key):
                raise UserError(
                    f"{key}={given[key]}: has no effect with schedule=constant, which never falls"
                )
    asked = None if "decay_steps" in idle else values["decay_steps"]
    warnings = (
        warm_until_the_end(config.run, asked),
        unseen_context(config.model, given),
        unused_excerpt(config, given),
        unused_masks(config.model, given),
        spikes_too_early(config),
        mean_never_full(config),
        patience_too_long(config),
    )
    return config, " ".join(filter(None, [notice, *warnings]))
