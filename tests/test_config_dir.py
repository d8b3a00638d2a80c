"""Recipes and presets from a folder of one's own, a place for the runs, completion in a shell."""

import os
import shutil
import subprocess
import sys

import optuna
import pytest

from lmlab.commands import sample
from lmlab.commands import train as cli
from lmlab.config.keys import choices_of
from lmlab.sweeps import load_runs
from tests.conftest import ROOT, config, metrics, refused

FILES = {
    "experiment/e": "defaults:\n  - override /model: my_preset\n  - override /data: sentence\n\n"
    "max_steps: 2\nval_fraction: 0.2\nthreads: 1\n",
    "model/my_preset": "defaults: [gpt_nano, _self_]\n\nn_embd: 8\n",
}


@pytest.fixture
def mine(here):
    """A folder with a recipe and a preset."""
    for name, text in FILES.items():
        path = here / f"mine/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n# Of my own.\n{text}")
    return here / "mine"


def test_a_recipe_and_a_preset_of_ones_own_in_a_place_of_ones_own(mine, train, capsys):
    run = train("--config-dir=mine experiment=e 'out=other disk'")
    assert run.parent == mine.parent / "other disk/my_preset"
    assert (config(run)["n_embd"], config(run)["model_base"]) == (8, "gpt")
    said = capsys.readouterr().out
    assert "tensorboard --logdir 'other disk'" in said
    assert "my_preset" not in choices_of("model")
    sample.main([f"run={run}", "max_tokens=5"])
    cli.main([f"resume={run}", "max_steps=4"])
    assert metrics(run)["step"] == 4
    cli.main(["--config-dir", "mine", "--help"])
    page = capsys.readouterr().out
    assert (
        "  my_preset               Of my own.\n" in page and "  e                       Of" in page
    )


def test_so_do_the_cells_of_a_sweep_and_the_trials_of_a_search(mine, train):
    line = "--config-dir mine -m experiment=e out=disk "
    cells = train(line + "seed=0,1 name=s")
    assert len(cells) == 2 and {*load_runs("disk/sweeps/s")["model"]} == {"my_preset"}
    train(line + "hydra/sweeper=search lr=interval(1,2) hydra.sweeper.n_trials=1 name=q")
    (trial,) = optuna.load_study(study_name="q", storage="sqlite:///disk/sweeps/q/study.db").trials
    assert trial.state.name == "COMPLETE" and not (mine.parent / "outputs").exists()


WRONG = {
    "--config-dir=missing": ["--config-dir=missing", "is no folder"],
    "--config-dir=empty": ["--config-dir=empty", "has none of the folders model, data"],
    "--config-dir=mine experiment=f": ["experiment=f", "allowed are", " e,"],
    "out=": ["out=: is empty"],
    "-m out=a,b seed=0,1": ["out=a,b", "seed=0,1"],
    "hydra.run.dir=x": ["hydra.run.dir=x", "out="],
    "-m hydra.sweep.dir=x seed=0,1": ["hydra.sweep.dir=x", "out="],
}


@pytest.mark.parametrize("line", WRONG)
def test_what_adds_nothing_is_refused(mine, capsys, line):
    (mine.parent / "empty").mkdir()
    if "a,b" in line:  # a folder may have a comma in its name
        cli.main(
            [*line.split(), "dry_run=true", "model=bigram", "data=sentence", "val_fraction=0.2"]
        )
        assert "a,b/sweeps/seed" in capsys.readouterr().out
        return
    refused(capsys, lambda: cli.main(line.split()), WRONG[line])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.yaml", ["config.yaml", "is not read", "experiment"]),
        ("model/gpt.yaml", ["model/gpt.yaml", "the lab has a file of this name"]),
    ],
)
def test_a_file_that_would_not_be_read_is_named(mine, capsys, name, words):
    (mine / name).write_text("# @package _global_\n")
    refused(capsys, lambda: cli.main(["--config-dir=mine"]), words)


def test_a_fault_in_a_file_is_named_with_its_place(mine, capsys):
    with open(mine / "experiment/e.yaml", "a") as file:
        file.write("max_steps: 3\n")
    line = ["--config-dir=mine", "experiment=e"]
    refused(capsys, lambda: cli.main(line), ["mine/experiment/e.yaml: line 10: max_steps", "twice"])


@pytest.mark.skipif(not shutil.which("bash"), reason="completes in bash")
def test_bash_completes_keys_and_choices():
    script = subprocess.run(
        [sys.executable, ROOT / "train.py", "-sc", "install=bash"], capture_output=True, text=True
    )
    assert script.returncode == 0 and "hydra_bash_completion" in script.stdout
    for typed, found in (("model=gpt_n", "model=gpt_nano"), ("eval_int", "eval_interval=")):
        line = f"python {ROOT}/train.py {typed}"
        done = subprocess.run(
            [sys.executable, ROOT / "train.py", "-sc", "query=bash"],
            env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [found]
