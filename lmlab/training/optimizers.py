"""The optimizers, and the learning rate at each step.

A new optimizer needs a function here, its keys in the catalogue, and a YAML file. The function
takes `Weights`, the keys and the precision, and returns torch's optimizer. Nothing declares the
state that the optimizer keeps: `example_states` makes a step and reads the state.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.calls import check_call, own_call
from lmlab.catalogue import (
    OPTIMIZERS,
    SCHEDULES,
    AdamWConfig,
    MuonConfig,
    SGDConfig,
    builder_of,
    name_of,
)
from lmlab.config.keys import RunConfig
from lmlab.errors import UserError
from lmlab.models.base import LanguageModel
from lmlab.register import is_own
from lmlab.registry import load
from lmlab.training.muon import Muon

Group = dict[str, Any]  # "params" and their settings, as torch's optimizers take them


@dataclass(frozen=True)
class Weights:
    """The weights of a model, divided into the groups that optimizers need."""

    matrices: list[nn.Parameter]
    others: list[nn.Parameter]
    """Gains and biases."""

    hidden: list[nn.Parameter]
    """Those of the matrices that are neither embeddings nor the head, if somebody needs to know."""

    width_ratio: float = 1.0
    """How many times wider the model is than the one whose rates it takes over."""

    @classmethod
    def of(cls, model: LanguageModel, config: Any) -> "Weights":
        """Returns the weights of `model` for the optimizer with these keys. Raises UserError."""
        weights = list(model.parameters())
        matrices = [weight for weight in weights if weight.dim() >= 2]
        others = [weight for weight in weights if weight.dim() < 2]
        hidden = []
        if config.needs_hidden_matrices or model.width_ratio != 1:
            hidden = model.hidden_matrices()
        return cls(matrices, others, hidden, model.width_ratio)

    def divided(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Returns the matrices that are hidden, and those that are not."""
        is_hidden = {id(weight) for weight in self.hidden}
        hidden = [weight for weight in self.matrices if id(weight) in is_hidden]
        outer = [weight for weight in self.matrices if id(weight) not in is_hidden]
        return hidden, outer

    def groups(self, weight_decay: float) -> list[Group]:
        """Returns matrices with weight decay, other weights without it (Brown et al. 2020).

        With m times the width of the base, a row of a hidden matrix reads m times more numbers, and
        Adam moves each weight by about the rate; so that together they change what is computed as
        much as before, the rate is divided by m (Yang et al. 2022). Decay, rate times
        `weight_decay`, is not.
        """
        others = {"params": self.others, "weight_decay": 0.0}
        if self.width_ratio == 1:
            return [{"params": self.matrices, "weight_decay": weight_decay}, others]
        hidden, outer = self.divided()
        return [
            {
                "params": hidden,
                "weight_decay": weight_decay * self.width_ratio,
                "lr_scale": 1 / self.width_ratio,
            },
            {"params": outer, "weight_decay": weight_decay},
            others,
        ]


def sgd(weights: Weights, config: SGDConfig, precision: str) -> torch.optim.Optimizer:
    """Returns gradient descent with momentum."""
    groups = weights.groups(config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def adamw(weights: Weights, config: AdamWConfig, precision: str) -> torch.optim.Optimizer:
    """Returns AdamW (Loshchilov and Hutter 2019)."""
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(
        weights.groups(config.weight_decay), lr=config.lr, betas=betas, fused=True
    )


def muon(weights: Weights, config: MuonConfig, precision: str) -> torch.optim.Optimizer:
    """Returns Muon for the hidden matrices, and AdamW at `adam_lr` for the rest.

    Muon's step has singular values that grow with the root of the width. With m times the width of
    the base, `parametrization=mup` divides by the root of m; then they stay those of the base.
    """
    hidden, outer = weights.divided()
    decay = config.weight_decay
    scale = (config.adam_lr or config.lr) / config.lr
    root = weights.width_ratio**0.5
    # Checkpoints hold the groups: neither their order nor that of their keys may change.
    groups = [
        {"params": hidden, "weight_decay": decay * root, "hidden": True, "lr_scale": 1 / root},
        {"params": outer, "weight_decay": decay, "hidden": False, "lr_scale": scale},
        {"params": weights.others, "weight_decay": 0.0, "hidden": False, "lr_scale": scale},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        momentum=config.momentum,
        ns_steps=config.ns_steps,
        half=precision == "bf16-mixed",
    )


def build_optimizer(
    model: LanguageModel, config: Any, precision: str = "32-true"
) -> torch.optim.Optimizer:
    """Returns the optimizer that `config` asks for, for all weights of `model`."""
    return built(Weights.of(model, config), config, precision)


def built(weights: Weights, config: Any, precision: str) -> torch.optim.Optimizer:
    """Returns the optimizer of weights. Raises UserError if it is none that the lab can use."""
    builder = builder_of(OPTIMIZERS, config)
    optimizer: torch.optim.Optimizer = called(builder, weights, config, precision)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"{builder.__name__} returns {optimizer!r}; needs one of torch's optimizers"
        )
    if "param_groups" not in vars(optimizer):
        raise UserError(
            f"{type(optimizer).__name__}: has no param_groups; its __init__ must call "
            "super().__init__(groups, defaults)"
        )
    step = inspect.unwrap(type(optimizer).step)  # torch has wrapped it
    if step is inspect.unwrap(torch.optim.Optimizer.step):
        raise UserError(f"{type(optimizer).__name__}: has no step(), which changes the weights")
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"{type(optimizer).__name__}: computes the loss several times in a step, which the lab "
            "does not do; allowed are optimizers whose step() needs no closure"
        )
    check_call(f"optimizer {type(optimizer).__name__}", optimizer.step, "step()")
    known = {id(weight) for weight in (*weights.matrices, *weights.others)}
    for group in optimizer.param_groups:
        foreign = [weight for weight in group["params"] if id(weight) not in known]
        if foreign:
            raise UserError(
                f"{builder.__name__} returns an optimizer of a tensor {tuple(foreign[0].shape)} that is "
                "none of the model's weights; it gets them as weights.matrices and weights.others"
            )
    return optimizer


def called(builder: Any, weights: Weights, config: Any, precision: str) -> Any:
    """Returns what a builder of optimizers returns. Raises UserError if somebody's own has no such call."""
    name = name_of(OPTIMIZERS, config)
    if not is_own("optimizer", name):
        return builder(weights, config, precision)
    about, form = f"optimizer={name}", f"{name}(weights, config, precision)"
    check_call(about, builder, form)
    with own_call(about, form):
        return builder(weights, config, precision)


def example_states(
    model: LanguageModel, config: Any, precision: str = "32-true"
) -> list[dict[str, Any]]:
    """Returns the state that the optimizer keeps for each weight, in the optimizer's order.

    It comes from a step on weights of zeros, on the CPU. Weights of the same shape in a group share
    one such step. The model does not change, and may be on the meta device.
    """
    weights = Weights.of(model, config)
    is_hidden = {id(weight) for weight in weights.hidden}
    examples: dict[tuple[Any, ...], nn.Parameter] = {}

    def kind(weight: Tensor) -> tuple[Any, ...]:
        return weight.shape, weight.dtype, id(weight) in is_hidden

    def examples_of(weights: list[nn.Parameter]) -> list[nn.Parameter]:
        kinds = {kind(weight): weight for weight in weights}
        for key, weight in kinds.items():
            examples[key] = nn.Parameter(torch.zeros(weight.shape, dtype=weight.dtype))
            examples[key].grad = torch.zeros(weight.shape, dtype=weight.dtype)
        return [examples[key] for key in kinds]

    def known_examples(weights: list[nn.Parameter]) -> list[nn.Parameter]:
        kinds = dict.fromkeys(kind(weight) for weight in weights)
        return [examples[key] for key in kinds]

    optimizer = built(
        Weights(
            matrices=examples_of(weights.matrices),
            others=examples_of(weights.others),
            hidden=known_examples(weights.hidden),
            width_ratio=weights.width_ratio,
        ),
        config,
        precision,
    )
    optimizer.step()
    in_order: list[nn.Parameter] = []
    for group in built(weights, config, precision).param_groups:
        in_order += group["params"]
    return [optimizer.state[examples[kind(weight)]] for weight in in_order]


def state_bytes(model: LanguageModel, config: Any) -> int:
    """Returns the bytes that the optimizer's state takes in a checkpoint."""
    return sum(
        value.nbytes
        for state in example_states(model, config)
        for value in state.values()
        if isinstance(value, Tensor)  # the step may be a plain number
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group of an optimizer the learning rate `lr`, times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def learning_rate(step: int, lr: float, run: RunConfig) -> float:
    """Returns the learning rate of gradient step `step`, counted from 0.

    It rises linearly to `lr` and stays there for `hold_steps`. Then it is constant, or it falls as
    the run's schedule says, to `min_lr` at `decay_steps`.
    """
    if step < run.warmup_steps:
        return lr * (step + 1) / (run.warmup_steps + 1)
    start = run.warmup_steps + run.hold_steps
    if run.schedule == "constant" or step < start:
        return lr
    if step >= run.decay_steps:
        return run.min_lr
    done = (step - start) / (run.decay_steps - start)
    return run.min_lr + (lr - run.min_lr) * left_at(done, run.schedule)


def left_at(done: float, schedule: str) -> float:
    """Returns what a schedule leaves of the learning rate after the share `done` of its fall.

    Raises UserError if somebody's own schedule returns anything but a share.
    """
    left: float = load(SCHEDULES[schedule])(done)
    if not isinstance(left, int | float) or not 0 <= left <= 1:
        raise UserError(
            f"schedule={schedule}: returns {left!r} for {done}; needs a number in [0, 1]"
        )
    return left


def check_schedule(run: RunConfig) -> None:
    """Raises UserError if the schedule of a run does not return shares."""
    about, form = f"schedule={run.schedule}", f"{run.schedule}(done)"
    if is_own("schedule", run.schedule):
        check_call(about, load(SCHEDULES[run.schedule]), form)
    with own_call(about, form):
        for n in range(101):
            left_at(n / 100, run.schedule)


def cosine(done: float) -> float:
    """Returns the share of the learning rate that is left when the share `done` of its fall is over.

    It falls like half a cosine (Loshchilov and Hutter 2017, one cycle).
    """
    return (1 + math.cos(math.pi * done)) / 2


def linear(done: float) -> float:
    """Returns the share of the learning rate that is left, in a linear fall."""
    return 1 - done


def constant(done: float) -> float:
    """Returns 1: the learning rate does not fall."""
    return 1.0
