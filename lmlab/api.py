"""The lab in Python, for scripts and notebooks: `lmlab.train(...)`, `lmlab.sweep(...)` and more.

What is wrong raises `lmlab.UserError` with the line that the commands print. Afterwards threads,
torch's settings, `sys.argv`, handlers of signals and filters of warnings are as before.
"""

from __future__ import annotations

import html
import os
import secrets
import shlex
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmlab.commands import compare as compare_command
from lmlab.commands import evaluate, page, plot, sample
from lmlab.commands.continued import literal
from lmlab.commands.door import check_working_folder
from lmlab.commands.options import filled
from lmlab.commands.own_choices import own_choices, typed_plugin
from lmlab.commands.train import ONE_BY_ONE, Outcome, call
from lmlab.config.grammar import escaped, typed_value
from lmlab.config.keys import DIVIDING, marked
from lmlab.errors import UserError, as_exceptions
from lmlab.markers import ONCE
from lmlab.notebook import silent
from lmlab.register import unlisted
from lmlab.registry import importing, variables_kept
from lmlab.runs.folder import WEIGHTS, newest, read_config, read_history, read_metrics
from lmlab.runs.typed import command

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lmlab.models.base import LanguageModel

SHOWN = (  # the numbers of a run in a notebook
    ("train/loss", ".4f"),
    ("val/loss", ".4f"),
    ("best/val/loss", ".4f"),
    ("val/bits_per_byte", ".4f"),
    ("step", ",d"),
    ("n_params", ",d"),
    ("train_seconds", ".1f"),
    ("tokens_per_second", ",.0f"),
)
NOTHING: Any = None  # what fast_dev_run=True and dry_run=True leave
CURVES = 12  # runs in the picture of a comparison, at most


def train(*typed: str, verbose: bool = True, **keys: Any) -> Run:
    """Trains a model as `python train.py` does, and returns the run.

    `lmlab.train(model="gpt", n_layer=2)` is `python train.py model=gpt n_layer=2`. `typed` are
    arguments as they are typed, for names that Python does not have: "--config-dir=mine". With
    `verbose=False` nothing is shown. A run whose loss was not finite is returned as well: its
    `status` is "diverged"; with `fast_dev_run=True` there is no run, and None is returned. Raises
    UserError, also if `replay=` finds other losses. When a signal has stopped the run, which is
    saved, it raises KeyboardInterrupt after Ctrl-C, else SystemExit.
    """
    check_typed(typed)
    for key, value in keys.items():
        if isinstance(value, list | tuple):
            raise UserError(
                f"{key}={value}: lmlab.train() makes one run; lmlab.sweep() takes lists"
            )
    outcome = called([*typed, *as_arguments(keys)], verbose)
    if outcome.path is None:
        return NOTHING
    return Run(outcome.path, plugins_of(typed, keys))


def sweep(*typed: str, verbose: bool = True, **keys: Any) -> Comparison:
    """Runs a sweep as `python train.py -m` does, and returns the comparison of its runs.

    Lists are the values that vary: `lmlab.sweep(model=["bigram", "gpt"], seed=[0, 1])`. `typed` are
    arguments as they are typed, such as "hydra/sweeper=search". A cell that failed is in the table
    with its reason. With `fast_dev_run=True` or `dry_run=True` there are no runs, and None is
    returned. Raises UserError, KeyboardInterrupt after Ctrl-C, and SystemExit after another signal.
    """
    check_typed(typed)
    launcher = [text for text in typed if text.startswith("hydra/launcher=")]
    own = unlisted()
    if own and launcher[-1:] != ["hydra/launcher=basic"]:
        raise UserError(
            f"{own[0].kind} {own[0].name} is registered in this process alone ({own[0].place}), and "
            "the processes of a sweep do not have it; write it in a file and name that with "
            'plugin=, or add "hydra/launcher=basic"'
        )
    outcome = called(["-m", *typed, *as_arguments(keys)], verbose)
    if outcome.path is None:
        return NOTHING
    return Comparison((outcome.path,), plugins_of(typed, keys))


def as_plugin(plugin: str | os.PathLike[str] | None) -> str | None:
    """Returns the name of a plug-in as it is typed."""
    if plugin is None:
        return None
    return name_of("plugin", plugin)


def name_of(option: str, path: str | os.PathLike[str]) -> str:
    """Returns a path as text. Raises UserError for an object that is none."""
    name: str | bytes = b""
    with suppress(TypeError):  # an object that is no path
        name = os.fspath(path)
    if isinstance(name, bytes):
        raise UserError(f"{option}={path!r}: needs text or a path")
    return name


def check_switch(option: str, value: bool) -> None:
    """Raises UserError if the value is neither True nor False: another one would be taken for one."""
    if not isinstance(plain(value), bool):
        raise UserError(f"{option}={value!r}: needs True or False")


def load_run(path: str | os.PathLike[str], plugin: str | os.PathLike[str] | None = None) -> Run:
    """Returns the run at `path`, or the newest one below it. Raises UserError if there is none.

    `plugin` names the plug-ins with which it was made.
    """
    made_with = as_plugin(plugin)
    return Run(newest(folder_of(path), holding=[*WEIGHTS, "metrics.json"]), made_with)


def compare(
    *folders: str | os.PathLike[str], plugin: str | os.PathLike[str] | None = None
) -> Comparison:
    """Returns the comparison of all runs below the folders; runs themselves may be given, too.

    Raises UserError if there is no run.
    """
    comparison = Comparison(tuple(map(folder_of, folders)), as_plugin(plugin))
    _ = comparison.runs  # raises
    return comparison


def load_runs(
    *folders: str | os.PathLike[str],
    plugin: str | os.PathLike[str] | None = None,
    same_code: bool = False,
) -> pd.DataFrame:
    """Returns a table with a row for each run below the folders; `sweeps.table` explains it."""
    check_switch("same_code", same_code)
    with using(as_plugin(plugin)):
        with importing():
            from lmlab.sweeps import table

        return table.load_runs(*map(folder_of, folders), same_code=same_code)


def folder_of(path: str | os.PathLike[str]) -> Path:
    """Returns the folder that is named, from the root on. Raises UserError if none is."""
    check_working_folder()
    try:
        name = os.fspath(path)
    except TypeError:
        name = ""
    if not name or isinstance(name, bytes):
        raise UserError(f"{path!r}: needs the name of a folder of runs")
    return Path(name).absolute()


def called(arguments: list[str], verbose: bool) -> Outcome:
    """Returns the outcome of a command of train.py, with a path from the root on.

    Raises UserError; after Ctrl-C KeyboardInterrupt, and after another signal SystemExit.
    """
    check_working_folder()
    check_switch("verbose", verbose)
    here = Path.cwd()
    with ONE_BY_ONE, settings_kept(), ExitStack() as stack:
        if not verbose:
            stack.enter_context(silent())
        try:
            with as_exceptions():
                outcome = call(arguments)
        except SystemExit as stop:
            if stop.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt("stopped, and saved") from None
            if stop.code in [128 + number for number in signal.valid_signals()]:
                raise
            raise RuntimeError(f"the command ended with exit status {stop.code}") from None
    if outcome.failure:
        raise UserError(outcome.failure)
    if outcome.path is None:
        return outcome
    return replace(outcome, path=here / outcome.path)


@contextmanager
def settings_kept() -> Iterator[None]:
    """A context after which filters of warnings and the environment's variables are as before.

    The first import of torch changes both.
    """
    with warnings.catch_warnings(), variables_kept():
        yield


def as_arguments(keys: dict[str, Any]) -> list[str]:
    """Returns keys and values as they would be typed. Raises UserError."""
    arguments = []
    for key, value in keys.items():
        if isinstance(value, list | tuple):
            if key in marked(ONCE):
                raise UserError(f"{key}={value!r}: a sweep has one value of this key")
            if not value:
                raise UserError(f"{key}={value!r}: is empty; needs one value or more")
            text = ",".join(as_text(key, one) for one in value)
        else:
            text = as_text(key, value)
        arguments.append(f"{key}={text}")
    return arguments


def as_text(key: str, value: Any) -> str:
    """Returns a value as it would be typed. Raises UserError for an object that cannot be."""
    value = plain(value)
    if key in DIVIDING and isinstance(value, str):
        value = escaped(value)
    return typed_value(key, value)


def plain(value: Any) -> Any:
    """Returns a value of numpy as one of Python, and any other as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plugins_of(typed: tuple[str, ...], keys: dict[str, Any]) -> str | None:
    """Returns the plug-ins that the arguments of a call name; the last one counts."""
    if keys.get("plugin") is not None:
        return os.fspath(keys["plugin"])
    named = [text for text in typed if text.startswith("plugin=")]
    return typed_plugin([literal(text) for text in named])


def check_typed(typed: tuple[Any, ...]) -> None:
    """Raises UserError for arguments that are no text, or flags that make no run."""
    for argument in typed:
        if not isinstance(argument, str):
            raise UserError(
                f'{argument!r}: needs text, such as "hydra/launcher=basic", or key=value'
            )
        flag = argument.partition("=")[0]
        if flag.startswith("-") and flag not in ("--config-dir", "-cd"):
            raise UserError(
                f"{argument}: not allowed here; lmlab.sweep() is -m, and what only prints something "
                "belongs on the command line"
            )


@contextmanager
def using(plugin: str | None) -> Iterator[None]:
    """A context in which plug-ins exist and torch has its usual settings; all is as before after it.

    One thread at a time is in such a context.
    """
    check_working_folder()
    with ONE_BY_ONE, settings_kept():
        with importing():
            from lmlab.isolation import isolated

        with isolated(), own_choices(plugin):
            yield


@dataclass(frozen=True)
class Run:
    """A run on disk. `plugin` names the plug-ins that it was made with.

    What it returns is read from its folder each time, so a run that goes on is seen as it is now.
    """

    path: Path
    plugin: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: numbers, and what produced them."""
        return read_metrics(self.path)

    @property
    def status(self) -> str:
        """How it has ended: finished, diverged, interrupted, failed; or that it is running."""
        return str(self.metrics.get("status"))

    @property
    def config(self) -> dict[str, Any]:
        """The keys and values of the run, as they would be typed."""
        check_working_folder()
        with ONE_BY_ONE, settings_kept(), own_choices(self.plugin):
            return read_config(self.path).flat()

    @property
    def history(self) -> pd.DataFrame:
        """The points of its curves and the numbers of its evaluations.

        It has a row for each step of which something was noted.
        """
        with importing():
            import pandas as pd

        lines = pd.DataFrame(read_history(self.path) or {"step": []})
        return lines.groupby("step", as_index=False).first()

    @property
    def model(self) -> LanguageModel:
        """The model with the weights of the last checkpoint, on the CPU, for evaluation."""
        with using(self.plugin):
            with importing():
                from lmlab.runs import checkpoints

            return checkpoints.load(self.path, choice="cpu", usual="last").model

    def sample(self, prompt: str = "", *, seed: int | None = None, **options: Any) -> str:
        """Returns a text that the model continues from the prompt, which it begins with.

        It takes the best checkpoint, unless `checkpoint="last"` is given. `options` are those of
        `python scripts/sample.py`: max_tokens, temperature, top_k, top_p, stop, checkpoint, device.
        With the same `seed` the text is the same. Raises UserError.
        """
        values = {"prompt": prompt, "seed": seed, **options}
        refuse_others(values, ("run", "plugin", "samples"))
        chosen: sample.Options = chosen_options(sample.Options, values)
        sample.check_greedy(chosen)
        with using(self.plugin):
            with importing():
                from lmlab.runs import checkpoints

            run = checkpoints.load(self.path, chosen.checkpoint, chosen.device)
            drawn = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
            pieces = [piece for piece, *_ in sample.drawn(run, chosen, drawn)]
        return prompt + "".join(pieces)

    def evaluate(self, **options: Any) -> dict[str, float]:
        """Returns the losses on the validation text, or on another text, and saves them.

        It takes the last checkpoint, unless `checkpoint="best"` is given. `options` are those of
        `python scripts/evaluate.py`: split, data, path, checkpoint, device, and each instrument, as
        in `calibration=True`. Raises UserError.
        """
        refuse_others(options, ("run", "plugin"))
        chosen = chosen_options(evaluate.Options, {**options, "run": str(self.path)})
        with using(self.plugin):
            _, _, numbers = evaluate.measured(chosen)
        return numbers

    def page(self, out: str | os.PathLike[str] = "model.html", **options: Any) -> Path:
        """Writes a page in which the model writes in any browser, and returns its path.

        `options` are those of `python scripts/page.py`: prompt, before, weights, checkpoint. Raises
        UserError.
        """
        refuse_others(options, ("run", "plugin", "out"))
        values = {**options, "run": str(self.path), "out": name_of("out", out)}
        chosen = chosen_options(page.Options, values)
        with using(self.plugin):
            page.written(chosen)
        return Path(out)

    def resume(self, *, verbose: bool = True, **keys: Any) -> Run:
        """Continues the run, longer if `max_steps` is larger, and returns it."""
        refuse_others(keys, ("resume",))
        if self.plugin:
            keys.setdefault("plugin", self.plugin)
        return train(verbose=verbose, resume=self.path, **keys)

    def plot(self) -> Figure:
        """Returns a figure of matplotlib with the curves of its losses."""
        return plot.curves([self.path])

    def _repr_html_(self) -> str:
        """Returns the run as HTML: its curves, its numbers and its last sample."""
        metrics = self.metrics
        numbers = []
        for name, form in SHOWN:
            if isinstance(metrics.get(name), int | float):
                numbers.append((name, format(metrics[name], form)))
        samples = [point.get("sample") for point in read_history(self.path)]
        texts = [text for text in samples if isinstance(text, str)]
        parts = [f"<b>{html.escape(str(self.path))}</b> {html.escape(self.status)}"]
        if metrics.get("reason"):
            parts.append(html.escape(str(metrics["reason"])))
        parts.append(as_table(numbers))
        parts.append(picture_of([self.path]))
        if texts:
            parts.append(f'<pre style="white-space:pre-wrap">{html.escape(texts[-1])}</pre>')
        return "<div>" + "\n".join(parts) + "</div>"


@dataclass(frozen=True)
class Comparison:
    """Several runs on disk, below some folders. `plugin` names the plug-ins of the runs."""

    folders: tuple[Path, ...]
    plugin: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """The folder of the sweep. Raises UserError if there are several folders."""
        if len(self.folders) > 1:
            raise UserError("a comparison of several folders has no path of its own; see .folders")
        return self.folders[0]

    @property
    def runs(self) -> pd.DataFrame:
        """A table with a row for each run."""
        return load_runs(*self.folders, plugin=self.plugin)

    @property
    def leaderboard(self) -> pd.DataFrame:
        """A table with a row for each configuration, averaged over its seeds, the best first."""
        with importing():
            from lmlab.sweeps import table

        with using(self.plugin):
            return table.leaderboard(self.runs)

    def claims(
        self,
        vary: str | None = None,
        *,
        within: str | None = None,
        best: str | None = None,
        record: float | None = None,
    ) -> pd.DataFrame:
        """Returns what `python scripts/compare.py` prints with these options, in full precision.

        With `vary` that is a row for each planned comparison, else the leaderboard. A Python warning
        tells if what is compared was validated on different text, or differs in keys that no option
        names. Raises UserError.
        """
        with importing():
            from lmlab.sweeps import planned, table

        chosen = {"vary": vary, "within": within, "best": best, "record": record}
        options: compare_command.Options = chosen_options(compare_command.Options, chosen)
        compare_command.check_together(options)
        with using(self.plugin):
            if options.vary is None:
                return table.leaderboard(self.runs, options.record)
            plan = planned.comparisons(
                self.runs, options.vary, options.within, options.best, options.record
            )
        doubts = planned.confounded(plan.attrs.get("unnamed", []))
        for line in [*table.other_texts(self.runs), *doubts]:
            warnings.warn(line, stacklevel=2)
        return plan

    def figure(self, x: str, hue: str | None = None, best: str | None = None) -> Figure:
        """Returns a figure of matplotlib: means over seeds along the key `x`, with error bars.

        `hue` names keys that make a line each, `best` those of which each point has its best value;
        a Python warning tells where that is the largest or the smallest tried. Raises UserError.
        """
        with importing():
            from lmlab.commands.error_bars import error_bars

        if x is None:
            raise UserError("x=None: needs the name of a key")
        chosen = {"x": x, "hue": hue, "best": best}
        options: compare_command.Options = chosen_options(compare_command.Options, chosen)
        with using(self.plugin):
            drawn, lines = error_bars(self.runs, x, options.hue, options.best)
        for line in lines:
            warnings.warn(line, stacklevel=2)
        return drawn

    def plot(self) -> Figure:
        """Returns a figure of matplotlib with the curves of the runs."""
        return plot.curves(drawable(self.runs["path"]))

    def _repr_html_(self) -> str:
        """Returns the leaderboard as HTML, what did not finish, and the curves of a few runs."""
        with importing():
            from lmlab.sweeps import report, table

        with using(self.plugin):
            runs = self.runs
            board = table.leaderboard(runs)
            texts = report.columns(board, table.varied(runs))
            parts = [texts.to_html(index=False, border=0)]
            parts.append(f"<p>{html.escape(report.footnote(runs, board))}</p>")
            unfinished = [
                (label, f"{status} {why}") for label, status, why in table.unfinished(runs)
            ]
            where = f"{command('compare')} {shlex.join(map(str, self.folders))}"
        parts.append(as_table(unfinished))
        if len(runs) <= CURVES:
            parts.append(picture_of(drawable(runs["path"])))
        parts.append(f"<p>{html.escape(where)} writes a page with all of it</p>")
        return "<div>" + "\n".join(parts) + "</div>"


def drawable(paths: Iterable[str]) -> list[Path]:
    """Returns the folders of the runs that have curves: a run may fail before it has any."""
    return [Path(path) for path in paths if (Path(path) / "history.jsonl").exists()]


def chosen_options(options: type, values: dict[str, Any]) -> Any:
    """Returns the dataclass of a command's options with these values. Raises UserError."""
    with as_exceptions():
        return filled(options, as_options(values))


def as_options(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values of Python as the options of a command take them."""
    options = {}
    for key, value in values.items():
        options[key] = plain(value)
        with suppress(TypeError):  # all that is no path
            options[key] = os.fspath(value)
    return options


def refuse_others(options: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises UserError for an option of the command that the method of a run does not have."""
    for name in names:
        if name in options:
            raise UserError(f"{name}={options[name]}: not allowed here, where the run is given")


def as_table(rows: list[tuple[str, str]]) -> str:
    """Returns a table of two columns as HTML, or nothing without rows."""
    if not rows:
        return ""
    cells = [
        f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{html.escape(text)}</td></tr>"
        for name, text in rows
    ]
    return "<table>" + "".join(cells) + "</table>"


def picture_of(paths: list[Path]) -> str:
    """Returns the curves of runs as HTML, or a line that says why there are none."""
    try:
        return str(plot.curves(paths)._repr_html_())
    except (ModuleNotFoundError, UserError) as error:
        return f"<p>no curves: {html.escape(str(error))}</p>"
