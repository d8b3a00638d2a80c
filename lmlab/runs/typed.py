"""The commands that messages tell a person to type next, as this installation takes them."""

import re
import shlex
from pathlib import Path

from lmlab import plugins
from lmlab.runs.code import LIBRARY

VERBS = "sample|evaluate|explain|page|export|compare|plot|board|coordinates|scaling"  # beside train
IN_CHECKOUT = rf"(?:python )?(?:\b(train)\.py|scripts/({VERBS})\.py)"
TYPED: list[str] = []  # "lmlab", if the person has typed this command


def name_the_command(typed: str = "lmlab ") -> None:
    """Lets messages name the command `lmlab`, if what was `typed` begins with it."""
    if typed.startswith("lmlab "):
        TYPED[:] = ["lmlab"]


def command(verb: str, **values: str | Path) -> str:
    """Returns a command such as "python scripts/sample.py run=outputs/x".

    `verb` is train or one of `VERBS`. The active plug-ins are named, too.
    """
    words = [program(verb)]
    if plugins.names():
        values["plugin"] = str(plugins.names())
    words += [f"{key}={shlex.quote(str(value))}" for key, value in values.items()]
    return " ".join(words)


def board_command(runs: Path | str) -> str:
    """Returns the command that shows runs, or folders of runs, in TensorBoard."""
    return f"{program('board')} runs={shlex.quote(str(runs))}"  # it needs no plug-in


def program(verb: str) -> str:
    """Returns what to type before the arguments of a command.

    A checkout has programs, an installed package has the command `lmlab`.
    """
    if TYPED or not (LIBRARY.parent / "train.py").exists():
        return f"lmlab {verb}"
    return "python train.py" if verb == "train" else f"python scripts/{verb}.py"


def as_typed(page: str) -> str:
    """Returns a text about the programs of a checkout, with what to type in their places.

    An installed lab has not the files of a checkout that the text names; it says where they are.
    """
    if program("train") == "python train.py":
        return page
    page = re.sub(IN_CHECKOUT, lambda match: program(match[1] or match[2]), page)
    if re.search(r"\bdocs/|\bscripts/", page):
        page = (
            page.rstrip("\n") + "\n\nThe files in docs/ and scripts/ are in the lab's checkout.\n"
        )
    return page
