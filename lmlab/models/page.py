"""What a model gives to a page of HTML in which it writes: its sizes, its weights, and its code.

The code of the lab's own models is in lmlab/inference/page.js, class by class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lmlab.models.decoder import EPS

if TYPE_CHECKING:  # they import this module
    from lmlab.models import gpt, modern


@dataclass(frozen=True)
class PageModel:
    """A model in the form of a page. Weights are rounded there; whole numbers stay as they are."""

    kind: str
    """The name of its class in `MODELS`, in JavaScript."""

    sizes: dict[str, Any]
    """What the class is told beside its weights; plain values that JSON can hold."""

    arrays: dict[str, Tensor]
    """Its weights by name; the class gets each as one array of numbers, row after row."""

    script: str = ""
    """JavaScript that adds a class to `MODELS`: `MODELS.rnn = class { … };`. No other model sees it."""


def gpt_in_page(model: gpt.GPT, vocab_size: int) -> PageModel:
    """Returns a GPT. Its head is the embedding."""
    keys = model.config
    arrays = embeddings_named(model.state_dict())
    del arrays["head.weight"]
    sizes = transformer_sizes(keys, vocab_size) | {
        "positions": "learned",
        "norm_kind": "layer",
        "eps": 1e-5,
        "activation": "tanh" if keys.gelu == "tanh" else "gelu",
        "qk_norm": False,
        "embedding_norm": False,
    }
    return PageModel("transformer", sizes, arrays)


def modern_in_page(model: modern.Modern, vocab_size: int) -> PageModel:
    """Returns a Modern. The head of a tied one is the embedding."""
    keys = model.config
    arrays = {}
    for name, weight in embeddings_named(model.state_dict()).items():
        if name.endswith("qkv"):
            arrays[f"{name}.weight"] = weight.flatten(0, 1)  # (3C, C), as in a GPT
        elif name != "head.weight" or not keys.tied:
            arrays[name] = weight
    sizes = transformer_sizes(keys, vocab_size) | {
        "positions": keys.positions,
        "norm_kind": keys.norm,
        "eps": EPS[keys.norm],
        "activation": keys.activation,
        "qk_norm": keys.qk_norm,
        "embedding_norm": keys.embedding_norm,
    }
    return PageModel("transformer", sizes, arrays)


def transformer_sizes(keys: Any, vocab_size: int) -> dict[str, Any]:
    """Returns what all transformers have: sizes, and the factors of scores and of the last norm."""
    return {
        "vocab_size": vocab_size,
        "block_size": keys.block_size,
        "n_layer": keys.n_layer,
        "n_head": keys.n_head,
        "n_embd": keys.n_embd,
        "scale": (keys.n_embd // keys.n_head * keys.width_ratio) ** -0.5,
        "head_scale": 1 / keys.width_ratio,
    }


def embeddings_named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights by name, those of an embedding by the name of the embedding."""
    return {name.replace("embedding.weight", "embedding"): weight for name, weight in state.items()}
