"""Recipes and presets, the files of conf/: what each of them sets, and on what it builds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from lmlab.config.check import check_value
from lmlab.config.conf_files import names_in, place_of, read_file
from lmlab.config.keys import SweepConfig, bases_of, choices_of, keys_of
from lmlab.errors import UserError, nearest

TYPED = {"resume", "replay", "plugin", *keys_of(SweepConfig)}  # keys that belong to one command


@dataclass(frozen=True)
class Recipe:
    """What a recipe holds, together with the recipes that it builds on.

    `values` maps keys to values, `made_for` groups to choices.
    """

    values: dict[str, Any] = field(default_factory=dict)
    made_for: dict[str, str] = field(default_factory=dict)


def read_recipe(name: str | None, above: tuple[str, ...] = ()) -> Recipe:
    """Returns the recipe `name`, or an empty one for None.

    `above` are the recipes that build on it. Raises UserError, with file and line, for an entry
    that would have no effect or that Hydra would not understand.
    """
    if name is None:
        return Recipe()
    values = dict(read_file("experiment", name))
    parents = []
    made_for = {}
    for entry in values.pop("defaults", []):
        if isinstance(entry, dict):
            ((typed, choice),) = entry.items()
            group = typed.removeprefix("override /")
            made_for[group] = checked_choice(name, group, choice)
        elif entry != "_self_":
            parents.append(checked_parent(name, entry, (*above, name)))
    for key, value in values.items():
        if key in TYPED:
            raise UserError(f"{place(name, key)}: belongs on the command line")
        if value == "???":
            raise UserError(f"{place(name, key)}: needs a value")
    for parent in reversed(parents):  # where two of them choose, Hydra takes the last
        inherited = read_recipe(parent, (*above, name))
        values = inherited.values | values
        made_for = inherited.made_for | made_for
    return Recipe(values, made_for)


def place(name: str, text: str) -> str:
    """Returns the file and line of a recipe that hold `text`."""
    return place_of("experiment", name, text)


def checked_choice(name: str, group: str, choice: str) -> str:
    """Returns a choice of the recipe `name`. Raises UserError if there is no such choice."""
    try:
        return str(check_value(group, choice, Literal[*choices_of(group)]))
    except UserError as error:
        raise UserError(f"{place(name, f'override /{group}')}: {error}") from None


def checked_parent(name: str, entry: str, above: tuple[str, ...]) -> str:
    """Returns the full name of a recipe that the recipe `name` builds on.

    Raises UserError if there is no such recipe, or if it builds on itself.
    """
    check_full(name, entry, "experiment")
    parent = entry.removeprefix("/experiment/")
    known = names_in("experiment")
    if parent not in known:
        raise UserError(
            f"{place(name, entry)}: there is no such recipe{nearest(parent, known)}; --help lists "
            "all"
        )
    if parent in above:
        raise UserError(f"{place(name, entry)}: builds on itself")
    return parent


def check_full(name: str, entry: str, group: str) -> None:
    """Raises UserError if a file in a folder names another one without its group.

    Hydra would look for it in one place or another, by who asks.
    """
    if "/" in name and not entry.startswith(f"/{group}/"):
        raise UserError(
            f"{place_of(group, name, entry)}: needs its full name in a file of a folder, such as "
            f"/{group}/{entry}"
        )


def check_preset(group: str, name: str) -> None:
    """Raises UserError if the file of a choice sets a key that the choice it builds on does not set.

    The files of other groups, or conf/config.yaml, would overwrite it.
    """
    values = dict(read_file(group, name))
    taken = {**read_file(group, bases_of(group)[name])}
    above = values.pop("defaults", [])
    for key in values:
        if key not in taken:
            raise UserError(
                f"{place_of(group, name, key)}: is no key of {group}={name}; those are "
                f"{', '.join(taken)}"
            )
    for entry in above:
        if entry != "_self_":
            check_full(name, entry, group)
            check_preset(group, entry.removeprefix(f"/{group}/"))
