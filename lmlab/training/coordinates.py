"""Measures the size of what each part of a model computes, in the first steps of training.

It is the coordinate check of Yang et al. 2022, appendix D.1: learning rates carry over to other
widths only if these sizes do not grow with the width.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.config.check import Config
from lmlab.isolation import isolated
from lmlab.models.base import LanguageModel, has_matrix
from lmlab.training.optimizers import build_optimizer, set_learning_rate
from lmlab.training.preparation import Prepared
from lmlab.training.step import cross_entropy

SCORES = "scores"  # of queries and keys, for which models have no module

Sizes = dict[str, float]  # by the name of a part, without the number of its block


class Sizing(TorchFunctionMode):
    """A context that notes the mean |x| of each activation of a model.

    Activations are what blocks and matrices return, and the scores of torch's attention between
    tokens of which one sees the other.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.noted: dict[str, list[Tensor]] = {}
        self.hooks = ExitStack()

    def __enter__(self) -> "Sizing":
        for name, module in self.model.named_modules():
            is_matrix = has_matrix(module) and not [*module.children()]
            if is_matrix or re.search(r"\.\d+$", name):
                hook = module.register_forward_hook(self.noting(re.sub(r"\.\d+", "", name)))
                self.hooks.callback(hook.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hooks.close()

    def noting(self, name: str) -> Callable[..., None]:
        """Returns the hook that notes the output of a module."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.note(name, output)

        return hook

    def note(self, name: str, activation: Tensor) -> None:
        """Notes the size of an activation."""
        self.noted.setdefault(name, []).append(activation.detach().abs().mean())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        """Notes the scores of each call of attention, and then makes the call as usual."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, *_ = (arg.detach() for arg in args)  # (B, H, T, D) each
            scale = kwargs.get("scale") or q.shape[-1] ** -0.5
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            self.note(SCORES, (q @ k.mT * scale)[..., seen])
        return func(*args, **kwargs)

    def sizes(self) -> Sizes:
        """Returns the sizes, each the mean over the blocks."""
        return {name: float(torch.stack(noted).mean()) for name, noted in self.noted.items()}


@isolated()
def sizes_of(config: Config, steps: int) -> list[Sizes]:
    """Returns the sizes of a model's activations at its start, and after each of `steps` steps.

    Each is of the batch that the next step would learn from. The rate does not change. `config` has
    the device and threads of this machine. Raises UserError, for example for too short a text.
    """
    prepared = Prepared(config)
    batches: Any = prepared.batches  # a model that has a width is trained by steps
    device = torch.device(config.choices["device"])
    model = prepared.model.to(device).train()
    weights = list(model.parameters())
    optimizer = build_optimizer(model, config.optimizer)
    set_learning_rate(optimizer, config.optimizer.lr)
    noted = []
    stream = batches.stream(0, device)
    for _ in range(steps + 1):
        with Sizing(model) as sizing:
            loss = cross_entropy(model, *next(stream))
        noted.append(sizing.sizes())
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.run.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
    return noted
