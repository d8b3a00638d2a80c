"""The commands that messages tell a person to type next, as this installation takes them."""

import shlex
from pathlib import Path

from lmlab import plugins
from lmlab.runs.code import LIBRARY


def command(verb: str, **values: str | Path) -> str:
    """Returns a command such as "python scripts/sample.py run=outputs/x".

    `verb` is train, sample, evaluate, explain, compare or plot. A checkout has programs for them,
    an installed package the command `lmlab`. The active plug-ins are named, too.
    """
    words = [program(verb)]
    if plugins.names():
        values["plugin"] = str(plugins.names())
    words += [f"{key}={shlex.quote(str(value))}" for key, value in values.items()]
    return " ".join(words)


def program(verb: str) -> str:
    """Returns what to type before the arguments of a command."""
    if not (LIBRARY.parent / "train.py").exists():
        return f"lmlab {verb}"
    return "python train.py" if verb == "train" else f"python scripts/{verb}.py"
