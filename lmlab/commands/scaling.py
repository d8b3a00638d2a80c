"""Fits the law of scaling L = E + A / N^alpha + B / D^beta to runs, draws it, and predicts from it.

  python scripts/scaling.py sweeps=outputs/sweeps/scaling out=scaling.png
  python scripts/scaling.py sweeps=outputs/sweeps/scaling predict=1e6,5e7 budget=1e15

sweeps      folders of sweeps, with spaces between them (outputs/sweeps/scaling)
out         the picture; beside it the numbers are written, as scaling.json (scaling.png)
budget      FLOPs of a training, 6 N D: the best N and D for them (null)
predict     N,D: the loss that a run of N parameters that reads D tokens will have (null)
bootstraps  so many fits to runs that are drawn anew give the intervals (1000)
plugin      the files or modules with which the runs were made, as for train.py (null)

N counts all parameters of a model, those of its embeddings too; D counts the tokens of training,
each as often as it was read. L is val/loss at the end. Every interval is one of 95 %, from fits to
configurations that are drawn anew, with all their seeds. What makes a law hard to believe is said as a doubt.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lmlab import files
from lmlab.commands.options import check_file, check_out, parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.commands.picture import check_picture, new_figure, save_picture
from lmlab.commands.plot import folders_of
from lmlab.errors import UserError
from lmlab.markers import PathText

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lmlab.sweeps.scaling import Scaling

NAMES = ("E", "A", "B", "alpha", "beta")
CURVES = 5  # of equal compute, at most


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    sweeps: PathText = "outputs/sweeps/scaling"
    out: PathText = "scaling.png"
    budget: Annotated[float | None, "[1, 1e30]"] = None
    predict: str | None = None
    bootstraps: Annotated[int, "[100, 100000]"] = 1000
    plugin: PathText | None = None


@with_own_choices
def main(argv: list[str]) -> None:
    """Prints the law, writes the picture and scaling.json. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    check_picture(options.out)
    asked = asked_for(options.predict)
    path = Path(options.out).with_suffix(".json")
    check_numbers(path)
    from lmlab.sweeps import table as tables
    from lmlab.sweeps.scaling import scaling_of

    table = tables.load_runs(*folders_of(options.sweeps))
    scaling = scaling_of(table, options.bootstraps)
    numbers = numbers_of(scaling, options.budget, asked)
    for line in lines_of(scaling, numbers):
        print(line)
    save_picture(figure_of(scaling, options.budget), options.out)
    files.write(path, (json.dumps(numbers, indent=1) + "\n").encode())
    print(options.out)
    print(path)


def check_numbers(path: Path) -> None:
    """Raises UserError if the file of the numbers, which nobody named, is one of somebody else."""
    check_file(str(path), "the numbers beside out")
    check_out(path, "the numbers beside out")
    if not path.exists():
        return
    try:
        written = json.loads(path.read_bytes())
    except ValueError:
        written = None
    if not isinstance(written, dict) or "law" not in written:
        raise UserError(
            f"{path}: is there and was not written by lmlab; out= names another picture, beside which "
            "the numbers go"
        )


def asked_for(text: str | None) -> tuple[float, float] | None:
    """Returns N and D of a run to predict. Raises UserError."""
    if text is None:
        return None
    try:
        N, D = map(float, text.split(","))
    except ValueError:
        N, D = 0.0, 0.0
    if not (1 <= N <= 1e30 and 1 <= D <= 1e30):
        raise UserError(
            f"predict={text}: needs two numbers from 1 to 1e30, N,D, such as predict=1e6,5e7"
        )
    return N, D


def numbers_of(
    scaling: Scaling, budget: float | None, asked: tuple[float, float] | None
) -> dict[str, Any]:
    """Returns all that is printed, as scaling.json holds it; intervals are [value, low, high]."""
    numbers: dict[str, Any] = {
        "runs": len(scaling.points.loss),
        "configurations": len({*scaling.groups.tolist()}),
        "bootstraps": len(scaling.drawn),
        "law": {
            name: [value, *scaling.interval_of(name)] for name, value in asdict(scaling.law).items()
        },
        "residual": float(scaling.residuals().std()),
        "doubts": scaling.doubts,
    }
    if budget is not None:
        best = scaling.best(budget)
        reach = scaling.reach(best["N"][0], best["D"][0])
        numbers["best"] = {"flops": budget, "reach": reach, **{k: [*v] for k, v in best.items()}}
    if asked is not None:
        N, D = asked
        loss = [*scaling.predicted(N, D)]
        numbers["predicted"] = {"N": N, "D": D, "reach": scaling.reach(N, D), "loss": loss}
    return numbers


def lines_of(scaling: Scaling, numbers: dict[str, Any]) -> list[str]:
    """Returns what is printed of the numbers."""
    lines = [
        f"L = E + A / N^alpha + B / D^beta, fitted to {numbers['runs']} runs of "
        f"{numbers['configurations']} configurations; residuals {numbers['residual']:.2%}",
        "",
    ]
    for name in NAMES:
        value, low, high = numbers["law"][name]
        lines.append(f"{name:<6}{value:>12.5g}   {low:.5g} to {high:.5g}")
    if "best" in numbers:
        best = numbers["best"]
        lines += ["", f"best for {best['flops']:.3g} FLOPs{far(best['reach'])}"]
        for name in ("N", "D", "loss"):
            value, low, high = best[name]
            lines.append(f"{name:<6}{value:>12.5g}   {low:.5g} to {high:.5g}")
    if "predicted" in numbers:
        predicted = numbers["predicted"]
        value, low, high = predicted["loss"]
        where = f"N = {predicted['N']:.5g}, D = {predicted['D']:.5g}{far(predicted['reach'])}"
        lines += ["", f"a run of {where}", f"loss  {value:>12.5g}   {low:.5g} to {high:.5g}"]
    return [*lines, "", *(f"doubt: {doubt}" for doubt in scaling.doubts)]


def far(reach: float) -> str:
    """Returns a note if a training is larger than all that the law was fitted to, or ""."""
    if reach <= 1.001:
        return ""
    return f": {reach:.3g} times the largest of the runs, so this is no more than the law continued"


def figure_of(scaling: Scaling, budget: float | None) -> Any:
    """Returns a figure: loss against size at equal compute, and measured against expected loss."""
    figure = new_figure(width=10)
    curves, check = figure.subplots(1, 2)
    draw_curves(curves, scaling, budget)
    draw_check(check, scaling)
    return figure


def draw_curves(axes: Axes, scaling: Scaling, budget: float | None) -> None:
    """Draws the runs, and the law's loss against N where 6 N D is equal, with its lowest points."""
    import numpy as np

    points, law = scaling.points, scaling.law
    compute = 6 * points.N * points.D
    levels = np.geomspace(compute.min(), compute.max(), CURVES)
    if budget is not None:
        levels = np.append(levels, budget)
    sizes = np.geomspace(points.N.min() / 3, points.N.max() * 3, 200)
    for n, level in enumerate(levels):
        style = "-" if level <= compute.max() * 1.001 else "--"
        label = f"{level:.1e} FLOPs"
        axes.plot(
            sizes, law.loss(sizes, level / 6 / sizes), style, color=f"C{n}", lw=1, label=label
        )
        if law.has_best:
            N, D = law.best(level)
            axes.plot([N], [float(law.loss(N, D))], "o", color=f"C{n}", ms=5)
    shown = axes.scatter(points.N, points.loss, c=np.log10(compute), s=12, cmap="viridis")
    axes.figure.colorbar(shown, ax=axes, label="log10 of FLOPs, 6 N D")
    low, high = points.loss.min(), points.loss.max()
    if law.has_best:
        low = min(low, float(law.loss(*law.best(levels.max()))))
    margin = 0.1 * (high - low)
    axes.set(xscale="log", xlabel="parameters N", ylabel="val/loss, nats per token")
    axes.set_ylim(low - margin, high + margin)
    # Below the axes, since runs may lie anywhere within.
    axes.legend(
        frameon=False, fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15)
    )
    axes.grid(alpha=0.3)


def draw_check(axes: Axes, scaling: Scaling) -> None:
    """Draws what was measured against what the law expects of the same runs."""
    points = scaling.points
    expected = scaling.law.loss(points.N, points.D)
    axes.plot(expected, points.loss, "o", ms=4, alpha=0.7)
    ends = [points.loss.min(), points.loss.max()]
    axes.plot(ends, ends, color="0.5", lw=1)
    axes.set(xlabel="loss that the law expects", ylabel="loss measured")
    axes.grid(alpha=0.3)
