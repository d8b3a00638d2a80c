"""The models: plain modules from token ids (B, T) to next-token logits (B, T, V)."""

from torch import nn

from lmlab.config import BigramConfig, GPTConfig
from lmlab.models.bigram import Bigram
from lmlab.models.gpt import GPT

MODELS: dict[type, type[nn.Module]] = {BigramConfig: Bigram, GPTConfig: GPT}

def build_model(config: BigramConfig | GPTConfig, vocab_size: int) -> nn.Module:
    return MODELS[type(config)](config, vocab_size)

def flops_per_token(model: nn.Module, config: BigramConfig | GPTConfig) -> int:
    """Floating-point operations of training on one token, forward and backward, as matrix products alone: six a weight
    of each Linear, and attention's scores and sums over all T tokens (Kaplan et al. 2020, section 2.1).
    """
    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    attention = 12 * config.n_layer * config.block_size * config.n_embd if isinstance(config, GPTConfig) else 0
    return 6 * weights + attention
