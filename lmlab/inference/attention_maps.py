"""Computes attention maps, which fast kernels do not keep: how tokens attend to others."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lmlab.models.base import LanguageModel, evaluating


class Recording(TorchFunctionMode):
    """A context in which `layers` collects the weights (B, H, T, S) of each attention in float32.

    It records every call of torch's `scaled_dot_product_attention`, in any model. With `last`, it
    keeps only the weights of the last token's query, (B, H, 1, S).
    """

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.layers: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Records each call of attention, and then makes the call as usual."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.layers.append(self.weights(*args, **kwargs))
        return func(*args, **kwargs)

    def stacked(self) -> Tensor | None:
        """Returns the weights of all layers, (B, n_layer, H, T, S).

        Returns None if there was no attention, or if its layers differ in shape.
        """
        if len({weights.shape for weights in self.layers}) != 1:
            return None
        return torch.stack(self.layers, dim=1)

    def weights(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Returns the attention weights softmax(scale q k^T + mask), (B, H, T, S).

        The parameters are those of `scaled_dot_product_attention`. Dropout is ignored.
        """
        T, S = q.shape[2], k.shape[2]
        if is_causal:
            attn_mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
        if enable_gqa:  # several heads share their keys
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        if self.last:
            q = q[:, :, -1:]
            if attn_mask is not None and attn_mask.shape[-2] > 1:
                attn_mask = attn_mask[..., -1:, :]
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is None:
            return scores.softmax(-1)
        if attn_mask.dtype == torch.bool:
            return scores.masked_fill(~attn_mask, float("-inf")).softmax(-1)
        return (scores + attn_mask).softmax(-1)


@torch.inference_mode()
def attention_maps(model: LanguageModel, idx: Tensor) -> Tensor | None:
    """Returns the attention among the tokens idx (T,), as (n_layer, H, T, T) in float32.

    Row t holds the attention of token t to itself and to each earlier token. Returns None for a
    model without attention. Nothing is random.
    """
    with (
        evaluating(model),
        Recording() as recording,
        torch.autocast(idx.device.type, enabled=False),
    ):
        model(idx[None])
    maps = recording.stacked()
    return None if maps is None else maps[0]
