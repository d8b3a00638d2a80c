"""Completes the words of the command `lmlab` in bash: its verbs, their keys and choices."""

import importlib
import os
from typing import Literal, get_args, get_origin, get_type_hints

from lmlab.commands import train
from lmlab.config.keys import plain_kind
from lmlab.errors import UserError

SCRIPT = """\
_lmlab_completion() {
    local line=${COMP_LINE:0:COMP_POINT}
    COMPREPLY=($(compgen -W "$(COMP_LINE=$line lmlab -sc query=bash)" -- "${line##* }"))
    [[ ${COMPREPLY[0]} == *= ]] && type compopt >/dev/null 2>&1 && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _lmlab_completion lmlab"""


def answer(arguments: list[str], verbs: list[str]) -> None:
    """Prints the script that bash reads, or the words that may complete $COMP_LINE.

    `verbs` are what may follow `lmlab`. Raises UserError.
    """
    if arguments == ["install=bash"]:
        print(SCRIPT)
        return
    if arguments != ["query=bash"]:
        typed = " ".join(arguments)
        raise UserError(f"lmlab -sc {typed}: allowed is -sc install=bash")
    verb, *words = os.environ.get("COMP_LINE", "").split(" ")[1:] or [""]
    if not words:
        print(*(name for name in verbs if name.startswith(verb)))
    elif verb == "train":
        os.environ["COMP_LINE"] = " ".join(["lmlab", *words])
        own = [word for word in words if word.startswith(("plugin=", "--config-dir="))]
        train.main(["-sc", "query=bash", *own])
    elif verb in verbs:
        print(*(word for word in words_of(verb) if word.startswith(words[-1])))


def words_of(verb: str) -> list[str]:
    """Returns the keys of a command, such as run=, and their choices, such as device=cpu."""
    options = importlib.import_module(f"lmlab.commands.{verb}").Options
    words = []
    for key, hint in get_type_hints(options, include_extras=True).items():
        kind = plain_kind(hint)
        if get_origin(kind) is Literal:
            words += [f"{key}={value}" for value in get_args(kind)]
        else:
            words.append(f"{key}=")
    return words
