"""What runs are called: the overrides that were typed for them, without those that all have.

A label holds overrides, with commas between them.
"""

import re
import shlex
from collections.abc import Collection, Iterable

from lmlab.config.keys import marked
from lmlab.markers import OF_THE_RUN, ONCE


def parts_of(label: str) -> list[str]:
    """Returns the overrides of a label; their values may have commas, too."""
    return re.split(r",(?=[\w./@]+=)", label)


def common_parts(labels: Iterable[str]) -> set[str]:
    """Returns the overrides that all labels have, or none if there is only one label."""
    parts = [set(parts_of(label)) for label in labels]
    if len(parts) < 2:
        return set()
    return set.intersection(*parts)


def without(label: str, common: Collection[str]) -> str:
    """Returns the label without the overrides in `common`, or all of it if nothing remains."""
    varying = [part for part in parts_of(label) if part not in common]
    return ",".join(varying) or label


def without_seed(label: str) -> str:
    """Returns the label without the override of the seed, or "" if nothing remains."""
    return ",".join(part for part in parts_of(label) if not part.startswith("seed="))


def typed_values(words: Iterable[str]) -> dict[str, str]:
    """Returns the values that the words of a command give to keys, but for names and places."""
    pairs = [word.partition("=") for word in words if "=" in word]
    hidden = (marked(ONCE) | marked(OF_THE_RUN)) - {"seed"}
    return {key: value for key, _, value in pairs if key not in hidden and "-" not in key}


def words_of(command: str) -> list[str]:
    """Returns the words of a command, or none of one that cannot be taken apart."""
    try:
        return shlex.split(command)
    except ValueError:
        return []
