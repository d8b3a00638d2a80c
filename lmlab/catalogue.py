"""The built-in choices, each with its keys (types, ranges, markers) and its builder.

This file imports no torch, so that a command is checked at once. A new built-in model costs a
class in lmlab/models, a row here and a YAML file in conf/model; CONTRIBUTING.md explains it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from lmlab.errors import UserError
from lmlab.markers import (
    CHANGEABLE,
    LAST_BITS,
    OF_THE_RUN,
    SHAPELESS,
    STEPWISE,
    UNTOUCHING,
    Count,
    Follows,
    FollowsUse,
    Marker,
    Neutral,
    OrWord,
    PathText,
    Positive,
    PositiveOrZero,
    Share,
)
from lmlab.registry import load

# How a CPU draws what dropout drops; "torch" is as it was before the key, and where nothing is dropped.
DropoutMasks = Annotated[
    Literal["fast", "torch"],
    SHAPELESS,
    Neutral("torch"),
    FollowsUse("dropout", used="fast", unused="torch"),
]


class AnyModelConfig:
    """What the lab asks of the keys of every model."""

    has_steps: ClassVar[bool] = True
    """Whether gradient steps train the model. If False, it counts the whole text at once."""

    has_hidden_matrices: ClassVar[bool] = False
    """Whether the model has matrices between embedding and head that Muon can train."""

    @property
    def width_ratio(self) -> float:
        """How many times wider the model is than the one whose learning rates it takes over."""
        return 1.0

    def check(self) -> None:
        """Raises UserError if the values do not fit together."""


@dataclass(frozen=True)
class ModelConfig(AnyModelConfig):
    """The keys of a model. A subclass adds its own, and a `check` if keys must fit together."""

    block_size: Count


@dataclass(frozen=True)
class BigramConfig(ModelConfig):
    """The keys of the bigram: only the length of its training windows."""

    block_size: Annotated[Count, SHAPELESS]


@dataclass(frozen=True)
class NGramConfig(AnyModelConfig):
    """The keys of the n-gram, which is counted and has no steps."""

    has_steps: ClassVar[bool] = False

    order: Annotated[int, "[1, 20]"]

    @property
    def block_size(self) -> int:
        """The number of tokens that the model sees at once."""
        return max(1, self.order - 1)


@dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """The keys of the MLP."""

    context: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    n_hidden: Annotated[int, "[1, 1000000]"]
    dropout: Annotated[Share, SHAPELESS]
    dropout_masks: DropoutMasks = field(default="torch", kw_only=True)


@dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """The keys of the LSTM."""

    n_layer: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    dropout: Annotated[Share, SHAPELESS]
    dropout_masks: DropoutMasks = field(default="torch", kw_only=True)


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The keys that all transformers have."""

    has_hidden_matrices: ClassVar[bool] = True

    n_layer: Annotated[int, "[1, 1000]"]
    n_head: Annotated[int, "[1, 1000]"]
    n_embd: Annotated[int, "[1, 100000]"]
    dropout: Annotated[Share, SHAPELESS]
    dropout_masks: DropoutMasks = field(default="torch", kw_only=True)
    recompute: Annotated[bool, SHAPELESS, CHANGEABLE, UNTOUCHING, Neutral(False)] = field(
        default=False, kw_only=True
    )
    parametrization: Annotated[Literal["standard", "mup"], Neutral("standard")] = field(
        default="standard", kw_only=True
    )
    base_n_embd: Annotated[int | None, "[1, 100000]", Neutral(None)] = field(
        default=None, kw_only=True
    )

    @property
    def width_ratio(self) -> float:
        """The width divided by that at which the rates were found: m of docs/rates.md."""
        return self.n_embd / (self.base_n_embd or self.n_embd)

    def check(self) -> None:
        """Raises UserError if the heads cannot get equal channels, at the base width, too."""
        self.check_heads(1, "a multiple of n_head")
        if self.parametrization == "mup" and self.base_n_embd is None:
            raise UserError(
                "parametrization=mup: needs base_n_embd=…, the width at which the rates were found"
            )
        if self.parametrization == "standard" and self.base_n_embd is not None:
            raise UserError(
                f"base_n_embd={self.base_n_embd}: has an effect with parametrization=mup alone"
            )

    def check_heads(self, channels: int, needed: str) -> None:
        """Raises UserError unless each head gets a multiple of `channels`, as `needed` says."""
        for key, width in (("n_embd", self.n_embd), ("base_n_embd", self.base_n_embd)):
            if width is not None and width % (channels * self.n_head):
                raise UserError(f"{key}={width} n_head={self.n_head}: {key} must be {needed}")


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """The keys of the mini-GPT."""

    bias: bool
    gelu: Annotated[Literal["exact", "tanh"], SHAPELESS, Neutral("exact")] = field(
        default="exact", kw_only=True
    )
    init: Annotated[Literal["small", "unit"], Neutral("small")] = field(
        default="small", kw_only=True
    )


@dataclass(frozen=True)
class ModernConfig(TransformerConfig):
    """The keys of the modern transformer."""

    positions: Literal["rotary", "learned"]
    norm: Literal["rms", "layer"]
    qk_norm: bool
    activation: Literal["relu2", "gelu"]
    zero_init: bool
    tied: bool
    embedding_norm: bool

    def check(self) -> None:
        """Raises UserError if the heads cannot get equal channels, an even number if rotary."""
        if self.positions == "rotary":
            self.check_heads(2, "a multiple of twice n_head")
        super().check()


@dataclass(frozen=True)
class CorpusConfig:
    """The keys of every text: its parts."""

    document_end: ClassVar[str | None] = None
    """The text after which a document ends, if the corpus itself says where documents end."""

    val_fraction: Share
    test_fraction: Share
    holdout_fraction: Annotated[Share, Neutral(0.0)]

    @property
    def line_length(self) -> int | None:
        """The number of characters of a document if all have as many and a window must hold one."""
        return None

    def scored(self, codes: Any) -> Any:
        """Returns which characters of the text are trained and scored, (N,) bool, or None: all.

        `codes` (N,) holds the characters as code points. It needs `document_end`.
        """
        return None

    @classmethod
    def scores_itself(cls) -> bool:
        """Returns whether the corpus says what is scored."""
        return cls.scored is not CorpusConfig.scored

    def check(self) -> None:
        """Raises UserError if no text is left for training."""
        if self.val_fraction + self.test_fraction + self.holdout_fraction >= 1:
            raise UserError(
                f"val_fraction={self.val_fraction} test_fraction={self.test_fraction} "
                f"holdout_fraction={self.holdout_fraction}: the sum must be below 1"
            )


@dataclass(frozen=True)
class FileConfig(CorpusConfig):
    """The keys of data=file: the user's own text."""

    # The hash of a cell contains the sha256 of the text, not the path.
    path: Annotated[PathText, CHANGEABLE, UNTOUCHING]


@dataclass(frozen=True)
class FolderConfig(FileConfig):
    """The keys of data=folder: files of the user's own, each of which is a document."""

    document_end: ClassVar[str | None] = "\x1e"  # the record separator of ASCII


@dataclass(frozen=True)
class TaskConfig(CorpusConfig):
    """The keys of every generated text of examples, of which the answers alone are scored."""

    document_end: ClassVar[str | None] = "\n"
    task: ClassVar[str] = ""
    """The class that draws the examples, as "module:name"."""

    n_examples: Annotated[int, "[10, 10000000]"]
    data_seed: Annotated[int, "[0, 4294967296)"]

    def scored(self, codes: Any) -> Any:
        """Returns which characters are answers, (N,) bool."""
        return load("lmlab.data.tasks:scored")(self, codes)


@dataclass(frozen=True)
class LettersConfig(TaskConfig):
    """The keys of tasks whose examples are letters."""

    n_symbols: Annotated[int, "[2, 300]"]
    example_length: Annotated[int, "[8, 100000]"]

    @property
    def line_length(self) -> int:
        """The number of characters of an example, with the end of its line."""
        return self.example_length


@dataclass(frozen=True)
class RecallConfig(LettersConfig):
    """The keys of data=recall: pairs of letters, of which the second is asked for later."""

    task: ClassVar[str] = "lmlab.data.tasks:Recall"

    n_pairs: Annotated[int, "[1, 150]"]

    def check(self) -> None:
        """Raises UserError if there are too few letters, or too few places, for the pairs."""
        super().check()
        if self.n_pairs > self.n_symbols // 2:
            raise UserError(
                f"n_pairs={self.n_pairs} n_symbols={self.n_symbols}: half of the symbols begin "
                f"pairs, so n_pairs may be {self.n_symbols // 2} at most"
            )
        if 4 * self.n_pairs >= self.example_length:
            raise UserError(
                f"n_pairs={self.n_pairs} example_length={self.example_length}: pairs and questions "
                f"need {4 * self.n_pairs + 1} characters"
            )


@dataclass(frozen=True)
class InductionConfig(LettersConfig):
    """The keys of data=induction: different letters, again and again."""

    task: ClassVar[str] = "lmlab.data.tasks:Induction"

    def check(self) -> None:
        """Raises UserError if there are too few different letters for the longest round."""
        super().check()
        longest = (self.example_length - 1) // 2
        if self.n_symbols < longest:
            raise UserError(
                f"n_symbols={self.n_symbols} example_length={self.example_length}: a round has up "
                f"to {longest} different letters; n_symbols must be {longest} or more"
            )


@dataclass(frozen=True)
class CopyConfig(LettersConfig):
    """The keys of data=copy: letters, a mark, and the same letters."""

    task: ClassVar[str] = "lmlab.data.tasks:Copy"


@dataclass(frozen=True)
class AdditionConfig(TaskConfig):
    """The keys of data=addition: sums of two numbers."""

    task: ClassVar[str] = "lmlab.data.tasks:Addition"

    n_digits: Annotated[int, "[1, 9]"]

    @property
    def line_length(self) -> int:
        """The number of characters of a sum, with the end of its line."""
        return 3 * self.n_digits + 4


@dataclass(frozen=True)
class TokenizerConfig:
    """The keys of every tokenizer: there are none. Those of characters and bytes have no others."""


@dataclass(frozen=True)
class BPEConfig(TokenizerConfig):
    """The key of byte-pair encoding: how many tokens, of which 256 are the single bytes."""

    vocab_size: Annotated[int, "[256, 1000000]"]


@dataclass(frozen=True)
class TokenizerFileConfig(TokenizerConfig):
    """The key of tokenizer=file: a tokenizer.json of Hugging Face's, or a folder with one."""

    # A run has its own copy. The hash of a cell contains the sha256 of the tokens, not the path.
    tokenizer_path: Annotated[PathText, UNTOUCHING]


@dataclass(frozen=True)
class DeviceConfig:
    """The keys of a run that depend on its device."""

    precision: Literal["auto", "32-true", "bf16-mixed"]
    devices: Annotated[
        int | str | None, "[1, 1024]", OrWord("auto"), CHANGEABLE, LAST_BITS, Neutral(1)
    ]
    nodes: Annotated[int, "[1, 1024]", CHANGEABLE, LAST_BITS, Neutral(1)]

    @property
    def processes(self) -> int:
        """How many processes train a run. Each machine puts its own number in the place of "auto"."""
        return self.per_node * self.nodes

    @property
    def per_node(self) -> int:
        """How many of them are on one machine."""
        return self.devices if isinstance(self.devices, int) else 1


@dataclass(frozen=True)
class OptimizerConfig:
    """The keys of an optimizer. All optimizers have `lr` and `weight_decay`."""

    lr: Positive
    weight_decay: PositiveOrZero

    needs_hidden_matrices: ClassVar[bool] = False
    """Whether it can only train models that have matrices between embedding and head."""

    carries_over: ClassVar[bool] = False
    """Whether its learning rates carry over to other widths with parametrization=mup."""


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """The keys of plain gradient descent."""

    momentum: Share


@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """The keys of AdamW."""

    carries_over: ClassVar[bool] = True

    beta1: Share
    beta2: Share


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """The keys of Muon, and of AdamW for the weights that Muon leaves out."""

    needs_hidden_matrices: ClassVar[bool] = True

    adam_lr: Annotated[Positive | None, Follows("lr")]
    momentum: Share
    ns_steps: Annotated[int, "[1, 20]"]


@dataclass(frozen=True)
class PatienceConfig:
    """The key of the callback that ends a run whose val/loss no longer falls."""

    patience: Annotated[Count | None, CHANGEABLE, STEPWISE, Neutral(None)] = None


@dataclass(frozen=True)
class SpikesConfig:
    """The key of the callback that leaves out steps with a far too large gradient."""

    begin: ClassVar[int] = 20  # steps that are never left out: they show what is usual

    skip_spikes: Annotated[float | None, "(1, inf)", STEPWISE, Neutral(None)] = None


@dataclass(frozen=True)
class AverageConfig:
    """The key of the callback that averages the weights: how much of the mean each step keeps."""

    ema: Annotated[float | None, "(0, 1)", STEPWISE, Neutral(None)] = None

    @staticmethod
    def most_kept(step: int) -> float:
        """Returns the share that a step keeps at most: the mean forgets faster in the first ones."""
        return (1 + step) / (10 + step)


@dataclass(frozen=True)
class GradientsConfig:
    """The key of the callback that notes the gradient of each matrix."""

    gradient_norms: Annotated[bool, UNTOUCHING, STEPWISE, Neutral(False)] = False


@dataclass(frozen=True)
class Choice:
    """A row of the catalogue: the class of the keys, and the builder.

    `builder` is "module:name", which `registry.load` imports when it is needed. A plug-in gives the
    class or function itself.
    """

    config: type[Any]
    builder: str | Callable[..., Any] = ""


MODELS = {
    "bigram": Choice(BigramConfig, "lmlab.models.bigram:Bigram"),
    "ngram": Choice(NGramConfig, "lmlab.models.ngram:NGram"),
    "mlp": Choice(MLPConfig, "lmlab.models.mlp:MLP"),
    "lstm": Choice(LSTMConfig, "lmlab.models.lstm:LSTM"),
    "gpt": Choice(GPTConfig, "lmlab.models.gpt:GPT"),
    "modern": Choice(ModernConfig, "lmlab.models.modern:Modern"),
}
CORPORA = {
    "sentence": Choice(CorpusConfig, "lmlab.data.corpora:sentence"),
    "tales": Choice(CorpusConfig, "lmlab.data.corpora:tales"),
    "pydoc": Choice(CorpusConfig, "lmlab.data.corpora:pydoc"),
    "shakespeare": Choice(CorpusConfig, "lmlab.data.corpora:shakespeare"),
    "file": Choice(FileConfig, "lmlab.data.corpora:file"),
    "folder": Choice(FolderConfig, "lmlab.data.corpora:folder"),
    "recall": Choice(RecallConfig, "lmlab.data.tasks:examples"),
    "induction": Choice(InductionConfig, "lmlab.data.tasks:examples"),
    "copy": Choice(CopyConfig, "lmlab.data.tasks:examples"),
    "addition": Choice(AdditionConfig, "lmlab.data.tasks:examples"),
}
TOKENIZERS = {
    "char": Choice(TokenizerConfig, "lmlab.data.tokenizers:CharTokenizer"),
    "byte": Choice(TokenizerConfig, "lmlab.data.subwords:ByteTokenizer"),
    "bpe": Choice(BPEConfig, "lmlab.data.subwords:BPETokenizer"),
    "file": Choice(TokenizerFileConfig, "lmlab.data.subwords:FileTokenizer"),
}
DEVICES = {
    "auto": Choice(DeviceConfig),
    "cpu": Choice(DeviceConfig),
    "cuda": Choice(DeviceConfig),
    "mps": Choice(DeviceConfig),
}
OPTIMIZERS = {
    "sgd": Choice(SGDConfig, "lmlab.training.optimizers:sgd"),
    "adamw": Choice(AdamWConfig, "lmlab.training.optimizers:adamw"),
    "muon": Choice(MuonConfig, "lmlab.training.optimizers:muon"),
}
CATALOGUE: dict[str, dict[str, Choice]] = {
    "model": MODELS,
    "data": CORPORA,
    "tokenizer": TOKENIZERS,
    "device": DEVICES,
    "optimizer": OPTIMIZERS,
}
SCHEDULES: dict[str, str | Callable[[float], float]] = {
    "cosine": "lmlab.training.optimizers:cosine",
    "linear": "lmlab.training.optimizers:linear",
    "constant": "lmlab.training.optimizers:constant",
}
# What takes part in every run: callbacks and loggers of Lightning, by name.
CALLBACKS: dict[str, Choice] = {
    "patience": Choice(PatienceConfig, "lmlab.training.callbacks:patience"),
    "skip_spikes": Choice(SpikesConfig, "lmlab.training.callbacks:skip_spikes"),
    "ema": Choice(AverageConfig, "lmlab.training.callbacks:average"),
    "gradient_norms": Choice(GradientsConfig, "lmlab.training.callbacks:gradients"),
}
LOGGERS: dict[str, Choice] = {}


@dataclass(frozen=True)
class Instrument:
    """A row of `INSTRUMENTS`: an evaluation that a key of the same name switches on."""

    builder: str
    """The function, as "module:name": from a `Specimen` to named values."""

    reads_training: bool = False
    """Whether it reads the training text, too."""


INSTRUMENTS = {
    "by_position": Instrument("lmlab.inference.by_position:by_position"),
    "calibration": Instrument("lmlab.inference.calibration:calibration"),
    "novelty": Instrument("lmlab.inference.novelty:novelty", reads_training=True),
    "minimal_pairs": Instrument("lmlab.inference.minimal_pairs:minimal_pairs"),
    "noise_scale": Instrument("lmlab.inference.noise_scale:noise_scale", reads_training=True),
}

# What plug-ins add: evaluations by name, and for each group the values of their choices' keys.
OWN_EVALUATIONS: dict[str, Callable[..., Any]] = {}
VALUES: dict[str, dict[str, dict[str, Any]]] = {}
GROUP_MARKERS: dict[str, tuple[Marker | Neutral, ...]] = {
    "model": (),
    "data": (UNTOUCHING,),  # the hash of a cell contains the text's sha256, not the choice
    "tokenizer": (Neutral("char"),),
    "device": (STEPWISE,),  # all keys of the group are stepwise, too
    "optimizer": (STEPWISE,),
    "experiment": (UNTOUCHING, OF_THE_RUN),
}


def builder_of(rows: dict[str, Choice], config: Any) -> Any:
    """Returns the class or function that builds a model or optimizer with the keys `config`.

    The class of the keys decides, so no two rows may share one. Raises ValueError if they do.
    """
    builders = {row.builder for row in rows.values() if row.config is config.__class__}
    if len(builders) != 1:
        raise ValueError(f"{config.__class__.__name__} belongs to {len(builders)} rows, not to one")
    return load(builders.pop())


def name_of(rows: dict[str, Choice], config: Any) -> str:
    """Returns the name of the row whose keys are those of `config`."""
    return next(name for name, row in rows.items() if row.config is config.__class__)
