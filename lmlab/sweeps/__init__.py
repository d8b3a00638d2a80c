"""Many runs: cells, the launcher and the search that run them, and the leaderboard."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Returns `load_runs`. It is imported at its first use, since it needs pandas."""
    if name == "load_runs":
        from lmlab.sweeps.table import load_runs

        return load_runs
    raise AttributeError(name)
