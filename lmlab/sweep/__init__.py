"""From one run to many: cells that survive, launchers and a search that run them, the table that
compares them.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`load_runs`, without pandas for those who don't ask."""
    if name == "load_runs":
        from lmlab.sweep.table import load_runs

        return load_runs
    raise AttributeError(name)
