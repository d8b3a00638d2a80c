"""The command `lmlab` of an installed lab: lmlab train …, lmlab sample …; also python -m lmlab.

It imports everything else inside `main`, where Ctrl-C is no traceback.
"""

import importlib
from collections.abc import Callable

VERBS = {
    "train": "trains a model, or runs a sweep of many",
    "sample": "lets a trained model write",
    "evaluate": "measures how good a trained model is",
    "explain": "writes a page that shows what a trained model expects",
    "page": "writes a page with a trained model in it, which writes in any browser",
    "export": "writes a trained model for the library transformers, or a sweep as one archive",
    "compare": "ranks the runs of a sweep, and says what can be claimed",
    "plot": "draws the curves of runs",
    "board": "shows runs in TensorBoard, while they train and afterwards",
    "coordinates": "checks whether learning rates carry over to other widths",
    "scaling": "fits the law of scaling to runs, and predicts others",
}


def main() -> None:
    """Runs the command with the typed arguments. Its errors become one line on stderr."""
    try:
        from lmlab.commands.door import run_command
        from lmlab.runs.typed import name_the_command

        name_the_command()
        run_command(obey)
    except KeyboardInterrupt:  # during the imports, when there is nothing to lose
        raise SystemExit(130) from None


def obey(argv: list[str]) -> None:
    """Calls what the first argument names, with the other arguments. Raises UserError."""
    from lmlab import __version__
    from lmlab.errors import UserError, nearest

    verb, arguments = (argv or ["--help"])[0], argv[1:]
    if verb in ("-h", "--help", "--version") and arguments:
        raise UserError(f"lmlab {verb} {arguments[0]}: allowed is lmlab {verb} alone")
    if verb in ("-h", "--help"):
        print(help_page())
    elif verb == "--version":
        print(__version__)
    elif verb in ("-sc", "--shell-completion"):
        from lmlab.commands import completion

        completion.answer(arguments, list(VERBS))
    elif verb in VERBS:
        command_of(verb)(arguments)
    else:
        raise UserError(
            f"lmlab {verb}: there is no such command{nearest(verb, VERBS)}; allowed are "
            f"{', '.join(VERBS)}"
        )


def command_of(verb: str) -> Callable[[list[str]], object]:
    """Returns the function that a verb calls."""
    command: Callable[[list[str]], object] = importlib.import_module(f"lmlab.commands.{verb}").main
    return command


def help_page() -> str:
    """Returns the text of lmlab --help."""
    lines = [f"  lmlab {verb:<12}{about}" for verb, about in VERBS.items()]
    return "\n".join(
        [
            "lmlab: a laboratory for small language models",
            "",
            *lines,
            "",
            "lmlab train --help lists all names, values and recipes; each command has a --help.",
            'lmlab --version        eval "$(lmlab -sc install=bash)" completes words in bash',
        ]
    )


if __name__ == "__main__":
    main()
