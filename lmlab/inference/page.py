"""Writes a page with trained models in it, which write in any browser: page.html and page.js."""

import base64
import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import seed_everything
from torch import Tensor

from lmlab import files
from lmlab.data.documents import Documents, extent
from lmlab.errors import UserError, reason_of
from lmlab.inference.loss import aligned, log_probs, loss_metrics, own_text
from lmlab.inference.template import fill_page
from lmlab.isolation import random_numbers_kept
from lmlab.models.base import LanguageModel, build_model
from lmlab.models.page import PageModel
from lmlab.runs.checkpoints import Run

TEMPLATE = Path(__file__).with_name("page.html")
CODE = Path(__file__).with_name("page.js")

Weights = Literal["int16", "int8"]  # whole numbers, with a factor for each row of a matrix
TYPES = {"int16": torch.int16, "int8": torch.int8}

KINDS = ("bigram", "mlp", "lstm", "transformer", "ngram")  # classes of page.js
HIGHEST = torch.finfo(torch.float32).max
LARGEST = 2**28  # bytes of a page; browsers refuse texts of half a gigabyte
JUDGED = 2**16  # tokens of the validation text on which rounded weights are judged


def write(runs: list[Run], weights: Weights, before: bool, prompt: str, out: Path) -> list[str]:
    """Writes the page to `out`, and returns a line about each model in it. Raises UserError.

    With `before`, the page also has the first model as it was before its training.
    """
    if before:
        runs = [before_training(runs[0]), *runs]
    names = list(dict.fromkeys(run.config.run.name for run in runs))
    data: dict[str, Any] = {"title": ", ".join(names), "prompt": prompt, "models": []}
    models = [checked_model(run) for run in runs]
    tokenizers = [checked_tokenizer(run, prompt) for run in runs]
    for run, model in zip(runs, models, strict=True):
        check_size(run, model, weights)
    scripts = [*dict.fromkeys(model.script for model in models if model.script)]
    for run, model, tokenizer in zip(runs, models, tokenizers, strict=True):
        values = model_data(run, model, weights) | {"tokenizer": tokenizer}
        if model.script:
            values["own"] = scripts.index(model.script)
        data["models"].append(values)
    # Each in a function, so that no name of it is one of another's or of the page, and in an element,
    # so that the page can say that it cannot be read.
    own = [
        f"OWN[{n}] = MODELS => {{\n{script}\nreturn MODELS; }};" for n, script in enumerate(scripts)
    ]
    code = "\n</script>\n<script>\n".join([CODE.read_text(encoding="utf-8"), *own])
    files.write(out, fill_page(TEMPLATE, data["title"], data, code=code))
    return [f"{model['name']}: {model['about']}: {model['loss']}" for model in data["models"]]


def checked_tokenizer(run: Run, prompt: str) -> dict[str, Any]:
    """Returns the tokenizer of a run in the form of a page.

    Raises UserError if there is none, or if the prompt has characters that the vocabulary lacks.
    """
    try:
        run.tokenizer.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt={prompt}: {error}") from None
    try:
        return run.tokenizer.in_page()
    except UserError as error:
        raise UserError(f"run={run.path}: {error}") from None


def before_training(run: Run) -> Run:
    """Returns a run with the weights with which it began. Raises UserError if there are none."""
    if run.is_foreign or run.config.run.init_from:
        source = run.config.run.init_from or run.path
        raise UserError(
            f"before=true: {run.path} began with the weights of {source}; a page of both has "
            f"run={source},{run.path}"
        )
    if not learns_in_steps(run.model):
        raise UserError(
            f"before=true: model={run.config.choices['model']} is trained by counting, and has no "
            "weights before it"
        )
    with random_numbers_kept():
        seed_everything(run.config.run.seed, verbose=False)
        model = build_model(run.config.model, run.tokenizer.vocab_size)
    return replace(run, model=model.eval(), step=0)


def learns_in_steps(model: LanguageModel) -> bool:
    """Returns whether gradients change any of a model's weights."""
    return any(weight.requires_grad for weight in model.parameters())


def checked_model(run: Run) -> PageModel:
    """Returns the model of a run in the form of a page. Raises UserError."""
    about = f"run={run.path}: model={run.config.choices['model']}"
    try:
        model = run.model.in_page(run.tokenizer.vocab_size)
    except UserError as error:
        raise UserError(f"{about}: {error}") from None
    fault = fault_of(model)
    if fault:
        raise UserError(f"{about}: what {type(run.model).__name__}.in_page returns {fault}")
    return model


def fault_of(model: Any) -> str:
    """Returns why a page cannot hold what `in_page` of a model has returned, or ""."""
    if not isinstance(model, PageModel):  # of somebody's own
        return f"is {type(model).__name__}; it needs to be lmlab.PageModel"
    if not isinstance(model.kind, str) or not isinstance(model.script, str):
        return "has a kind or a script that is no text"
    mark = re.search(r"<(!--|/?script)", model.script, re.IGNORECASE)
    if mark:
        return f"has a script with {mark[0]} in it, which HTML would take for its own"
    if model.kind not in KINDS and f"MODELS.{model.kind} =" not in model.script:
        return (
            f"has kind={model.kind}; it needs a script with MODELS.{model.kind} = class …, or one of "
            f"{', '.join(KINDS)}"
        )
    try:
        json.dumps(model.sizes, allow_nan=False)
        names = {*model.arrays}
    except (TypeError, ValueError, RecursionError) as error:
        return f"has sizes or arrays that are no plain values ({reason_of(error)})"
    for name in names:
        if not isinstance(name, str) or not is_plain(model.arrays[name]):
            return (
                f"has arrays[{name!r}] of another kind; it needs a dense tensor of real, finite numbers, "
                "and at least one"
            )
    return ""


def is_plain(array: Any) -> bool:
    """Returns whether an array is a dense tensor of finite numbers that fit into a page."""
    if not isinstance(array, Tensor) or array.layout != torch.strided:  # of somebody's own
        return False
    if array.is_meta or array.is_complex() or array.numel() == 0:
        return False
    if array.is_floating_point():
        return bool(array.isfinite().all()) and bool(array.abs().max() <= HIGHEST)
    limits = torch.iinfo(torch.int32)
    return limits.min <= int(array.min()) and int(array.max()) <= limits.max


def check_size(run: Run, model: PageModel, weights: Weights) -> None:
    """Raises UserError if a page would be larger than browsers take."""
    size = size_in_page(model, weights)
    if size > LARGEST:
        smaller = size_in_page(model, "int8")
        hint = f", weights=int8 makes {smaller:,}" if smaller < size else ""
        raise UserError(
            f"run={run.path}: its weights would make a page of {size:,} bytes; allowed are "
            f"{LARGEST:,}{hint}"
        )


def size_in_page(model: PageModel, weights: Weights) -> int:
    """Returns the bytes of all arrays as text: four letters for three bytes."""
    sizes = [
        array.numel() * np.dtype(type_of(array, weights)).itemsize
        for array in model.arrays.values()
    ]
    return sum(sizes) * 4 // 3


def model_data(run: Run, model: PageModel, weights: Weights) -> dict[str, Any]:
    """Returns all that the page needs of a run. Raises UserError."""
    about = [run.config.choices["model"], run.model.size()]
    name = f"{run.config.run.name} / {run.path.name}"
    if run.step == 0 and learns_in_steps(run.model) and not run.is_foreign:
        about.append("before training")
        name += ", before training"
    return {
        "name": name,
        "about": ", ".join(about),
        "loss": losses(run, weights),
        "unit": run.tokenizer.unit,
        "start": run.tokenizer.encode(run.tokenizer.default_prompt()),
        "block_size": run.config.model.block_size,
        "kind": model.kind,
        "sizes": model.sizes,
        "arrays": {name: packed(array, weights) for name, array in model.arrays.items()},
    }


def losses(run: Run, weights: Weights) -> str:
    """Returns the loss of the rounded model beside that of the original, as a sentence."""
    if run.is_foreign:
        return "the text that it was trained on is not known, and so neither is its loss here"
    try:
        text = own_text(run)
    except UserError as error:
        return f"its loss here is not known: {error}"
    tokens = text.val[:JUDGED]
    documents = text.documents.get("val")
    if documents is not None and len(tokens) > 1:
        documents = documents.within(0, len(tokens))
    if len(tokens) < 2 or (documents is not None and not documents.scores_something()):
        return (
            "its loss here is not known, since the run has no validation text with something scored"
        )
    original = measured(run, run.model, tokens, documents)
    here = original
    if learns_in_steps(run.model):  # what has counted is not rounded
        here = measured(run, rounded(run.model, weights), tokens, documents)
    part = "its" if len(tokens) == len(text.val) else "the beginning of its"
    length = extent(tokens, run.tokenizer.unit, documents)
    return (
        f"loss here {here['val/loss']:z.4f} ({here['val/bits_per_byte']:z.3f} bits a byte), of the "
        f"original {original['val/loss']:z.4f} ({length}, {part} validation text)"
    )


def measured(
    run: Run, model: LanguageModel, tokens: np.ndarray, documents: Documents | None
) -> dict[str, float]:
    """Returns the losses of a model on tokens of a run's validation text."""
    within = aligned(documents, run.config.run.align)
    probs = log_probs(model, tokens, run.config.model.block_size, documents=within)
    return loss_metrics(probs, tokens, run.tokenizer, "val", documents)


def rounded(model: LanguageModel, weights: Weights) -> LanguageModel:
    """Returns a copy of a model that has the weights of a page."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.copy_(unpacked(weight, weights))
    return model


def unpacked(weight: Tensor, weights: Weights) -> Tensor:
    """Returns a weight as a page has it: whole numbers times the scale of their row."""
    if weight.dim() < 2:
        return weight
    scales = scales_of(weight, weights)
    return (weight / scales).round() * scales


def scales_of(weight: Tensor, weights: Weights) -> Tensor:
    """Returns what a step of the whole numbers in each row of a weight stands for, (…, 1)."""
    largest = weight.abs().amax(-1, keepdim=True) / torch.iinfo(TYPES[weights]).max
    return largest.clamp_min(torch.finfo(torch.float32).tiny)


def type_of(array: Tensor, weights: Weights) -> str:
    """Returns the type of an array's numbers in a page. Vectors stay in float32."""
    if array.is_floating_point():
        return weights if array.dim() > 1 else "float32"
    smallest = np.min_scalar_type(int(array.max())).name if int(array.min()) >= 0 else ""
    return smallest if smallest in ("uint8", "uint16") else "int32"


def packed(array: Tensor, weights: Weights) -> dict[str, Any]:
    """Returns the numbers of an array in base64, with their type, and the scale of each row."""
    array = array.detach().cpu()
    kind = type_of(array, weights)
    if kind != weights:
        return {"type": kind, "data": in_base64(array.numpy().astype(kind))}
    array = array.float()
    scales = scales_of(array, weights)
    return {
        "type": kind,
        "data": in_base64((array / scales).round().to(TYPES[weights]).numpy()),
        "scales": in_base64(scales.flatten().numpy()),
    }


def in_base64(numbers: np.ndarray) -> str:
    """Returns the bytes of an array, little-endian, as letters."""
    swapped = numbers.astype(numbers.dtype.newbyteorder("<"))
    return base64.b64encode(swapped.tobytes()).decode()
