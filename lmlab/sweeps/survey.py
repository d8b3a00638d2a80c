"""Counts the cells of a sweep, and those already finished, before the first of them runs."""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property

from lmlab.config.check import Config
from lmlab.config.grammar import parse
from lmlab.config.keys import CHOICES, marked
from lmlab.config.overrides import Asked, resolved
from lmlab.cores import usable_cores
from lmlab.errors import UserError
from lmlab.markers import FILLED, OF_THE_RUN, UNTOUCHING
from lmlab.notebook import plain_console
from lmlab.runs.code import UNKNOWN, own_code
from lmlab.runs.folder import read_config
from lmlab.sweeps.cells import Cell, Sweep, of_this_code
from lmlab.sweeps.planner import planner
from lmlab.terminal import showing, tell

MANY = 500  # cells, which take some seconds
WIDTH = 200  # characters of the printed table where there is no terminal

Identified = tuple[list[Cell], int]  # the cells, and the number of GPUs


class Survey:
    """The cells of a command, as this machine will run them.

    With the local launcher a background process finds them, and the first access waits for the
    result. Raises UserError, now or at that access, for the first cell that cannot be run.
    """

    def __init__(self, asked: Asked, sweep: Sweep) -> None:
        self.asked = asked
        self.sweep = sweep
        self.planner = planner(asked.launcher)
        self.elsewhere = asked.launcher not in ("local", "basic")
        self.was_announced = False
        self.future: Future[Identified] | None = None
        if asked.launcher == "local":
            self.future = Future()
            # A daemon: Ctrl-C need not wait for the answer.
            threading.Thread(target=self.answer, daemon=True).start()
        else:
            self.check()

    def answer(self) -> None:
        """Gives `future` the cells, or the error."""
        assert self.future is not None  # the thread is started after it was made
        try:
            self.future.set_result(self.identify_all())
        except BaseException as error:
            self.future.set_exception(error)

    def identify_all(self) -> Identified:
        """Returns the cells and the number of GPUs. Raises UserError."""
        n = len(self.asked.runs)
        if n > MANY:
            tell(f"looking for the folders of {n} cells …")
        return self.planner.identify_all(self.asked.runs, self.sweep, self.elsewhere)

    @cached_property
    def identified(self) -> Identified:
        """The cells and the number of GPUs, computed only once."""
        if self.future is not None:
            with showing("preparing the cells …"):
                return self.future.result()
        return self.identify_all()

    def check(self) -> None:
        """Waits until all cells are checked. Raises UserError if one cannot be run."""
        _ = self.identified  # the first access raises

    @cached_property
    def cells(self) -> dict[tuple[object, ...], Cell]:
        """The cells by their configurations."""
        identified, _ = self.identified
        by_config = {}
        for (config, _), cell in zip(self.asked.runs, identified, strict=True):
            by_config[key_of(config)] = cell
        return by_config

    @property
    def gpus(self) -> int:
        """The number of GPUs of this machine."""
        return self.identified[1]

    def cell(self, overrides: Sequence[str]) -> Cell:
        """Returns the cell of a run's overrides. Raises UserError if the cell cannot run."""
        config, _ = resolved(overrides)
        known = self.cells.get(key_of(config))
        return known or self.planner.identify(config, list(overrides), self.sweep)

    def left(self) -> list[list[str]]:
        """Returns the overrides of the runs whose cells are not done."""
        identified, _ = self.identified
        return [
            list(own)
            for (_, own), cell in zip(self.asked.runs, identified, strict=True)
            if not of_this_code(cell).is_done()
        ]

    def announce(self) -> None:
        """Prints, only once, the number of cells and how many of them are already finished."""
        if self.was_announced:
            return
        self.was_announced = True
        unique = {cell.hash: cell for cell in self.cells.values()}
        count = f"{len(unique)} cells"
        if self.asked.sweeper == "search":
            count = "a search"
        elif len(unique) == 1:
            count = "1 cell"
        n_done = sum(cell.is_done() for cell in unique.values())
        done = ""
        if n_done:
            done = f", {n_done} of them done already"
        print(f"{self.sweep.folder}: {count}{done}", flush=True)
        self.tell_of_code(list(unique.values()))
        self.tell_of_watching([cell for cell in unique.values() if cell.is_done()])
        self.tell_of_several()

    @cached_property
    def watching(self) -> set[str]:
        """Returns the typed keys that watch a run as it is made, and do not touch what it computes."""
        typed = {parse(text).key_or_group for _, overrides in self.asked.runs for text in overrides}
        return typed & (marked(UNTOUCHING) - marked(OF_THE_RUN) - marked(FILLED) - {*CHOICES})

    def tell_of_several(self) -> None:
        """Prints which keys have several values in cells that are one, since they touch no result."""
        n_asked = Counter(cell.hash for cell in self.cells.values())
        equal = [cell for cell in self.cells.values() if n_asked[cell.hash] > 1]
        values: dict[tuple[str, str], set[str]] = {}
        for cell in equal if self.watching else ():
            flat = cell.config.flat()
            for key in self.watching:
                values.setdefault((key, cell.hash), set()).add(str(flat.get(key)))
        several = Counter(key for (key, _), found in values.items() if len(found) > 1)
        for key, n in sorted(several.items()):
            print(
                f"{key}: makes no cells of its own; {n} with several values of it run once, with the first"
            )

    def tell_of_watching(self, done: list[Cell]) -> None:
        """Prints which of the typed keys come too late for the cells that are done.

        They watch a run as it is made, such as calibration=true, and do not touch what it computes.
        """
        late: Counter[str] = Counter()
        for cell in done if self.watching else ():
            try:
                saved = read_config(cell.find()).flat()
            except UserError:  # the report names it
                continue
            asked = cell.config.flat()
            late.update(
                f"{key}={asked[key]}" for key in self.watching if saved.get(key) != asked.get(key)
            )
        for key, n in sorted(late.items()):
            print(f"{key}: without effect on {n} of those done, which are not run again")

    def tell_of_code(self, unique: list[Cell]) -> None:
        """Prints which of the cells were made by other code of the lab, or by code not known."""
        again = [cell for cell in unique if cell.beside and not cell.is_over()]
        if again:
            codes = ", ".join(sorted({str(cell.beside) for cell in again}))
            print(
                f"{len(again)} of them were made by other code of the lab ({codes}; now "
                f"{own_code()}) and are run once more, as rows of their own; same_code=true would "
                "take them as they are"
            )
        n_unknown = sum(cell.is_over() and cell.made_by() == UNKNOWN for cell in unique)
        if n_unknown:
            print(
                f"{n_unknown} of those done were made before the lab wrote down its code; another "
                "name= would run them again"
            )

    def show(self) -> None:
        """Prints the table of dry_run=true. Raises UserError if another machine runs the cells."""
        if self.elsewhere:
            raise UserError(
                "dry_run=true: the times are measured on this machine; add hydra/launcher=local"
            )
        n_jobs = 1
        if self.asked.launcher == "local":
            n_jobs = self.slots(self.asked.hydra["launcher"].get("n_jobs"))
        n_trials = None
        if self.asked.sweeper == "search":
            n_trials = self.asked.hydra["sweeper"]["n_trials"]
        table = self.planner.costs_table(list(self.cells.values()), n_jobs, n_trials)
        plain_console(WIDTH).print(table)
        self.tell_of_code(list({cell.hash: cell for cell in self.cells.values()}.values()))
        self.tell_of_several()

    def slots(self, n_jobs: int | None) -> int:
        """Returns how many cells run at a time; one of several processes counts as so many.

        That is `n_jobs` if it is given, else one for each GPU, or as many as the cores allow.
        """
        cells = self.cells.values()
        if n_jobs:
            return n_jobs
        if self.gpus and any(cell.config.choices["device"] == "cuda" for cell in cells):
            return self.gpus
        threads = max(cell.config.run.threads or 1 for cell in cells)
        return max(1, usable_cores() // threads)


def key_of(config: Config) -> tuple[object, ...]:
    """Returns a configuration as a key of a dictionary."""
    return tuple(config.flat().items())
