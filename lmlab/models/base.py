"""The base class of all models: only `forward` is needed, from ids (B, T) to scores (B, T, V).

    class Average(LanguageModel):
        def __init__(self, config: AverageConfig, vocab_size: int) -> None:
            super().__init__(config)
            self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
            self.head = nn.Linear(config.n_embd, vocab_size)

        def forward(self, idx: Tensor) -> Tensor:
            x = self.token_embedding(idx).cumsum(1)  # (B, T, C): no token sees a later one
            return self.head(x)  # (B, T, V)

Training, evaluation, sampling, checkpoints and FLOPs follow from that. Each of the other methods
below is a question that the lab asks; the answer here fits most models, and a model for which it
does not fit overrides the method.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lmlab.calls import check_call, own_call
from lmlab.catalogue import MODELS, builder_of, name_of
from lmlab.errors import UserError
from lmlab.models import own
from lmlab.models.hugging_face import Foreign
from lmlab.models.page import PageModel
from lmlab.register import is_own
from lmlab.registry import folder_kept


class Cache(Protocol):
    """The memory of a layer for the tokens that it has read."""

    length: int  # how many tokens


class Decoder(Protocol):
    """A second implementation of a model that reads one sequence, token by token, on the CPU."""

    def follow(self, caches: Sequence[Any]) -> None:
        """Starts after the tokens in `caches`. Each further token is also added to `caches`."""

    def __call__(self, token: int) -> np.ndarray:
        """Returns the logits (V,) after one more token."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which dropout is off. Afterwards each part of the model is in its mode as before."""
    training = model.training
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(training)  # a model may have a method of its own
        for module, mode in modes.items():
            module.training = mode


class LanguageModel(nn.Module):
    """Predicts the next token at every position. A subclass must define `forward`.

    Letters in shapes: B sequences in a batch, T tokens in a sequence, V tokens in the vocabulary.
    """

    gives_log_probs: ClassVar[bool] = False
    """Whether `forward` returns log-probabilities, which need no softmax any more."""

    width_ratio: float = 1.0
    """How many times wider it is than the model whose rates it takes over (`parametrization=mup`)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        """The keys of the model, among them `block_size`."""

    def forward(self, idx: Tensor) -> Tensor:
        """Returns scores (B, T, V) of the token that follows each of `idx` (B, T).

        The scores at position t may depend on the tokens up to t only. `idx` has at most
        `block_size` tokens in a row.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def count(self, tokens: np.ndarray) -> None:
        """Learns from the training text, token ids (N,). Only models without steps do so."""
        raise NotImplementedError(f"{type(self).__name__} learns in steps")

    # How large it is, and what a step costs

    def n_params(self) -> int:
        """Returns how many numbers the model has learned or will learn."""
        return sum(weight.numel() for weight in self.parameters())

    def size(self) -> str:
        """Returns `n_params` with its unit, for people to read."""
        return f"{self.n_params():,} parameters"

    def flops_per_token(self) -> int:
        """Returns the floating-point operations of training on one token, matrix products alone.

        They are counted in a forward pass of one sequence; the backward pass takes twice as many
        (Kaplan et al. 2020, section 2.1). The forward pass is made without numbers, on torch's meta
        device, or, for a model that cannot do that, with the model's own weights. A model that is
        itself on the meta device, and cannot run there, gets six for each weight of its matrices.
        """
        flops = self.count_flops(torch.device("meta"))
        if flops is None and self.device.type != "meta":
            flops = self.count_flops(self.device)
        if flops is None:
            return 6 * self.n_matrix_weights()
        return 3 * flops // self.config.block_size

    def count_flops(self, device: torch.device) -> int | None:
        """Returns the operations of a forward pass of one sequence on `device`.

        Returns None if the model cannot run on the meta device.
        """
        with FlopCounterMode(display=False) as counter:
            scores = self.run_once(device)
        return None if scores is None else int(counter.get_total_flops())

    def run_once(self, device: torch.device) -> Tensor | None:
        """Returns the scores of one sequence, without dropout, computed on `device`.

        Returns None if the model cannot run on the meta device. Raises UserError if `forward` makes
        weights, which no optimizer would get.
        """
        before = {*self.state_dict()}
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if device.type == "meta":
            tensors = {name: torch.empty_like(w, device=device) for name, w in tensors.items()}
        idx = torch.zeros(1, self.config.block_size, dtype=torch.long, device=device)
        try:
            with attributes_kept(self), evaluating(self), device, torch.no_grad():
                scores: Tensor = torch.func.functional_call(self, tensors, idx)
                made = sorted({*self.state_dict()} - before)
        except (RuntimeError, NotImplementedError, TypeError):
            if device.type == "meta":
                return None
            raise  # the model cannot read a sequence at all
        if made:
            raise UserError(
                f"{type(self).__name__}.forward makes the weights {', '.join(made)}; all weights are made "
                "in __init__, before the optimizer gets them"
            )
        return scores

    def n_matrix_weights(self) -> int:
        """Returns the number of weights in matrix products: all matrices but embeddings."""
        total = 0
        for module in self.modules():
            if not isinstance(module, nn.Embedding):
                weights = module.parameters(recurse=False)
                total += sum(weight.numel() for weight in weights if weight.dim() >= 2)
        return total

    # How it is trained

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Returns the matrices that Muon trains: neither embeddings nor those of `head`.

        A matrix that an embedding or the head shares is left out, too.
        """
        outer = {id(weight) for weight in self.head_module().parameters(recurse=False)}
        for module in self.modules():
            if isinstance(module, nn.Embedding):  # torch's, not a model's type
                outer.update(id(weight) for weight in module.parameters(recurse=False))
        return [w for w in self.parameters() if w.dim() >= 2 and id(w) not in outer]

    def head_module(self) -> nn.Module:
        """Returns the module that computes the scores, whatever its name.

        It is the last one with a matrix of its own in a forward pass whose output has a number for
        each token of the vocabulary. Raises UserError if there is none, because the model multiplies
        by a bare parameter.
        """
        outputs: list[tuple[nn.Module, int]] = []

        def note(module: nn.Module, _: object, output: Any) -> None:
            if has_matrix(module) and isinstance(output, Tensor):  # an LSTM returns a tuple
                outputs.append((module, output.shape[-1]))

        parts = [module for module in self.modules() if module is not self]
        hooks = [module.register_forward_hook(note) for module in parts]
        try:
            scores = self.run_once(torch.device("meta"))
            if scores is None:
                scores = self.run_once(self.device)
        finally:
            for hook in hooks:
                hook.remove()
        vocab_size = 0 if scores is None else scores.shape[-1]
        heads = [module for module, width in outputs if width == vocab_size]
        if not heads:
            raise UserError(
                f"{type(self).__name__} has no module that returns the scores; define "
                "hidden_matrices(), which says what Muon may train"
            )
        return heads[-1]

    # How it is saved

    def accepts(self, state: dict[str, Any]) -> bool:
        """Returns whether `state`, from a file that anyone may have written, fits the model."""
        wanted = self.state_dict()
        return wanted.keys() == state.keys() and all(
            alike(state[name], weight) for name, weight in wanted.items()
        )

    def largest_checkpoint(self) -> int:
        """Returns the bytes that a checkpoint may have, so that no file can fill the memory.

        An optimizer may keep up to fifteen numbers for each weight; Adam keeps two.
        """
        return 16 * sum(tensor.nbytes for tensor in self.state_dict().values()) + 2**24

    def in_transformers(self, vocab_size: int) -> Foreign:
        """Returns the model in the form of the library transformers, which `export` writes.

        Raises UserError if transformers has no such model.
        """
        raise UserError("transformers has no model of this kind")

    def in_page(self, vocab_size: int) -> PageModel:
        """Returns the model in the form of a page of HTML, in which it writes in a browser.

        Raises UserError if there is no JavaScript that computes it.
        """
        raise UserError(
            f"{type(self).__name__} has no in_page(), which says how a page computes it"
        )

    @property
    def has_page(self) -> bool:
        """Whether there is JavaScript that computes the model: `in_page` is overridden."""
        return type(self).in_page is not LanguageModel.in_page

    # How it is evaluated

    def windows(
        self, ids: Tensor, block_size: int, tokens_at_once: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches (idx, targets) that predict each of `ids` (N,) but the first once.

        `targets` (B, S) are the tokens that follow the last S tokens of each row of `idx` (B, T).
        Here the windows do not overlap: all have `block_size` tokens, but the last may be shorter.
        """
        whole = (len(ids) - 1) // block_size * block_size  # tokens in windows of full length
        inputs = ids[:whole].view(-1, block_size)
        targets = ids[1 : whole + 1].view(-1, block_size)
        rows = max(1, tokens_at_once // block_size)
        if whole > 0:
            yield from zip(inputs.split(rows), targets.split(rows), strict=True)
        if whole < len(ids) - 1:
            yield ids[None, whole:-1], ids[None, whole + 1 :]

    def log_probs_of(self, idx: Tensor, targets: Tensor) -> Tensor | None:
        """Returns the log-probabilities (B, S) of targets (B, S), which follow the last of idx (B, T).

        Returns None if they are to be taken from the scores of `forward`. A model that counts needs
        no score of every token.
        """
        return None

    # How it writes text

    def caches(self) -> Sequence[Cache] | None:
        """Returns empty caches, one a layer, or None if the model reads all tokens anew each time.

        With caches, `idx` of `forward(idx, caches)` follows the tokens in the caches, and is added
        to them.
        """
        return None

    def decoder(self) -> Decoder | None:
        """Returns a faster way to read single tokens on a CPU, or None if there is none."""
        return None

    # What can be drawn of it

    def pair_scores(self) -> Tensor | None:
        """Returns scores (V, V) of the next token by the last, if the model sees no other."""
        return None

    def token_vectors(self) -> Tensor | None:
        """Returns the vector of each token, (V, C): the weights of `token_embedding`."""
        for name, module in self.named_children():
            if name == "token_embedding" and isinstance(module, nn.Embedding):
                return module.weight
        return None

    def picture(self, idx: Tensor, names: Sequence[str]) -> np.ndarray | None:
        """Returns an image (H, W, 3) of uint8 for TensorBoard, or None.

        `idx` (T,) are the first tokens of the validation text; `names` are the readable names of
        all tokens. Two pictures need no such method: the table of `pair_scores`, and attention that
        torch's `scaled_dot_product_attention` computes.
        """
        return None

    @property
    def device(self) -> torch.device:
        """The device on which the weights are."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """A context after which all parts of a model have the attributes that they had before.

    In a forward pass a model may keep a tensor, such as a mask, which would stay on that device.
    """
    tables = [
        (table, dict(table))
        for module in model.modules()
        for table in (vars(module), *own.tables_of(module))
    ]
    try:
        yield
    finally:
        for table, before in tables:
            table.clear()
            table.update(before)


def has_matrix(module: nn.Module) -> bool:
    """Returns whether a module itself, not one of its parts, has a matrix."""
    return any(weight.dim() >= 2 for weight in module.parameters(recurse=False))


def alike(tensor: Any, weight: Tensor) -> bool:
    """Returns whether `tensor` has the shape and type of `weight`, with all numbers in the file."""
    return (
        isinstance(tensor, Tensor)  # from a file, so it can be anything
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and is_dense(tensor)
        and (tensor.shape, tensor.dtype) == (weight.shape, weight.dtype)
    )


def is_dense(tensor: Tensor) -> bool:
    """Returns whether each number has a place of its own in memory, in any order, without gaps."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(order).is_contiguous()


@folder_kept()
def build_model(config: Any, vocab_size: int) -> LanguageModel:
    """Returns an untrained model for a vocabulary of `vocab_size` tokens.

    The catalogue holds the class that is built from the keys `config`.
    """
    builder = builder_of(MODELS, config)
    name = name_of(MODELS, config)
    if not is_own("model", name):
        model: LanguageModel = builder(config, vocab_size)
        return model
    form = "__init__(config, vocab_size)"
    check_call(f"model={name}", builder, form)
    with own_call(f"model={name}", form):
        model = builder(config, vocab_size)
    if not isinstance(model, LanguageModel):
        raise UserError(
            f"{builder.__name__} is no lmlab.LanguageModel; a model must be a class that inherits "
            "from it"
        )
    own.prepare(model, LanguageModel, config, name, vocab_size)
    return model
