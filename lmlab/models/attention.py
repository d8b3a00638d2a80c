"""What all transformers here share: attention itself, and the cache that makes the next token
cheap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.catalogue import TransformerConfig


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, section 3.2.1). Queries (B, H, T, D) are
    those of the last T of the S tokens that keys and values (B, H, S, D) belong to; the scores of
    tokens later than a query's own are -inf.
    """
    (T, D), S = q.shape[2:], k.shape[2]
    if (
        v.dtype == torch.bfloat16 and v.device.type == "cpu"
    ):  # torch's own kernel takes three times as long there
        later = torch.full((T, S), float("-inf"), dtype=v.dtype).triu(S - T + 1)
        weights = ((q * D**-0.5) @ k.mT + later).softmax(-1, dtype=v.dtype)
        return F.dropout(weights, dropout) @ v
    if T in (1, S):
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, dropout_p=dropout)
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)


def attention_flops(config: TransformerConfig) -> int:
    """Returns the floating-point operations of all scores and weighted sums in training, a token.

    All T tokens count, though half of the scores are masked (Kaplan et al. 2020, section 2.1).
    """
    return 12 * config.n_layer * config.block_size * config.n_embd


class KVCache:
    """Keys and values of the tokens that a layer has read, so that they need not be worked out
    again for the next. Memory for `room` tokens is taken at once.
    """

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of further tokens, (B, H, T, D); returns those of all so far, (B, H, S, D)."""
        if not self.length:
            self.k, self.v = (
                new.new_empty(*new.shape[:2], self.room, new.shape[3]) for new in (k, v)
            )
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]
