"""The dry run of a sweep: the time and disk space of each cell, estimated without training."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from lmlab import machine
from lmlab.data.splits import Splits
from lmlab.errors import UserError, memory_errors
from lmlab.models.base import build_model
from lmlab.sweeps.cells import Cell
from lmlab.sweeps.labels import without_seed
from lmlab.sweeps.plan import source_key, source_of
from lmlab.training.memory import memory_of_step
from lmlab.training.optimizers import build_optimizer, state_bytes
from lmlab.training.preparation import check_batch
from lmlab.training.step import cross_entropy

COUNTED = 100_000  # tokens that are counted to estimate the time for all
LARGE_STEP = 1e10  # FLOPs from which a step is scaled up from one sequence
REPEATS = 5  # of each measurement, at most; the median counts
FEWEST = 3  # of those that take long
LONG = 0.5  # seconds of all
CHECKPOINT_REST = 2**14  # bytes of a checkpoint other than weights and the optimizer's state
FOLDER_REST = 2**15  # bytes of a run's folder other than checkpoints and history
POINT = 150  # bytes of a line of history.jsonl
COUNTED_BYTES = 12  # bytes on disk for each token of an n-gram's text


@dataclass(frozen=True)
class Cost:
    """The estimated seconds of a cell, its bytes on disk, and the most of memory that a step takes.

    `seconds` are those of all processes of a cell together; `memory`, in bytes, is that of each.
    """

    seconds: float
    bytes: int
    memory: int | None = None


@dataclass(frozen=True)
class Speed:
    """The seconds of a gradient step, and of evaluating one token. Counting is one step.

    `memory` is the most bytes that a process needs for a step, or None if that cannot be computed.
    """

    step: float
    token: float = 0.0
    memory: int | None = None


def costs(cells: list[Cell]) -> dict[str, Cost]:
    """Returns the estimated cost of each cell, by hash. Cells of equal speed are measured once."""
    speeds: dict[tuple[object, ...], Speed] = {}
    checkpoints: dict[tuple[object, ...], int] = {}
    estimates = {}
    for cell in cells:
        text = source_of(cell.config).text
        if cell.config.model.has_steps:
            vocab_size = text.tokenizer.vocab_size
            shape = shape_of(cell, vocab_size)
            if shape not in speeds:
                with measuring(cell):
                    speeds[shape] = speed_of_steps(cell)
            kept = repr(cell.config.model), *state_key(cell.config.optimizer), vocab_size
            if kept not in checkpoints:
                checkpoints[kept] = checkpoint_bytes(cell, vocab_size)
            estimates[cell.hash] = cost_of_steps(cell, speeds[shape], text, checkpoints[kept])
        else:
            shape = shape_of(cell, *source_key(cell.config))
            if shape not in speeds:
                speeds[shape] = speed_of_counting(cell, text)
            size = COUNTED_BYTES * cell.tokens + FOLDER_REST
            estimates[cell.hash] = Cost(speeds[shape].step, size)
    return estimates


@contextmanager
def measuring(cell: Cell) -> Iterator[None]:
    """A context in which a step is measured that may need more memory than there is."""
    try:
        with memory_errors():
            yield
    except UserError as error:
        raise UserError(
            f"{cell.label}: its time cannot be measured on this machine: {error}"
        ) from None


def check_memory(needed: int | None, device: torch.device) -> None:
    """Raises UserError if a step on the CPU would need more bytes than the machine has."""
    if device.type == "cpu" and needed is not None and needed > machine.memory():
        raise UserError(
            f"a step needs {needed / 1e9:,.0f} GB of memory, and there are {machine.memory() / 1e9:,.0f}; "
            "a smaller batch_size, block_size or model needs less"
        )


def shape_of(cell: Cell, *text: object) -> tuple[object, ...]:
    """Returns all that the speed of a cell depends on, and of its text `text`.

    A step takes as long at any learning rate, and on any text of as many different tokens.
    """
    config = cell.config
    optimizer = {
        key: value for key, value in vars(config.optimizer).items() if not isinstance(value, float)
    }
    return (
        config.model,
        type(config.optimizer),
        *optimizer.items(),
        config.run.batch_size,
        config.run.grad_accumulation,
        config.run.threads,
        config.device,
        config.choices["device"],
        *text,
    )


def state_key(optimizer: Any) -> tuple[object, ...]:
    """Returns what the size of an optimizer's state depends on: of a rate, whether it is 0."""
    values = vars(optimizer).items()
    kept = [(key, bool(value) if isinstance(value, float) else value) for key, value in values]
    return type(optimizer), *kept


def checkpoint_bytes(cell: Cell, vocab_size: int) -> int:
    """Returns the size of a cell's checkpoint: weights, and the state of the optimizer."""
    with torch.device("meta"):
        model = build_model(cell.config.model, vocab_size)
    weights = sum(weight.nbytes for weight in model.parameters())
    return weights + state_bytes(model, cell.config.optimizer) + CHECKPOINT_REST


def cost_of_steps(cell: Cell, speed: Speed, text: Splits, checkpoint: int) -> Cost:
    """Returns the cost of all steps, evaluations and files of a cell.

    `checkpoint` is the size of one, in bytes.
    """
    run = cell.config.run
    whole = len(text.val)
    seen = min(whole, run.eval_tokens or whole)
    evaluated = (1 + run.max_steps // run.eval_interval) * seen + whole
    history = POINT * run.max_steps // run.log_interval
    processes = cell.config.device.processes
    return Cost(
        seconds=processes * run.max_steps * speed.step + evaluated * speed.token,
        bytes=3 * checkpoint + history + FOLDER_REST,  # last, previous and best
        memory=speed.memory,
    )


def speed_of_counting(cell: Cell, text: Splits) -> Speed:
    """Measures the time to count the beginning of the text, and scales it to the whole text."""
    beginning = text.train[:COUNTED]
    model = build_model(cell.config.model, text.tokenizer.vocab_size)
    started = time.perf_counter()
    model.count(beginning)
    seconds = time.perf_counter() - started
    return Speed(seconds * len(text.train) / len(beginning))


def speed_of_steps(cell: Cell) -> Speed:
    """Measures the time of a gradient step and of an evaluation on this machine.

    For a large step it measures one row of the batch and multiplies. Of a step that several
    processes share, it is the part of one; what they tell each other is not in it.
    """
    config = cell.config
    run = config.run
    device = machine.pick(config.choices["device"])
    text = source_of(config).text
    steps = run.max_steps * run.grad_accumulation
    all_rows = rows = run.batch_size // config.device.processes
    if cell.flops / steps >= LARGE_STEP:
        rows = 1
    check_batch(all_rows, config.model.block_size)
    check_memory(4 * cell.n_params, device)  # of the weights alone, which is known at once
    memory = memory_of_step(config, text.tokenizer.vocab_size, all_rows)
    if rows == all_rows:
        check_memory(memory, device)
    else:
        check_memory(memory_of_step(config, text.tokenizer.vocab_size, rows), device)
    model = build_model(config.model, text.tokenizer.vocab_size).to(device)
    optimizer = build_optimizer(model, config.optimizer, config.device.precision)
    idx = torch.randint(text.tokenizer.vocab_size, (rows, config.model.block_size), device=device)

    def predict() -> torch.Tensor:
        with machine.autocast(device, config.device.precision):
            loss = cross_entropy(model, idx, idx)
        loss.item()
        return loss

    def backward() -> None:
        predict().backward()

    def update() -> None:
        gradients = [weight.grad for weight in model.parameters()]
        optimizer.step()
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight.grad = gradient  # Muon takes it away

    def seconds(action: Callable[[], object]) -> float:
        measured: list[float] = []
        while len(measured) < FEWEST or (len(measured) < REPEATS and sum(measured) < LONG):
            started = time.perf_counter()
            action()
            next(model.parameters()).sum().item()  # waits for a GPU
            measured.append(time.perf_counter() - started)
        return sorted(measured)[len(measured) // 2]

    threads_before = torch.get_num_threads()
    torch.set_num_threads(run.threads or 1)
    try:
        with torch.no_grad():
            evaluation = seconds(predict) / idx.numel()
        gradients = seconds(backward) * all_rows / rows * run.grad_accumulation
        return Speed(gradients + seconds(update), evaluation, memory)
    finally:
        torch.set_num_threads(threads_before)


def table(cells: list[Cell], n_jobs: int, n_trials: int | None = None) -> Table:
    """Returns the table for dry_run=true: a line for each configuration, and one for all of them.

    `n_jobs` cells run at the same time. Time and disk are those of all seeds of a line. The cells of
    a search are examples, between which its `n_trials` trials lie.
    """
    by_hash: dict[str, Cell] = {}  # of equal cells the first one is run
    for cell in cells:
        by_hash.setdefault(cell.hash, cell)
    cells = [*by_hash.values()]
    estimates = costs(cells)
    statuses = {cell.hash: cell.status() for cell in cells}
    left = [estimates[cell.hash] for cell in cells if not cell.is_done()]
    takes = f"what is left takes about {expense(sum_of(left), n_jobs)}"
    by_group: dict[str, list[Cell]] = {}
    for cell in cells:
        by_group.setdefault(cell.group, []).append(cell)
    unit = "configuration" if len(by_group) == 1 else "configurations"
    title = f"{len(by_group)} {unit}, {len(cells)} cells"
    total = "total"
    if n_trials is not None:
        title = f"{n_trials} trials between these ends"
        total = "these ends"
        by_cost = sorted(estimates.values(), key=lambda cost: cost.seconds)
        n_cells = n_trials * len(cells) // len(by_group)
        least, most = (
            expense(Cost(n_cells * cost.seconds, n_cells * cost.bytes), n_jobs)
            for cost in (by_cost[0], by_cost[-1])
        )
        takes = f"all trials take from {least} to {most}, less what is done or pruned"
    result = Table(
        title=f"{cells[0].sweep.folder}: {title}",
        title_justify="left",
        caption=f"{n_jobs} at a time; {takes}. Tokens and FLOPs are those of a run; memory is the most "
        "that a process needs for the numbers of a step; time and disk, "
        f"and the line {total}, are those of all seeds.",
        caption_justify="left",
    )
    for name in ("configuration", "seeds", "state"):
        result.add_column(name, justify="left", overflow="fold")
    for name in ("parameters", "tokens", "FLOPs", "memory", "time", "disk"):
        result.add_column(name, justify="right", overflow="fold")
    for members in by_group.values():
        first = members[0]
        cost = sum_of(estimates[cell.hash] for cell in members)
        label = without_seed(first.label) or first.config.choices["model"]
        result.add_row(
            label,
            f"x {len(members)} seeds" if len(members) > 1 else f"seed {first.config.run.seed}",
            counted(statuses[cell.hash] for cell in members),
            si(first.n_params),
            si(first.tokens),
            si(first.flops),
            "" if cost.memory is None else f"{si(cost.memory)}B",
            duration(cost.seconds / first.config.device.processes),
            f"{si(cost.bytes)}B",
        )
    all_cells = sum_of(estimates.values())
    seconds = sum(estimates[cell.hash].seconds / cell.config.device.processes for cell in cells)
    result.add_section()
    result.add_row(
        total,
        f"{len(cells)} cells",
        counted(statuses.values()),
        "",
        si(sum(cell.tokens for cell in cells)),
        si(sum(cell.flops for cell in cells)),
        "",
        duration(seconds),
        f"{si(all_cells.bytes)}B",
    )
    return result


def sum_of(costs: Iterable[Cost]) -> Cost:
    """Returns the cost of several cells together."""
    costs = [*costs]
    memory = max((cost.memory for cost in costs if cost.memory is not None), default=None)
    return Cost(sum(cost.seconds for cost in costs), sum(cost.bytes for cost in costs), memory)


def expense(cost: Cost, n_jobs: int) -> str:
    """Returns in words the time and disk space of cells of which `n_jobs` run at a time."""
    return f"{duration(cost.seconds / n_jobs)} and {si(cost.bytes)}B of disk"


def counted(statuses: Iterable[str]) -> str:
    """Returns how many cells have each status, such as "2 new, 1 finished"."""
    counts = Counter(statuses).items()
    return ", ".join(f"{n} {status}" for status, n in counts)


def si(number: float) -> str:
    """Returns a number with three digits and an SI prefix: 1234567 as "1.23 M"."""
    for factor, prefix in (
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


def duration(seconds: float) -> str:
    """Returns a duration as text, in hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes:
        return f"{minutes} min {rest:02} s"
    return f"{seconds:.1f} s"
