"""The models: plain modules from token ids (B, T) to next-token logits (B, T, V)."""

from torch import nn

from lmlab.config import BigramConfig, GPTConfig
from lmlab.models.bigram import Bigram
from lmlab.models.gpt import GPT

MODELS: dict[type, type[nn.Module]] = {BigramConfig: Bigram, GPTConfig: GPT}

def build_model(config: BigramConfig | GPTConfig, vocab_size: int) -> nn.Module:
    return MODELS[type(config)](config, vocab_size)
