"""Writes a trained model as a folder that Hugging Face's library transformers can load.

  python scripts/export.py run=outputs/gpt/2026-11-22_10-00-00 out=my-model
  python scripts/export.py sweep=outputs/sweeps/depth out=depth.zip

run         the folder of a run, or a folder of runs, whose newest run is used (outputs)
out         the folder to write, which must be new or empty (export); of a sweep an archive, .zip
plugin      the files or modules with which the run was made, as for train.py (null)
checkpoint  best | last (best)
sweep       the folder of a sweep, which is written as one archive instead (null)
checkpoints none | best | last | all: what the archive has of each run beside its numbers (none)

The folder holds config.json, model.safetensors, the tokenizer, and README.md with the run's numbers
and what made it. gpt becomes a GPT2LMHeadModel, modern a NanoChatForCausalLM; of another model the
weights are written under the lab's own names, and a line says what transformers lacks.

The archive of a sweep holds configurations, numbers, histories, logs and tokenizers of all runs,
the leaderboard, the plug-ins that are named here, and README.md, which says how to run it again.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmlab import files
from lmlab.commands import archive
from lmlab.commands.options import parse_script
from lmlab.commands.own_choices import with_own_choices
from lmlab.errors import UserError, system_error
from lmlab.markers import PathText
from lmlab.registry import importing

if TYPE_CHECKING:
    from lmlab.models.hugging_face import Foreign
    from lmlab.runs.checkpoints import Run

NEEDED = "a new or empty folder"
NUMBERS = ("val/loss", "val/perplexity", "val/bits_per_byte", "test/loss")
MADE_BY = (
    *("command", "lmlab", "git_commit", "git_dirty", "torch", "machine", "data_sha256"),
    *("code_sha256", "plugin_sha256"),
)


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    run: PathText = "outputs"
    out: PathText = "export"
    plugin: PathText | None = None
    checkpoint: Literal["best", "last"] | None = None
    sweep: PathText | None = None
    checkpoints: Literal["none", "best", "last", "all"] = "none"


@with_own_choices
def main(argv: list[str]) -> None:
    """Writes the folder and prints its name. Raises UserError."""
    options: Options = parse_script(Options, __doc__, argv)
    check_together(options, {argument.partition("=")[0] for argument in argv})
    if options.sweep is not None:
        archive.write(Path(options.sweep), Path(options.out), options.checkpoints)
        return
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise archive.taken(out, NEEDED)
    with importing():  # torch: after the arguments hold
        from lmlab.runs import checkpoints

    run = checkpoints.load(Path(options.run), options.checkpoint, "cpu")
    notes = []
    try:
        model = run.model.in_transformers(run.tokenizer.vocab_size)
    except UserError as error:
        model = as_it_is(run)
        notes.append(f"model={run.config.choices['model']}: {error}; its own names were written")
    content = contents(run, model)
    if run.tokenizer.in_hugging_face() is None:
        name = run.config.choices["tokenizer"]
        notes.append(f"tokenizer={name}: Hugging Face has no such form; its own was written")
    write_folder(out, content)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print(out)


def check_together(options: Options, typed: set[str]) -> None:
    """Raises UserError for an option that would have no effect."""
    if options.sweep is None and "checkpoints" in typed:
        raise UserError(f"checkpoints={options.checkpoints}: needs sweep=, whose archive has them")
    if options.sweep is None:
        return
    for name in ("run", "checkpoint"):
        if name in typed:
            value = getattr(options, name)
            raise UserError(f"{name}={value}: has no effect with sweep=, which takes all its runs")
    if "out" not in typed or Path(options.out).suffix.lower() != ".zip":
        raise UserError(
            f"out={options.out}: needs the name of an archive, such as "
            f"{Path(options.sweep).name}.zip"
        )


def as_it_is(run: Run) -> Foreign:
    """Returns a model with the lab's own names of keys and weights."""
    from lmlab.models.hugging_face import Foreign

    keys = {"model_type": f"lmlab-{run.config.base('model')}", **vars(run.config.model)}
    keys["vocab_size"] = run.tokenizer.vocab_size
    weights = {}
    seen = set()
    for name, weight in run.model.state_dict().items():
        if weight.data_ptr() not in seen or weight.numel() == 0:  # a tied matrix is written once
            weights[name] = weight
        seen.add(weight.data_ptr())
    return Foreign(keys, weights)


def contents(run: Run, model: Foreign) -> dict[str, bytes]:
    """Returns the content of each file of the folder."""
    from safetensors.torch import save

    weights = {name: weight.detach().contiguous() for name, weight in model.weights.items()}
    config = model.config | {
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    described = run.tokenizer.in_hugging_face()
    content = {
        "config.json": as_json(config),
        "model.safetensors": save(weights, {"format": "pt"}),
        "README.md": card(run, model.config["model_type"]).encode(errors=files.HALVES),
    }
    if described is None:
        content["lmlab_tokenizer.json"] = run.tokenizer.to_json().encode()
        return content
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.config.model.block_size,
        "clean_up_tokenization_spaces": False,
    }
    return content | {"tokenizer.json": as_json(described), "tokenizer_config.json": as_json(about)}


def as_json(values: dict[str, Any]) -> bytes:
    """Returns values as the text of a JSON file."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(errors=files.HALVES)


def card(run: Run, model_type: str) -> str:
    """Returns the model card: what the model is, how to load it, its numbers, what made it."""
    from lmlab.runs.folder import read_metrics, to_yaml
    from lmlab.runs.measured import numbers_of, shown

    noted = {} if run.is_foreign else read_metrics(run.path)
    measured = numbers_of(run)
    numbers = {
        name: shown(measured[name], measured, ".6g")
        for name in NUMBERS
        if measured.get(name) is not None
    }
    if "n_params" in noted:
        numbers |= {"n_params": str(noted["n_params"]), "step": str(run.step)}
    keys = run.config.flat()
    origin = f"trained with lmlab on data={keys['data']}"
    if run.is_foreign:  # its other keys stand for what is not known
        keys = {"model": keys["model"], **vars(run.config.model)}
        origin = (
            "read from a folder of Hugging Face's form that does not say what it was trained on"
        )
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [lmlab]",
        "---",
        "",
        f"# {run.config.run.name}",
        "",
        f"A language model with {run.model.size()} and {run.tokenizer.vocab_size:,} "
        f"{run.tokenizer.unit}s, {origin}.",
        "",
    ]
    if not model_type.startswith("lmlab-"):
        lines += [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("this folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this folder")',
            "```",
            "",
        ]
    lines += ["| measured | |", "|---|---|"]
    lines += [f"| {name} | {in_cell(text)} |" for name, text in numbers.items()]
    lines += ["", "| made by | |", "|---|---|"]
    lines += [f"| {name} | {in_cell(value)} |" for name, value in made_by(noted)]
    lines += ["", "Its keys:", "", "```yaml"]
    return "\n".join([*lines, f"{to_yaml(keys)}```", ""])


def made_by(noted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what made a run, and what has resumed it where that differs, as rows of the card."""
    for name in MADE_BY:
        if noted.get(name) is not None:
            yield name, noted[name]
    for name in MADE_BY:
        value = noted.get(f"resumed/{name}")
        if value is not None and value != noted.get(name):
            yield f"{name} (resumed)", value


def in_cell(value: object) -> str:
    """Returns a value as the text of a cell of a table."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", r"\|").split())


def write_folder(out: Path, content: dict[str, bytes]) -> None:
    """Writes all files of a folder, or none. Where `out` is a link, its target becomes the folder.

    A folder that is there, such as a mounted disk, stays the one that it is. Raises UserError.
    """
    folder = out.resolve()
    is_there = folder.exists()
    temporary = files.temporary_name(folder / "export" if is_there else folder)
    try:
        for name, bytes_ in content.items():
            files.write(temporary / name, bytes_)
        if is_there:
            for path in sorted(temporary.iterdir()):
                files.place(path, folder / path.name)
        else:
            temporary.replace(folder)
    except FileExistsError:
        raise archive.taken(out, NEEDED) from None
    except UserError as error:  # it names the file as it is called for the time being
        raise UserError(f"out={out}: {str(error).replace(str(temporary), str(out))}") from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # another command has made the folder meanwhile
            raise archive.taken(out, NEEDED) from None
        raise UserError(f"out={out}: {system_error(error, out)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
