"""Dropout: in training some numbers are left out, so that no other learns to rely on them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARES = 2**16  # of which one number of 16 random bits tells


class DropoutKeys(Protocol):
    """The keys of a model that has dropout."""

    @property
    def dropout(self) -> float:
        """The probability."""

    @property
    def dropout_masks(self) -> str:
        """The way: fast or torch."""


class Dropout(nn.Module):
    """Makes each number zero with probability p, and divides the others by 1 - p (Srivastava et al.
    2014). Outside of training all stay as they are.

    torch draws 64 random bits for each number, one after the other, which on a CPU can take a third
    of a small model's step. With `dropout_masks=fast` a CPU draws 16 bits for each number, so that p is a
    multiple of 1/65536, and at least that.
    """

    def __init__(self, config: DropoutKeys) -> None:
        super().__init__()
        self.p = config.dropout
        self.is_fast = config.dropout_masks == "fast"

    @property
    def share(self) -> float:
        """The probability with which a number is dropped now."""
        return self.p if self.training else 0.0

    def draws_itself(self, x: Tensor) -> bool:
        """Returns whether the fast way is used for x: on a CPU, if torch does not compile it."""
        return self.is_fast and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def forward(self, x: Tensor) -> Tensor:
        """Returns x, of any shape, with some of its numbers dropped."""
        if self.share == 0:
            return x
        if not self.draws_itself(x):
            return F.dropout(x, self.p)
        dropped = min(max(round(self.p * SHARES), 1), SHARES - 1)
        kept = 1 - dropped / SHARES
        return x * draw_kept(x.shape, dropped).to(x.dtype).div_(kept)


def draw_kept(shape: torch.Size, dropped: int) -> Tensor:
    """Returns bools, each of them false with probability `dropped` / SHARES, of torch's generator."""
    n = shape.numel()
    drawn = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    numbers = drawn.view(torch.int16)[:n]  # from -SHARES / 2
    return (numbers >= dropped - SHARES // 2).view(shape)
