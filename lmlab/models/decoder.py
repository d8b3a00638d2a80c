"""A second implementation of the transformers, in numpy: samples faster on a CPU.

A token of a small model is some 50 µs of arithmetic, but torch takes ten times that to start its
hundred operations; numpy starts them faster. models/gpt.py and models/modern.py explain the
computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.models.attention import KVCache

if TYPE_CHECKING:  # they import this module
    from lmlab.models import gpt, modern

LARGEST = 2**24  # weights; a larger model gives torch's threads enough work

Function = Callable[[np.ndarray], np.ndarray]

# What torch's norms add to the mean square.
EPS = {"layer": 1e-5, "rms": torch.finfo(torch.float32).eps}


def scaled_gelu(z: np.ndarray) -> np.ndarray:
    """Returns sqrt(2) gelu(sqrt(2) z); both factors are folded into the matrices around it."""
    return z + z * torch.erf(torch.from_numpy(z)).numpy()


def relu2(z: np.ndarray) -> np.ndarray:
    """Returns the square of the positive part."""
    return np.square(np.maximum(z, 0))


def tanh_gelu(z: np.ndarray) -> np.ndarray:
    """Returns the approximation of GELU with a tanh."""
    return F.gelu(torch.from_numpy(z), approximate="tanh").numpy()


# The function, and the factor by which the two matrices around it are multiplied.
ACTIVATIONS: dict[str, tuple[Function, float]] = {
    "gelu": (scaled_gelu, 2**-0.5),
    "tanh": (tanh_gelu, 1.0),
    "relu2": (relu2, 1.0),
}


@dataclass(frozen=True)
class Layer:
    """The four matrices of a block, as functions of a vector."""

    qkv: Function
    proj: Function
    widen: Function
    narrow: Function


@dataclass
class NumpyDecoder:
    """Returns the logits that a transformer would, but for rounding, in float32."""

    n_head: int
    eps: float  # what the norms add to the mean square
    activation: Function
    tokens: np.ndarray  # (V, C)
    positions: np.ndarray | None  # (block_size, C), where positions are learned
    rotation: tuple[np.ndarray, np.ndarray] | None  # cosines and sines (block_size, C/H/2)
    layers: list[Layer]
    head: Function
    qk_norm: bool = False
    embedding_norm: bool = False
    width_ratio: float = 1.0
    memories: list[tuple[KVCache, np.ndarray, np.ndarray]] = field(default_factory=list)

    def follow(self, caches: Sequence[KVCache]) -> None:
        """Starts after the tokens in `caches`. Each further token is also added to `caches`."""
        self.memories = [(cache, cache.k[0].numpy(), cache.v[0].numpy()) for cache in caches]

    def norm(self, x: np.ndarray) -> np.ndarray:
        """Returns x (C,) divided by its root mean square."""
        return x / math.sqrt(x.dot(x) / len(x) + self.eps)

    def norm_heads(self, x: np.ndarray) -> np.ndarray:
        """Returns each row of x (H, D) divided by its root mean square."""
        eps = np.float32(self.eps)
        return x / np.sqrt(np.square(x).mean(1, keepdims=True) + eps)

    @np.errstate(all="ignore")  # weights that ran away give nan, as in torch
    def __call__(self, token: int) -> np.ndarray:
        """Returns the logits (V,) after one more token."""
        position = self.memories[0][0].length
        x = self.tokens[token]  # (C,)
        if self.positions is not None:
            x = x + self.positions[position]
        if self.embedding_norm:
            x = self.norm(x)
        for layer, (cache, K, V) in zip(self.layers, self.memories, strict=True):
            q, k, V[:, position] = layer.qkv(self.norm(x)).reshape(3, self.n_head, -1)  # (H, D)
            if self.qk_norm:
                q = self.norm_heads(q)
                k = self.norm_heads(k)
            if self.rotation is not None:
                cos, sin = self.rotation
                q = turned(q, cos[position], sin[position])
                k = turned(k, cos[position], sin[position])
            K[:, position] = k
            cache.length = position + 1
            y = attend(q, K[:, : position + 1], V[:, : position + 1], self.width_ratio)
            x = x + layer.proj(y)
            x = x + layer.narrow(self.activation(layer.widen(self.norm(x))))
        return self.head(self.norm(x))


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Returns x (H, D) with channels d and d + D/2 turned as one point of a plane."""
    half = x.shape[1] // 2
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=1)


def attend(q: np.ndarray, K: np.ndarray, V: np.ndarray, width_ratio: float) -> np.ndarray:
    """Returns the attention (C,) of one token with the queries q (H, D) to S tokens.

    Keys and values, K and V, are (H, S, D).
    """
    scores = (q * (q.shape[1] * width_ratio) ** -0.5)[:, None] @ K.transpose(0, 2, 1)  # (H, 1, S)
    weights = np.exp(scores - np.maximum.reduce(scores, axis=2, keepdims=True))
    y = weights @ V / np.add.reduce(weights, axis=2, keepdims=True)  # (H, 1, D)
    return y.reshape(-1)


@torch.no_grad()
def decoder_of_gpt(model: gpt.GPT) -> NumpyDecoder | None:
    """Returns the numpy twin of a GPT, or None where torch would be faster."""
    if model.n_params() > LARGEST:
        return None
    activation, factor = ACTIVATIONS["tanh" if model.config.gelu == "tanh" else "gelu"]
    layers = []
    for block in cast("Iterable[gpt.Block]", model.blocks):
        attention = block.attention
        mlp = block.mlp
        layer = Layer(
            qkv=linear(attention.qkv.weight, attention.qkv.bias, block.norm_1),
            proj=linear(centred(attention.proj.weight), centred_bias(attention.proj.bias)),
            widen=linear(mlp.widen.weight, mlp.widen.bias, block.norm_2, factor),
            narrow=linear(centred(mlp.proj.weight) * factor, centred_bias(mlp.proj.bias)),
        )
        layers.append(layer)
    return NumpyDecoder(
        n_head=model.config.n_head,
        eps=EPS["layer"],
        activation=activation,
        tokens=centred_rows(model.token_embedding.weight).float().numpy(),
        positions=centred_rows(model.position_embedding.weight).float().numpy(),
        rotation=None,
        layers=layers,
        head=linear(model.head.weight, norm=model.norm, factor=1 / model.width_ratio),
        width_ratio=model.width_ratio,
    )


@torch.no_grad()
def decoder_of_modern(model: modern.Modern) -> NumpyDecoder | None:
    """Returns the numpy twin of a Modern, or None where torch would be faster.

    Its norms have no weights, its matrices no biases.
    """
    if model.n_params() > LARGEST:
        return None
    config = model.config
    activation, factor = ACTIVATIONS[config.activation]
    has_layer_norm = config.norm == "layer"
    layers = []
    for block in cast("Iterable[modern.Block]", model.blocks):
        attention = block.attention
        mlp = block.mlp
        q, k, v = attention.qkv.unflatten(1, (config.n_head, -1))  # (H, D, C)
        proj: Tensor = attention.proj.weight
        narrow: Tensor = mlp.proj.weight
        if has_layer_norm:
            proj = centred(proj)
            narrow = centred(narrow)
            if config.qk_norm:
                q = q - q.mean(1, keepdim=True)
                k = k - k.mean(1, keepdim=True)
        layer = Layer(
            qkv=linear(torch.cat([q, k, v]).flatten(0, 1)),
            proj=linear(proj),
            widen=linear(mlp.widen.weight, factor=factor),
            narrow=linear(narrow * factor),
        )
        layers.append(layer)
    tokens: Tensor = model.token_embedding.weight
    positions = rotation = None
    if has_layer_norm:
        tokens = centred_rows(tokens)
    if config.positions == "learned":
        weight: Tensor = model.position_embedding.weight
        if has_layer_norm:
            weight = centred_rows(weight)
        positions = weight.float().numpy()
    else:
        rotation = (model.cos.numpy(), model.sin.numpy())
    return NumpyDecoder(
        n_head=config.n_head,
        eps=EPS[config.norm],
        activation=activation,
        tokens=tokens.float().numpy(),
        positions=positions,
        rotation=rotation,
        layers=layers,
        head=linear(model.head.weight, factor=1 / model.width_ratio),
        qk_norm=config.qk_norm,
        embedding_norm=config.embedding_norm,
        width_ratio=model.width_ratio,
    )


def centred(weight: Tensor) -> Tensor:
    """Returns `weight` (N, …) minus its mean over N.

    If all that is added to x has zero mean over the channels, x has zero mean, too; then LayerNorm
    equals RMSNorm.
    """
    return weight - weight.mean(0)


def centred_bias(bias: Tensor | None) -> Tensor | None:
    """Returns `centred(bias)` of a layer that has one."""
    return None if bias is None else centred(bias)


def centred_rows(weight: Tensor) -> Tensor:
    """Returns each row of `weight` (N, C) minus its mean."""
    return centred(weight.T).T


def linear(
    weight: Tensor,
    bias: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
    factor: float = 1.0,
) -> Function:
    """Returns x -> factor (weight x + bias); gains and bias of a `norm` before it are folded in."""
    if norm is not None:
        if norm.bias is not None:
            shift = weight @ norm.bias
            bias = shift if bias is None else shift + bias
        weight = weight * norm.weight
    # Column by column, a matrix is read a tenth faster.
    product = np.asfortranarray((weight * factor).float().numpy()).dot
    if bias is None:
        return product
    added = (bias * factor).float().numpy()
    return lambda x: product(x) + added
