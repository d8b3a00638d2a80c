"""Models in the form of the library transformers: its names, its shapes, its configuration.

GPT is its GPT2LMHeadModel, and Modern its NanoChatForCausalLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lmlab.catalogue import GPTConfig
from lmlab.errors import UserError, shown

if TYPE_CHECKING:  # they import this module
    from lmlab.models import gpt, modern

# Our names of GPT-2's weights, and theirs. They keep their matrices transposed.
OUTSIDE = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
IN_BLOCK = {
    "norm_1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.proj": "attn.c_proj",
    "norm_2": "ln_2",
    "mlp.widen": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
HEAD = "lm_head.weight"
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
UNUSED = (".attn.bias", ".attn.masked_bias")  # masks that older versions saved

LARGEST = 2**24  # of a size in config.json

# Their names of our two formulas of GELU; the first is the one that is written.
GELU = {"exact": ("gelu",), "tanh": ("gelu_new", "gelu_pytorch_tanh")}
# What our GPT does, too, so that no other value is allowed.
FIXED = {
    "model_type": "gpt2",
    "n_inner": None,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Foreign:
    """A model in the form of transformers: the content of config.json, and its weights by name."""

    config: dict[str, Any]
    weights: dict[str, Tensor]


def gpt2_of(model: gpt.GPT, vocab_size: int) -> Foreign:
    """Returns a GPT as GPT2LMHeadModel. A bias that the model lacks is zero there.

    Factors of `parametrization=mup` go into the weights before them: that of the scores into queries,
    that of the logits into the last norm.
    """
    keys = model.config
    config = FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab_size,
        "n_positions": keys.block_size,
        "n_embd": keys.n_embd,
        "n_layer": keys.n_layer,
        "n_head": keys.n_head,
        "activation_function": GELU[keys.gelu][0],
        "attn_pdrop": keys.dropout,
        "embd_pdrop": keys.dropout,
        "resid_pdrop": keys.dropout,
    }
    ours = model.state_dict()
    weights = {}
    for name, theirs in gpt2_names(keys.n_layer).items():
        weight = ours.get(name)
        if weight is None:
            weight = torch.zeros(len(ours[name.removesuffix("bias") + "weight"]))
        if name.startswith("norm."):
            weight = weight / model.width_ratio
        elif "qkv" in name:
            weight = weight.clone()
            weight[: keys.n_embd] /= model.width_ratio**0.5
        weights[theirs] = weight.T if theirs.endswith(TRANSPOSED) else weight
    return Foreign(config, weights)


def gpt2_names(n_layer: int) -> dict[str, str]:
    """Returns our name of each weight of a GPT with biases, and theirs."""
    modules = {name: f"transformer.{theirs}" for name, theirs in OUTSIDE.items()}
    for n in range(n_layer):
        for name, theirs in IN_BLOCK.items():
            modules[f"blocks.{n}.{name}"] = f"transformer.h.{n}.{theirs}"
    names = {}
    for name, theirs in modules.items():
        names[f"{name}.weight"] = f"{theirs}.weight"
        if "embedding" not in name:
            names[f"{name}.bias"] = f"{theirs}.bias"
    return names


def gpt_config(values: Mapping[str, Any]) -> GPTConfig:
    """Returns the keys of a GPT from the config.json of a GPT-2.

    Raises UserError for a model that is computed in another way.
    """
    sizes = {}
    for key in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"):
        value = values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST:
            raise UserError(f"{key}={shown(value)}: needs a whole number in [1, {LARGEST})")
        sizes[key] = value
    widths = (None, 4 * sizes["n_embd"])
    for key, only in FIXED.items():
        value = values.get(key, only)
        if key == "n_inner" and value in widths:
            continue
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            allowed = f"allowed is {shown(only)}"
            if key == "n_inner":
                allowed = f"allowed are null and {widths[1]}, four times n_embd"
            raise UserError(f"{key}={shown(value)}: is not supported; {allowed}")
    if values.get("quantization_config") is not None:
        raise UserError("quantization_config: is not supported; allowed is null")
    activation = values.get("activation_function", "gelu_new")
    formulas = [formula for formula, names in GELU.items() if activation in names]
    if not formulas:
        allowed = ", ".join(name for names in GELU.values() for name in names)
        raise UserError(f"activation_function={shown(activation)}: allowed are {allowed}")
    dropouts = [values.get(f"{place}_pdrop", 0.1) for place in ("attn", "embd", "resid")]
    are_numbers = all(isinstance(p, int | float) and 0 <= p < 1 for p in dropouts)
    if not are_numbers or len(set(dropouts)) > 1:
        found = ", ".join(map(shown, dropouts))
        raise UserError(
            f"attn_pdrop, embd_pdrop, resid_pdrop are {found}: need the same number in [0, 1)"
        )
    config = GPTConfig(
        block_size=sizes["n_positions"],
        n_layer=sizes["n_layer"],
        n_head=sizes["n_head"],
        n_embd=sizes["n_embd"],
        dropout=float(dropouts[0]),
        bias=True,
        gelu="exact" if formulas == ["exact"] else "tanh",
    )
    config.check()
    return config


def gpt2_shapes(config: GPTConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each weight of a GPT-2 by its name. No memory is filled."""
    from lmlab.models.gpt import GPT

    with torch.device("meta"):
        weights = gpt2_of(GPT(config, vocab_size), vocab_size).weights
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return shapes | {HEAD: shapes["transformer.wte.weight"]}


def full_names(names: Iterable[str], n_layer: int) -> dict[str, str]:
    """Returns the name in a file of each weight of a GPT-2, by the name that is written today.

    Raises UserError for a name that is missing, unknown or there in both forms.
    """
    found: dict[str, str] = {}
    for name in names:
        if name.endswith(UNUSED):
            continue
        full = name if name == HEAD else with_prefix(name)
        if full in found:
            raise UserError(f"{found[full]} and {name} are the same weight; needs one of them")
        found[full] = name
    needed = list(gpt2_names(n_layer).values())
    for name in needed:
        if name not in found:
            raise UserError(f"{name} is missing")
    unknown = found.keys() - {*needed, HEAD}
    if unknown:
        raise UserError(f"{shown(min(unknown))} is no weight of a GPT-2 with n_layer={n_layer}")
    return found


def gpt_weights(theirs: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Returns the weights of a GPT from those of a GPT-2, named by `full_names`, in float32.

    Raises UserError for a head that is not tied.
    """
    weights = {}
    for name, foreign in gpt2_names(n_layer).items():
        weight = theirs[foreign].float()
        weights[name] = weight.T.contiguous() if foreign.endswith(TRANSPOSED) else weight
    weights["head.weight"] = weights["token_embedding.weight"]
    if HEAD in theirs and not torch.equal(theirs[HEAD].float(), weights["head.weight"]):
        raise UserError(f"{HEAD} differs from the embedding; it needs to be the same matrix")
    return weights


def with_prefix(name: str) -> str:
    """Returns a name that begins with "transformer.", which the first files of GPT-2 lack."""
    return name if name.startswith("transformer.") else f"transformer.{name}"


def nanochat_of(model: modern.Modern, vocab_size: int) -> Foreign:
    """Returns a Modern as NanoChatForCausalLM.

    That turns pairs of channels the other way round, so the halves of each query and key are
    exchanged; which order they have does not matter to their product. Raises UserError for keys
    that NanoChat has not.
    """
    keys = model.config
    needed = {"positions": "rotary", "norm": "rms", "qk_norm": True, "embedding_norm": True}
    for key, value in needed.items():
        if getattr(keys, key) != value:
            raise UserError(
                f"transformers has no such model with {key}={getattr(keys, key)}; "
                f"NanoChat needs {key}={value}"
            )
    if model.width_ratio != 1:
        raise UserError(
            f"transformers has no such model with parametrization=mup base_n_embd={keys.base_n_embd}; "
            f"NanoChat needs parametrization=standard, or base_n_embd={keys.n_embd}"
        )
    half = keys.n_embd // keys.n_head // 2
    config = {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": vocab_size,
        "max_position_embeddings": keys.block_size,
        "hidden_size": keys.n_embd,
        "intermediate_size": 4 * keys.n_embd,
        "num_hidden_layers": keys.n_layer,
        "num_attention_heads": keys.n_head,
        "num_key_value_heads": keys.n_head,
        "hidden_act": keys.activation,
        "attention_dropout": keys.dropout,
        "rms_norm_eps": torch.finfo(torch.float32).eps,
        # Their exponents end before 1, ours with it.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000.0 ** (half / max(1, half - 1)),
        },
        "final_logit_softcapping": None,
        "tie_word_embeddings": keys.tied,
    }
    ours = model.state_dict()
    weights = {"model.embed_tokens.weight": ours["token_embedding.weight"]}
    if not keys.tied:
        weights["lm_head.weight"] = ours["head.weight"]
    for n in range(keys.n_layer):
        block, layer = f"blocks.{n}", f"model.layers.{n}"
        q, k, v = ours[f"{block}.attention.qkv"]  # (C, C) each
        weights[f"{layer}.self_attn.q_proj.weight"] = exchanged(q, keys.n_head)
        weights[f"{layer}.self_attn.k_proj.weight"] = exchanged(k, keys.n_head)
        weights[f"{layer}.self_attn.v_proj.weight"] = v
        weights[f"{layer}.self_attn.o_proj.weight"] = ours[f"{block}.attention.proj.weight"]
        weights[f"{layer}.mlp.fc1.weight"] = ours[f"{block}.mlp.widen.weight"]
        weights[f"{layer}.mlp.fc2.weight"] = ours[f"{block}.mlp.proj.weight"]
    return Foreign(config, weights)


def exchanged(matrix: Tensor, n_head: int) -> Tensor:
    """Returns the rows of a matrix (C, C) with the two halves of each head exchanged."""
    first, second = matrix.unflatten(0, (n_head, 2, -1)).unbind(1)  # (H, D/2, C) each
    return torch.stack((second, first), dim=1).flatten(0, 2)
