"""Computes how much memory a training step needs, without making the step."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from lmlab.config.check import Config
from lmlab.models.base import build_model
from lmlab.training.optimizers import build_optimizer
from lmlab.training.step import cross_entropy


def memory_of_step(config: Config, vocab_size: int, rows: int) -> int | None:
    """Returns the most bytes that weights, gradients, optimizer and a batch of `rows` take at once.

    Torch counts them in a step with tensors that have shapes and no numbers, as on a CPU. A copy of
    the gradients is added where several processes exchange them. Returns None for a model that
    needs the numbers.
    """
    try:
        with FakeTensorMode():
            total = tracked(config, vocab_size, rows)
    except Exception:  # somebody's own model or optimizer can do anything
        return None
    return total


def tracked(config: Config, vocab_size: int, rows: int) -> int:
    """Returns what torch's tracker finds, in a context of tensors without numbers."""
    precision = config.device.precision
    model = build_model(config.model, vocab_size)
    optimizer = build_optimizer(model, config.optimizer, precision)
    idx = torch.zeros(rows, config.model.block_size, dtype=torch.long)
    make_state(model, optimizer)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = cross_entropy(model, idx, idx)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    exchanged = 0
    if config.device.processes > 1:
        exchanged = sum(weight.nbytes for weight in model.parameters())
    return int(peak["Total"]) + exchanged


def make_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Lets an optimizer make the state that it has from its first step on."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
