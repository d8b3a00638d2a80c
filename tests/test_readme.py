"""Every command of the README runs, and the files that the pages name are there."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lmlab.commands import board, options
from lmlab.commands import train as cli
from lmlab.commands.options import help_page
from lmlab.config.overrides import resolved
from lmlab.runs.folder import write_config
from tests.conftest import ROOT, script, working_in

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
    if line.strip()
]


def test_there_are_commands():
    assert {"make train", "make test", "python train.py model=gpt n_layer=4"} <= set(COMMANDS)


PYTHON = [
    block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
]


@pytest.mark.parametrize("code", [block for block in PYTHON if block.startswith("import lmlab\n")])
def test_the_python_of_a_page_runs(here, short_texts, code):
    code = re.sub(r"max_steps=(\d)00", r"max_steps=\1", code)
    code = re.sub(r"(\[0, 1\])", r"\1, verbose=False, data='sentence', val_fraction=0.2", code)
    exec(compile(code, "page", "exec"), {})
    assert (here / "curves.png").exists()


@pytest.fixture(scope="module")
def folder(short_texts, tmp_path_factory):
    """A folder in which several runs were trained."""
    with working_in(tmp_path_factory.mktemp("readme")) as folder:
        shutil.copytree(ROOT / "examples", folder / "examples")
        for name in ("experiment/e.yaml", "model/mine.yaml"):
            path = folder / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ("# @package _global_", "# Mine.", "defaults: [gpt_nano]", "n_layer: 1")
            path.write_text("\n".join([*lines[:2], *lines[2:] * ("model" in name)]))
        (folder / "texts").mkdir()
        for name in "ab":
            (folder / f"texts/{name}.txt").write_text("A text of its own, long enough. " * 50)
        (folder / "my.txt").write_text("The text of somebody else, long enough. " * 50)
        for line in ("model=bigram", "model=gpt_nano name=gpt", "model=gpt_nano name=pydoc"):
            cli.main(f"{line} max_steps=1 threads=1".split())
        for name in ("depth", "depths", "found", "ladder", "transfer"):
            shutil.copytree(folder / "outputs/gpt", folder / "outputs/sweeps" / name)
        line = (
            "-m data=recall n_examples=60 model=bigram block_size=64 val_fraction=0.3 max_steps=1"
        )
        cli.main(f"{line} name=recall hydra/launcher=basic".split())
        copy_rates(folder)
        copy_scaling(folder)
        yield folder


def copy_rates(folder):
    """Makes the sweep `rates` of copies of a run that differ in their configurations alone."""
    (run,) = (folder / "outputs/gpt").iterdir()
    axes = ("adamw", "muon"), (16, 32), (0.001, 0.01), (0, 1)
    for optimizer, n_embd, lr, seed in itertools.product(*axes):
        keys = f"optimizer={optimizer} n_embd={n_embd} lr={lr} seed={seed} name=rates"
        copy = folder / "outputs/sweeps/rates" / keys.replace(" ", ",")
        shutil.copytree(run, copy)
        config, _ = resolved(("model=gpt_nano", "device=cpu", *keys.split()))
        write_config(copy, config.as_saved())


def copy_scaling(folder):
    """Makes the sweep `scaling` of copies of a run, whose losses follow a law."""
    (run,) = (folder / "outputs/gpt").iterdir()
    for n_embd, steps, seed in itertools.product((16, 24, 32), (10, 20, 40), (0, 1)):
        keys = f"n_embd={n_embd} max_steps={steps} seed={seed} name=scaling warmup_steps=1"
        copy = folder / "outputs/sweeps/scaling" / keys.replace(" ", ",")
        shutil.copytree(run, copy)
        config, _ = resolved(("model=gpt_nano", "device=cpu", *keys.split()))
        write_config(copy, config.as_saved())
        numbers = json.loads((copy / "metrics.json").read_text())
        N, D = n_embd**2, 1000 * steps
        numbers |= {"n_params": N, "tokens": D, "step": steps, "flops": 6 * N * D}
        numbers["val/loss"] = 1 + N**-0.3 + D**-0.3 + 0.001 * seed
        (copy / "metrics.json").write_text(json.dumps(numbers))


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_a_command_of_the_readme_runs(folder, capsys, command):
    run = next((folder / "outputs/gpt").iterdir())
    command = re.sub(
        r"outputs/gpt/[\d_-]+", str(run), re.sub(r"max_steps=\d+", "max_steps=2", command)
    )
    command = re.sub(r"hold_steps=\d+", "hold_steps=0", command)
    program, *arguments = shlex.split(command)
    if program in ("torchrun", "srun") or "hydra/launcher=slurm" in command:  # tests/test_ranks.py
        return
    if program in ("make", "tensorboard", "."):
        verbs = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert program != "make" or arguments[0] in verbs
        return
    if program == "cp":
        shutil.copy(ROOT / arguments[0], arguments[1])
        return
    assert program == "python"
    if arguments[0].startswith("examples/exercises/"):  # tests/test_exercises.py runs it
        assert (ROOT / arguments[0]).exists()
        return
    if arguments[0] == "train.py":
        as_it_is = any(word in command for word in ("--help", "replay=", "resume="))
        small = [] if "model=" in command or "experiment=" in command else ["model=gpt_nano"]
        if "-m" in arguments:  # a few small cells
            small = ["data=sentence", "val_fraction=0.2"]
            small += ["model=gpt_nano"] * ("-m model=bigram" not in command)
            small += ["hydra.sweeper.n_trials=2"] if "search" in command else []
            arguments = [
                re.sub("seed=0,1,2.*", "seed=0,1", a) for a in arguments if a != "model=gpt"
            ]
        if "experiment=gpt2_small" in command:
            small = ["n_layer=1", "n_head=2", "n_embd=24", "block_size=32", "vocab_size=260"]
            small += ["data=sentence", "val_fraction=0.2"]
        if "name=pairs" in command:  # tests/test_ranks.py runs such
            small += ["dry_run=true"]
        if "model=gpt2" in command:  # not its 86 million parameters
            small = ["n_layer=1", "n_head=2", "n_embd=24", "block_size=32"]
        if (
            "-m tokenizer=" in command or "name=rates" in command
        ):  # planned, not run: other tests run such
            small = ["dry_run=true"]
        if "ladder" in command:  # all recipes of the ladder are run by tests/test_recipes.py
            small = ["data=sentence", "val_fraction=0.2", "hold_steps=0", "dry_run=true"]
        if "name=depths" in command:
            small = ["data=sentence", "val_fraction=0.2", "dry_run=true"]
        if "sweep=transfer" in command:
            small = ["data=sentence", "val_fraction=0.2", "n_embd=16", "lr=1e-3", "dry_run=true"]
        steps = ["max_steps=2"] * ("ngram" not in command)
        if "sweep=scaling" in command:  # each line has its own number of steps
            small, steps = ["data=sentence", "val_fraction=0.2", "dry_run=true"], []
        if "sweep=recall" in command:
            small, steps = ["n_examples=500", "dry_run=true"], []
        if "experiment=scaling" in command:
            small = ["dry_run=true", "data=sentence", "val_fraction=0.2"]
        if "data=copy" in command:
            small = ["n_examples=500"]
        if "experiment=recall" in command:
            small = ["hold_steps=0", "n_examples=500"]
        cli.main(arguments[1:] if as_it_is else [*arguments[1:], *small, *steps, "threads=1"])
        return
    if arguments[0] == "scripts/board.py":  # it does not end; see tests/test_board.py
        options.parse_script(board.Options, board.__doc__, arguments[1:])
        return
    name = arguments[0].removeprefix("scripts/").removesuffix(".py")
    module = script(name)
    if name == "tiny_lm":
        module.train(steps=2)
    elif name == "tiny_bpe":
        print(module.train("low lower lowest", 260)[-1])
    elif name == "nanogpt_mini":
        module.train(module.GPT(9), lambda _: torch_ids(), 2)
    elif name == "coordinates" and "--help" not in arguments:
        module.main([*arguments[1:], "data=sentence", "widths=16,32", "steps=1", "seeds=0"])
    elif "--help" in arguments:
        with pytest.raises(SystemExit):
            module.main(arguments[1:])
    else:
        module.main(arguments[1:])
    assert capsys.readouterr().out


def torch_ids():
    import torch

    return torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)


def test_the_page_of_keys_is_what_help_prints():
    """To bring it up to date: the text of python train.py --help, between the marks."""
    page = (ROOT / "docs/keys.md").read_text()
    assert page.split("```text\n")[1].split("```")[0].rstrip() == help_page().rstrip()


def test_the_map_of_the_house_names_every_file():
    house = (ROOT / "docs/house.md").read_text()
    for path in (ROOT / "lmlab").rglob("*.py"):
        assert path.name == "__init__.py" or re.search(rf"\b{path.name}\b", house), path


EXAMPLES = {"rnn", "gpt_tiny", "lion", "recipes", "count", "name"}  # what a reader might add


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "LEARN.md"], ids=str)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    names = re.findall(r"`((?:lmlab|scripts|conf|tests|docs|examples)/[\w/.]+)`", text)
    missing = {name for name in names if not (ROOT / name).exists()}
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing |= {link for link in links if not (page.parent / link).exists()}
    assert {name for name in missing if Path(name).stem not in EXAMPLES} == set()
