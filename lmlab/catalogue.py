"""The built-in choices of each group, with the keys that each takes. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

# The text is the interval that `check_value` allows and names.
Count = Annotated[int, "[1, inf)"]


Positive = Annotated[float, "(0, inf)"]


PositiveOrZero = Annotated[float, "[0, inf)"]


Share = Annotated[float, "[0, 1)"]


@dataclass(frozen=True)
class BigramConfig:
    block_size: Count


@dataclass(frozen=True)
class NGramConfig:
    order: Annotated[int, "[1, 20]"]

    @property
    def block_size(self) -> int:
        """What it sees at once."""
        return max(1, self.order - 1)


@dataclass(frozen=True)
class MLPConfig(BigramConfig):
    context: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    n_hidden: Annotated[int, "[1, 1000000]"]
    dropout: Share


@dataclass(frozen=True)
class LSTMConfig(BigramConfig):
    n_layer: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    dropout: Share


@dataclass(frozen=True)
class TransformerConfig(BigramConfig):
    n_layer: Annotated[int, "[1, 1000]"]
    n_head: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    dropout: Share


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    bias: bool


@dataclass(frozen=True)
class ModernConfig(TransformerConfig):
    positions: Literal["rotary", "learned"]
    norm: Literal["rms", "layer"]
    qk_norm: bool
    activation: Literal["relu2", "gelu"]
    zero_init: bool
    tied: bool
    embedding_norm: bool


@dataclass(frozen=True)
class CorpusConfig:
    val_fraction: Share
    test_fraction: Share
    holdout_fraction: Share


@dataclass(frozen=True)
class FileConfig(CorpusConfig):
    path: str


@dataclass(frozen=True)
class DeviceConfig:
    precision: Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True)
class SGDConfig:
    lr: Positive
    momentum: Share
    weight_decay: PositiveOrZero


@dataclass(frozen=True)
class AdamWConfig:
    lr: Positive
    beta1: Share
    beta2: Share
    weight_decay: PositiveOrZero


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    adam_lr: Positive | None
    momentum: Share
    ns_steps: Annotated[int, "[1, 20]"]


GROUPS: dict[str, dict[str, type]] = {  # the choices of each group, and what each of them takes
    "model": {
        "bigram": BigramConfig,
        "ngram": NGramConfig,
        "mlp": MLPConfig,
        "lstm": LSTMConfig,
        **dict.fromkeys(("gpt", "gpt_nano", "gpt_baby", "gpt2"), GPTConfig),
        "modern": ModernConfig,
    },
    "data": dict.fromkeys(("sentence", "tales", "pydoc", "shakespeare"), CorpusConfig)
    | {"file": FileConfig},
    "device": dict.fromkeys(("auto", "cpu", "cuda", "mps"), DeviceConfig),
    "optimizer": {"sgd": SGDConfig, "adamw": AdamWConfig, "muon": MuonConfig},
}
