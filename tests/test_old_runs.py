"""What was made before goes on working: the runs in tests/old_runs were made by commit 2ce391d.

Each is copied and used through the command line, as somebody would who has updated the lab. What that commit
answered stands in tests/old_runs/expected.json; numbers may differ by what another machine's instructions do.
A test that fails here tells that old runs are lost to their owners: mend the code, and leave the runs as they are.
"""

import json
import runpy
import shlex
import shutil
import sys

import optuna
import pytest
import torch

from tests.conftest import ROOT, content, history, metrics

OLD = ROOT / "tests/old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())
FINISHED = EXPECTED["runs"]
REPLAYED = ["ngram", "lstm", "modern"]  # by counting, by AdamW, by Muon


@pytest.fixture
def outputs(here):
    """The folder holds copies of all old runs, where the commands look for them."""
    return shutil.copytree(OLD, here / "outputs", ignore=shutil.ignore_patterns("expected.json"))


@pytest.fixture
def command(here, capsys, monkeypatch):
    """It runs a line after `python` in this process and returns exit status, stdout and stderr."""
    torch.set_num_threads(1)  # for steps so small a second one is only waited for

    def command(line):
        name, *arguments = shlex.split(line)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def run_of(outputs, name):
    """An old run's folder is the only one below its name."""
    (run,) = (path.parent for path in (outputs / name).glob("*/config.yaml"))
    return run


def cells(sweep):
    """Its cells' losses go by their folders' names."""
    return {
        path.parent.name: metrics(path.parent).get("val/loss")
        for path in sweep.glob("*/metrics.json")
    }


def trials(sweep):
    """The trials that a search's database knows are told by number, state, parameters and value."""
    study = optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{sweep}/study.db")
    return [(trial.number, trial.state.name, trial.params, trial.value) for trial in study.trials]


def losses(run):
    """Both losses of a run go by their names and steps."""
    return {
        (key, step): loss
        for key in ("train/loss", "val/loss")
        for step, loss in history(run, key).items()
    }


def close(expected):
    """Numbers that another machine may give too are equal to these."""
    return pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", FINISHED)
def test_an_old_run_writes_the_texts_that_it_wrote(outputs, command, name):
    line = f"scripts/sample.py run={run_of(outputs, name)} seed=0 max_tokens=60"
    status, text, _ = command(line)
    assert (status, text) == (0, FINISHED[name]["text"])
    status, texts, _ = command(f"{line} samples=2 temperature=0.5 top_k=5")
    assert (status, texts) == (0, FINISHED[name]["two_texts"])


@pytest.mark.parametrize("name", FINISHED)
def test_an_old_run_is_evaluated_to_the_loss_that_it_had(outputs, command, name):
    run = run_of(outputs, name)
    status, said, _ = command(f"scripts/evaluate.py run={run}")
    loss = float(dict(line.split() for line in said.splitlines())["val/loss"])
    assert status == 0
    assert loss == close(FINISHED[name]["val/loss"])
    assert metrics(run)["val/loss"] == close(loss)


@pytest.mark.parametrize("name", FINISHED)
def test_an_old_run_that_is_finished_says_so_when_it_is_resumed(outputs, command, name):
    run = run_of(outputs, name)
    before = losses(run), metrics(run)
    status, said, _ = command(f"train.py resume={run}")
    assert status == 0 and "finished already" in said
    assert (losses(run), metrics(run)) == before


def test_an_old_run_that_is_finished_can_be_made_longer(outputs, command):
    run = run_of(outputs, "mlp")
    before = losses(run)
    assert command(f"train.py resume={run} max_steps=80")[0] == 0
    assert metrics(run)["status"] == "finished" and metrics(run)["step"] == 80
    assert losses(run).items() > before.items()


@pytest.mark.parametrize("name", REPLAYED)
def test_an_old_run_is_replayed_with_the_losses_that_it_had(outputs, command, name):
    run = run_of(outputs, name)
    status, said, _ = command(f"train.py replay={run}")
    (new,) = (path.parent for path in run.parent.glob("*/config.yaml") if path.parent != run)
    assert losses(new) == close(losses(run))
    same = "are the same to the bit" in said
    assert status == (0 if same else 1) and (same or "the first difference is at step" in said)


def test_an_old_run_that_was_killed_goes_on_to_the_end_that_it_would_have_had(outputs, command):
    run = run_of(outputs, "killed")
    assert metrics(run)["status"] == "running"
    noted = losses(run)
    assert max(step for _, step in noted) == 35  # of which what follows step 20 is made anew
    status, said, _ = command(f"train.py resume={run}")
    assert status == 0 and "continues at step 20 of 60" in said
    ended = metrics(run)
    assert (ended["status"], ended["step"]) == ("finished", 60)
    assert {key: ended[key] for key in EXPECTED["killed"]} == close(EXPECTED["killed"])
    steps = list(history(run, "train/loss"))
    assert steps == sorted(set(steps)) == list(range(5, 61, 5))
    assert {point: losses(run)[point] for point in noted} == close(noted)


def test_the_command_of_an_old_half_done_sweep_does_the_rest_under_the_same_names(outputs, command):
    sweep, expected = outputs / "sweeps/grid", EXPECTED["grid"]
    there = {path.parent.name for path in sweep.glob("*/config.yaml")}
    finished = {name for name in there if metrics(sweep / name)["status"] == "finished"}
    assert (len(finished), len(there), len(expected["cells"])) == (2, 3, 4)
    before = {name: content(sweep / name) for name in finished}
    status, said, _ = command(expected["command"])
    assert status == 0 and "4 cells, 2 of them done already" in said
    assert cells(sweep) == close(expected["cells"])
    assert {metrics(sweep / name)["status"] for name in expected["cells"]} == {"finished"}
    assert {name: content(sweep / name) for name in finished} == before
    (halfway,) = there - finished
    assert "continues at step 100 of 300" in (sweep / halfway / "train.log").read_text()


def test_the_command_of_an_old_finished_search_finds_its_trials_done(outputs, command):
    sweep, expected = outputs / "sweeps/search", EXPECTED["search"]
    before, known = {name: content(sweep / name) for name in expected["cells"]}, trials(sweep)
    assert [state for _, state, *_ in known] == ["COMPLETE"] * 3
    status, said, _ = command(expected["command"])
    assert status == 0 and trials(sweep) == known
    there = {path.parent.name for path in sweep.glob("*/config.yaml")}
    assert {name: content(sweep / name) for name in there} == before
    assert cells(sweep) == expected["cells"]
    for loss in expected["cells"].values():  # the leaderboard has each
        assert f" {loss:.4f} " in said
    more = expected["command"].replace("n_trials=3", "n_trials=4")
    assert command(more)[0] == 0
    assert len(cells(sweep)) == 4 and cells(sweep).items() > expected["cells"].items()
    assert len(trials(sweep)) == 4 and trials(sweep)[:3] == known


def test_old_runs_are_compared_in_one_table(outputs, command):
    status, said, _ = command("scripts/compare.py outputs")
    assert status == 0
    assert said.strip() and "left out" not in said
    table = (outputs / "leaderboard.md").read_text()  # the terminal's may be folded
    for run in FINISHED.values():
        assert f"| {run['val/loss']:.4f} |" in table
    assert table.count(": interrupted") == 2
    assert {"leaderboard.csv", "report.html"} <= {path.name for path in outputs.iterdir()}
