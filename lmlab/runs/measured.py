"""Which of a run's numbers are those of the weights in one of its checkpoints."""

from typing import Any

from lmlab.numbers import EXCERPT_TOKENS
from lmlab.runs.checkpoints import Run
from lmlab.runs.folder import read_history, read_metrics

BEST = "best/"  # before the names of those of best.ckpt, in metrics.json
PARTS = ("val/", "test/")  # of the text, on which a run is measured


def numbers_of(run: Run) -> dict[str, float]:
    """Returns the numbers that were measured of this checkpoint's weights, by their names.

    There are none if a run was stopped after an evaluation and some steps more. `val/tokens` is
    among them if they are of an excerpt of the text alone. Raises UserError for damaged files.
    """
    if run.is_foreign:
        return {}
    noted = read_metrics(run.path)
    if run.checkpoint == "best" and noted.get(f"{BEST}step") == run.step:
        best = {name.removeprefix(BEST): noted[name] for name in noted if name.startswith(BEST)}
        return of_text(best)
    is_end = noted.get("step") == run.step and noted.get("status") == "finished"
    if run.checkpoint == "last" and is_end:
        return of_text(noted)
    found: dict[str, float] = {}
    for line in read_history(run.path):
        if line["step"] == run.step and "val/loss" in line:
            found = of_text(line)
    return found


def of_text(values: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers among values that are measured on a part of the text."""
    return {
        name: value
        for name, value in values.items()
        if name.startswith(PARTS) and isinstance(value, int | float)
    }


def shown(value: float, numbers: dict[str, float], digits: str, unit: str = "") -> str:
    """Returns one of a checkpoint's `numbers` as a text, with the size of an excerpt."""
    tokens = numbers.get(EXCERPT_TOKENS)
    return f"{value:{digits}}{unit}" + (f" (of {tokens:,} tokens)" if tokens else "")
