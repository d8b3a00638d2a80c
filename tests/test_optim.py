import itertools
import math
from dataclasses import replace

import pytest
import torch

from lmlab.catalogue import AdamWConfig, SGDConfig
from lmlab.models.base import build_model
from lmlab.training.optimizers import build_optimizer, learning_rate


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
    layer = torch.nn.Linear(3, 3, bias=False)
    optimizer = build_optimizer(layer, SGDConfig(lr=0.1, momentum=0.9, weight_decay=0.0))
    wanted, speed = layer.weight.detach().clone(), torch.zeros(3, 3)
    for step in range(3):
        layer.weight.grad = torch.full((3, 3), float(step + 1))
        optimizer.step()
        speed = 0.9 * speed + (step + 1)
        wanted -= 0.1 * speed
    torch.testing.assert_close(layer.weight.detach(), wanted)
