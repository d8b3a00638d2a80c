"""Checks each key and value of a run, such as n_layer=two, and builds its `Config`. No torch."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lmlab.catalogue import DeviceConfig, OptimizerConfig
from lmlab.config.keys import (
    DIVIDING,
    GROUPS,
    RunConfig,
    SweepConfig,
    all_keys,
    bases_of,
    choices_of,
    companion_keys,
    companions,
    config_class,
    following_keys,
    keys_of,
    neutral_values,
    switched_on,
)
from lmlab.errors import CALLED, UserError, about, nearest
from lmlab.markers import FILLED, LINES, Count, OneOf, OrWord
from lmlab.numbers import learn_numbers
from lmlab.register import PRESENT
from lmlab.registry import remembered

LARGEST = 10**12  # of whole numbers: larger ones do not fit into what is made of them
LONGEST_NAME = 200  # file systems allow 255 bytes, and a number may follow
WHOLE_NAME = r"\w[\w.,=+-]*"  # a run's name is a folder's


@dataclass(frozen=True)
class Config:
    """The checked configuration of a run.

    `choices` maps each group, and "experiment", to the chosen name; `model`, `data`, `tokenizer`,
    `device` and `optimizer` hold the values of the keys of that choice, `run` those of all other keys.
    `companions` holds those of callbacks and loggers, by their names. `sweep` is None for a
    configuration that was read from a run's folder. `bases` has an entry for each group in which that folder names a preset: the choice that it builds on.
    """

    choices: dict[str, str]
    run: RunConfig
    model: Any
    data: Any
    tokenizer: Any
    device: DeviceConfig
    optimizer: Any
    companions: dict[str, Any] = field(default_factory=dict)
    sweep: SweepConfig | None = field(default=None, compare=False)
    bases: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def base(self, group: str) -> str:
        """Returns the built-in choice of `group`, for a preset the one that it builds on."""
        return self.bases.get(group) or bases_of(group)[self.choices[group]]

    def built_on(self) -> dict[str, str]:
        """Returns `choices`, with each preset replaced by its built-in choice."""
        return self.choices | {group: self.base(group) for group in GROUPS}

    def flat(self) -> dict[str, Any]:
        """Returns choices and keys as one flat mapping."""
        flat: dict[str, Any] = dict(self.choices)
        parts = (self.run, self.model, self.data, self.tokenizer, self.device, self.optimizer)
        for config in (*parts, *self.companions.values()):
            flat |= {key: getattr(config, key) for key in keys_of(type(config))}
        return flat

    def as_saved(self) -> dict[str, Any]:
        """Returns the content of config.yaml: `flat` and the base of each preset (model_base: gpt).

        Thus a run made with a preset can be read even if the preset was changed or deleted.
        """
        values = self.flat()
        for group in GROUPS:
            if self.base(group) != self.choices[group]:
                values[f"{group}_base"] = self.base(group)
        return values


# What users of other tools type first, for a key or a word.
ELSEWHERE = {
    "lr": "learning_rate max_lr",
    "max_steps": "max_iters num_steps n_steps steps num_iterations iterations train_steps epochs n_epochs "
    "num_epochs max_epochs num_train_epochs",
    "batch_size": "batch train_batch_size micro_batch_size device_batch_size "
    "per_device_train_batch_size",
    "grad_accumulation": "gradient_accumulation_steps grad_accum_steps gradient_accumulation "
    "accumulate_grad_batches",
    "grad_clip": "gradient_clip_val max_grad_norm clip_grad clip_grad_norm gradient_clip",
    "schedule": "lr_schedule scheduler lr_scheduler lr_scheduler_type decay_lr",
    "decay_steps": "lr_decay_iters",
    "warmup_steps": "warmup_iters warmup num_warmup_steps lr_warmup_steps",
    "beta1": "adam_beta1 betas",
    "beta2": "adam_beta2",
    "weight_decay": "wd",
    "n_layer": "num_layers n_layers layers num_hidden_layers depth",
    "n_head": "num_heads n_heads heads num_attention_heads",
    "n_embd": "d_model hidden_size hidden_dim embedding_size embedding_dim emb_dim embed_dim dim n_embed "
    "width",
    "block_size": "context_length context_size max_context seq_len max_seq_len sequence_length "
    "sequence_len n_ctx n_positions max_position_embeddings max_length",
    "dropout": "dropout_rate dropout_prob drop p_dropout",
    "tied": "tie_weights tie_word_embeddings tie_embeddings weight_tying",
    "positions": "rope pos_emb position_embedding positional_encoding",
    "eval_interval": "eval_every eval_steps val_every val_check_interval check_val_every_n_epoch "
    "evaluation_strategy val_loss_every",
    "eval_tokens": "eval_iters eval_batches limit_val_batches max_eval_samples",
    "log_interval": "log_every log_every_n_steps logging_steps log_steps",
    "checkpoint_interval": "save_every save_steps save_interval ckpt_interval checkpoint_every "
    "every_n_train_steps",
    "patience": "early_stopping early_stopping_patience",
    "val_fraction": "val_split validation_split val_ratio",
    "precision": "dtype torch_dtype fp16 bf16 amp mixed_precision",
    "device": "accelerator",
    "devices": "gpus num_gpus n_gpus nproc_per_node world_size",
    "nodes": "nnodes num_nodes",
    "seed": "random_seed manual_seed rng_seed seed_everything random_state",
    "data": "dataset dataset_name",
    "path": "input file input_file data_path data_file train_file data_dir",
    "out": "output_dir save_dir default_root_dir",
    "name": "out_dir run_name exp_name experiment_name",
    "resume": "resume_from resume_from_checkpoint ckpt_path load_checkpoint",
    "init_from": "pretrained finetune_from model_name_or_path",
    "experiment": "config config_file recipe",
    "samples": "num_samples n_samples num_return_sequences",
    "max_tokens": "max_new_tokens max_length length num_tokens n_tokens",
    "temperature": "temp",
    "prompt": "start",
    "stop": "stop_token stop_sequence",
    "cuda": "gpu nvidia",
    "mps": "metal",
    "32-true": "32 fp32 float32 full",
    "bf16-mixed": "bf16 bfloat16 16 16-mixed fp16 float16 mixed bf16-true",
    "constant": "none off",
    "rotary": "rope",
}


def suggestion(word: str, words: Iterable[str]) -> str:
    """Returns " (did you mean …?)" with the key that other tools call `word`, or a similar one."""
    known = [*words]
    meant = meant_by(word, known)
    return f" (did you mean {meant}?)" if meant else nearest(word, known)


def meant_by(word: str, known: Iterable[str]) -> str | None:
    """Returns which of the `known` keys other tools call `word`, or None.

    They also write the name of a group before it, as in model.n_layer.
    """
    plain = word.lstrip("-").replace("-", "_").rpartition(".")[2].lower()
    for key in known:
        if plain == key or {plain, word} & {*ELSEWHERE.get(key, "").split()}:
            return key
    return None


class NotTaken(UserError):
    """The choice of a group does not take a key."""

    def __init__(self, group: str, why: str) -> None:
        super().__init__(why)
        self.group = group


def spelled(value: Any) -> Any:
    """Returns a value as YAML spells it, where Python has other words: null, true and false."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else value


def check_key(key: str, value: Any, choices: dict[str, str]) -> None:
    """Raises UserError if neither the run nor any of the choices has the key `key`."""
    for group in GROUPS:
        takers = takers_of(group, key)
        if takers and choices[group] not in takers:
            taken = ", ".join(keys_of(config_class(group, choices[group]))) or "no keys"
            raise NotTaken(
                group,
                f"{key}={spelled(value)}: {group}={choices[group]} doesn't take {key}, it takes {taken}; "
                f"{key} is a key of {group}={'|'.join(takers)}",
            )
    if not key:
        raise UserError(f"={spelled(value)}: needs a key before the equals sign")
    if key not in all_keys():
        raise UserError(
            f"{key}={spelled(value)}: there is no key {key}{suggestion(key, all_keys())}; --help lists them all"
        )


@remembered
def takers_of(group: str, key: str) -> list[str]:
    """Returns the choices of a group that have a key."""
    return [choice for choice, row in choices_of(group).items() if key in keys_of(row.config)]


@cache
def hints_of(config: type) -> dict[str, Any]:
    """Returns the annotations of a class by key. A sweep of thousands asks for them for each cell."""
    return get_type_hints(config, include_extras=True)


def check_value(key: str, value: Any, hint: Any) -> Any:
    """Returns `value` if it is of the annotated type and in range; raises UserError if not.

    A whole number is accepted as float. The annotation holds the range as text, such as "[0, 1)",
    or `OneOf` with the allowed words, or `OrWord` with one that is allowed, too. In a path, the home folder takes the place of ~. Other markers
    are ignored.
    """
    interval = None
    has_lines = False
    word = ""
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        interval = next((extra for extra in extras if type(extra) is str), interval)
        has_lines = has_lines or LINES in extras
        if FILLED in extras and value == "":
            raise UserError(f"{key}=: is empty; needs the name of a file or folder")
        if FILLED in extras and isinstance(value, str):
            value = os.path.expanduser(value)
        for extra in extras:
            if type(extra) is OrWord:
                word = extra.word
                if value == word:
                    return value
            if type(extra) is OneOf:
                learn_numbers([str(value)])
                return check_word(key, value, tuple(extra.words()))
    if NoneType in get_args(hint):
        if value is None:
            return None
        hint = get_args(hint)[0]
        if get_origin(hint) is Annotated:
            return check_value(key, value, hint)
    if get_origin(hint) is Literal:
        return check_word(key, value, get_args(hint))
    number = value
    if hint is float and type(value) is int:
        number = float(str(value))  # by way of text, since the largest integers are no floats
    if type(number) is not hint or number != number:
        typed = spelled(value)
        within = f" in {interval}" if interval else ""
        within += f", or {word}" if word else ""
        needed = {
            int: f"a whole number{within}",
            float: f"a number{within}",
            bool: "true or false",
            str: "text",
        }
        if isinstance(value, bool | int | float):
            quoted = f'"{typed}"' if CALLED.get() else f"\"'{typed}'\""
            how = "quoted" if CALLED.get() else "quoted twice"
            needed[str] += f"; text that looks like another type is {how}: {key}={quoted}"
        is_quoted = hint is not str and re.fullmatch(r"[-+.\deE]+|true|false", str(value))
        note = "; in quotes it is text" if isinstance(value, str) and is_quoted else ""
        raise UserError(f"{key}={typed}: needs {needed[hint]}{note}")
    if hint is str and not has_lines and value.splitlines() not in ([], [value]):
        raise UserError(f"{key}={value}: needs text of one line")
    if interval and not in_interval(number, interval):
        allowed = f"{interval}, or {word}" if word else interval
        raise UserError(f"{key}={value}: out of range; allowed is {allowed}")
    if hint is int and abs(number) > LARGEST:
        raise UserError(f"{key}={value}: is too large; allowed are numbers up to {LARGEST:,}")
    return number


def check_own_values() -> None:
    """Raises UserError for a default that a key of a plug-in does not allow, or a preset of nothing."""
    for addition in PRESENT:
        if addition.values is None:  # it has no file of values
            continue
        values = dict(addition.values)
        where = f"{addition.place}: {addition.kind} {addition.name}"
        if addition.row is None:  # a preset
            base, *_ = values.pop("defaults")
            if base not in choices_of(addition.kind):
                known = ", ".join(choices_of(addition.kind))
                raise UserError(f"{where}: there is no {addition.kind}={base}; allowed are {known}")
        config = config_class(addition.kind, addition.name)
        hints = get_type_hints(config, include_extras=True)
        for key, value in values.items():
            try:
                if key not in keys_of(config):
                    known = ", ".join(keys_of(config))
                    raise UserError(f"there is no key {key}; keys are {known}")
                if value != "???":
                    check_value(key, value, hints[key])
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def check_word(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Returns `value` if it is one of `allowed`; raises UserError if not."""
    if value in allowed:
        return value
    words = [str(spelled(word)) for word in allowed]
    value = spelled(value)
    if str(value) in words:  # YAML reads a number in it
        raise UserError(f"{key}={value}: is read as a number; write {key}=\"'{value}'\"")
    hint = suggestion(str(value), words)
    if key == "data" and ("." in str(value) or "/" in str(value)):
        hint = f"; a text of your own is data=file path={value}"
    raise UserError(f"{key}={value}: allowed are {', '.join(words)}{hint}")


def in_interval(number: float, interval: str) -> bool:
    """Returns whether a number lies in an interval, written like "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    if number == low:
        return interval[0] == "["
    if number == high:
        return interval[-1] == "]"
    return low < number < high


def build(config: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Returns an object of the class `config`, filled with checked `values`.

    The errors name the keys with `prefix`. Raises UserError.
    """
    hints = hints_of(config)
    values = neutral_values() | values  # a file of a person's own may not know newer keys
    checked = {}
    for key in keys_of(config):
        with about(prefix + key):
            if key not in values:
                raise UserError(f"{prefix}{key}: is missing")
            checked[key] = check_value(prefix + key, values[key], hints[key])
    return config(**checked)


def derived(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the default of each key that depends on another key, such as min_lr on lr."""
    usual = {key: follows.value(values) for key, follows in following_keys().items()}
    if "name" in usual:  # of the model; a preset may have characters that a run's folder may not
        usual["name"] = re.sub(r"[^\w.,=+-]", "-", str(usual["name"]))
    return usual


def from_flat(
    values: dict[str, Any], choices: dict[str, str], bases: dict[str, str] | None = None
) -> Config:
    """Checks the keys and values of a run, and returns their `Config`, without keys of sweeps.

    `bases` maps groups to built-in choices, as a run's folder holds them for its presets; by default
    the files in conf/ are read. Raises UserError for a key or value that is not allowed.
    """
    bases = bases or {}
    rows = choices | bases
    for key, value in values.items():
        with about(key):
            check_key(key, value, rows)
        if key in keys_of(SweepConfig):
            raise UserError(
                f"{key}={spelled(value)}: there is no key {key} in a run; it is for sweeps"
            )
        if "${" in str(value):
            raise UserError(f"{key}={value}: interpolation is not allowed; write the value itself")
        if value == "???":
            owner = (
                f"data={choices['data']} needs"
                if key in keys_of(config_class("data", rows["data"]))
                else "needs"
            )
            raise UserError(f"{key}: {owner} {key}=…")
    optimizer = build(config_class("optimizer", rows["optimizer"]), values)
    usual = derived(values | {"lr": optimizer.lr} | choices)
    neutral = neutral_values()
    left_open = {key for key in usual if values.get(key) is None}
    left_open -= {*neutral} - {*values}  # which a file of before the key has not
    values = values | {key: usual[key] for key in left_open}
    parts = {group: build(config_class(group, rows[group]), values) for group in GROUPS}
    values = companion_keys() | values  # a run that was made without a plug-in has not its keys
    parts["companions"] = {name: build(keys, values) for name, keys in companions().items()}
    config = Config(choices, build(RunConfig, values), **parts, bases=bases)
    check_value("block_size", config.model.block_size, Count)  # of somebody's own it is any key
    config.model.check()
    config.data.check()
    check_run(config.run, config.optimizer)
    check_documents(config)
    check_task(config)
    check_instruments(config)
    check_optimizer(config)
    return config


def check_optimizer(config: Config) -> None:
    """Raises UserError if the optimizer cannot train the model."""
    if config.optimizer.needs_hidden_matrices and not config.model.has_hidden_matrices:
        rows = choices_of("optimizer").items()
        allowed = [name for name, row in rows if not row.config.needs_hidden_matrices]
        raise UserError(
            f"optimizer={config.choices['optimizer']}: trains the matrices of a transformer; "
            f"model={config.choices['model']} has none, allowed are {', '.join(allowed)}"
        )
    if config.model.width_ratio != 1 and not config.optimizer.carries_over:
        allowed = [name for name, row in choices_of("optimizer").items() if row.config.carries_over]
        raise UserError(
            f"optimizer={config.choices['optimizer']}: its rates do not carry over with "
            f"parametrization=mup; allowed are {', '.join(allowed)}"
        )


def check_instruments(config: Config) -> None:
    """Raises UserError if an instrument that is switched on, or patience, had nothing to measure."""
    run = config.run
    if run.by_position:
        check_positions(config.model.block_size)
    if run.minimal_pairs:
        check_stories(config.base("data"), config.choices["data"])
    for name in switched_on(run):
        if name != "noise_scale" and config.data.val_fraction == 0:
            raise UserError(f"{name}=true: needs a validation text; val_fraction is 0")
    patience = config.companions["patience"].patience
    if patience is not None and config.data.val_fraction == 0:
        raise UserError(f"patience={patience}: needs a validation text; val_fraction is 0")


def check_positions(block_size: int) -> None:
    """Raises UserError if a context has no two places to compare."""
    if block_size < 2:
        raise UserError(
            f"by_position=true: compares the places of a context, which has {block_size} here; "
            "needs at least 2"
        )


def check_stories(base: str, choice: str) -> None:
    """Raises UserError if a text is not the stories, by whose sentences the pairs are made."""
    if base != "tales":
        raise UserError(
            f"minimal_pairs=true: its rules are made for the stories, data=tales, not for "
            f"data={choice}"
        )


def check_documents(config: Config) -> None:
    """Raises UserError if keys need documents that the text has not."""
    run, end = config.run, config.data.document_end
    for key in DIVIDING:
        if getattr(run, key) == "":
            raise UserError(f"{key}=: is empty; needs a text, or null")
    if end is not None and run.separator is not None:
        raise UserError(
            f"separator={run.separator}: data={config.choices['data']} itself ends each document, "
            f"with {end!r}; leave separator out"
        )
    scores_itself = config.data.scores_itself()
    if scores_itself and run.score_after is not None:
        raise UserError(
            f"score_after={run.score_after}: data={config.choices['data']} itself says what is "
            "scored; leave score_after out"
        )
    if scores_itself and end is None and run.separator is None:
        raise UserError(
            f"data={config.choices['data']}: says what is scored, but not where documents end; "
            "needs document_end, or separator=…"
        )
    if end is None and run.separator is None:
        needs = "needs separator=…, the text after which a document ends"
        if run.align == "document":
            raise UserError(f"align=document: {needs}")
        if run.score_after is not None:
            raise UserError(f"score_after={run.score_after}: {needs}")


def check_task(config: Config) -> None:
    """Raises UserError if a model cannot see the whole of each example, or not its characters."""
    data, length = config.choices["data"], config.data.line_length
    if length is None:
        return
    if config.base("tokenizer") != "char":
        raise UserError(
            f"tokenizer={config.choices['tokenizer']}: data={data} asks for single characters; "
            "allowed is char"
        )
    if "block_size" in keys_of(type(config.model)) and config.model.block_size < length:
        raise UserError(
            f"block_size={config.model.block_size}: an example of data={data} has {length} "
            f"characters, which a window must hold; allowed is {length} or more"
        )


def check_run(run: RunConfig, optimizer: OptimizerConfig) -> None:
    """Raises UserError if the keys of a run do not fit together."""
    if run.unknown == "drop" and not run.init_from:
        raise UserError("unknown=drop: needs init_from=…, whose vocabulary may lack characters")
    if run.hold_steps and run.schedule == "constant":
        raise UserError(
            f"hold_steps={run.hold_steps}: needs schedule=cosine or linear; constant never falls"
        )
    if run.hold_steps and run.warmup_steps + run.hold_steps >= run.decay_steps:
        raise UserError(
            f"hold_steps={run.hold_steps} warmup_steps={run.warmup_steps} "
            f"decay_steps={run.decay_steps}: the first two together must be below the third "
            "(null: max_steps), or nothing is left to decay"
        )
    if run.min_lr > optimizer.lr:
        raise UserError(f"min_lr={run.min_lr} lr={optimizer.lr}: min_lr must not be above lr")
    if len(run.name) > LONGEST_NAME:
        raise UserError(
            f"name={run.name[:20]}…: has {len(run.name)} characters; a folder's name may have "
            f"{LONGEST_NAME}"
        )
    if not re.fullmatch(WHOLE_NAME, run.name):
        raise UserError(
            f"name={run.name}: the name of a folder; it begins with a letter, a digit or _, and after "
            "that . , = + - are allowed, too"
        )
