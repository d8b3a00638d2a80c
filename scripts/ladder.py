"""From counting to attention on one chart, from the runs of a sweep:

  python scripts/ladder.py sweep=outputs/sweeps/ladder out=ladder.png

sweep  a sweep's folder, fed by the recipes experiment=ladder_… (outputs/sweeps/ladder) out    the
picture, .png or .svg (ladder.png)

Draws validation loss against parameters, and against the operations of training as the runs went
along; prints the table behind it, one row a configuration: the mean over its finished seeds, and
its standard error.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab.commands.options import parse_script
from lmlab.errors import UserError, one_line_errors

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Options:
    sweep: str = "outputs/sweeps/ladder"
    out: str = "ladder.png"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from lmlab.sweep import table as tables

    runs = tables.load_runs(options.sweep)
    runs = runs[(runs["status"] == "finished") & runs["val/loss"].notna()]
    rungs = summary(runs)
    if rungs.empty:
        raise UserError(
            f"sweep={options.sweep}: no run there has finished with a val/loss; the recipes "
            "experiment=ladder_… make some"
        )
    figure, (by_size, by_compute) = pyplot.subplots(
        1, 2, figsize=(10, 4.5), layout="constrained", sharey=True
    )
    for n, (model, rows) in enumerate(rungs.groupby("model", sort=False)):
        rows = rows.sort_values("n_params")
        by_size.errorbar(
            rows["n_params"], rows["loss"], rows["se"], color=f"C{n}", marker="o", ms=5, label=model
        )
        if rows["flops"].gt(0).all():
            by_compute.errorbar(
                rows["flops"], rows["loss"], rows["se"], color=f"C{n}", marker="o", ms=5, lw=0
            )
            for group in rows["group"]:
                by_compute.plot(
                    *curve(runs[runs["group"] == group]), color=f"C{n}", lw=1, alpha=0.7
                )
        else:  # nothing is multiplied
            by_compute.axhline(rows["loss"].min(), color=f"C{n}", ls="--", lw=1)
    by_size.set(
        xscale="log",
        xlabel="parameters (of n-grams: counts)",
        ylabel="validation loss, nats per character",
    )
    by_compute.set(xscale="log", xlabel="floating-point operations of training")
    by_compute.set_ylim(rungs["loss"].min() - 0.1, max(2.75, rungs["loss"].max()))
    by_size.legend(frameon=False)
    for axes in (by_size, by_compute):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(options.out, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"out={options.out}: {error}") from None
    print(
        "| model | parameters | validation loss | seeds | seconds of training |\n|---|---|---|---|---|"
    )
    for row in rungs.itertuples():
        print(
            f"| {row.model} | {row.n_params:,} | {row.loss:.3f} ± {row.se:.3f} | {row.n} | {row.seconds:.1f} |"
        )
    print(f"\n{options.out}")


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a configuration, the best of each model last, models in the order of their best."""
    groups = runs.groupby("group", as_index=False).agg(
        model=("model", "first"),
        n_params=("n_params", "first"),
        flops=("flops", "first"),
        loss=("val/loss", "mean"),
        se=("val/loss", "sem"),
        n=("seed", "nunique"),
        seconds=("train_seconds", "mean"),
    )
    best = groups.groupby("model")["loss"].transform("min")
    return (
        groups.fillna({"se": 0.0}).assign(best=best).sort_values(["best", "loss"], ascending=False)
    )


def curve(members: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Of one configuration: operations so far, and the mean validation loss there."""
    from lmlab.runs.folder import read_history

    points: dict[int, list[float]] = {}
    for path in members["path"]:
        for line in read_history(Path(path)):
            if line.get("val/loss") is not None and line["step"]:
                points.setdefault(line["step"], []).append(line["val/loss"])
    per_step = members["flops"].iloc[0] / members["step"].iloc[0]
    steps = [step for step in sorted(points) if len(points[step]) == len(members)]
    return [step * per_step for step in steps], [sum(points[step]) / len(members) for step in steps]


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
