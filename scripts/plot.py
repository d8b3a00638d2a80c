"""Loss curves of some runs in one picture:

  python scripts/plot.py runs="outputs/bigram outputs/gpt" out=curves.png

runs  folders of runs, with spaces between them; of each the newest run is drawn (outputs)
out   the picture, .png or .svg (curves.png)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lmlab.commands.options import parse_script
from lmlab.errors import UserError, one_line_errors


@dataclass(frozen=True)
class Options:
    runs: str = "outputs"
    out: str = "curves.png"


def main(argv: list[str]) -> None:
    options = parse_script(Options, __doc__, argv)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from lmlab.runs.folder import newest, read_history

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for n, folder in enumerate(options.runs.split()):
        run = newest(Path(folder))
        lines = read_history(run)
        for key, style in {
            "train/loss": {"alpha": 0.35, "lw": 1},
            "val/loss": {"marker": "o", "ms": 4},
        }.items():
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            if points:
                label = f"{run.parent.name}/{run.name}  {key}"
                axes.plot(*zip(*points, strict=True), color=f"C{n}", label=label, **style)
    axes.set(xlabel="step", ylabel="loss, nats per character", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(options.out, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"out={options.out}: {error}") from None
    print(options.out)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
