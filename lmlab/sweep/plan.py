"""What a sweep would do, before it does it: every cell's folder, size and cost; whether its text
and machine hold.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from lmlab import machine
from lmlab.config.check import Config
from lmlab.data.batches import Batches
from lmlab.data.text import Splits
from lmlab.errors import UserError
from lmlab.inference.loss import keep_evaluation, log_probs, loss_metrics
from lmlab.models.base import build_model
from lmlab.runs import checkpoints
from lmlab.runs.folder import read_metrics, text_sha256
from lmlab.sweep import cells
from lmlab.sweep.cells import Cell, Sweep
from lmlab.training.optimizers import build_optimizer, state_bytes
from lmlab.training.step import cross_entropy

TEXTS: dict[
    tuple[object, ...], tuple[Splits, str | None, str | None]
] = {}  # read once for all cells


def source(config: Config) -> tuple[object, ...]:
    """What a text and its vocabulary depend on: its place in TEXTS."""
    return config.choices["data"], config.data, config.run.init_from, config.run.unknown


def identify(config: Config, overrides: list[str], sweep: Sweep, elsewhere: bool = False) -> Cell:
    """The cell of a composed configuration. Raises UserError for what its text or this machine
    can't do. `elsewhere`: another machine will run it, and identify it again.
    """
    keys = replace(
        config.run, threads=config.run.threads or 1
    )  # so that many fit, and all launchers agree
    config = replace(config, run=keys)
    try:
        config = machine.resolve(config)
    except UserError:
        if not elsewhere:
            raise
    if source(config) not in TEXTS:
        start = checkpoints.load(Path(keys.init_from), choice="cpu") if keys.init_from else None
        text = Splits.of_run(config, start and start.tokenizer)
        TEXTS[source(config)] = text, start and str(start.path), start and start.sha256
    text, init_from, init_sha256 = TEXTS[source(config)]
    config = replace(config, run=replace(config.run, init_from=init_from))
    if config.model.has_steps:
        # raises for a text that is too short
        Batches(text.train, keys.batch_size, config.model.block_size, keys.seed)
        tokens = keys.max_steps * keys.batch_size * keys.grad_accumulation * config.model.block_size
    else:
        tokens = len(text.train)
    with torch.device("meta"):
        model = build_model(config.model, text.tokenizer.vocab_size)
    return Cell(
        config,
        sweep,
        cells.label(overrides, sweep) or config.choices["model"],
        *cells.identity(config.flat(), text.sha256, init_sha256),
        text.sha256,
        sum(weight.numel() for weight in model.parameters()),
        tokens,
        tokens * model.flops_per_token(),
    )


def identify_all(
    asked: list[tuple[Config, list[str]]], sweep: Sweep, elsewhere: bool
) -> tuple[list[Cell], int]:
    """The cell of each, and how many GPUs there are here. Texts are read anew."""
    TEXTS.clear()
    return [identify(*one, sweep, elsewhere) for one in asked], torch.cuda.device_count()


def seconds_per_step(cell: Cell) -> tuple[float, float]:
    """Measured here: seconds of a training step, and of the evaluation of a token. Large steps are
    scaled up from one sequence.
    """
    config, torch_threads = cell.config, torch.get_num_threads()
    torch.set_num_threads(config.run.threads)
    place, keys = machine.pick(config.choices["device"]), config.run
    text, *_ = TEXTS[source(config)]
    model = build_model(config.model, text.tokenizer.vocab_size).to(place)
    optimizer = build_optimizer(model, config.optimizer, config.device.precision)
    B, T = keys.batch_size, config.model.block_size
    steps = keys.max_steps * keys.grad_accumulation
    rows = B if cell.flops / steps < 1e10 else 1
    idx = torch.randint(text.tokenizer.vocab_size, (rows, T), device=place)

    def predict() -> torch.Tensor:
        with machine.autocast(place, config.device.precision):
            loss = cross_entropy(model, idx, idx)
        loss.item()
        return loss

    def seconds(act: Callable[[], object]) -> float:
        taken = []
        for _ in range(5):
            begun = time.perf_counter()
            act()
            next(model.parameters()).sum().item()  # waits for a GPU
            taken.append(time.perf_counter() - begun)
        return sorted(taken)[2]

    def learn() -> None:
        predict().backward()

    def nudge() -> None:
        gradients = [weight.grad for weight in model.parameters()]
        optimizer.step()
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight.grad = gradient  # which Muon takes away

    try:
        with torch.no_grad():
            evaluating = seconds(predict) / (rows * T)
        return seconds(learn) * B / rows * keys.grad_accumulation + seconds(nudge), evaluating
    finally:
        torch.set_num_threads(torch_threads)


def counting(config: Config, text: Splits) -> float:
    """Seconds to count the text, scaled up from its beginning."""
    part, begun = text.train[:100_000], time.perf_counter()
    build_model(config.model, text.tokenizer.vocab_size).count(part)
    return (time.perf_counter() - begun) * len(text.train) / len(part)


def costs(found: list[Cell]) -> dict[str, tuple[float, int]]:
    """By hash, estimates of a cell's seconds and bytes on disk; cells of one shape are measured
    once.
    """
    measured: dict[tuple[object, ...], tuple[float, float]] = {}
    answers = {}
    for cell in found:
        config, keys = cell.config, cell.config.run
        shape = (
            config.model,
            config.optimizer,
            keys.batch_size,
            keys.grad_accumulation,
            keys.threads,
            config.device,
            config.choices["device"],
            *source(config),
        )
        text, *_ = TEXTS[source(config)]
        if not config.model.has_steps:
            if shape not in measured:
                measured[shape] = counting(config, text), 0.0
            answers[cell.hash] = measured[shape][0], 12 * cell.tokens + 2**15
            continue
        if shape not in measured:
            measured[shape] = seconds_per_step(cell)
        step, token = measured[shape]
        evaluations = 2 + keys.max_steps // keys.eval_interval
        with torch.device("meta"):
            model = build_model(config.model, text.tokenizer.vocab_size)
        weight_bytes = sum(weight.nbytes for weight in model.parameters())
        checkpoint = weight_bytes + state_bytes(model, config.optimizer) + 2**14
        answers[cell.hash] = (
            keys.max_steps * step + evaluations * len(text.val) * token,
            3 * checkpoint + 150 * keys.max_steps // keys.log_interval + 2**15,
        )
    return answers


def table(found: list[Cell], n_jobs: int, elsewhere: bool) -> Table:
    """What dry_run=true shows."""
    if elsewhere:
        raise UserError("dry_run=true: times are measured here; add hydra/launcher=local")
    found = list({cell.hash: cell for cell in found}.values())
    for cell in found:
        identify(cell.config, [], cell.sweep)  # reads the text, in a process that has not
    estimates = costs(found)
    states = {cell.hash: cell.status() for cell in found}
    left = [cell for cell in found if not cell.over()]
    total = sum(estimates[cell.hash][0] for cell in left) / n_jobs
    kinds = ", ".join(f"{n} {state}" for state, n in Counter(states.values()).items())
    shown = Table(
        title=f"{found[0].sweep.folder}: {len(found)} cells, {kinds}",
        title_justify="left",
        caption=f"{n_jobs} at a time; what is left takes about {duration(total)} and "
        f"{si(sum(estimates[cell.hash][1] for cell in left))}B of disk",
        caption_justify="left",
    )
    for name in ("cell", "state", "parameters", "tokens", "FLOPs", "time", "disk"):
        shown.add_column(
            name, justify="left" if name in ("cell", "state") else "right", overflow="fold"
        )
    for cell in found:
        seconds, size = estimates[cell.hash]
        shown.add_row(
            cell.path.name,
            states[cell.hash],
            si(cell.n_params),
            si(cell.tokens),
            si(cell.flops),
            duration(seconds),
            f"{si(size)}B",
        )
    return shown


def test_losses(paths: list[str]) -> None:
    """Evaluates the last weights of runs on their test split and notes it in their
    evaluations.jsonl.
    """
    for path in paths:
        run = checkpoints.load(Path(path), "last")
        text = Splits.of_run(
            run.config, run.tokenizer, text_sha256(read_metrics(run.path), run.path)
        )
        tokens = text.test
        answers = log_probs(
            run.model, tokens, run.config.model.block_size, run.config.device.precision
        )
        keep_evaluation(
            run.path,
            {"checkpoint": "last", "text": "test", "sha256": text.sha256},
            loss_metrics(answers, tokens, run.tokenizer, "test"),
        )


def si(number: float) -> str:
    """1234567 as 1.23 M."""
    for factor, sign in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {sign}"
    return f"{number:.3g} "


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {rest:02} s"
        if minutes
        else f"{seconds:.1f} s"
    )
