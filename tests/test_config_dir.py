"""Recipes and presets from a folder of one's own, a place for the runs, completion in a shell."""

import os
import shutil
import subprocess
import sys

import optuna
import pytest

from lmlab.commands import sample
from lmlab.commands import train as cli
from lmlab.config import composition
from lmlab.config.keys import choices_of
from lmlab.errors import UserError
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


def test_runs_may_be_made_in_the_folder_itself(mine, train, monkeypatch, capsys):
    monkeypatch.chdir(mine)
    line = "--config-dir=. experiment=e"
    for more in ("", "", " -m seed=0,1 hydra/launcher=basic name=s", ""):
        train(line + more)
    (mine / "outputs/mine.yaml").write_text("a: 1\n")
    refused(capsys, lambda: cli.main(line.split()), ["outputs/mine.yaml: is not read"])


def test_a_recipe_and_a_preset_of_ones_own_in_a_place_of_ones_own(mine, train, capsys):
    run = train("--config-dir=mine experiment=e 'out=other disk'")
    assert run.parent == mine.parent / "other disk/my_preset"
    assert (config(run)["n_embd"], config(run)["model_base"]) == (8, "gpt")
    said = capsys.readouterr().out
    assert "scripts/board.py runs='other disk/" in said
    assert "my_preset" not in choices_of("model")
    sample.main([f"run={run}", "max_tokens=5"])
    cli.main([f"resume={run}", "max_steps=4"])
    assert metrics(run)["step"] == 4
    cli.main(["--config-dir", "mine", "--help"])
    page = capsys.readouterr().out
    assert (
        "  my_preset               Of my own.\n" in page and "  e                       Of" in page
    )


def test_runs_that_were_made_in_the_folder_are_no_files_to_read(mine, train, monkeypatch, capsys):
    monkeypatch.chdir(mine)
    for _ in range(2):  # the second time the first one's config.yaml is there
        cli.main(["--config-dir=.", "experiment=e"])
    assert len([*(mine / "outputs/my_preset").iterdir()]) == 2
    refused(
        capsys, lambda: cli.main(["--config-dir=", "experiment=e"]), ["--config-dir=: is empty"]
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
    "--config-dir=": ["--config-dir=: is empty; needs a folder"],
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
        ("experiment/null.yaml", ["null.yaml: null stands for no choice"]),
    ],
)
def test_a_file_that_would_not_be_read_is_named(mine, capsys, name, words):
    (mine / name).write_text("# @package _global_\n")
    refused(capsys, lambda: cli.main(["--config-dir=mine"]), words)


def test_names_that_read_as_numbers_are_names(mine, capsys):
    """Alone and in a sweep; beside another file they were in its way."""
    for name in ("2024", "1e3"):
        (mine / f"experiment/{name}.yaml").write_text(f"# @package _global_\nseed: {name[0]}\n")
    for name in ("2024", "1e3"):
        cli.main(["--config-dir=mine", f"experiment={name}", "--cfg", "job"])
        assert f"\nseed: {name[0]}\n" in capsys.readouterr().out
    line = "-m --config-dir=mine model=bigram data=sentence val_fraction=0.2 experiment=1e3,2024"
    cli.main([*line.split(), "dry_run=true"])
    assert "2 cells" in capsys.readouterr().out


def test_a_pipe_among_the_files_is_named_and_not_waited_for(mine, capsys):
    os.mkfifo("mine/experiment/pipe.yaml")
    line = ["--config-dir=mine", "experiment=pipe"]
    refused(capsys, lambda: cli.main(line), ["mine/experiment/pipe.yaml: is no plain file"])


def test_a_fault_in_a_file_is_named_with_its_place(mine, capsys):
    with open(mine / "experiment/e.yaml", "a") as file:
        file.write("max_steps: 3\n")
    line = ["--config-dir=mine", "experiment=e"]
    refused(capsys, lambda: cli.main(line), ["mine/experiment/e.yaml: line 10: max_steps", "twice"])


def test_a_plugin_of_hydras_that_fails_is_named(here):
    """Hydra imports them wherever it finds them, such as in a folder of PYTHONPATH."""
    file = here / "hydra_plugins/own.py"
    file.parent.mkdir()
    file.write_text("raise RuntimeError('mine')")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--cfg", "job"],
        env=os.environ | {"PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {file}: this plug-in of Hydra's failed: RuntimeError: mine\n"


def test_a_plugin_of_hydras_puts_no_files_before_those_of_the_lab():
    own, main = {"provider": "mine", "path": "/of/mine"}, {"provider": "main", "path": "conf"}
    hydras = {"provider": "hydra", "path": "pkg://hydra.conf"}
    composition.check_sources([hydras, main, own])
    with pytest.raises(UserError, match=r"\(mine\) puts /of/mine before the lab's own files"):
        composition.check_sources([hydras, own, main])


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


SWEEP = """# Two models.
all: data=sentence val_fraction=0.2 device=cpu max_steps=4 seed=0,1
runs:
- model=bigram lr=0.1,0.2
- model=gpt_nano 'name=n'
"""
WHOLE = SWEEP.replace(" 'name=n'", "")  # without the argument that no line of several may have


@pytest.fixture
def sweep_file(mine):
    """Writes a file of a sweep, by default SWEEP."""

    def write(text=SWEEP, name="two"):
        path = mine / f"sweep/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_a_sweep_from_a_file_has_the_cells_of_its_lines(sweep_file, train, capsys):
    sweep_file(SWEEP.replace(" 'name=n'", ""))
    cells = train("--config-dir=mine -m sweep=two hydra/launcher=basic")
    assert len(cells) == 6 and {cell.parent.name for cell in cells} == {"two"}
    capsys.readouterr()
    common = "data=sentence val_fraction=0.2 device=cpu max_steps=4 seed=0,1 name=two"
    assert train(f"-m model=bigram lr=0.1,0.2 {common}") == []
    assert train(f"-m model=gpt_nano {common}") == []
    assert len(train("--config-dir=mine -m sweep=two seed=2")) == 3  # what is typed wins
    said = capsys.readouterr().out
    assert "4 cells, 4 of them done already" in said and "2 cells, 2 of them" in said
    assert list(load_runs("outputs/sweeps/two")["seed"].value_counts()) == [3, 3, 3]


def test_cells_of_two_lines_are_run_once_and_a_file_may_have_any_name(sweep_file, train, capsys):
    sweep_file(
        "all: data=sentence val_fraction=0.2 device=cpu max_steps=2\n"
        "runs:\n- model=bigram lr=0.1,0.2\n- model=bigram lr=0.2,0.3\n",
        "sub/ünï 1",
    )
    cells = train("--config-dir=mine -m 'sweep=sub/ünï 1' hydra/launcher=basic")
    assert len(cells) == 3 and {cell.parent.name for cell in cells} == {"sub-ünï-1"}
    assert "3 cells" in capsys.readouterr().out


def test_a_search_can_stand_in_a_file_of_one_line(sweep_file, train):
    line = "model=bigram lr=interval(0.1,1) hydra/sweeper=search hydra.sweeper.n_trials=2"
    sweep_file(f"all: data=sentence val_fraction=0.2 max_steps=2\nruns:\n- {line}\n", "found")
    assert len(train("--config-dir=mine -m sweep=found")) == 2


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        ("-m sweep=tow", SWEEP, ["sweep=tow: there is no such file", "did you mean two?"]),
        ("sweep=two", SWEEP, ["sweep=two: is a sweep; add -m"]),
        (
            "-m sweep=",
            SWEEP,
            ["sweep=: there is no such file", "allowed are ladder, ", " two, "],
        ),
        ("-m sweep=two", "- a\n", ["mine/sweep/two.yaml: needs"]),
        ("-m sweep=two", "all: seed=0\n", ["two.yaml: needs"]),
        ("-m sweep=two", "runs:\n- {a: b}\n", ["two.yaml: line 2: needs a line of arguments"]),
        ("-m sweep=two", SWEEP + "all: seed=1\n", ["two.yaml: line 6: all: is there twice"]),
        ("-m sweep=two", "runs:\n- seed=1 seed=2\n", ["line 2: seed=1: seed is there twice"]),
        ("-m sweep=two", "runs:\n-\n", ["two.yaml: line 2: needs a line of arguments"]),
        ("-m sweep=two", "runs:\n- bigram\n", ["two.yaml: line 2: bigram: needs the form"]),
        ("-m sweep=two", "rums:\n- a=b\n", ["two.yaml: line 1: rums: needs"]),
        ("-m sweep=two", "runs:\n- 'x\n", ["two.yaml: line "]),
        ("-m sweep=two", "runs:\n- lr='1\n", ["two.yaml: line 2: No closing quotation"]),
        ("-m sweep=two", "runs:\n- seed=0\n- modl=gpt\n", ["two.yaml: line 3: modl=gpt: there"]),
        (
            "-m sweep=two",
            SWEEP.replace("all: ", "all: hydra/sweeper=search ")
            .replace(" 'name=n'", "")
            .replace("seed=0,1", "seed=0"),
            ["hydra/sweeper=search: a file of several lines has no search"],
        ),
        ("-m sweep=two", SWEEP, ["two.yaml: line 5", "name=n", "all lines"]),
        ("-m sweep=two", "runs:\n- plugin=a.py\n", ["line 2: plugin=a.py", "command line"]),
        (
            "-m sweep=two",
            "all: -m\nruns: [seed=0]\n",
            ["two.yaml: line 1: all: -m", "command line"],
        ),
        # a fault is where its key is: in all, in a line, or in what was typed
        ("-m sweep=two", WHOLE.replace("all:", "all: modl=gpt"), ["line 2: all: modl=gpt: there"]),
        ("-m sweep=two", WHOLE.replace("_steps=4", "_steps=0"), ["line 2: all: max_steps=0: "]),
        ("-m sweep=two", "all: bigram\nruns: [seed=0]\n", ["line 1: all: bigram: needs the form"]),
        ("-m sweep=two", "all: seed=glob(*)\nruns:\n- lr=1\n", ["line 1: all: seed=glob(*): "]),
        ("-m sweep=two", "all: lr=1\nruns:\n- lr=0\n", ["two.yaml: line 3: lr=0: "]),
        ("-m sweep=two", "all: +lr=1\nruns:\n- seed=0\n", ["two.yaml: line 1: all: +lr=1: "]),
        ("-m sweep=two", "all: n_layer=2\nruns:\n- model=mlp\n", ["line 1: all: n_layer=2: "]),
        ("-m sweep=two", "all: seed=0 seed=1\nruns:\n- lr=1\n", ["line 1: all: seed=0: seed"]),
        ("-m sweep=two lr=fast", "runs:\n- seed=0\n", ["error: lr=fast: needs a number"]),
        ("-m sweep=two max_steps=0", WHOLE, ["error: max_steps=0: "]),
        (
            "-m sweep=two",
            SWEEP.replace("name=n", "hydra/launcher=basic"),
            ["two.yaml: line 5", "hydra/launcher=basic", "all lines"],
        ),
    ],
)
def test_a_fault_in_a_file_of_a_sweep_is_named_with_its_line(sweep_file, capsys, line, text, words):
    sweep_file(text)
    refused(capsys, lambda: cli.main(["--config-dir=mine", *line.split()]), words)
