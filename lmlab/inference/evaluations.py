"""The metrics, samples and pictures of an evaluation: a list of functions.

Each takes a `Subject` and returns named values. Numbers are written to history.jsonl, metrics.json
and TensorBoard, texts to history.jsonl and TensorBoard, pictures and `Detail`s to TensorBoard only.
A new metric is one more function with `@evaluation`. A row of `numbers.NUMBERS`, or an argument
of the decorator, adds its numbers to the leaderboard and other places.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from lmlab import plugins
from lmlab.calls import check_call
from lmlab.catalogue import INSTRUMENTS, OWN_EVALUATIONS
from lmlab.data.documents import Documents
from lmlab.data.splits import Splits
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.inference import generate
from lmlab.inference.answers import answer_numbers
from lmlab.inference.excerpt import excerpt
from lmlab.inference.loss import Turns, aligned, counting, log_probs, loss_metrics
from lmlab.inference.pictures import commonest, pictures_of
from lmlab.inference.specimen import Specimen
from lmlab.isolation import left_as_before
from lmlab.models.base import LanguageModel, attributes_kept, evaluating
from lmlab.numbers import (
    EXCERPT_LOSS,
    EXCERPT_TOKENS,
    NUMBERS,
    SOURCE_TOKENS,
    UPDATE_RATIO,
    Number,
)
from lmlab.ranks import Ranks
from lmlab.register import is_own
from lmlab.registry import load

SAMPLED = 60  # tokens of the sample in an evaluation
PICTURED = 16  # tokens that the pictures of attention show
NAMED = 20  # names of an evaluation that one warning has
LONGEST_NAME = 200  # characters that are shown of one
NO_VALUE = "is no number, text or picture (H, W, 3) of uint8, with H and W of 1 or more"
# Groups of names in history.jsonl and metrics.json that somebody's own evaluation may not have.
LABS_GROUPS = ("train/", "best/", "test/", "reference/", "config/", "resumed/", UPDATE_RATIO)
IN_TABLE = 30  # tokens that the picture of a bigram shows: the commonest
COUNTED = 2**20  # tokens of the training text that tell which these are


@dataclass(frozen=True)
class Source:
    """A text that is evaluated, with its documents and the key `align` of its run."""

    tokens: np.ndarray
    documents: Documents | None
    align: str
    is_excerpt: bool = False


@dataclass(frozen=True)
class Subject:
    """A model at a step of its training, with all data that an evaluation needs."""

    model: LanguageModel
    text: Splits
    block_size: int
    precision: str
    seed: int
    source: Source | None = None
    """The validation text of the run that the weights come from."""

    align: str = "epoch"
    """The run's key `align`: with "document" tokens are predicted within their documents."""

    step: int = 0
    before: Mapping[str, Tensor] = field(default_factory=dict)
    """The matrices before the last step; empty if they were not kept."""

    with_attention: bool = True
    """Whether the pictures that take long are due, too."""

    eval_tokens: int | None = None
    """The run's key `eval_tokens`: how much of a text the evaluations before the last one see."""

    is_last: bool = True
    """Whether no evaluation follows in this run, so that the loss is that of the whole text."""

    instruments: tuple[str, ...] = ()
    """The rows of `INSTRUMENTS` that the run has switched on."""

    shared: Mapping[str, Tensor] = field(default_factory=dict)
    """Log-probabilities that several ranks have computed together, by the name of the text."""

    @property
    def tokens(self) -> np.ndarray:
        """The token ids of the validation text, (N,)."""
        return self.text.val

    @cached_property
    def judged(self) -> dict[str, Source]:
        """The texts on which an evaluation computes the loss, by name."""
        return judged_texts(self)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return self.text.tokenizer


class NotFinite(Exception):
    """Raised if a model's loss is not finite: its training has diverged."""


class Detail(float):
    """A number that metrics.json does not keep.

    Those of `update_ratio/` go to history.jsonl, the others to TensorBoard.
    """


Value = float | str | np.ndarray  # a number, a text, or a picture (H, W, 3) of uint8
Evaluation = Callable[[Subject], Mapping[str, Value]]
EVALUATIONS: list[Evaluation] = []


@overload
def evaluation(function: Evaluation) -> Evaluation: ...


@overload
def evaluation(*, numbers: Mapping[str, Number]) -> Callable[[Evaluation], Evaluation]: ...


def evaluation(
    function: Evaluation | None = None, *, numbers: Mapping[str, Number] | None = None
) -> Evaluation | Callable[[Evaluation], Evaluation]:
    """Registers a function that every evaluation calls, in the order of registration.

    Write `@evaluation` above the function. If the catalogue has no row for a number, write
    `@evaluation(numbers={"val/accuracy": METRIC})`; the rows are added to `NUMBERS`. Raises
    ValueError if a name does not begin with val/, since other commands would not find its row.
    """
    for name in numbers or {}:
        if not name.startswith("val/"):
            raise ValueError(f"{name}: the name of an evaluation's number must begin with val/")

    def register(function: Evaluation) -> Evaluation:
        NUMBERS.update(numbers or {})
        EVALUATIONS.append(function)
        return function

    if function is None:
        return register
    return register(function)


def instrument(name: str) -> Evaluation:
    """Returns an instrument as an evaluation. It examines the validation text."""
    examine = load(INSTRUMENTS[name].builder)

    @wraps(examine)
    def look(subject: Subject) -> Mapping[str, Value]:
        text = subject.text
        specimen = Specimen(
            model=subject.model,
            tokens=text.val,
            documents=text.documents.get("val"),
            tokenizer=text.tokenizer,
            block_size=subject.block_size,
            precision=subject.precision,
            align=subject.align,
            seed=subject.seed,
            train=text.train,
            train_documents=text.documents.get("train"),
        )
        found: Mapping[str, Value] = examine(specimen)
        return found

    return look


def evaluate(subject: Subject, warn: Callable[[str], object]) -> dict[str, Value]:
    """Returns the values of all `EVALUATIONS` and of the run's instruments, by name.

    A function that fails, but for the validation loss, only harms itself: `warn` is called with the
    reason, and the run goes on. The same is true of a value that is no number, text or picture.
    Raises NotFinite if the loss is not finite.
    """
    values: dict[str, Value] = {}
    for function in (*EVALUATIONS, *map(instrument, subject.instruments)):
        try:
            found = dict(function(subject))
        except Exception as error:
            if function is validation_loss:
                raise
            why = plugins.explained(function.__name__, error)
            warn(f"the evaluation {function.__name__} failed and is left out: {why}")
            continue
        for name in [name for name, value in found.items() if not is_value(value)]:
            warn(f"{name}: {NO_VALUE}, and is left out")
            del found[name]
        values |= found
    for title, own in OWN_EVALUATIONS.items():
        try:
            with (
                plugins.exits_as_errors(),
                evaluating(subject.model),
                untouched(subject.model) as changed,
            ):
                returned = named(own(subject.model, subject))
                found = {name: plain(value) for name, value in returned.items()}
            refused = {name: why for name, x in found.items() if (why := why_not(name, x, values))}
        except Exception as error:
            why = plugins.explained(title, error)
            warn(f"the evaluation {title} failed and is left out: {why}")
            continue
        if changed:
            warn(f"the evaluation {title} changed weights of the model, which are as before again")
        for name, why in [*refused.items()][:NAMED]:
            warn(f"{readable(name)}: {why}, and is left out")
        if len(refused) > NAMED:
            warn(f"{len(refused) - NAMED:,} more names of the evaluation {title} are left out")
        declared = [name for name, row in NUMBERS.items() if row.evaluation == title]
        others = [readable(name) for name, x in found.items() if isinstance(x, int | float)]
        if len(others) > NAMED:
            others[NAMED:] = [f"and {len(others) - NAMED:,} more"]
        # An evaluation that names no number of its own may return only texts.
        is_due = declared != [f"val/{title}"] or not found
        for name in [name for name in declared if name not in found]:
            if others or (subject.is_last and is_due):  # before the end it may return nothing
                what = ", ".join(others) or "no number at the end"
                warn(f"{name}: was declared, but the evaluation {title} returns {what}")
        values |= {name: value for name, value in found.items() if name not in refused}
    return values


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """A context after which a model is as before: dropout, weights, gradients, hooks, attributes.

    So are the random numbers, torch's settings and the working folder. The context gives a list that
    afterwards holds the names of the weights and buffers that had changed.
    """
    modes = {module: module.training for module in model.modules()}
    hooks = [(table, dict(table)) for module in modes for table in hooks_of(module)]
    before = tensors_of(model)
    kept = {tensor: Kept(tensor) for tensor in {*before.values()}}
    changed: list[str] = []
    try:
        with left_as_before(), attributes_kept(model):
            try:
                yield changed
            finally:
                now = tensors_of(model)
                copies = {name: kept[tensor].copy for name, tensor in before.items()}
                changed += [
                    n for n, c in copies.items() if n not in now or not same(now[n].data, c)
                ]
    finally:
        for module, training in modes.items():
            module.training = training
        for table, entries in hooks:
            table.clear()
            table.update(entries)
        for one in kept.values():
            one.restore()


def hooks_of(module: nn.Module) -> list[dict[int, object]]:
    """Returns the tables of hooks of a module, which torch keeps as attributes."""
    return [table for name, table in vars(module).items() if name.endswith("_hooks")]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights and buffers of a model by all of their names."""
    weights: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return weights | dict(model.named_buffers(remove_duplicate=False))


class Kept:
    """A weight or buffer as it was. Meanwhile it has no gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.data = tensor.data
        self.copy = tensor.data.clone()
        self.grad = tensor.grad if tensor.is_leaf else None
        self.requires_grad = tensor.requires_grad
        if tensor.is_leaf:
            tensor.grad = None

    def restore(self) -> None:
        """Gives the tensor its values, its gradient and its switch back."""
        self.tensor.data = self.data
        if not torch.equal(self.data, self.copy):
            self.data.copy_(self.copy)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.grad


def same(one: Tensor, two: Tensor) -> bool:
    """Returns whether two tensors have the same type and numbers; nan is the same as nan."""
    if (one.dtype, one.device) != (two.dtype, two.device):
        return False
    return torch.equal(one, two) or torch.equal(one.nan_to_num(), two.nan_to_num())


def check_evaluations() -> None:
    """Raises UserError if an evaluation of somebody's own cannot be called as the lab does."""
    for title, own in OWN_EVALUATIONS.items():
        check_call(f"evaluation {title}", own, f"{title}(model, data)")


def named(returned: Any) -> Mapping[str, Any]:
    """Returns the values that somebody's own evaluation has returned, by name. Raises UserError."""
    if returned is None:
        return {}
    try:
        return dict(returned)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"returns {type(returned).__name__}; needs names and values, such as "
            '{"val/accuracy": 0.5}, or nothing'
        ) from error


def why_not(name: object, value: object, values: Mapping[str, Value]) -> str:
    """Returns why a value of somebody's own evaluation cannot be kept, or ""."""
    if not isinstance(name, str) or not name:
        return "is no name"
    if not name.isprintable():
        return "has a line break or another character that cannot be shown"
    is_labs = name in NUMBERS and not is_own("number", name)
    if is_labs or name in values or name.startswith(LABS_GROUPS):
        return "is the name of a number or text of the lab's own, or there twice"
    if "/" not in name:  # metrics.json has the lab's own facts without one
        return "needs a name with a group and a slash, such as val/accuracy"
    if is_own("number", name) and not isinstance(value, int | float):
        return f"was declared as a number and is {type(value).__name__}"
    return "" if is_value(value) else NO_VALUE


def readable(name: object) -> str:
    """Returns what somebody's own evaluation has for a name, in one line, shortened."""
    text = str(name)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def plain(value: Value | np.generic | Tensor) -> Value:
    """Returns a number of numpy's or torch's, or a truth value, as one of Python's."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    return int(value) if isinstance(value, bool) else value  # type: ignore[return-value]


def is_value(value: object) -> bool:
    """Returns whether a value is of a type that can be written everywhere."""
    if isinstance(value, np.ndarray):
        has_pixels = value.ndim == 3 and value.shape[2] == 3 and value.size > 0
        return value.dtype == np.uint8 and has_pixels
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float | str)


def numbers_of(values: Mapping[str, Value]) -> dict[str, float]:
    """Returns the entries of `values` that are numbers, without those of the type `Detail`."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, Detail)
    }


def texts_of(values: Mapping[str, Value]) -> dict[str, str]:
    """Returns the texts among `values`."""
    return {name: value for name, value in values.items() if isinstance(value, str)}


@evaluation
def validation_loss(subject: Subject) -> dict[str, float]:
    """Returns val/loss (nats per token), val/perplexity and val/bits_per_byte.

    Before the end of a run they are those of an excerpt if the text is long, and `EXCERPT_TOKENS`
    says of how many tokens. At the end `EXCERPT_LOSS` is there to compare with those.

    Raises NotFinite if the loss is not finite; without a validation part, if that of the first
    window of the training part is not.
    """
    if len(subject.text.val) == 0:
        first = subject.text.train[: subject.block_size + 1]
        if not log_probs(subject.model, first, subject.block_size).isfinite().all():
            raise NotFinite
        return {}
    numbers = loss_on(subject, "val")
    if not math.isfinite(numbers["val/loss"]):
        raise NotFinite
    if (n := excerpt_tokens(subject, "val")) is not None:
        numbers[EXCERPT_TOKENS] = n
    if "excerpt" in subject.judged:
        numbers[EXCERPT_LOSS] = loss_on(subject, "excerpt")["val/loss"]
    return numbers


def excerpt_tokens(subject: Subject, name: str) -> int | None:
    """Returns on how many tokens of one of the `judged` texts a loss is measured, None if on all.

    It is None as well if there is no such text.
    """
    text = subject.judged.get(name)
    if text is None or not text.is_excerpt:
        return None
    counts = counting(text.documents)
    return 0 if counts is None else int(counts.sum())


@evaluation
def source_loss(subject: Subject) -> dict[str, float]:
    """Returns val/loss_source: the loss on the text of the earlier run that gave the weights.

    `SOURCE_TOKENS` says of how many tokens, if it is that of an excerpt.
    """
    if subject.source is None:
        return {}
    numbers = {"val/loss_source": loss_on(subject, "source")["val/loss"]}
    if (n := excerpt_tokens(subject, "source")) is not None:
        numbers[SOURCE_TOKENS] = n
    return numbers


@evaluation
def answers(subject: Subject) -> dict[str, float]:
    """Returns val/answer_accuracy, val/whole_answers and more, if the text says which tokens are scored."""
    documents = subject.text.documents.get("val")
    if documents is None or documents.scored is None or len(subject.text.val) < 2:
        return {}
    return answer_numbers(
        subject.model, subject.text.val, subject.block_size, subject.precision, documents
    )


@evaluation
def sample(subject: Subject) -> dict[str, str]:
    """Returns a text that the model has written."""
    return {"sample": draw_sample(subject, SAMPLED)}


@evaluation
def update_ratios(subject: Subject) -> dict[str, Detail]:
    """Returns how much the last step changed each matrix.

    A ratio is the norm of the change divided by the norm of the new matrix, so it also exists for
    a matrix that was zero. There are no ratios at the end if `max_minutes` ended the training.
    """
    if not subject.before:
        return {}
    ratios = {
        name: (weight - subject.before[name]).norm() / weight.norm().clamp_min(1e-30)
        for name, weight in matrices(subject.model)
    }
    numbers = torch.stack([*ratios.values()]).tolist()  # waits for a GPU once, not for each matrix
    return {
        f"{UPDATE_RATIO}{name}": Detail(number)
        for name, number in zip(ratios, numbers, strict=True)
    }


@evaluation
def pictures(subject: Subject) -> dict[str, np.ndarray]:
    """Returns the pictures that this kind of model has, by name.

    They are its attention on the start of the validation text, or its table of token pairs."""
    tokens = subject.text.val
    if len(tokens) == 0:
        tokens = subject.text.train
    tokens = tokens[: min(subject.block_size, PICTURED)].astype(np.int64)
    idx = torch.from_numpy(tokens).to(subject.model.device)
    names = subject.text.tokenizer.names()
    frequencies = np.bincount(subject.text.train[:COUNTED], minlength=len(names))
    kept = commonest(frequencies, IN_TABLE)
    return dict(pictures_of(subject.model, idx, names, subject.with_attention, kept))


def judged_texts(subject: Subject) -> dict[str, Source]:
    """Returns the texts on which an evaluation computes the loss, by name, as far as there are any.

    Before the end of a run long ones are excerpts. At the end "excerpt" is that of "val".
    """
    val = subject.text.val
    texts = {}
    if len(val) > 0:
        texts["val"] = Source(val, subject.text.documents.get("val"), subject.align)
    if subject.source is not None:
        texts["source"] = subject.source
    excerpts = {name: excerpt_of(text, subject) for name, text in texts.items()}
    if subject.is_last:
        excerpts = {"excerpt": excerpts.get("val")}
    return texts | {name: text for name, text in excerpts.items() if text is not None}


def excerpt_of(text: Source, subject: Subject) -> Source | None:
    """Returns the excerpt of a text that the subject's run looks at, or None if it has none."""
    if subject.eval_tokens is None or not has_excerpts(subject.model):
        return None
    is_aligned = aligned(text.documents, text.align) is not None
    taken = excerpt(
        text.tokens, subject.block_size, subject.eval_tokens, text.documents, is_aligned
    )
    return None if taken is None else Source(*taken, align="document", is_excerpt=True)


def has_excerpts(model: LanguageModel) -> bool:
    """Returns whether a model can be evaluated on excerpts.

    One with windows of its own cannot, since in other windows its loss would be another.
    """
    return type(model).windows is LanguageModel.windows


def loss_on(subject: Subject, name: str) -> dict[str, float]:
    """Returns the numbers of `loss_metrics` of one of the `judged` texts; names begin with val/."""
    text = subject.judged[name]
    found = subject.shared.get(name)
    if found is None:
        found = log_probs_on(subject, text)
    return loss_metrics(found, text.tokens, subject.text.tokenizer, "val", text.documents)


def log_probs_on(subject: Subject, text: Source, turns: Turns | None = None) -> Tensor:
    """Returns the log-probabilities of a text, (N - 1,); several processes may take turns."""
    within = aligned(text.documents, text.align)
    return log_probs(
        subject.model, text.tokens, subject.block_size, subject.precision, within, turns
    )


def compute_together(
    subject: Subject, ranks: Ranks, is_asked_to_stop: Callable[[], bool]
) -> Subject:
    """Returns the subject with the log-probabilities that all ranks have computed together.

    Raises Interrupted on all of them if a signal has reached one.
    """
    shared = {}
    for name, text in subject.judged.items():
        shared[name] = log_probs_on(subject, text, Turns(ranks, is_asked_to_stop))
    return replace(subject, shared=shared)


def draw_sample(subject: Subject, length: int) -> str:
    """Returns a text of `length` tokens. The same weights and seed give the same text."""
    pieces = generate.stream(
        subject.model,
        subject.text.tokenizer,
        "",
        length,
        subject.block_size,
        seed=subject.seed,
        temperature=0.8,
        precision=subject.precision,
    )
    return "".join(piece for (piece,) in pieces)


def matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights that are matrices, with their names."""
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            yield name, weight.detach()
