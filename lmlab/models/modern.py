"""The modern small transformer: the mini-GPT with what was found since 2019.

With it, a model learns more from the same text. Read gpt.py first; letters are as there, and so is
what m (`width_ratio`) does. Each change is a key, so that a sweep can take any of them back:

    positions=rotary     queries and keys are turned by an angle that grows with their place, so
                         that how well they agree depends on their distance (Su et al. 2021)
    norm=rms             each token divided by its root mean square, no mean taken off (Zhang and
                         Sennrich 2019), and no gains to learn: before a matrix they would add
                         nothing
    qk_norm=true         queries and keys are normed too, so that no score can run away (Henry et
                         al. 2020)
    activation=relu2     the MLP bends by the square of a ReLU (So et al. 2021, Primer)
    zero_init=true       what is added to x starts at zero: the network begins as no layers at all
                         (Zhang et al. 2019, Fixup)
    tied=false           the head has weights of its own; with zero_init all next tokens begin
                         equally likely
    embedding_norm=true  tokens are normed before the first block (Dettmers et al. 2021)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.catalogue import ModernConfig
from lmlab.models.attention import KVCache, attend, attention_flops
from lmlab.models.base import LanguageModel
from lmlab.models.decoder import NumpyDecoder, decoder_of_modern
from lmlab.models.dropout import Dropout
from lmlab.models.hugging_face import Foreign, nanochat_of
from lmlab.models.page import PageModel, modern_in_page

NORMS = {
    "rms": lambda x: F.rms_norm(x, x.shape[-1:]),
    "layer": lambda x: F.layer_norm(x, x.shape[-1:]),
}
ACTIVATIONS = {"relu2": lambda x: F.relu(x).square(), "gelu": F.gelu}


def rotary_angles(block_size: int, head_size: int) -> Tensor:
    """The angle (T, D/2) by which each pair of channels is turned, from fast pairs to slow."""
    # Radians a token; the slowest see all of a short context.
    device = torch.get_default_device()  # said, since transformers makes linspace forget it
    speeds = 1000.0 ** -torch.linspace(0, 1, head_size // 2, device=device)
    return torch.arange(block_size)[:, None] * speeds


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with channels d and d + D/2 turned as one point of a plane."""
    a, b = x.chunk(2, dim=-1)
    cos = cos.to(x.dtype)
    sin = sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = Dropout(config)
        self.width_ratio = config.width_ratio
        self.norm = NORMS[config.norm] if config.qk_norm else None
        # Three matrices in one product.
        self.qkv = nn.Parameter(torch.empty(3, config.n_embd, config.n_embd))
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: KVCache | None
    ) -> Tensor:
        B, T, C = x.shape
        qkv = F.linear(x, self.qkv.flatten(0, 1)).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, C/H) each
        if self.norm:
            q = self.norm(q)
            k = self.norm(k)
        if rotation:
            q = turned(q, *rotation)
            k = turned(k, *rotation)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = attend(q, k, v, self.dropout, self.width_ratio)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side
        return self.dropout(self.proj(y))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config)
        self.activation = ACTIVATIONS[config.activation]
        self.widen = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.widen(x))  # (B, T, 4C)
        return self.dropout(self.proj(x))  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.norm = NORMS[config.norm]
        self.attention = CausalSelfAttention(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: KVCache | None
    ) -> Tensor:
        x = x + self.attention(self.norm(x), rotation, cache)
        return x + self.mlp(self.norm(x))  # (B, T, C)


class Modern(LanguageModel):
    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModernConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.dropout = Dropout(config)
        self.width_ratio = config.width_ratio
        self.norm = NORMS[config.norm]
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if config.zero_init and ("proj" in name or "head" in name):
                nn.init.zeros_(weight)
            elif "embedding" in name:  # of length 1 a channel
                nn.init.normal_(weight, std=1.0)
            elif "head" in name:  # as at the base width, since what it reads is divided by m
                nn.init.normal_(weight, std=0.5 * (config.n_embd / self.width_ratio) ** -0.5)
            else:  # matrices that keep half of that
                nn.init.normal_(weight, std=0.5 * weight.shape[-1] ** -0.5)
        if config.tied:
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            self.head.weight = self.token_embedding.weight
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        else:
            angles = rotary_angles(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, C/H/2)
            self.register_buffer("sin", angles.sin(), persistent=False)

    def caches(self) -> list[KVCache]:
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def forward(self, idx: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """Logits (B, T, V) of the tokens idx (B, T), which follow those in the caches, if any."""
        start = caches[0].length if caches else 0
        end = start + idx.shape[1]  # at most block_size
        places = torch.arange(start, end, device=idx.device)  # (T,)
        x = self.token_embedding(idx)  # (B, T, C)
        rotation = None
        if self.config.positions == "learned":
            x = x + self.position_embedding.weight[places]
        else:
            rotation = self.cos[places], self.sin[places]
        if self.config.embedding_norm:
            x = self.norm(x)
        x = self.dropout(x)
        layer_caches: Sequence[KVCache | None] = caches or [None] * len(self.blocks)
        for block, cache in zip(self.blocks, layer_caches, strict=True):
            if self.config.recompute and self.training:
                x = checkpoint(block, x, rotation, None, use_reentrant=False)  # see gpt.py
            else:
                x = block(x, rotation, cache)
        return self.head(self.norm(x) / self.width_ratio)  # (B, T, V)

    def flops_per_token(self) -> int:
        return 6 * self.n_matrix_weights() + attention_flops(self.config)

    def decoder(self) -> NumpyDecoder | None:
        return decoder_of_modern(self)

    def in_transformers(self, vocab_size: int) -> Foreign:
        return nanochat_of(self, vocab_size)

    def in_page(self, vocab_size: int) -> PageModel:
        return modern_in_page(self, vocab_size)
