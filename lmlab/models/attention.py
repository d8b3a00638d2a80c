"""Attention, which all transformers here share, and the cache that makes the next token cheap."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.catalogue import TransformerConfig
from lmlab.models.dropout import Dropout


def attend(
    q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None = None, width_ratio: float = 1.0
) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v (B, H, T, D) (Vaswani et al. 2017, section 3.2.1).

    Queries come to agree with keys, so that sums over D channels grow with D, not with its root. A
    model that is `width_ratio` times wider divides by the root of that, too (Yang et al. 2022).

    The queries q (B, H, T, D) are of the last T of the S tokens that keys and values (B, H, S, D)
    belong to. No token looks at a later one: such scores are -inf.
    """
    T, S, D = q.shape[2], k.shape[2], q.shape[3]
    scale = 1 / math.sqrt(D * width_ratio)
    share = 0.0 if dropout is None else dropout.share
    is_slow = v.dtype == torch.bfloat16 or (dropout is not None and dropout.is_fast and share > 0)
    if q.device.type == "cpu" and is_slow:
        return attend_openly(q, k, v, dropout, scale)
    if T in (1, S):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=T > 1, dropout_p=share, scale=scale
        )
    visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=share, scale=scale)


def attend_openly(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None, scale: float) -> Tensor:
    """Does what `attend` does, with all scores at once.

    On a CPU torch's own kernel takes three times as long in bfloat16. With dropout torch computes all
    scores, too, and draws its own masks.
    """
    T, S = q.shape[2], k.shape[2]
    later = torch.full((T, S), float("-inf"), dtype=v.dtype).triu(S - T + 1)
    weights = ((q * scale) @ k.mT + later).softmax(-1, dtype=v.dtype)  # (B, H, T, S)
    if dropout is not None:
        weights = dropout(weights)
    return weights @ v


def attention_flops(config: TransformerConfig) -> int:
    """Returns the floating-point operations of all scores and weighted sums in training, a token.

    All T tokens count, though half of the scores are masked (Kaplan et al. 2020, section 2.1).
    """
    return 12 * config.n_layer * config.block_size * config.n_embd


class KVCache:
    """Keys and values of the tokens that a layer has read, so that they are computed only once.

    Memory for `room` tokens is taken at the first call.
    """

    k: Tensor  # (B, H, room, D)
    v: Tensor

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values of T tokens, (B, H, T, D); returns those of all, (B, H, S, D)."""
        B, H, T, D = k.shape
        if self.length == 0:
            self.k = k.new_empty(B, H, self.room, D)
            self.v = v.new_empty(B, H, self.room, v.shape[3])
        start = self.length
        self.length += T
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]
