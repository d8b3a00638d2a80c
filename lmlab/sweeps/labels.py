"""Shortens the labels of cells: leaves out the overrides that all labels have.

A label holds overrides, with commas between them.
"""

from collections.abc import Collection, Iterable


def common_parts(labels: Iterable[str]) -> set[str]:
    """Returns the overrides that all labels have, or none if there is only one label."""
    parts = [set(label.split(",")) for label in labels]
    if len(parts) < 2:
        return set()
    return set.intersection(*parts)


def without(label: str, common: Collection[str]) -> str:
    """Returns the label without the overrides in `common`, or all of it if nothing remains."""
    varying = [part for part in label.split(",") if part not in common]
    return ",".join(varying) or label


def without_seed(label: str) -> str:
    """Returns the label without the override of the seed, or "" if nothing remains."""
    return ",".join(part for part in label.split(",") if not part.startswith("seed="))
