"""Dropout: in training some activations are left out, so that no other learns to rely on them.

The numbers are those of torch's own function. On a CPU torch draws them one by one, which can take
more than half of a step; here they are drawn as an array.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS = 53  # bits of the 64 that torch draws for a number between 0 and 1
AT_ONCE = 2**20  # numbers, eight bytes each


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Returns x with each number zero with probability p, else divided by 1 - p (Srivastava et al.
    2014).

    Outside of training it returns x.
    """
    if p == 0 or not training:
        return x
    if x.device.type != "cpu" or not x.is_contiguous() or torch.compiler.is_compiling():
        return F.dropout(x, p)
    if not draws_alike():
        return F.dropout(x, p)
    kept = draw_kept(x.numel(), 1 - p).view(x.shape)
    return x * kept.to(x.dtype).div_(1 - p)


def draw_kept(n: int, q: float, generator: torch.Generator | None = None) -> Tensor:
    """Returns n bools, each true with probability q, as torch's bernoulli_ draws them."""
    below = math.ceil(q * 2**DIGITS)
    kept = torch.empty(n, dtype=torch.bool)
    for part in kept.split(AT_ONCE):
        drawn = torch.empty(len(part), dtype=torch.int64)
        drawn.random_(-(2**63), None, generator=generator)  # all 64 bits
        torch.lt(drawn.bitwise_and_(2**DIGITS - 1), below, out=part)
    return kept


@lru_cache
def draws_alike() -> bool:
    """Returns whether `draw_kept` is what torch does on this machine.

    On processors of Intel's torch draws with MKL, which is fast, and gives other numbers.
    """
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    wanted = torch.empty(100).bernoulli_(0.7, generator=theirs)
    same = draw_kept(100, 0.7, ours).equal(wanted.bool())
    return same and ours.get_state().equal(theirs.get_state())
