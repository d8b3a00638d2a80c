"""Where a transformer looks: the weights of its attention, which the fast kernels never write down."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Recording(TorchFunctionMode):
    """While it is entered, `layers` collects the weights (B, H, T, S) of every attention that is
    worked out in float32, by whatever model; with `last`, those of the last token's query alone,
    (B, H, 1, S).
    """

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last, self.layers = last, []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.layers.append(self.weights(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def weights(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        """softmax(q k^T / sqrt(D)), as in models/attention.py: what v is multiplied by, but for
        dropout.
        """
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        seen = seen.tril() if is_causal else seen if attn_mask is None else attn_mask
        if self.last:
            q, seen = q[:, :, -1:], seen[-1:]
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return scores.masked_fill(~seen, float("-inf")).softmax(-1)


@torch.inference_mode()
def attention_maps(model: nn.Module, idx: Tensor) -> Tensor | None:
    """How the tokens idx (T,) look at each other, (n_layer, H, T, T) in float32: row t is how token
    t shares its attention among those up to itself. None for a model without attention. Nothing is
    random.
    """
    training = model.training
    model.eval()
    with Recording() as recording, torch.autocast(idx.device.type, enabled=False):
        model(idx[None])
    model.train(training)
    return torch.cat(recording.layers) if recording.layers else None
