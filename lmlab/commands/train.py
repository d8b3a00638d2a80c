"""The door: what is typed goes to the one who answers it. Nothing imports torch before the
arguments hold.
"""

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from lmlab.commands.continued import inherited, literal, repeated
from lmlab.commands.options import help_page
from lmlab.config.overrides import CONF, Asked, checked, parse, resolved
from lmlab.errors import UserError, one_line_errors, printable
from lmlab.registry import importing
from lmlab.runs.folder import timestamp
from lmlab.sweep.cells import Cell, Sweep


def main(argv: list[str] | None = None) -> None:
    """What train.py does."""
    argv, parser = sys.argv[1:] if argv is None else argv, get_args_parser()
    parser.prog, parser.print_usage = "train.py", lambda _: None  # a wrong flag too gets one line
    args = parser.parse_args(argv)
    if args.help:
        return print(help_page())
    command = shlex.join(["python", "train.py", *argv])
    with one_line_errors():
        flags = [argument for argument in argv if argument not in args.overrides]
        typed = [literal(argument) for argument in args.overrides]
        if again(typed, flags, command):
            return None
        typed, beside = inherited(typed)
        overrides = [*typed, *beside]
        asked = checked(overrides, args.multirun)
        sweep = Sweep(asked.name, command, tuple(beside), asked.swept)
        swept = args.multirun and not args.cfg and not args.info
        if swept:
            survey = begun(asked, sweep)
            if asked.runs[0][0].sweep.dry_run:
                return survey.show()
            overrides = [text for text in overrides if parse(text).key_or_group != "name"]
            place = f"{tempfile.gettempdir()}/lmlab-{os.getuid()}"  # of Hydra's own notes
            place = place if asked.launcher == "local" else sweep.own
            overrides += [f"name='{asked.name}'", f"hydra.sweep.dir='{place}'"]
        sys.argv = ["train.py", *flags, *overrides]

    def one_run(cfg: DictConfig) -> Cell | None:
        return task(cfg, sweep)

    one_run.sweep = sweep  # for launchers and sweepers, which are handed the function
    begin = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(one_run)
    if not swept:
        return begin()
    if asked.launcher == "local":
        one_run.survey = survey
    else:
        survey.announce()
    with one_line_errors():
        from lmlab.sweep import report  # while the server imports

        try:
            begin()
        except SystemExit as stop:
            if asked.launcher in ("local", "basic") or stop.code != 1:
                raise
            print(
                "error: a job ended without an answer; others may still run, the same command shows them",
                file=sys.stderr,
            )
        if not report.finish(sweep, asked.launcher):
            raise SystemExit(1)
    return None


def begun(asked: Asked, sweep: Sweep) -> Any:
    """The survey of a sweep that begins: with processes to run it, and Hydra knowing our plugins."""
    if asked.launcher == "local":
        from lmlab.sweep.server import server

        server()
    from lmlab.sweep.launcher import LocalLauncher
    from lmlab.sweep.search import SearchSweeper
    from lmlab.sweep.survey import Survey

    for plugin in (LocalLauncher, SearchSweeper):
        Plugins.instance().register(
            plugin
        )  # and under the name of the one package from which Hydra takes them
        Plugins.instance().class_name_to_class[f"hydra_plugins.lmlab.{plugin.__name__}"] = plugin
    return Survey(asked, sweep)


def again(arguments: list[str], flags: list[str], command: str) -> bool:
    """Does what resume= or replay= of a run's folder asks for; False if neither is there."""
    asked = repeated(arguments, flags)
    if not asked:
        return False
    verb, path, config = asked
    with importing():
        from lmlab.training import experiment, replay
    well = (
        replay.replay(path, config, command)
        if verb == "replay"
        else experiment.resume(path, config, command) == "finished"
    )
    if not well:
        raise SystemExit(1)
    return True


def task(cfg: DictConfig, sweep: Sweep) -> Cell | None:
    """One run, as Hydra calls it: for the command itself, or for each cell of a sweep, which is
    returned; None for what turns out to be no run.
    """
    job = HydraConfig.get()

    if job.mode.name == "MULTIRUN":
        from lmlab.sweep import cells, plan, study

        try:
            cell = plan.identify(
                resolved(list(job.overrides.task))[0], list(job.overrides.task), sweep
            )
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)  # the others go on
            return None
        with study.watching(cell.config.sweep.trial) as watch:
            cells.run_when_free(cell, watch)
        return cell
    with one_line_errors():
        single = resolved(list(job.overrides.task))[0]
        with importing():
            from lmlab.training import experiment
        path = Path("outputs", single.run.name, timestamp())
        if experiment.run(single, path, sweep.command)[0] == "diverged":
            raise SystemExit(1)
    return None
