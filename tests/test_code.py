"""Which code made a number is known: edited code makes rows and cells of its own."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.runs import code
from lmlab.runs.code import SameCode, code_of
from lmlab.snapshot import Snapshot
from tests.conftest import ROOT, metrics, script

LINE = (
    "-m model=bigram data=sentence val_fraction=0.2 block_size=8 batch_size=2 threads=1 device=cpu "
    "precision=32-true max_steps=4 eval_interval=2 name=s hydra/launcher=basic "
)
OLD, NEW, THIRD = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def run_by(here, monkeypatch):
    """Runs a sweep as if the lab's files had a certain hash; returns its leaderboard by code."""

    def run_by(sha256, line):
        for name in ("runs.code", "runs.provenance"):
            monkeypatch.setattr(f"lmlab.{name}.code_sha256", lambda: sha256)
        cli.main((LINE + line).split())
        return board(here / "outputs/sweeps/s")

    return run_by


def board(folder):
    with open(folder / "leaderboard.csv") as file:
        return {row.get("code", ""): row["seeds"] for row in csv.DictReader(file)}


def test_the_hash_is_that_of_all_files_and_of_nothing_else(tmp_path):
    def hash_of(folder):
        return code.hash_of_files(Snapshot("lmlab", folder).files, folder)

    copy = shutil.copytree(ROOT / "lmlab", tmp_path / "lmlab")
    original = hash_of(copy)
    assert original == hash_of(ROOT / "lmlab") == code.lab_sha256()
    (copy / "notes.txt").write_text("no code")
    assert hash_of(copy) == original
    seen = {original}
    for path in sorted(copy.rglob("*.py"))[:5]:
        path.write_text(path.read_text() + "\n")
        seen.add(hash_of(copy))
    path.rename(path.with_name("other.py"))
    assert len(seen | {hash_of(copy)}) == 7


EDITED = """
import importlib, sys
from lmlab.runs.code import lab_sha256  # the hash is asked for before or after the edit
import lmlab.files
before = lab_sha256() if {asked_before} else None
path = sys.argv[1] + "/lmlab/notebook.py"
assert "lmlab.notebook" not in sys.modules
with open(path, "a") as file:
    file.write("EDITED = True\\n")
import lmlab.notebook
assert not hasattr(lmlab.notebook, "EDITED")
assert before in (None, lab_sha256())
was = lab_sha256()
importlib.reload(lmlab.notebook)
assert lmlab.notebook.EDITED and lab_sha256() != was
print(was)
"""


def test_a_compiled_file_of_other_code_is_not_used(tmp_path):
    """Python itself would take it, since the time and the size of the file are the same."""
    shutil.copytree(ROOT / "lmlab", tmp_path / "lmlab")
    path = tmp_path / "lmlab/cores.py"
    script = "import lmlab.cores; from lmlab.runs.code import lab_sha256; print(lmlab.cores.N, lab_sha256())"
    variables = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    original, said = path.read_text(), []
    for n in (1, 2, 1):
        path.write_text(f"{original}\nN = {n}\n")
        os.utime(path, (10**9, 10**9))
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
        )
        said.append(done.stdout.split())
    assert [n for n, _ in said] == ["1", "2", "1"]
    assert said[0] == said[2] and said[0][1] != said[1][1]
    assert [*(tmp_path / "lmlab/__pycache__").glob("cores.*.pyc")]


@pytest.mark.parametrize("asked_before", [True, False])
def test_a_file_that_is_edited_later_runs_as_it_was_when_it_was_hashed(tmp_path, asked_before):
    """Unless it is reloaded: then the hash is that of the new code."""
    shutil.copytree(ROOT / "lmlab", tmp_path / "lmlab")
    script = EDITED.format(asked_before=asked_before)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == code.lab_sha256(), done.stderr


def test_what_is_run_again_after_an_edit_is_another_row(here, run_by, capsys):
    assert run_by(OLD, "seed=0,1") == {"": "0,1"}
    capsys.readouterr()
    assert run_by(NEW, "seed=0,1,2") == {"aaaaaaaa": "0,1", "bbbbbbbb": "0,1,2"}
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of them were made by other code of the lab (aaaaaaaa; now bbbbbbbb)" in said
    assert "column code; now bbbbbbbb" in said
    assert len(list(here.glob("outputs/sweeps/s/*/config.yaml"))) == 5
    assert run_by(OLD, "seed=0,1,2") == {"aaaaaaaa": "0,1,2", "bbbbbbbb": "0,1,2"}
    said = capsys.readouterr().out
    assert "2 of them done already" in said  # the edit was taken back


def test_same_code_takes_cells_as_they_are_and_is_kept_in_the_record(here, run_by):
    run_by(OLD, "seed=0,1")
    assert run_by(NEW, "seed=0,1,2 same_code=true") == {"": "0,1,2"}
    assert run_by(NEW, "seed=0,1,2") == {"": "0,1,2"}  # it need not be said twice
    assert len(list(here.glob("outputs/sweeps/s/*/config.yaml"))) == 3
    (note,) = (here / "outputs/sweeps/s/.sweep/same_code.jsonl").read_text().splitlines()
    assert json.loads(note)["codes"] == ["aaaaaaaa", "bbbbbbbb"]
    assert "same_code=true" in json.loads(note)["command"]
    assert run_by(THIRD, "seed=0") == {"aaaaaaaa=bbbbbbbb": "0,1,2", "cccccccc": "0"}


def test_cells_of_unknown_code_are_taken_and_said_so(here, run_by, capsys):
    run_by(OLD, "seed=0,1")
    for path in here.glob("outputs/sweeps/s/*/metrics.json"):
        noted = json.loads(path.read_text())
        del noted["code_sha256"]
        path.write_text(json.dumps(noted))
    capsys.readouterr()
    assert run_by(NEW, "seed=0,1,2") == {"unknown": "0,1", "bbbbbbbb": "2"}
    assert "2 of those done were made before the lab wrote down its code" in capsys.readouterr().out


def test_a_cell_that_failed_before_its_first_step_is_no_number_of_other_code(here, run_by):
    run_by(OLD, "seed=0")
    (path,) = here.glob("outputs/sweeps/s/*/metrics.json")
    path.write_text(json.dumps(metrics(path.parent) | {"status": "failed", "step": 0}))
    shutil.rmtree(path.parent / "checkpoints")
    assert run_by(NEW, "seed=0") == {"": "0"}
    assert metrics(path.parent)["code_sha256"] == NEW


def test_runs_of_different_code_are_compared_as_two_rows(here, run_by, capsys):
    run_by(OLD, "seed=0")
    shutil.move(here / "outputs/sweeps/s", here / "old")
    run_by(NEW, "seed=0")
    compare = script("compare").main
    compare(["old", "outputs/sweeps/s"])
    assert board(here) == {"aaaaaaaa": "0", "bbbbbbbb": "0"}
    assert "called equal" not in capsys.readouterr().out
    compare(["old", "outputs/sweeps/s", "same_code=true"])
    assert board(here) == {"": "0"}
    said = " ".join(capsys.readouterr().out.split())
    assert "was called equal by same_code=true: aaaaaaaa, bbbbbbbb." in said


def test_a_search_does_not_go_on_with_trials_of_other_code(here, run_by, capsys):
    search = "hydra/sweeper=search hydra.sweeper.sampler=random lr=interval(0.1,0.2) hydra.sweeper.n_trials="
    run_by(OLD, search + "1")
    with pytest.raises(SystemExit) as stop:
        run_by(NEW, search + "2")
    assert stop.value.code == 2 and "same_code=true goes on" in capsys.readouterr().err
    run_by(NEW, search + "2 same_code=true")
    assert len(list(here.glob("outputs/sweeps/s/*/config.yaml"))) == 2


def test_replay_names_the_code_that_differs(train, monkeypatch, capsys):
    single = LINE.removeprefix("-m ").replace("hydra/launcher=basic", "")
    run = train(single)
    monkeypatch.setattr("lmlab.runs.provenance.code_sha256", lambda: NEW)
    cli.main([f"replay={run}"])
    assert "not as it was then: code_sha256" in capsys.readouterr().out


def test_a_run_that_other_code_has_resumed_names_both():
    assert code_of({"code_sha256": OLD}) == code_of(
        {"code_sha256": OLD, "resumed/code_sha256": OLD}
    )
    assert code_of({"code_sha256": OLD, "resumed/code_sha256": NEW}) == "aaaaaaaa+bbbbbbbb"
    assert code_of({}) == code_of({"code_sha256": 3}) == "unknown"


def test_code_that_resumed_a_run_in_between_is_not_forgotten(train, monkeypatch, capsys):
    single = LINE.removeprefix("-m ").replace("hydra/launcher=basic", "")

    def now(sha256):
        monkeypatch.setattr("lmlab.runs.provenance.code_sha256", lambda: sha256)

    now(OLD)
    run = train(single)
    for steps, sha256, said in ((6, NEW, OLD), (8, OLD, NEW), (10, OLD, None), (12, THIRD, OLD)):
        now(sha256)
        capsys.readouterr()
        cli.main([f"resume={run}", f"max_steps={steps}"])
        out = capsys.readouterr().out
        words = f"may be another: code_sha256 {(said or '')[:8]}, now {sha256[:8]}"
        assert (words in out) == (said is not None), out
        if steps == 8:
            assert code_of(metrics(run)) == "aaaaaaaa+bbbbbbbb"
    assert code_of(metrics(run)) == "aaaaaaaa+bbbbbbbb+cccccccc"
    now(OLD)
    monkeypatch.setattr("lmlab.training.resumption.code_sha256", lambda: OLD, raising=False)
    script("export").main([f"sweep={run.parent}", "out=all.zip"])
    page = zipfile.ZipFile("all.zip").read(f"{run.parent.name}/README.md").decode()
    assert all(sha256 in page for sha256 in (OLD, NEW, THIRD)) and f"Not so {run.name}" in page


def test_a_loss_on_test_text_that_other_code_measured_is_said_to_be(
    here, run_by, monkeypatch, capsys
):
    run_by(OLD, "seed=0,1 test_fraction=0.2 val_fraction=0.2")
    evaluate = script("evaluate").main
    for path in here.glob("outputs/sweeps/s/*/metrics.json"):
        for module in ("inference.loss.code_sha256", "runs.code.code_sha256"):
            monkeypatch.setattr(f"lmlab.{module}", lambda: NEW)
        evaluate([f"run={path.parent}", "split=test"])
        assert "was trained by other code of the lab" in capsys.readouterr().err
    script("compare").main(["outputs/sweeps/s"])
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "test/loss of 2 runs was measured by other code of the lab" in said and "(bbbbbbbb)" in said
    )


def test_equality_of_codes_goes_on_from_one_to_the_next(tmp_path):
    SameCode(tmp_path).add({"a", "b"}, "command")
    SameCode(tmp_path).add({"b", "c"}, "command")
    assert SameCode(tmp_path).equal_to("c") == {"a", "b", "c"}
    assert SameCode(tmp_path).name("a+c") == "a=b=c" and SameCode(tmp_path).name("f") == "f"
    text = (tmp_path / "same_code.jsonl").read_text()
    (tmp_path / "same_code.jsonl").write_text(text.rstrip("\n"))  # as an editor may leave it
    SameCode(tmp_path).add({"d", "e"}, "command")
    assert SameCode(tmp_path).equal_to("a") == {"a", "b", "c"}
    assert SameCode(tmp_path).equal_to("e") == {"d", "e"}
    for content in (b"[]\n", b"\xff\xfe\n", b'{"codes": 5}\n', b'{"codes": "abc"}\n'):
        (tmp_path / "same_code.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="line 1 was not written by the lab"):
            SameCode(tmp_path)


def test_a_program_and_its_workers_import_the_library_beside_it(tmp_path):
    """Also if the environment has another checkout installed. And the program, which has no
    `if __name__ == "__main__"`, is not run once more by each of the workers.
    """
    for name in ("lmlab", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    with open(tmp_path / "lmlab/errors.py", "a") as file:
        file.write("# edited\n")
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(tmp_path)!r})",
        "from lmlab.commands.train import main",
        "print('mine')",
        f"main({LINE.replace('hydra/launcher=basic', 'seed=0')!r}.split())",
        "print('done')",
    )
    (tmp_path / "mine.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-P", "mine.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mine") == done.stdout.count("done") == 1
    (run,) = (path.parent for path in tmp_path.glob("outputs/sweeps/s/*/metrics.json"))
    assert metrics(run)["code_sha256"] not in (None, code.code_sha256())


def test_train_imports_the_library_beside_it(tmp_path):
    for name in ("lmlab", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "train.py", tmp_path)
    with open(tmp_path / "conf/help.txt", "w") as file:
        file.write("the copy beside it\n")
    done = subprocess.run(
        [sys.executable, "-P", tmp_path / "train.py", "--help"], capture_output=True, text=True
    )
    assert done.stdout.startswith("the copy beside it")
