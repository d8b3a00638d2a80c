"""Makes the choices of a person's own exist while a command runs: of plugin= and --config-dir."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module

from lmlab import files, plugins
from lmlab.config.check import check_own_values, check_value
from lmlab.config.conf_files import add_folders, check_added
from lmlab.config.grammar import parse
from lmlab.config.keys import check_own_keys
from lmlab.errors import CALLED, UserError
from lmlab.markers import PathText
from lmlab.register import PRESENT
from lmlab.registry import importing, variables_kept

Command = Callable[[list[str]], object]


@contextmanager
def own_choices(plugin: str | None, config_dir: str | None = None) -> Iterator[None]:
    """A context in which the choices of the plug-ins exist that `plugin` names, and the installed.

    So do the recipes, presets and files of groups in the folder `config_dir`. An error in the code
    of a plug-in names it. Raises UserError.
    """
    sources = plugins.sources(plugin)
    with ExitStack() as stack:
        if config_dir == "":
            raise UserError("--config-dir=: is empty; needs a folder, such as --config-dir=mine")
        if config_dir is not None:
            folder = files.expanded(config_dir)
            check_added(folder)
            add_folders([folder.absolute()])
            stack.callback(add_folders, [])
        if sources:
            # What a plug-in imports, too. A program that goes on may need what takes longer.
            with importing():
                import_module("lmlab.training.experiment" if CALLED.get() else "torch")
            with importing(own_code=True):
                stack.enter_context(plugins.active(sources))
        if PRESENT:
            check_own_keys()
            check_own_values()
        with plugins.own_errors():
            yield


def with_own_choices(main: Command) -> Command:
    """Lets the plug-ins that a command's arguments name be active while it runs.

    A program that calls it finds the environment's variables as they were.
    """

    @wraps(main)
    def wrapped(argv: list[str]) -> object:
        values = [text.removeprefix("plugin=") for text in argv if text.startswith("plugin=")]
        if values[-1:] == ["null"]:
            values = []
        with variables_kept(), own_choices(values[-1] if values else None):
            return main(argv)

    return wrapped


def typed_plugin(arguments: list[str]) -> str | None:
    """Returns the value of plugin= among the arguments of a command; the last one counts."""
    value = None
    for argument in arguments:
        if argument.startswith("plugin="):
            value = check_value("plugin", parse(argument).value(), PathText | None)
    return value
