"""Hydra's sweeper for a list of cells, which the lab has made of a grid or of a file, and checked."""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lmlab.sweeps import cluster


class ListSweeper(Sweeper):
    """Gives the launcher all cells of the command's `Task`, whatever Hydra's arguments are."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Gets the launcher from Hydra, and the cells from the function that runs one."""
        task: Any = task_function
        self.faults: list[str] = task.faults
        self.cells: list[list[str]] = task.listed
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the cells."""
        if self.cells:
            cluster.launch(self.launcher, self.cells, 0, self.faults)
