"""A cell is known by what it computes: the same is not computed twice, another never taken for it."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab import errors, files
from lmlab.config import keys
from lmlab.config.overrides import resolved
from lmlab.runs import folder as runs
from lmlab.runs.code import code_sha256, own_code
from lmlab.sweeps import cells, plan
from lmlab.sweeps.cells import Sweep
from lmlab.training import experiment
from tests.conftest import content, history, metrics

SMALL = [
    "model=bigram",
    "data=sentence",
    "val_fraction=0.2",
    "block_size=8",
    "batch_size=2",
    "threads=1",
    "device=cpu",
    "precision=32-true",
    "eval_interval=5",
    "checkpoint_interval=5",
    "log_interval=1",
    "max_steps=10",
    "name=x",
]


def cell(*more):
    overrides = [*SMALL, *more]
    return plan.identify(resolved(overrides)[0], overrides, Sweep("x", "typed"))


def test_what_touches_the_mathematics_is_another_cell_and_nothing_else_is():
    one = cell()
    for same in (
        ["log_interval=5"],
        ["checkpoint_interval=7"],
        ["checkpoint_minutes=3"],
        ["lr=5e-3"],
        ["lr=0.005"],
        ["decay_steps=10"],
        ["name=y"],
        ["retries=3"],
    ):
        assert cell(*same).hash == one.hash, same
    others = [
        cell(f"{key}={value}")
        for key, value in {
            "seed": 1,
            "lr": 0.006,
            "max_steps": 11,
            "batch_size": 3,
            "block_size": 9,
            "val_fraction": 0.3,
            "threads": 2,
            "grad_clip": 0.5,
            "grad_accumulation": 2,
            "schedule": "constant",
            "warmup_steps": 2,
            "weight_decay": 0.2,
            "precision": "bf16-mixed",
            "data": "tales",
            "optimizer": "sgd",
            "min_lr": 1e-4,
            "eval_interval": 4,
            "compile": True,
        }.items()
    ]
    assert cell("warmup_steps=1").hash != cell("warmup_steps=1", "hold_steps=1").hash
    assert len({one.hash, *(other.hash for other in others)}) == len(others) + 1
    assert [other.group == one.group for other in others] == [True] + [False] * (len(others) - 1)


def test_changed_data_is_another_cell_and_moved_data_is_not(here):
    (here / "a.txt").write_text("the first text " * 20)
    (here / "b.txt").write_text("the first text " * 20)
    (here / "c.txt").write_text("another text, as long " * 20)
    a, b, c = (cell("data=file", f"path={name}.txt").hash for name in "abc")
    assert a == b != c


def test_the_weights_that_a_cell_starts_from_are_part_of_it(trained, here):
    own = ["init_from=" + str(trained / "run")]
    first = cell(*own)
    assert (
        first.hash
        == cell(*own).hash
        != cell("init_from=" + str(trained / "longer")).hash
        != cell().hash
    )


def test_a_key_that_is_gained_later_leaves_old_names_as_they_were(monkeypatch, here):
    old = cells.identity(cell().config.flat(), {"data_sha256": "data"})
    flat = cell().config.flat() | {"later": False}
    assert cells.identity(flat, {"data_sha256": "data"}) != old
    values = keys.neutral_values() | {"later": False}
    monkeypatch.setattr(cells, "neutral_values", lambda: values)
    assert cells.identity(flat, {"data_sha256": "data"}) == old
    assert cells.identity(flat | {"later": True}, {"data_sha256": "data"}) != old


def test_a_run_from_before_a_key_was_gained_is_read_with_its_neutral_value(run, monkeypatch):
    lines = [
        line
        for line in (run / "config.yaml").read_text().splitlines()
        if not line.startswith("grad_clip:")
    ]
    files.write_sealed(run / "config.yaml", "\n".join(lines).encode())
    with pytest.raises(errors.UserError, match="grad_clip: is missing"):
        runs.read_config(run)
    values = {"grad_clip": 0.5, "of_another_model": 1}
    monkeypatch.setattr(
        "lmlab.config.check.neutral_values", lambda: values
    )  # which builds all keys
    assert runs.read_config(run).run.grad_clip == 0.5


@given(st.lists(st.text(min_size=1, max_size=80), max_size=6))
def test_a_label_is_part_of_a_path_whatever_was_typed(texts):
    overrides = [
        f"path=\"'{''.join(c for c in text if c.isprintable() and c not in chr(39) + chr(34) + chr(92))}'\""
        for text in texts
    ]
    label = cells.label(overrides, Sweep("x", ""))
    assert "/" not in label and label.isascii() and label.isprintable()
    assert len(replace(FIXED, label=label).find().name.encode()) <= 255


FIXED = cells.Cell(None, Sweep("x", ""), "", "0" * 8, "", "", 0, 0, 0)


def test_labels_show_what_was_typed_and_numbers_that_can_be_read():
    typed = ["model=gpt", "lr=0.0031234567890123", "name=y", "retries=1", "trial=x", "n_layer=2"]
    assert cells.label(typed, Sweep("y", "", ("n_layer=2",))) == "model=gpt,lr=0.003123"


def test_a_finished_cell_is_left_as_it_is(here):
    one = cell()
    assert cells.run(one) == "finished" and one.find().name.endswith(one.hash)
    before = content(one.find())
    again = cell("log_interval=2", "max_steps=10")
    assert again.find() == one.find() and cells.run(again) == "finished"
    assert content(one.find()) == before


def test_a_diverged_cell_is_not_run_again(here):
    one = cell("optimizer=sgd", "lr=1e39", "grad_clip=0", "warmup_steps=0", "schedule=constant")
    assert cells.run(one) == "diverged"
    before = content(one.find())
    assert cells.run(one) == "diverged" and content(one.find()) == before


@pytest.mark.parametrize("left", ["last", "previous"])
def test_an_interrupted_cell_goes_on_from_its_checkpoint_to_the_same_end(here, monkeypatch, left):
    whole = cell()
    cells.run(whole)
    (here / "outputs/sweeps/x").rename(here / "whole")
    step = experiment.LanguageModule.training_step

    def stopping(self, batch, batch_idx):
        if batch_idx == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(experiment.LanguageModule, "training_step", stopping)
    with pytest.raises(SystemExit):
        cells.run(cell())
    assert metrics(cell().find())["status"] == "interrupted"
    monkeypatch.undo()
    os.chdir(here)
    if left == "previous":
        last = cell().find() / "checkpoints/last.ckpt"
        files.copy_sealed(last, last.with_name("previous.ckpt"))
        last.unlink()
    assert cells.run(cell()) == "finished"
    first = here / "whole" / whole.find().name
    assert history(cell().find(), "train/loss") == history(first, "train/loss")
    assert metrics(cell().find())["val/loss"] == metrics(first)["val/loss"]
    assert "continues at step 7" in (cell().find() / "train.log").read_text()


def test_a_cell_that_fails_says_why_and_is_tried_again_as_often_as_asked(here, monkeypatch, capsys):
    tries = []

    def broken(self, batch, batch_idx):
        tries.append(self.global_step)
        raise ZeroDivisionError("of all things")

    with monkeypatch.context() as patch:
        patch.setattr(experiment.LanguageModule, "training_step", broken)
        assert cells.run(cell("retries=2")) == "failed" and tries == [0, 0, 0]
    numbers = metrics(cell().find())
    assert (numbers["status"], numbers["reason"]) == ("failed", "ZeroDivisionError: of all things")
    assert "Traceback" in capsys.readouterr().err
    assert cells.run(cell()) == "finished"  # the next command tries it again
    assert "reason" not in metrics(cell().find())


@pytest.mark.parametrize("typed", ["python train.py -m seed=0", "lmlab train -m seed=0"])
def test_a_cell_tells_what_to_type_as_its_sweep_was_typed(here, monkeypatch, typed):
    monkeypatch.setattr("lmlab.runs.typed.TYPED", [])
    one = plan.identify(resolved(SMALL)[0], SMALL, Sweep("x", typed))
    assert cells.run(one) == "finished"
    log = (one.find() / "train.log").read_text()
    assert ("lmlab sample run=" in log) == typed.startswith("lmlab")
    assert ("python scripts/sample.py run=" in log) == typed.startswith("python")


def test_a_cell_that_fails_before_it_has_a_folder_gets_one(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Prepared", lambda *_: bytearray(2**60))
        assert cells.run(cell()) == "failed"
    numbers = metrics(cell().find())
    assert (
        numbers["reason"].startswith("out of memory: MemoryError")
        and numbers["cell"] == cell().hash
    )
    assert numbers["code_sha256"] == code_sha256() and cell().made_by() == own_code()
    assert runs.read_config(cell().find()) == cell().config
    assert cells.run(cell()) == "finished"


def test_text_that_changes_after_the_cell_was_named_fails_it(here):
    (here / "a.txt").write_text("the first text " * 20)
    one = cell("data=file", "path=a.txt")
    (here / "a.txt").write_text("another text, as long " * 20)
    assert cells.run(one) == "failed"
    assert "not the one that the run was trained on" in metrics(one.find())["reason"]


def test_nobody_else_runs_a_cell_meanwhile(here):
    one = cell()
    with cells.locked(one):
        assert cells.is_busy(one)
        with pytest.raises(cells.Busy):
            cells.run(one)
        waiting = threading.Thread(target=cells.run_when_free, args=(one,))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not one.find().exists()
    waiting.join(20)
    assert one.status() == "finished" and not cells.is_busy(one)


def test_a_cell_that_other_code_begins_meanwhile_is_made_by_this_one_beside_it(here, monkeypatch):
    """Whoever looked for it first: with the local launcher and with others."""
    one = cell()
    assert cells.of_this_code(one) == one
    with monkeypatch.context() as patch:
        patch.setattr("lmlab.runs.provenance.code_sha256", lambda: "b" * 64)
        cells.run(one)
    assert one.made_by() == "bbbbbbbb"
    before = content(one.find())
    with pytest.raises(cells.Busy):  # the launcher then looks again
        cells.run(one)
    beside = cells.run_when_free(one)
    assert beside.hash != one.hash and beside.beside == "bbbbbbbb"
    assert beside.status() == "finished" and beside.made_by() != "bbbbbbbb"
    assert content(one.find()) == before
    assert cells.of_this_code(one) == beside == cells.of_this_code(beside)


def test_a_cell_that_somebody_resumes_by_hand_is_busy(here):
    one = cell()
    cells.run(one)
    numbers = metrics(one.find()) | {"status": "interrupted"}
    (one.find() / "metrics.json").write_text(runs.to_json(numbers))
    directory = runs.RunDirectory(one.find())
    with pytest.raises(cells.Busy):
        cells.run(one)
    directory.close()
    assert cells.run(one) == "finished"


def test_a_finished_cell_that_lacks_its_references_or_its_configuration_is_not_done(here):
    one = cell()
    assert cells.run(one) == "finished" and one.is_done()
    whole = metrics(one.find())
    without = {key: value for key, value in whole.items() if not key.startswith("reference/")}
    (one.find() / "metrics.json").write_text(runs.to_json(without))
    assert one.is_over() and not one.is_done()
    assert cells.run(one) == "finished" and one.is_done()
    again = metrics(one.find())
    assert {key: again[key] for key in whole if "reference" in key or "loss" in key} == {
        key: whole[key] for key in whole if "reference" in key or "loss" in key
    }
    (one.find() / "config.yaml").unlink()
    assert not one.is_done() and cells.run(one) == "failed"
    assert "config.yaml" in metrics(one.find())["reason"]


def test_a_cells_folder_is_found_as_soon_as_it_is_there(here):
    # 20,000 cells in one folder: it is listed once, not once for each; and never a list too old.
    one = cell()
    folder = one.sweep.folder
    folder.mkdir(parents=True)
    made = folder / f"another-label-{one.hash}"
    for seconds_ago in (0, 5, 3600):
        changed = time.time_ns() - seconds_ago * 10**9
        os.utime(folder, ns=(changed, changed))
        assert one.find() != made
        made.mkdir()
        if seconds_ago < 10:  # the second change has the time of the first
            os.utime(folder, ns=(changed, changed))
        assert one.find() == made
        made.rmdir()
    os.utime(folder, ns=(1, 1))
    assert one.sweep.cells() is one.sweep.cells()
