"""The models: plain modules from token ids (B, T) to next-token logits (B, T, V)."""

from torch import nn

from lmlab.catalogue import (
    BigramConfig,
    GPTConfig,
    LSTMConfig,
    MLPConfig,
    ModernConfig,
    NGramConfig,
    TransformerConfig,
)
from lmlab.models.bigram import Bigram
from lmlab.models.gpt import GPT
from lmlab.models.lstm import LSTM
from lmlab.models.mlp import MLP
from lmlab.models.modern import Modern
from lmlab.models.ngram import NGram

MODELS: dict[type, type[nn.Module]] = {
    BigramConfig: Bigram,
    NGramConfig: NGram,
    MLPConfig: MLP,
    LSTMConfig: LSTM,
    GPTConfig: GPT,
    ModernConfig: Modern,
}


def build_model(config: BigramConfig, vocab_size: int) -> nn.Module:
    return MODELS[type(config)](config, vocab_size)


def flops_per_token(model: nn.Module, config: BigramConfig) -> int:
    """Floating-point operations of training on one token, forward and backward, as matrix products
    alone: six a weight of each matrix but embeddings, and attention's scores and sums over all T
    tokens (Kaplan et al. 2020, section 2.1).
    """
    weights = sum(
        weight.numel()
        for part in model.modules()
        if not isinstance(part, nn.Embedding)
        for weight in part.parameters(recurse=False)
        if weight.dim() >= 2
    )
    attention = (
        12 * config.n_layer * config.block_size * config.n_embd
        if isinstance(config, TransformerConfig)
        else 0
    )
    return 6 * weights + attention
