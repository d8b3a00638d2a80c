"""python train.py, or lmlab train: checks the arguments, then trains, resumes, replays or sweeps.

Nothing imports torch before all arguments are checked.
"""

import io
import os
import re
import shlex
import sys
import tempfile
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from lmlab import __version__, files, plugins, ranks
from lmlab.commands import dev_run
from lmlab.commands.continued import inherited, literal, repeated
from lmlab.commands.options import check_alone, help_page
from lmlab.commands.own_choices import own_choices, typed_plugin
from lmlab.config import conf_files
from lmlab.config.check import Config, meant_by, suggestion
from lmlab.config.composition import LISTED, primary, without_glob
from lmlab.config.conf_files import CONF
from lmlab.config.grammar import is_hydras, key_of, last_of_each, parse, typed_value
from lmlab.config.keys import all_keys
from lmlab.config.overrides import Asked, checked, joined, resolved
from lmlab.config.sweep_files import Line, read_lines
from lmlab.errors import (
    CALLED,
    UserError,
    memory_errors,
    one_line_errors,
    refuse,
    without_secrets,
)
from lmlab.processes import server
from lmlab.registry import importing, variables_kept
from lmlab.runs.folder import timestamp
from lmlab.runs.typed import command, program
from lmlab.signals import saving_before_requeue
from lmlab.sweeps import cluster
from lmlab.sweeps.cells import Cell, Sweep, call_codes_equal
from lmlab.terminal import lasting_output, tell

ONE_BY_ONE = threading.RLock()  # Hydra, sys.argv and sys.stdout are the whole process's
NO_NAME = r"[^\w.,=+-]"  # characters that the name of a sweep may not have
NO_RECIPE = "experiment=null"  # as it is without the argument; Hydra refuses a null of its own


@dataclass(frozen=True)
class Outcome:
    """The folder of a run or a sweep, or None if there is none, and the exit status: 0 or 1.

    The status is 1 if the run diverged, if some cells of the sweep failed, if a replay differed or
    something could not be tried; of the last two `failure` says it in a line.
    """

    path: Path | None
    status: int = 0
    failure: str = ""


def main(argv: list[str] | None = None) -> Path | None:
    """Runs train.py with the arguments `argv`, by default those of the process.

    Returns the folder of the run or the sweep, or None if there is none. Raises SystemExit: with
    status 2 for a wrong argument, else with that of train.py. A program that calls it finds its own
    arguments and torch's settings as they were. Calls from several threads run one after another.
    """
    outcome = call(sys.argv[1:] if argv is None else argv)
    if outcome.status:
        raise SystemExit(outcome.status)
    return outcome.path


def call(argv: list[str]) -> Outcome:
    """Does the same as `main`, but returns the exit status of what has been done.

    Raises SystemExit for a wrong argument, and after a signal.
    """
    if not CONF.is_dir():
        refuse(f"{CONF}: is missing; this copy of the lab is not whole, install it again")
    args = flag_parser().parse_intermixed_args(argv)
    with ONE_BY_ONE, variables_kept(), one_line_errors(), ExitStack() as stack:
        with one_line_errors():
            refuse_beside_pages(args, argv)
            for argument in args.overrides:
                if argument.startswith("-"):  # after a --
                    refuse_flags(f"unrecognized arguments: {argument}")
            given = [literal(argument) for argument in args.overrides if argument != NO_RECIPE]
            stack.enter_context(own_choices(typed_plugin(given), args.config_dir))
        if args.help or args.version:
            # here, where a closed pipe is quiet
            print(help_page() if args.help else __version__, flush=True)
            return Outcome(None)
        if args.shell_completion:
            with one_line_errors():
                check_completion(args)
            with arguments_as_before():
                complete(argv)
            return Outcome(None)
        with lasting_output() as output, arguments_as_before():
            outcome = obey(args, argv, given)
            output.flush()
            if outcome.path is None and output.fault and not outcome.status:
                raise output.fault  # what it has written is all that it was asked for
            return outcome


@contextmanager
def arguments_as_before() -> Iterator[None]:
    """A context after which `sys.argv`, from which Hydra reads, is as it was."""
    arguments = sys.argv
    try:
        yield
    finally:
        sys.argv = arguments


def obey(args: Namespace, argv: list[str], given: list[str]) -> Outcome:
    """Trains, resumes, replays or runs a sweep, as the arguments say.

    `given` are the arguments without flags, with the quotes that Hydra needs.
    """
    command = without_secrets(f"{program('train')} {shlex.join(argv)}".strip())
    flags = [argument for argument in argv if argument not in args.overrides]
    with one_line_errors(), plugins.own_errors():
        refuse_hydras_files(args)
        own = ranks.place()
        if own and own.starter == "torchrun" and args.multirun:
            raise UserError(
                "-m: a sweep starts the processes of its cells itself; type it without torchrun"
            )
        typed = last_of_each([without_glob(argument) for argument in given])
        continued = resume_or_replay(typed, flags, command)
        if continued is not None:
            return continued
        lines = lines_of(typed, args.multirun)
        parts = []
        inherited_keys: set[str] = set()
        typed_texts: set[str] = set()
        for line in lines:
            with errors_at(line):
                arguments, added = inherited(line.arguments)
                overrides = [*arguments, *added]
                parts.append(checked(overrides, args.multirun))
            inherited_keys.update(added)
            typed_texts.update(arguments)
        asked = joined(parts)
        if asked.name == "sweeps" and not args.multirun:
            raise UserError("name=sweeps: the folder of sweeps has this name; allowed are others")
        first, _ = asked.runs[0]
        if first.sweep and first.sweep.fast_dev_run and not (args.cfg or args.info):
            faults = dev_run.try_out(asked)
            return Outcome(None, 1 if faults else 0, "; ".join(faults))
    same_code = first.sweep is not None and first.sweep.same_code
    hidden = tuple(sorted(inherited_keys - typed_texts))  # from the cells' labels
    sweep = Sweep(asked.name, command, hidden, asked.swept, same_code, first.run.out)
    if args.multirun and not args.cfg and not args.info:
        all_ended = run_sweep(asked, sweep, flags, overrides)
        if all_ended is None:
            return Outcome(None)
        return Outcome(sweep.folder, 0 if all_ended else 1)
    if args.cfg or args.info:
        with redirect_stdout(io.StringIO()) as shown:
            run_hydra(Task(sweep), flags, overrides)
        print(without_secrets(shown.getvalue()), end="")
        return Outcome(None)
    return train_one(first, command)


@one_line_errors()
def train_one(config: Config, command: str) -> Outcome:
    """Trains a single run. Hydra would only compose the same values once more."""
    with plugins.own_errors():
        if ranks.place():
            os.environ.setdefault(*ranks.QUIET)
        elif config.device.devices not in (None, 1):
            server.context()  # imports for the other processes, while this one does so, too
        with importing():
            from lmlab import machine
            from lmlab.training import distributed, experiment
        config = machine.resolve(config)
        tell_of_tasks(config)
        path = files.expanded(config.run.out) / config.run.name / timestamp()
        with memory_errors(), distributed.joined(config) as part:
            if not part.leads:
                return Outcome(part.path)
            status, path = experiment.run(config, path, command)
    return Outcome(path, 1 if status == "diverged" else 0)


def tell_of_tasks(config: Config) -> None:
    """Says that tasks of srun train a run each, and the same one, unless devices= asks for several."""
    own = ranks.place()
    if own and own.starter == "srun" and own.rank == 0 and config.device.processes == 1:
        tell(
            f"warning: srun has started {own.size} tasks, and each trains a run of its own; "
            f"devices={own.size} lets them train one"
        )


def lines_of(typed: list[str], multirun: bool) -> list[Line]:
    """Returns the typed arguments as one line, or the lines of the file that sweep= names.

    What is typed takes the place of what the file says. Raises UserError.
    """
    last = {key_of(text): text for text in typed}
    chosen = last.pop("sweep", None)
    if chosen is None:
        return [Line(typed, "")]
    name = str(parse(chosen).value())
    if not multirun:
        raise UserError(f"sweep={name}: is a sweep; add -m")
    usual = f"name={typed_value('name', re.sub(NO_NAME, '-', name))}"
    lines = []
    for line in read_lines(name):
        with errors_at(line):
            arguments = [without_glob(literal(text)) for text in line.arguments]
        by_key = {key_of(text): text for text in (usual, *arguments)} | last
        lines.append(Line([*by_key.values()], line.place, line.elsewhere | dict.fromkeys(last, "")))
    return lines


@contextmanager
def errors_at(line: Line) -> Iterator[None]:
    """A context in which a UserError begins with the file and line that are at fault, if any."""
    try:
        yield
    except UserError as error:
        place = line.place_of(error.key)
        if not place:
            raise
        raise UserError(f"{place}: {error}") from None


def flag_parser() -> ArgumentParser:
    """Returns Hydra's parser of flags, changed so that a wrong flag gives one line of error."""
    parser: Any = get_args_parser()
    parser.prog = program("train")
    parser.print_usage = lambda file=None: None
    # In the place of a flag that shows the version of Hydra, whatever follows.
    parser._optionals.conflict_handler = "resolve"
    parser.add_argument("--version", action="store_true")
    parser.error = refuse_flags
    result: ArgumentParser = parser
    return result


def refuse_beside_pages(args: Namespace, argv: list[str]) -> None:
    """Raises UserError for arguments beside a flag that shows a page, on which they have no effect.

    A plug-in and a folder of files of a person's own stand on the page of --help.
    """
    flags = [name for name in ("help", "version") if getattr(args, name)]
    if not flags:
        return
    flag = f"--{flags[0].replace('_', '-')}"
    if not args.help:
        check_alone(flag, argv)
        return
    read = [text for text in args.overrides if text.startswith("plugin=")]
    if args.config_dir is not None:
        folder = args.config_dir
        read += ["--config-dir", "-cd", folder, f"--config-dir={folder}", f"-cd={folder}"]
    others = [argument for argument in argv if argument not in read]
    check_alone(
        flag, others, "it shows all keys; allowed beside it are plugin=… and --config-dir=…"
    )


def refuse_hydras_files(args: Namespace) -> None:
    """Raises UserError for flags of Hydra that name other files, which the lab would not read."""
    for name in ("config_name", "config_path", "experimental_rerun"):
        value = getattr(args, name)
        if value is not None:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag}={value}: has no effect here; a recipe is a file in conf/experiment, or in "
                "the folder experiment/ of --config-dir"
            )
    if args.hydra_help:
        raise UserError("--hydra-help: has no effect here; --help shows all keys")
    shown = [flag for flag in ("run", "cfg", "info") if getattr(args, flag)]
    if args.run and args.multirun:
        shown.append("multirun")
    if len(shown) > 1:
        first, second = (f"--{flag.replace('_', '-')}" for flag in shown[:2])
        raise UserError(f"{first} {second}: allowed is one of them")
    if args.resolve and not args.cfg:
        raise UserError("--resolve: needs --cfg job")
    if args.package:
        raise UserError(f"--package={args.package}: has no effect here; --cfg job shows all keys")
    if args.multirun and (args.cfg or args.info):
        flag = "--cfg" if args.cfg else "--info"
        raise UserError(f"{flag}: shows one run; dry_run=true instead of it lists those of a sweep")


def refuse_flags(message: str) -> None:
    """Raises SystemExit(2) after one line about a wrong flag; argparse calls this."""
    wrong = re.match(
        r"argument (--[\w-]+)\S*: invalid choice: '(.*)' \(choose from (.*)\)", message
    )
    if wrong:
        flag, value, choices = wrong.groups()
        refuse(f"{flag} {value}: allowed are {choices}".replace("'", ""))
    unknown = message.removeprefix("unrecognized arguments: ")
    flag = unknown.split(" ")[0]
    if unknown != message and flag.startswith("-"):
        message = f"unrecognized arguments: {flag}"  # those after it may be right
    hint = ""
    if flag.startswith("--"):
        name, _, value = flag.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        key = meant_by(name, all_keys())
        fitting = value if value.lower() not in ("true", "false") or key == name else ""
        hint = f"; keys are written without dashes: {key}={fitting or '…'}"
        if key is None:
            hint = f": there is no key {name}{suggestion(name, all_keys())}; --help lists them all"
    refuse(f"{message}{hint}")


def check_completion(args: Namespace) -> None:
    """Raises UserError for words that Hydra's completion does not know."""
    typed = [word for word in args.overrides if not word.startswith("plugin=")]
    known = r"(install|uninstall|query)=(bash|fish|zsh)"
    asked = [word for word in typed if re.fullmatch(known, word)]
    if len(asked) != 1 or asked != typed:
        typed_flag = " ".join(["-sc", *typed])
        raise UserError(f"{typed_flag}: allowed is -sc install=bash, or fish or zsh for bash")
    if asked[0].startswith("query=") and "COMP_LINE" not in os.environ:
        raise UserError(f"-sc {asked[0]}: bash calls it, with its line in COMP_LINE")


def complete(argv: list[str]) -> None:
    """Lets Hydra print what a shell needs to complete keys and choices, or their completions."""
    sys.argv = [sys.argv[0] or "train.py", *argv]
    hydra.main(config_path=str(CONF), config_name=primary(), version_base="1.3")(print)()


def run_hydra(task: "Task", flags: list[str], overrides: list[str]) -> None:
    """Lets Hydra call `task`, once or for each cell of a sweep."""
    sys.argv = ["train.py", *overrides, *flags]  # --info would take a key after it as its value
    with composed_once():
        hydra.main(config_path=str(CONF), config_name=primary(), version_base="1.3")(task)()


@contextmanager
def composed_once() -> Iterator[None]:
    """A context in which Hydra does not compose all files only to read hydra.mode.

    That would take a tenth of a small run's time. The lab refuses hydra.mode, so it is always null.
    """
    get_mode = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]  # as it would return
    try:
        yield
    finally:
        Hydra.get_mode = get_mode  # type: ignore[method-assign]


def resume_or_replay(arguments: list[str], flags: list[str], command: str) -> Outcome | None:
    """Resumes or replays a run.

    Returns None if the user typed neither resume= nor replay=.
    """
    request = repeated(arguments, flags)
    if request is None:
        return None
    verb, path, config = request
    with importing():
        from lmlab.training import distributed, experiment, replay
    with memory_errors(), distributed.joined(config) as part:
        if not part.leads:
            return Outcome(part.path)
        if verb == "replay":
            succeeded = replay.replay(path, config, command)
        else:
            succeeded = experiment.resume(path, config, command) == "finished"
    failure = ""
    if verb == "replay" and not succeeded:
        failure = f"replay={path}: the losses are not the same"
    return Outcome(path, 0 if succeeded else 1, failure)


class Task:
    """The function that Hydra calls for each cell, with attributes for launchers and sweepers.

    `sweep` holds the facts that all cells share. `survey` holds the cells before they run. Only the
    launcher `local` uses `survey`.
    """

    def __init__(self, sweep: Sweep, survey: Any = None) -> None:
        self.sweep = sweep
        self.survey = survey
        self.listed: list[list[str]] = []  # the cells' overrides, of a sweep that is no search
        self.faults: list[str] = []  # of the sweep, which stand in the folder of no cell
        self.notes: list[str] = []  # which are shown below the leaderboard

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a job of another machine needs: the person's own choices with it."""
        return vars(self) | {
            "survey": None,
            "listed": [],
            "own": (plugins.active_sources(), conf_files.ADDED),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes the person's own choices exist in the process of the job, until it ends."""
        sources, folders = state.pop("own")
        vars(self).update(state)
        conf_files.add_folders(folders)
        plugins.activate(sources)
        primary()

    @one_line_errors()
    def __call__(self, composed: DictConfig) -> Cell | None:
        """Runs one cell of a sweep. If it cannot be run, it prints the reason and returns None."""
        from lmlab.sweeps import cells, plan, study
        from lmlab.training import distributed

        overrides = list(HydraConfig.get().overrides.task)
        try:
            with plugins.own_errors():
                config, _ = resolved(overrides)
                cell = plan.identify(config, overrides, self.sweep)
        except UserError as error:
            error.show()
            return None
        with saving_before_requeue(), distributed.joined(cell.config) as part:
            if part.leads:
                cell = cells.run_when_free(cell, study.watch_of(cell.trial))
        return cell


def run_sweep(asked: Asked, sweep: Sweep, flags: list[str], overrides: list[str]) -> bool | None:
    """Runs the cells of a sweep and prints the leaderboard. With dry_run=true only shows them.

    Returns whether all cells have ended: finished, diverged or pruned; None if they were only shown.
    """
    with one_line_errors(), plugins.own_errors():
        for folder in (sweep.folder, sweep.own / "locks", sweep.own / "logs"):
            reason = files.obstacle(folder)
            if reason:
                raise UserError(f"{folder}: the folder of the sweep cannot be made: {reason}")
        survey = start_survey(asked, sweep)
        first, _ = asked.runs[0]
        if first.sweep and first.sweep.dry_run:
            survey.show()
            return None
        if sweep.same_code:
            call_codes_equal(sweep)
    if CALLED.get():
        survey.check()  # here, where Hydra does not hide the reason from the program
    with one_line_errors(), importing():  # while the server of processes imports
        from lmlab.sweeps import live, report

    stack = ExitStack()
    task = Task(sweep)
    hydras_own = str(sweep.own)  # where Hydra puts its notes
    if asked.launcher == "local":
        task.survey = survey
        with one_line_errors():
            hydras_own = stack.enter_context(tempfile.TemporaryDirectory(prefix="lmlab-"))
    else:
        survey.announce()
    name = f"name='{asked.name}'"
    if asked.sweeper in ("basic", LISTED):
        # Hydra's own sweeper would compose each cell once more, which takes a fifth of a second.
        runs = (
            survey.left() if asked.launcher not in cluster.LOCAL else [own for _, own in asked.runs]
        )
        task.listed = [[*without_name(own), name] for own in runs]
        hydras = [text for text in overrides if is_hydras(parse(text))]
        overrides = [text for text in hydras if key_of(text) != "hydra/sweeper"]
        overrides.append(f"hydra/sweeper={LISTED}")
    overrides = [*without_name(overrides), name, f"hydra.sweep.dir='{hydras_own}'"]
    with stack, one_line_errors(), plugins.own_errors():
        try:
            with cluster.telling_of_jobs(sweep, asked.launcher), live.LivePage(survey):
                run_hydra(task, flags, overrides)
        except SystemExit as stop:
            if asked.launcher in cluster.LOCAL or stop.code != 1:
                raise
            print(
                "error: a job ended without a result; other jobs may still run; repeat the command "
                "to see them",
                file=sys.stderr,
            )
        all_ended = True
        try:
            # Without cells all runs of a search are in other folders, or none could be made.
            if sweep.cells() or not (task.notes or task.faults):
                all_ended = report.finish(sweep, asked.launcher)
        except KeyboardInterrupt:
            tell(
                "stopped before the leaderboard was written; the same command, or "
                f"{command('compare')} {sweep.folder}, writes it"
            )
            raise
        finally:  # whatever the report says
            for line in task.notes:
                print(line)
            for line in task.faults:
                print(f"error: {line}", file=sys.stderr)
        return all_ended and not task.faults


def without_name(overrides: list[str]) -> list[str]:
    """Returns overrides without that of the key `name`."""
    return [text for text in overrides if key_of(text) != "name"]


def start_survey(asked: Asked, sweep: Sweep) -> Any:
    """Starts the server of processes, prepares Hydra, and returns the survey of a sweep."""
    if asked.launcher == "local":
        search = asked.sweeper == "search"
        server.start_server(server.PRELOAD_SEARCH if search else server.PRELOAD)
    else:
        server.share_library()
    from lmlab.sweeps.launcher import LocalLauncher
    from lmlab.sweeps.listed import ListSweeper
    from lmlab.sweeps.search import SearchSweeper
    from lmlab.sweeps.survey import Survey

    target = {"_target_": "hydra_plugins.lmlab.ListSweeper"}
    ConfigStore.instance().store(LISTED, target, group="hydra/sweeper", package="hydra.sweeper")
    plugins = Plugins.instance()
    for plugin in (LocalLauncher, SearchSweeper, ListSweeper):
        plugins.register(plugin)
        # Hydra instantiates plugins only under the name of its own package.
        plugins.class_name_to_class[f"hydra_plugins.lmlab.{plugin.__name__}"] = plugin
    return Survey(asked, sweep)
