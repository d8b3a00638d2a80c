"""Answers a sweep's questions that need torch, in this process or in another one.

Which cell does a configuration have, what does it cost, what is its loss on the test part? The
answers come from plan.py, costs.py and inference/loss.py. The local launcher uses a separate
process, so that its own process never imports torch.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lmlab.config.check import Config
from lmlab.processes import server
from lmlab.sweeps.cells import Cell, Sweep


class Planner:
    """Calls the functions in this process."""

    def identify(self, config: Config, overrides: list[str], sweep: Sweep) -> Cell:
        """Returns the cell of a configuration. Raises UserError if the cell cannot run."""
        from lmlab.sweeps import plan

        return plan.identify(config, overrides, sweep)

    def identify_all(
        self, runs: list[tuple[Config, list[str]]], sweep: Sweep, elsewhere: bool
    ) -> tuple[list[Cell], int]:
        """Returns the cells of a sweep's runs, and the number of GPUs. Raises UserError."""
        from lmlab.sweeps import plan

        return plan.identify_all(runs, sweep, elsewhere)

    def costs_table(self, cells: list[Cell], n_jobs: int, n_trials: int | None) -> Table:
        """Returns the table of a dry run: the estimated cost of each cell."""
        from lmlab.sweeps import costs

        return costs.table(cells, n_jobs, n_trials)

    def evaluate_test_splits(self, paths: Sequence[str]) -> None:
        """Evaluates the last weights of runs on their test split, and saves the losses."""
        from lmlab.inference import loss

        for path in paths:
            loss.evaluate_test_split(Path(path))


class RemotePlanner(Planner):
    """Calls each function in a separate process."""

    def identify(self, config: Config, overrides: list[str], sweep: Sweep) -> Cell:
        cell: Cell = server.call(Planner().identify, config, overrides, sweep)
        return cell

    def identify_all(
        self, runs: list[tuple[Config, list[str]]], sweep: Sweep, elsewhere: bool
    ) -> tuple[list[Cell], int]:
        answer: tuple[list[Cell], int] = server.call(Planner().identify_all, runs, sweep, elsewhere)
        return answer

    def costs_table(self, cells: list[Cell], n_jobs: int, n_trials: int | None) -> Table:
        table: Table = server.call(Planner().costs_table, cells, n_jobs, n_trials)
        return table

    def evaluate_test_splits(self, paths: Sequence[str]) -> None:
        server.call(Planner().evaluate_test_splits, paths)


def planner(launcher: str) -> Planner:
    """Returns the planner for a launcher.

    With launchers other than `local`, this process may import torch: they run cells in it, or wait
    for a long time.
    """
    if launcher == "local":
        return RemotePlanner()
    return Planner()
