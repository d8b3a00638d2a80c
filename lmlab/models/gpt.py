"""The mini-GPT: a transformer that reads the text so far and scores every next token.

Letters in shapes: B sequences in a batch, T tokens in a sequence (time), C numbers that stand for a
token (channels, `n_embd`), H attention heads (`n_head`), V tokens in the vocabulary. The
architecture is GPT-2's (Radford et al. 2019): the transformer decoder of Vaswani et al. 2017, with
the norm before attention and MLP instead of after.

With `parametrization=mup` a model that is m times (`width_ratio`) wider than another learns best at
the same rates (muP, Yang et al. 2022). Three lines here see to it, where m stands, and the steps of
hidden matrices in training/optimizers.py; docs/rates.md says why. Else m is 1.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.catalogue import GPTConfig
from lmlab.models.attention import KVCache, attend, attention_flops
from lmlab.models.base import LanguageModel
from lmlab.models.decoder import NumpyDecoder, decoder_of_gpt
from lmlab.models.dropout import Dropout
from lmlab.models.hugging_face import Foreign, gpt2_of
from lmlab.models.page import PageModel, gpt_in_page


class CausalSelfAttention(nn.Module):
    """Each token gathers what it needs from itself and the tokens before it, never from later ones.

    A token sends out a query; every token so far answers with a key; where the two agree, that
    token's value flows over. Each head does this in a slice of the channels, for a purpose of its
    own.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = Dropout(config)
        self.width_ratio = config.width_ratio
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, C/H) each
        if cache is not None:  # when sampling: x are the tokens since the last call
            k, v = cache.extend(k, v)
        y = attend(q, k, v, self.dropout, self.width_ratio)  # softmax(q k^T / sqrt(m C/H)) v
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side
        return self.dropout(self.proj(y))  # (B, T, C)


class MLP(nn.Module):
    """What each token makes of what it gathered: widen, bend, narrow, one token at a time."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.widen = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.widen(x), approximate=self.approximate)  # (B, T, 4C)
        return self.dropout(self.proj(x))  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP.

    Each reads a normalised copy of x and adds its answer to x (the residual), so that gradients
    have a straight way down.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attention(self.norm_1(x), cache)
        return x + self.mlp(self.norm_2(x))  # (B, T, C)


class GPT(LanguageModel):
    """Embeddings, `n_layer` blocks, and a head that turns each token's channels into scores."""

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.dropout = Dropout(config)
        self.width_ratio = config.width_ratio
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        # Tied: what a token means, read both ways (Press and Wolf 2017).
        self.head.weight = self.token_embedding.weight
        # GPT-2's start: at first all tokens are about equally likely. A hidden matrix adds up C
        # products; m times more of them have the same size if each weight starts smaller.
        hidden = 0.02 / math.sqrt(self.width_ratio)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif "proj" in name:  # 2 * n_layer answers add up in x, so each starts smaller
                nn.init.normal_(weight, std=hidden / math.sqrt(2 * config.n_layer))
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embedding" in name else hidden)
        if config.init == "unit":
            self.start_larger()

    def start_larger(self) -> None:
        """Another start: each answer is as large as what it is computed from.

        With C as small as here, GPT-2's weights let all tokens look alike at first. A model that
        must tell them apart, as recall does, then takes far longer to find out how.
        """
        for name, weight in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(weight, std=0.3)
            elif weight.dim() == 2:  # C products add up in each number
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def caches(self) -> list[KVCache]:
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def forward(self, idx: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """Logits (B, T, V) of the tokens idx (B, T), which follow those in the caches, if any."""
        start = caches[0].length if caches else 0
        end = start + idx.shape[1]  # at most block_size
        positions = torch.arange(start, end, device=idx.device)  # (T,)
        x = self.token_embedding(idx) + self.position_embedding(positions)  # (B, T, C) + (T, C)
        x = self.dropout(x)
        layer_caches: Sequence[KVCache | None] = caches or [None] * len(self.blocks)
        for block, cache in zip(self.blocks, layer_caches, strict=True):
            if self.config.recompute and self.training:
                x = checkpoint(block, x, use_reentrant=False)  # forgotten, and computed again
            else:
                x = block(x, cache)
        return self.head(self.norm(x) / self.width_ratio)  # (B, T, V)

    def flops_per_token(self) -> int:
        return 6 * self.n_matrix_weights() + attention_flops(self.config)

    def decoder(self) -> NumpyDecoder | None:
        return decoder_of_gpt(self)

    def in_transformers(self, vocab_size: int) -> Foreign:
        return gpt2_of(self, vocab_size)

    def in_page(self, vocab_size: int) -> PageModel:
        return gpt_in_page(self, vocab_size)
