import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmlab.catalogue import AdamWConfig, BigramConfig, MuonConfig, SGDConfig
from lmlab.errors import UserError
from lmlab.models.base import LanguageModel, build_model
from lmlab.sweeps.costs import state_key
from lmlab.training import optimizers
from lmlab.training.optimizers import (
    build_optimizer,
    example_states,
    learning_rate,
    state_bytes,
)
from lmlab.training.state import check_optimizer
from tests.test_models import CONFIGS


class Layer(LanguageModel):
    """A matrix, and nothing else."""

    def __init__(self):
        super().__init__(BigramConfig(block_size=4))
        self.weight = torch.nn.Parameter(torch.randn(3, 3))


@pytest.fixture
def run(some_config):
    return replace(
        some_config.run,
        schedule="cosine",
        warmup_steps=9,
        max_steps=100,
        decay_steps=49,
        min_lr=0.1,
    )


def test_warmup_then_half_a_cosine_then_the_floor(run):
    rates = [learning_rate(step, 1.0, run) for step in range(200)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[9] == 1.0
    assert rates[29] == pytest.approx(0.55)  # half-way down
    assert rates[19] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[49:] == pytest.approx([0.1] * 151)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_hold_then_a_straight_line_to_the_floor(run):
    run = replace(run, schedule="linear", hold_steps=10)
    rates = [learning_rate(step, 1.0, run) for step in range(200)]
    assert rates[:9] == pytest.approx([(step + 1) / 10 for step in range(9)])
    assert rates[9:20] == [1.0] * 11
    assert rates[19:50] == pytest.approx([1.0 - 0.9 * step / 30 for step in range(31)])
    assert rates[49:] == [0.1] * 151


def test_cosine_too_can_hold(run):
    rates = [learning_rate(step, 1.0, replace(run, hold_steps=10)) for step in range(200)]
    assert (
        rates[9:20] == [1.0] * 11 and rates[34] == pytest.approx(0.55) and rates[49:] == [0.1] * 151
    )


def test_constant_stays(run):
    rates = [learning_rate(step, 1.0, replace(run, schedule="constant")) for step in range(200)]
    assert rates[9:] == [1.0] * 191


def test_warmup_longer_than_the_decay_never_breaks(run):
    rates = [
        learning_rate(step, 1.0, replace(run, warmup_steps=60, decay_steps=10))
        for step in range(100)
    ]
    assert max(rates) == rates[59] == 60 / 61 and rates[60:] == [0.1] * 40


@pytest.mark.parametrize(
    "config",
    [
        SGDConfig(lr=0.1, momentum=0.0, weight_decay=0.5),
        AdamWConfig(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5),
    ],
)
def test_decay_pulls_on_matrices_only(config, some_config):
    model = build_model(replace(some_config.model, bias=True), 7)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    build_optimizer(model, config).step()
    for name, weight in model.named_parameters():
        wanted = before[name] * (1 - 0.1 * 0.5) if weight.dim() >= 2 else before[name]
        torch.testing.assert_close(weight, wanted)


def test_sgd_is_plain_gradient_descent_with_momentum():
    layer = Layer()
    optimizer = build_optimizer(layer, SGDConfig(lr=0.1, momentum=0.9, weight_decay=0.0))
    wanted, speed = layer.weight.detach().clone(), torch.zeros(3, 3)
    for step in range(3):
        layer.weight.grad = torch.full((3, 3), float(step + 1))
        optimizer.step()
        speed = 0.9 * speed + (step + 1)
        wanted -= 0.1 * speed
    torch.testing.assert_close(layer.weight.detach(), wanted)


def nadam(weights, config, precision):
    """torch's NAdam, whose state holds a scalar in addition to the step: the product of momenta."""
    return torch.optim.NAdam(weights.groups(config.weight_decay), lr=config.lr)


def adafactor(weights, config, precision):
    """torch's Adafactor keeps a row and a column for a matrix."""
    return torch.optim.Adafactor(weights.groups(config.weight_decay), lr=config.lr)


@pytest.mark.parametrize("builder", [None, nadam, adafactor])
def test_a_state_is_known_by_a_step_of_the_optimizer_itself(builder, some_config, monkeypatch):
    """The check of a checkpoint and the estimate of its size follow from it, declared nowhere."""
    config = AdamWConfig(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.5)
    if builder:
        monkeypatch.setattr(optimizers, "adamw", builder)
    model = build_model(some_config.model, 7)
    before = [weight.clone() for weight in model.parameters()]
    examples = example_states(model, config)
    assert all(weight.equal(copy) for weight, copy in zip(model.parameters(), before, strict=True))
    optimizer = build_optimizer(model, config)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    assert len(examples) == len(saved["state"]) == len(before)
    size = 0
    for number, state in saved["state"].items():
        assert state.keys() == examples[number].keys()
        size += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    with torch.device("meta"):
        outline = build_model(some_config.model, 7)
    assert state_bytes(outline, config) == size
    checkpoint = {"optimizer_states": [saved]}
    check_optimizer(checkpoint, optimizer, examples, Path("last.ckpt"))
    name = next(name for name, value in saved["state"][0].items() if value is not None)
    for wrong in (torch.zeros(5, 5, 5), "text", None if name == "step" else torch.zeros(3)):
        if wrong is not None:
            saved["state"][0][name] = wrong
            with pytest.raises(UserError, match="optimizer"):
                check_optimizer(checkpoint, optimizer, examples, Path("last.ckpt"))


def test_muon_keeps_one_number_for_a_hidden_matrix_and_two_for_the_rest():
    model = build_model(CONFIGS["modern"], 11)
    config = MuonConfig(
        lr=0.02, adam_lr=0.02, momentum=0.9, ns_steps=5, beta1=0.9, beta2=0.99, weight_decay=0.1
    )
    hidden = sum(weight.numel() for weight in model.hidden_matrices())
    weights = list(model.parameters())
    numbers = 2 * sum(weight.numel() for weight in weights) - hidden + len(weights)  # and the steps
    assert state_bytes(model, config) == 4 * numbers


def test_optimizers_of_one_key_keep_states_of_one_size():
    model = build_model(CONFIGS["modern"], 11)
    sizes = {}
    for momentum, lr, weight_decay in itertools.product((0.0, 0.5, 0.9), (0.1, 0.2), (0.0, 0.1)):
        config = SGDConfig(lr=lr, momentum=momentum, weight_decay=weight_decay)
        sizes.setdefault(state_key(config), set()).add(state_bytes(model, config))
    assert all(len(found) == 1 for found in sizes.values())
    assert (
        len({size for found in sizes.values() for size in found}) == 2
    )  # without momentum, and with
