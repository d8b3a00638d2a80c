"""Prepares a run: reads its text, builds its model, cuts its batches. Nothing is trained yet."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lmlab import files, machine, ranks
from lmlab.calls import own_call
from lmlab.config.check import Config
from lmlab.config.grammar import typed_value
from lmlab.config.keys import RunConfig, switched_on
from lmlab.data.batches import Batches, check_length, resolved_align, with_align
from lmlab.data.splits import Splits
from lmlab.data.subwords import from_file
from lmlab.data.tokenizers import Tokenizer
from lmlab.errors import UserError
from lmlab.inference.evaluations import Source, Subject, check_evaluations, untouched
from lmlab.inference.loss import scores_of
from lmlab.models.base import LanguageModel, build_model
from lmlab.models.own import check_scores
from lmlab.register import is_own
from lmlab.registry import folder_kept
from lmlab.runs import checkpoints
from lmlab.runs.folder import AnyDirectory, newest, read_config, text_sha256
from lmlab.training.companions import callbacks, check_loggers, never_called
from lmlab.training.optimizers import build_optimizer, check_schedule

MOST_SCORES = 2**24  # in a row, with which somebody's own model is checked


class Prepared:
    """The text of a run, its untrained model and its batches.

    `config` has the device, precision and threads of this machine. `tokenizer` is the tokenizer to
    use, by default the text's own; `sha256` is the checksum that the text must have, if it is
    known. The seed set here determines everything random in a run. Raises UserError, for example
    if the text is too short.
    """

    @folder_kept()
    def __init__(
        self, config: Config, tokenizer: Tokenizer | None = None, sha256: str | None = None
    ) -> None:
        if config.run.threads:  # machine.resolve has given a number
            torch.set_num_threads(config.run.threads)
        self.text = Splits.of_run(config, tokenizer, sha256)
        self.batches: Batches | None = None  # a model without steps has none
        self.length = "by counting"  # of the training, in words
        if config.model.has_steps:
            check_length(self.text.train, config.model.block_size, self.text.tokenizer.unit)
            check_batch(config.run.batch_size, config.model.block_size)
            config = resolved_align(config, self.text.train)
            run = config.run
            is_checked = is_own("model", config.base("model"))
            # Before the model, whose memory may grow with block_size: the text can be too short.
            self.batches = Batches(
                self.text.train,
                run.batch_size,
                config.model.block_size,
                run.seed,
                run.align,
                self.text.documents.get("train"),
                ranks.here().rows(run.batch_size),
            )
            rows = run.batch_size * run.grad_accumulation
            self.length = (
                f"{run.max_steps:,} steps of {rows} x {config.model.block_size} {self.text.tokenizer.unit}s, "
                f"{config.choices['optimizer']}"
            )
            if run.warmup_steps >= run.max_steps:
                self.length += ", all in warm-up"
            if run.align != "epoch":
                self.length += f", align={run.align}"
        else:
            is_checked = False
            config = with_align(config, "epoch")  # without effect
        self.config = config
        self.run: RunConfig = config.run
        pl.seed_everything(config.run.seed, verbose=False)
        self.model = build_model(config.model, self.text.tokenizer.vocab_size)
        check_model(self.model, config.choices["model"], self.text.tokenizer.vocab_size)
        if is_checked:
            check_own_model(self.model, config.choices["model"], self.text.tokenizer.vocab_size)
        self.companions = config.companions  # the keys of callbacks and loggers
        self.callbacks = callbacks(self.companions)
        check_loggers(self.companions)
        check_evaluations()
        self.optimizer: Any = config.optimizer  # the optimizer's keys
        self.has_own_optimizer = is_own("optimizer", config.base("optimizer"))
        has_own_callback = not all(map(is_the_labs, self.callbacks))
        self.may_set_optimizer = self.has_own_optimizer or has_own_callback
        warnings = [never_called(self.callbacks)]
        if self.has_own_optimizer:
            optimizer = build_optimizer(self.model, self.optimizer, config.device.precision)
            name = config.choices["optimizer"]
            warnings += [untrained(self.model, optimizer, name), own_rates(optimizer, name)]
        self.warning = "; ".join(filter(None, warnings))
        check_schedule(config.run)
        self.precision: str = config.device.precision
        self.device: str = config.choices["device"]
        self.block_size: int = config.model.block_size
        self.flat_config = config.flat()  # all choices and keys, which checkpoints hold
        self.saved_config = config.as_saved()  # the content of config.yaml

    def subject(self, source: Source | None = None) -> Subject:
        """Returns what all evaluations of the run look at. `source` is the text of an earlier run."""
        return Subject(
            model=self.model,
            text=self.text,
            block_size=self.block_size,
            precision=self.precision,
            seed=self.run.seed,
            source=source,
            align=self.run.align,
            eval_tokens=self.run.eval_tokens,
            instruments=switched_on(self.run),
        )


def untrained(model: LanguageModel, optimizer: torch.optim.Optimizer, name: str) -> str:
    """Returns a warning if somebody's own optimizer did not get all weights to train, or ""."""
    given = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    left = [weight for weight in weights if id(weight) not in given]
    if not left:
        return ""
    return (
        f"optimizer={name}: {len(left)} of the model's {len(weights)} tensors of weights, "
        f"{sum(weight.numel() for weight in left):,} numbers, were not given to it and stay as they are"
    )


def own_rates(optimizer: torch.optim.Optimizer, name: str) -> str:
    """Returns a warning if groups of somebody's own optimizer have several learning rates, or "".

    The schedule would set all to one.
    """
    rates = [group.get("lr") for group in optimizer.param_groups if "lr_scale" not in group]
    if all(rate == rates[0] for rate in rates):
        return ""
    return (
        f"optimizer={name}: its groups have several lr ({', '.join(map(str, rates))}), but each step sets "
        "the one of the schedule; a group with lr_scale=0.1 gets that times 0.1"
    )


def is_the_labs(callback: Any) -> bool:
    """Returns whether a callback is one of the lab's own."""
    return type(callback).__module__.startswith("lmlab.")


def check_batch(batch_size: int, block_size: int) -> None:
    """Raises UserError if the tokens of a batch alone would fill the memory of the machine."""
    memory = machine.memory()
    needed = 2 * 8 * batch_size * block_size  # idx and targets, as whole numbers of eight bytes
    if needed > memory:
        raise UserError(
            f"batch_size={batch_size} block_size={block_size}: the tokens of a batch take "
            f"{needed / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f}; allowed are smaller numbers"
        )


def check_model(model: LanguageModel, name: str, vocab_size: int) -> None:
    """Raises UserError if a model's scores have the wrong shape, or a weight is not finite."""
    state: Any = model.state_dict()
    if not isinstance(state, dict):
        raise UserError(
            f"model={name}: its state_dict() returns {type(state).__name__}; needs a dictionary of tensors"
        )
    for weight_name, weight in model.named_parameters():
        if weight.is_meta or weight.is_complex():
            kind = "on the meta device, without numbers" if weight.is_meta else f"of {weight.dtype}"
            raise UserError(
                f"model={name}: the weight {weight_name} is {kind}; needs real numbers in memory"
            )
        if not weight.isfinite().all():
            raise UserError(f"model={name}: the weight {weight_name} is not finite at the start")
    scores = model.run_once(torch.device("meta"))
    if scores is None:
        scores = model.run_once(model.device)
    needed = 1, model.config.block_size, vocab_size
    check_scores(name, scores, needed)


@torch.no_grad()
def check_own_model(model: LanguageModel, name: str, vocab_size: int) -> None:
    """Raises UserError if somebody's own model cannot be trained, or predicts from what it must not.

    It may not change the ids that it is given, or score a token by tokens after it or of other rows.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UserError(f"model={name}: has no weights to train")
    flops: Any = model.flops_per_token()
    if not isinstance(flops, int | float) or not 0 <= flops < math.inf:
        raise UserError(
            f"model={name}: flops_per_token() returns {flops!r}; needs a number of 0 or more"
        )
    T = min(model.config.block_size, MOST_SCORES // vocab_size)
    if T < 2 or vocab_size < 2:
        return
    idx = torch.arange(2 * T, device=model.device).view(2, T) % vocab_size
    other = idx.clone()
    other[0, -1] = (idx[0, -1] + 1) % vocab_size
    with untouched(model):
        model.eval()
        given = idx.clone()
        one, again, changed = (model(x).float() for x in (given, idx.clone(), other))
        check_windows(model, name, vocab_size)
        check_log_probs(model, name, idx, one)
        with torch.enable_grad():
            has_gradient = model(idx[:1].clone()).requires_grad
    if one.isnan().any():
        raise UserError(f"model={name}: some of its scores are nan, no numbers")
    if not has_gradient:
        raise UserError(
            f"model={name}: its scores have no gradient (detach, no_grad?), so nothing can be trained"
        )
    if not torch.equal(given, idx):
        raise UserError(f"model={name}: its forward changes the ids that it is given")
    if differ(one, again):
        raise UserError(
            f"model={name}: gives other scores when it is called again with the same ids; dropout "
            "and noise belong to training alone"
        )
    if differ(one[0, :-1], changed[0, :-1]):
        raise UserError(
            f"model={name}: looks ahead: the scores before the last token depend on that token; a "
            "token may only depend on those before it"
        )
    if differ(one[1], changed[1]):
        raise UserError(f"model={name}: the scores of a row depend on the other rows of its batch")
    if model.gives_log_probs and one.logsumexp(2).abs().max() > 1e-2:
        raise UserError(
            f"model={name}: gives_log_probs is set, but the probabilities do not add up to 1"
        )
    with untouched(model), torch.enable_grad():
        model.eval()
        check_gradients(model, name, model(idx[:1].clone()))


def check_gradients(model: LanguageModel, name: str, scores: Tensor) -> None:
    """Raises UserError if scores have no gradient that can be computed, or clipped: a sparse one."""
    weights = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    with own_call(f"model={name}", "scores whose gradient can be computed"):
        gradients = torch.autograd.grad(
            scores, [*weights.values()], torch.ones_like(scores), allow_unused=True
        )
    for key, gradient in zip(weights, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise UserError(
                f"model={name}: the gradient of {key} is sparse, as of an embedding with sparse=True; "
                "needs a dense one"
            )


def differ(one: Tensor, two: Tensor) -> bool:
    """Returns whether scores differ by more than rounding does. Infinite ones may be equal, too."""
    largest = one[one.isfinite()].abs().max() if one.isfinite().any() else 0.0
    return not torch.allclose(one, two, rtol=0.0, atol=1e-3 * (1 + float(largest)))


def check_windows(model: LanguageModel, name: str, vocab_size: int) -> None:
    """Raises UserError unless the model's windows predict each token of a text once, in order."""
    block_size = model.config.block_size
    ids = torch.arange(3 * block_size + 2, device=model.device) % vocab_size
    with own_call(f"model={name}", "windows(…) that yields pairs (idx, targets) of tensors"):
        found = model.windows(ids, block_size, block_size)
        targets = [targets.flatten() for _, targets in found]
    if not targets or not torch.equal(torch.cat(targets), ids[1:]):
        raise UserError(
            f"model={name}: its windows() must predict each token but the first once, in order"
        )


def check_log_probs(model: LanguageModel, name: str, idx: Tensor, scores: Tensor) -> None:
    """Raises UserError unless log_probs_of returns what `scores` (B, T, V), after idx (B, T), say."""
    targets = idx.flip(1)[:, : max(1, idx.shape[1] // 2)]  # any tokens
    found: Any = model.log_probs_of(idx.clone(), targets)
    if found is None:
        return
    after = scores[:, -targets.shape[1] :].flatten(0, 1)
    needed = scores_of(after, targets.flatten(), model.gives_log_probs).view(targets.shape)
    is_tensor = isinstance(found, Tensor) and found.shape == needed.shape
    if not is_tensor or differ(needed, found.float()):
        raise UserError(
            f"model={name}: its log_probs_of() must return, for targets (B, S), the log-probabilities "
            "(B, S) that its scores give them"
        )


def load_start(init_from: str | None) -> checkpoints.Run | None:
    """Loads the run whose weights a new run starts from, on the CPU. Raises UserError."""
    if init_from is None:
        return None
    return checkpoints.load(newest(Path(init_from), "init_from"), choice="cpu")


def check_start(start: checkpoints.Run, sha256: str | None) -> None:
    """Raises UserError if `start` has other weights than those with this checksum, if there is one."""
    if sha256 is not None and start.sha256 != sha256:
        raise UserError(
            f"init_from={start.path}: its weights are not those from which the replayed run started "
            f"(sha256 {start.sha256[:12]}, then {sha256[:12]}); it was changed or went on since"
        )


def other_tokens(config: Config, start: checkpoints.Run) -> str:
    """Returns what to say of a file of tokens that is not as it was when `start` was trained.

    It is "" if there is nothing to say: the file is the same, or gone, and the run has a copy.
    """
    if config.base("tokenizer") != "file" or start.is_foreign:  # whose file has just been read
        return ""
    typed = config.flat()["tokenizer_path"]
    try:
        now = from_file(files.expanded(typed))
    except (UserError, OSError):
        return ""
    if now.sha256() == start.tokenizer.sha256():
        return ""
    return (
        f"tokenizer_path={typed}: has changed since {start.path} was made, whose weights need the tokens "
        "that it had then; those are used"
    )


def inherit(model: LanguageModel, start: checkpoints.Run) -> None:
    """Gives the model the weights of another run. Raises UserError if they do not fit."""
    try:
        model.load_state_dict(start.model.state_dict())
    except RuntimeError:
        raise UserError(
            f"init_from={start.path}: its weights need a model with "
            + " ".join(f"{k}={typed_value(k, v)}" for k, v in vars(start.config.model).items())
        ) from None


def source_text(directory: AnyDirectory, tokenizer: Tokenizer) -> Source | None:
    """Returns the validation text of the earlier run whose weights this run starts from.

    If their text cannot be read, it prints a line and returns None.
    """
    if not (directory.path / "source.yaml").exists():
        return None
    try:
        source = read_config(directory.path, "source.yaml")
        sha256 = text_sha256(directory.metrics, directory.path, "source_sha256")
        text = Splits.of_run(source, tokenizer, sha256)
    except UserError as error:
        directory.warn(f"val/loss_source is not tracked: {error}")
        return None
    if len(text.val) == 0:
        directory.warn("val/loss_source is not tracked: that run has no validation text")
        return None
    return Source(text.val, text.documents.get("val"), source.run.align)
