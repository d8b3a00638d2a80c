"""The transformers once more, in numpy: one sequence, one token after another, for sampling on a
CPU.

A token of a small model is some 50 µs of arithmetic, but torch takes ten times that to start its
hundred operations; numpy starts them faster. What they compute, and why, stands in models/gpt.py
and models/modern.py.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.models.attention import KVCache
from lmlab.models.gpt import GPT
from lmlab.models.modern import Modern

LARGEST = 2**24  # weights of a model that it is for; a larger one has work for torch's threads


EPS = {
    "layer": 1e-5,
    "rms": torch.finfo(torch.float32).eps,
}  # what torch's norms add to the mean square


# with a factor that the matrices on both sides take over: gelu(x) = (z + z erf z) / sqrt(2) where z
# = x / sqrt(2)
ACTIVATIONS = {
    "gelu": (lambda z: z + z * torch.erf(torch.from_numpy(z)).numpy(), 2**-0.5),
    "relu2": (lambda z: np.square(np.maximum(z, 0)), 1.0),
}


def centred(weight: Tensor | None) -> Tensor | None:
    """`weight` (N, …) less its mean over N. A layer norm takes the mean off x: where nothing that
    is added to x has one, it is an RMS norm.
    """
    return None if weight is None else weight - weight.mean(0)


def linear(
    weight: Tensor,
    bias: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    factor: float = 1.0,
) -> Callable[[np.ndarray], np.ndarray]:
    """x -> factor (weight x + bias), with the gains and the bias of the `norm` before it worked in."""
    if norm is not None:
        if norm.bias is not None:
            bias = weight @ norm.bias + (0 if bias is None else bias)
        weight = weight * norm.weight
    product = np.asfortranarray(
        (weight * factor).float().numpy()
    ).dot  # column by column it is read a tenth faster
    if bias is None:
        return product
    added = (bias * factor).float().numpy()
    return lambda x: product(x) + added


class Decoder:
    """Goes on where `model` has stopped reading: its logits but for rounding, in float32."""

    @torch.no_grad()
    def __init__(self, model: GPT | Modern) -> None:
        config = getattr(model, "config", None)  # None: a GPT
        norm, activation = (config.norm, config.activation) if config else ("layer", "gelu")
        self.eps, (self.activation, factor) = EPS[norm], ACTIVATIONS[activation]
        self.qk_norm, self.embedding_norm = (
            config and config.qk_norm,
            config and config.embedding_norm,
        )
        centre = centred if norm == "layer" else lambda weight: weight
        self.tokens = centre(model.token_embedding.weight.T).T.float().numpy()
        self.positions = self.rotation = None
        if hasattr(model, "position_embedding"):
            self.positions = centre(model.position_embedding.weight.T).T.float().numpy()
        else:
            self.rotation = model.cos.numpy(), model.sin.numpy()
        self.layers = []
        for block in model.blocks:
            attention, mlp = block.attention, block.mlp
            self.n_head = attention.n_head
            if config:  # norms without weights, matrices without biases
                q, k, v = attention.qkv.unflatten(1, (self.n_head, -1))  # (H, D, C)
                if config.qk_norm and norm == "layer":
                    q, k = (weight - weight.mean(1, keepdim=True) for weight in (q, k))
                qkv, widen = (
                    linear(torch.cat([q, k, v]).flatten(0, 1)),
                    linear(mlp.widen.weight, factor=factor),
                )
            else:
                qkv = linear(attention.qkv.weight, attention.qkv.bias, block.norm_1)
                widen = linear(mlp.widen.weight, mlp.widen.bias, block.norm_2, factor)
            proj = linear(centre(attention.proj.weight), centre(attention.proj.bias))
            narrow = linear(centre(mlp.proj.weight) * factor, centre(mlp.proj.bias))
            self.layers.append((qkv, proj, widen, narrow))
        self.head = linear(model.head.weight, norm=None if config else model.norm)
        self.followed: list[KVCache] | None = None

    def follow(self, caches: list[KVCache]) -> None:
        """Continues after what `model` has read into `caches`, and puts keys and values there too."""
        self.followed = caches
        self.caches = [(cache, cache.k[0].numpy(), cache.v[0].numpy()) for cache in caches]

    def norm(self, x: np.ndarray) -> np.ndarray:
        return x / math.sqrt(x.dot(x) / len(x) + self.eps)

    @np.errstate(all="ignore")  # weights that ran away give nan, as in torch
    def __call__(self, token: int) -> np.ndarray:
        """Logits (V,) after one more token."""
        place = self.caches[0][0].length
        x = self.tokens[token]  # (C,)
        if self.positions is not None:
            x = x + self.positions[place]
        if self.embedding_norm:
            x = self.norm(x)
        for (qkv, proj, widen, narrow), (cache, K, V) in zip(self.layers, self.caches, strict=True):
            q, k, V[:, place] = qkv(self.norm(x)).reshape(3, self.n_head, -1)  # (H, D) each
            half = q.shape[1] // 2
            if self.qk_norm:
                q, k = (
                    x / np.sqrt(np.square(x).mean(1, keepdims=True) + np.float32(self.eps))
                    for x in (q, k)
                )
            if self.rotation:
                cos, sin = (turn[place] for turn in self.rotation)
                q, k = (
                    np.concatenate(
                        (
                            x[:, :half] * cos - x[:, half:] * sin,
                            x[:, :half] * sin + x[:, half:] * cos,
                        ),
                        axis=1,
                    )
                    for x in (q, k)
                )
            K[:, place], cache.length = k, place + 1
            scores = (q * q.shape[1] ** -0.5)[:, None] @ K[:, : place + 1].transpose(
                0, 2, 1
            )  # (H, 1, S)
            weights = np.exp(scores - np.maximum.reduce(scores, axis=2, keepdims=True))
            y = (
                weights @ V[:, : place + 1] / np.add.reduce(weights, axis=2, keepdims=True)
            )  # (H, 1, D)
            x = x + proj(y.reshape(-1))
            x = x + narrow(self.activation(widen(self.norm(x))))
        return self.head(self.norm(x))
