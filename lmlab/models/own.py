"""What is asked of somebody's own model: when it is built, and of all scores that it returns."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lmlab.calls import check_methods
from lmlab.errors import UserError

UNASKED = ("count",)  # what the lab never asks a model that learns in steps


def prepare(model: Any, base: type, config: Any, name: str, vocab_size: int) -> None:
    """Checks a model that was just built, and from now on all its scores. Raises UserError.

    `base` is the class that it inherits from, and `name` is the choice.
    """
    about = f"model={name}"
    kind = type(model).__name__
    if getattr(model, "config", None) is None:
        raise UserError(f"{about}: {kind}.__init__ must call super().__init__(config)")
    if type(model).forward is vars(base)["forward"]:
        raise UserError(
            f"{about}: {kind} has no forward; needs forward(idx), from ids (B, T) to scores (B, T, V)"
        )
    check_names(model, base, about)
    check_methods(about, model, base, UNASKED)
    for weight_name, weight in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(weight):
            raise UserError(
                f"{about}: {weight_name} has no size yet, as in a LazyLinear; each weight needs its "
                "size in __init__, before the optimizer gets it"
            )
    model.register_forward_hook(CheckedScores(name, vocab_size), with_kwargs=True)


def check_names(model: nn.Module, base: type, about: str) -> None:
    """Raises UserError if a model has something else under the name of what the lab asks of it."""
    parts = {name for table in tables_of(model) for name in table}
    for name, usual in vars(base).items():
        if name.startswith("_") or name in UNASKED:
            continue
        if inspect.isfunction(usual):
            fits = name not in parts and callable(getattr(model, name))
        elif inspect.isdatadescriptor(usual):
            fits = inspect.isdatadescriptor(inspect.getattr_static(type(model), name))
        else:
            continue
        if not fits:
            raise UserError(
                f"{about}: {type(model).__name__}.{name} is what the lab asks of a model "
                "(lmlab/models/base.py); needs another name"
            )


def tables_of(module: nn.Module) -> list[dict[str, Any]]:
    """Returns where torch keeps the weights, the buffers and the parts of a module."""
    return [module._parameters, module._buffers, module._modules]


class CheckedScores:
    """Raises UserError if a model returns scores of a wrong shape: torch calls it after `forward`.

    A wrong shape can come late: in training alone, or for the last, shorter window of a text. What
    somebody else calls with more than ids is their own affair.
    """

    def __init__(self, name: str, vocab_size: int) -> None:
        self.name = name
        self.vocab_size = vocab_size

    def __call__(self, model: nn.Module, given: Any, named: Any, scores: Any) -> None:
        if len(given) == 1 and not named:
            check_scores(self.name, scores, (*given[0].shape, self.vocab_size))


def check_scores(name: str, scores: Any, needed: tuple[int, ...]) -> None:
    """Raises UserError unless scores are numbers of the shape that is needed, (B, T, V)."""
    found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if found != needed:
        raise UserError(
            f"model={name}: its forward returns {found} for ids of {needed[:2]}; needs scores of "
            f"{needed}, (B, T, V)"
        )
    if not scores.is_floating_point() or scores.layout != torch.strided:
        kind = f"{scores.dtype}, {scores.layout}"
        raise UserError(f"model={name}: its scores are of {kind}; needs dense torch.float32")
