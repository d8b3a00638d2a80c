"""Finds the cell of a configuration: its text, its device, its size, its hash."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lmlab import machine, plugins
from lmlab.config.check import Config
from lmlab.config.grammar import parse
from lmlab.config.keys import Align, idle_keys
from lmlab.data.batches import check_length, resolved_align, with_align
from lmlab.data.splits import Splits, own_rule
from lmlab.errors import UserError
from lmlab.models.base import build_model
from lmlab.registry import folder_kept
from lmlab.runs import checkpoints
from lmlab.sweeps import cells
from lmlab.sweeps.cells import Cell, Sweep


@dataclass(frozen=True)
class Source:
    """The text that a cell reads, and the run that gives its first weights, if there is one."""

    text: Splits
    init_from: str | None
    init_sha256: str | None


SOURCES: dict[tuple[object, ...], Source] = {}  # each is read once for all cells
SIZES: dict[tuple[object, ...], tuple[int, int]] = {}  # each model is built once for all cells
ALIGNS: dict[tuple[object, ...], Align] = {}  # each text is looked at once for all cells


def source_of(config: Config) -> Source:
    """Returns the source of a configuration. Raises UserError if its text cannot be read."""
    key = source_key(config)
    if key not in SOURCES:
        start = None
        if config.run.init_from:
            start = checkpoints.load(Path(config.run.init_from), choice="cpu")
        if start is None:
            SOURCES[key] = Source(Splits.of_run(config), None, None)
        else:
            text = Splits.of_run(config, start.tokenizer)
            SOURCES[key] = Source(text, str(start.path), start.sha256)
    return SOURCES[key]


def sizes_of(config: Config, vocab_size: int) -> tuple[int, int]:
    """Returns the parameters of a configuration's model, and its FLOPs a token."""
    key = config.choices["model"], repr(config.model), vocab_size
    if key not in SIZES:
        with torch.device("meta"):
            model = build_model(config.model, vocab_size)
        n_params = sum(weight.numel() for weight in model.parameters())
        SIZES[key] = n_params, model.flops_per_token()
    return SIZES[key]


def align_of(config: Config, text: Splits) -> Align:
    """Returns the value of `align` that a configuration has, or that stands for "auto"."""
    key = source_key(config), config.run.align, config.model.block_size
    if key not in ALIGNS:
        ALIGNS[key] = resolved_align(config, text.train).run.align
    return ALIGNS[key]


def source_key(config: Config) -> tuple[object, ...]:
    """Returns the values that determine a text and its vocabulary."""
    run = config.run
    tokenizer = config.choices["tokenizer"], config.tokenizer
    cut = run.separator, run.score_after
    return config.choices["data"], config.data, tokenizer, cut, run.init_from, run.unknown


@folder_kept()
def identify(config: Config, overrides: list[str], sweep: Sweep, elsewhere: bool = False) -> Cell:
    """Returns the cell of a composed configuration.

    `elsewhere` means that another machine will run the cell, so this one need not have the device.
    Raises UserError if the text cannot be read, or if this machine cannot run the cell.
    """
    # One thread unless more are asked for: so many cells fit, and all launchers agree.
    run = replace(config.run, threads=config.run.threads or 1)
    device = replace(config.device, devices=config.device.devices or 1)
    config = replace(config, run=run, device=device)
    try:
        config = machine.resolve(config)
    except UserError:
        if not elsewhere:
            raise
    source = source_of(config)
    text = source.text
    config = replace(config, run=replace(config.run, init_from=source.init_from))
    if config.model.has_steps:
        check_length(text.train, config.model.block_size, text.tokenizer.unit)
        config = with_align(config, align_of(config, text))
        tokens = run.max_steps * run.batch_size * run.grad_accumulation * config.model.block_size
    else:
        config = with_align(config, "epoch")  # it has no windows; the value that changes no hash
        tokens = len(text.train)
    n_params, flops = sizes_of(config, text.tokenizer.vocab_size)
    used = [text for text in overrides if parse(text).key_or_group not in idle_keys(config.choices)]
    sources = {"data_sha256": text.sha256, **own_rule(config)}
    if source.init_sha256:
        sources["init_sha256"] = source.init_sha256
    elif not text.tokenizer.per_character:
        sources["tokenizer_sha256"] = text.tokenizer.sha256()
    cell_hash, group = cells.identity(config.flat(), sources)
    cell_hash, beside = cells.own_hash(sweep, cell_hash)
    return Cell(
        config=config,
        sweep=sweep,
        label=cells.label(used, sweep) or config.choices["model"],
        hash=cell_hash,
        group=group,
        data_sha256=text.sha256,
        n_params=n_params,
        tokens=tokens,
        flops=tokens * flops,
        beside=beside,
    )


def identify_all(
    runs: list[tuple[Config, list[str]]], sweep: Sweep, elsewhere: bool
) -> tuple[list[Cell], int]:
    """Returns the cell of each run, and the number of GPUs of this machine.

    The texts are read again. Raises UserError for the first cell that cannot be run.
    """
    SOURCES.clear()
    SIZES.clear()
    ALIGNS.clear()
    identified = []
    for config, overrides in runs:
        with plugins.own_errors(cells.label(overrides, sweep)):
            identified.append(identify(config, overrides, sweep, elsewhere))
    return identified, torch.cuda.device_count()
