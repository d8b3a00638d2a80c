"""A run's folder: what is written is what is read."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmlab import files
from lmlab.catalogue import FileConfig
from lmlab.config.check import check_value
from lmlab.data.tokenizers import CharTokenizer, from_json
from lmlab.errors import UserError, printable
from lmlab.runs import folder as runs
from lmlab.runs.provenance import differences, git_state, provenance
from lmlab.sweeps.table import load_runs
from tests.conftest import ROOT, config, metrics, weights

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: (
        len(text.splitlines()) == 1
        and text == text.splitlines()[0]
        and "${" not in text
        and text != "???"
    )
)


KEYS = st.text(st.characters(categories=("L", "Nd")), min_size=1).filter(str.isidentifier)
QUOTED = st.sampled_from(["on", "off", "yes", "no", "null", "true", "_x"])  # as YAML writes keys
LINE_ENDS = st.text("~ \t\n\r\x85\u2028\u2029\ufeff'\"#:-?[]{},&*!|>%@`=\\a1eE.+")
PLAIN = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none()


@given(st.dictionaries(KEYS | QUOTED, st.text() | LINE_ENDS | PLAIN, min_size=1, max_size=3))
def test_any_keys_and_plain_values_are_read_back_as_they_were(values):
    found = runs.parse_plain_yaml(runs.to_yaml(values).encode())
    assert {key: repr(value) for key, value in found.items()} == {
        key: repr(value) for key, value in values.items()
    }


@given(text=TEXT, lr=st.floats(1e-300, 1e300), seed=st.integers(0, 2**32 - 1))
@example(text="\xa0", lr=1.0, seed=0)  # a space to Unicode, a letter like others to YAML
@example(text="\u3000[x", lr=1.0, seed=0)
def test_any_configuration_is_read_back_as_it_was(some_config, tmp_path_factory, text, lr, seed):
    config = replace(
        some_config,
        choices=some_config.choices | {"data": "file"},
        data=FileConfig(0.1, 0.0, 0.0, text),
        run=replace(some_config.run, seed=seed, init_from=text, min_lr=0.0),
        optimizer=replace(some_config.optimizer, lr=lr),
    )
    folder = tmp_path_factory.mktemp("config")
    runs.write_config(folder, config.as_saved())
    assert runs.read_config(folder) == config


@given(TEXT)
def test_text_of_several_lines_is_no_value(text):
    assert check_value("path", text, str) == text
    with pytest.raises(UserError, match="one line"):
        check_value("path", f"{text}\n{text}", str)


def test_two_neighbouring_halves_of_a_character_stay_two():
    chars = "\ud83d\ude00"
    assert from_json(CharTokenizer(chars).to_json()).chars == chars


def test_nothing_steers_the_terminal():
    str(UserError("caf\udce9")).encode("ascii")  # of a file whose name is not UTF-8
    assert printable("a\tb\nc\x1b[31m\x07\x9b\r é") == "a\tb\nc\\x1b[31m\\x07\\x9b\\r é"


def test_a_torn_last_line_of_history_is_no_line_and_another_is_named(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2, "tr')
    assert runs.read_history(tmp_path) == [{"step": 1}]
    for wrong in ("5", "{}", '{"step": "1"}', "[" * 10**5):
        (tmp_path / "history.jsonl").write_text(f'{{"step": 1}}\n{wrong}\n')
        with pytest.raises(UserError, match=r"history\.jsonl: line 2"):
            runs.read_history(tmp_path)


@pytest.fixture
def git(tmp_path):
    """Runs git in a folder, `tmp_path` if no other is named."""

    def git(*arguments, folder=tmp_path):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True)

    return git


def test_a_repository_around_an_installed_copy_says_nothing_of_the_lab(tmp_path, git):
    unknown = {"git_commit": None, "git_dirty": None}
    folder = tmp_path / "venv"
    (folder / "lmlab").mkdir(parents=True)
    (folder / "lmlab/__init__.py").touch()
    (tmp_path / "mine.txt").touch()
    assert git_state(folder) == unknown  # no repository
    git("init")
    git("add", "mine.txt")
    git("commit", "-m", "mine")
    assert git_state(folder) == unknown  # another repository
    git("add", ".")
    git("commit", "-m", "the lab")
    state = git_state(folder)
    assert re.fullmatch("[0-9a-f]{40}", state["git_commit"]) and state["git_dirty"] is False
    (folder / "lmlab/__init__.py").write_text("changed")
    assert git_state(folder) == state | {"git_dirty": True}


def test_nobodys_settings_of_git_change_what_is_noted_of_the_lab(tmp_path, git, monkeypatch):
    """New files count, their names may be any bytes, and GIT_DIR, as a hook has it, is another's."""
    folder, other = tmp_path / "lab", tmp_path / "other"
    for place in (folder, other):
        (place / "lmlab").mkdir(parents=True)
        (place / "lmlab/__init__.py").write_text(place.name)
        git("init", folder=place)
        git("add", ".", folder=place)
        git("commit", "-m", place.name, folder=place)
    clean = git_state(folder)
    assert clean["git_dirty"] is False and clean["git_commit"] != git_state(other)["git_commit"]
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert git_state(folder) == clean
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name)
    git("config", "status.showUntrackedFiles", "no", folder=folder)
    git("config", "core.quotepath", "false", folder=folder)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook), folder=folder)
    (folder / "lmlab/__init__.py").touch()
    index = (folder / ".git/index").read_bytes()
    assert git_state(folder) == clean
    with open(os.fsencode(folder) + b"/lmlab/no\xff.py", "w"):
        assert git_state(folder) == clean | {"git_dirty": True}
    assert not (tmp_path / "asked").exists() and (folder / ".git/index").read_bytes() == index


def test_a_provenance_differs_in_what_was_saved_both_times():
    now = provenance("python train.py")
    assert differences(now, now) == []
    older = {key: value for key, value in now.items() if key != "lmlab"}  # as runs of 0.1 note it
    assert differences(older, now | {"command": "another"}) == []
    changed = differences(older | {"torch": "1.0"}, now)
    assert changed == [f"torch 1.0, now {now['torch']}"]


def test_the_newest_run_started_last_also_if_another_was_copied_later(tmp_path):
    for name, second in (("old", 1_000), ("new", 2_000)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "tokenizer.json", "checkpoints/last.ckpt"):
            (tmp_path / name / file).write_text("")
        (tmp_path / name / f"events.out.tfevents.{second}.host.1.0").write_text("")
    shutil.copytree(tmp_path / "old", tmp_path / "copy")  # its files are the newest on the disk
    (tmp_path / "old/events.out.tfevents.3000.host.1.0").write_text("")  # resumed since
    assert runs.newest(tmp_path) == tmp_path / "new"


def test_the_largest_numbers_that_a_key_takes_can_be_read_again(train):
    """JSON has them all; the ends of Python's floats are no damage."""
    line = "model=bigram data=sentence val_fraction=0.2 block_size=8 threads=1 max_steps=2 "
    run = train(line + "grad_clip=1.7976931348623157e308 lr=5e-324 min_lr=0 weight_decay=1e308")
    assert runs.read_metrics(run)["config/grad_clip"] == sys.float_info.max


@pytest.mark.parametrize("lost", [(), ("events",), ("started",), ("events", "started")])
def test_the_newest_run_is_the_one_that_started_last_whatever_it_lost(trained, here, lost):
    """An archive has no events, an old run did not note its start, and a copy is a new file."""
    places = ("2026-11-22_10-00-01", "2026-11-22_10-00-00_2")  # the later run is copied first
    for place, source in zip(places, ("other", "run"), strict=True):
        path = shutil.copytree(trained / source, here / "outputs" / place)
        noted = metrics(path) | {"started": 1.5e9 + (source == "other")}
        if "started" in lost:
            del noted["started"]
        (path / "metrics.json").write_text(json.dumps(noted))
        for events in path.glob("events*"):
            events.unlink()
        if "events" not in lost:
            second = 1_500_000_000 + (source == "other")
            (path / f"events.out.tfevents.{second}.host.1.0").touch()
    assert runs.newest(here / "outputs").name == places[0]


def test_a_run_notes_when_it_started(trained):
    noted = [runs.noted_start(trained / name) for name in ("run", "other", "longer")]
    assert noted == sorted(noted) and noted[0] == metrics(trained / "run")["started"] > 1.7e9


def test_a_folder_that_cannot_be_read_is_named_by_all_that_look_for_runs(
    trained, here, monkeypatch, capfd
):
    """As of another user; root may read all, so the disk only says that it may not."""
    shutil.copytree(trained / "run", here / "outputs/a/run")
    shutil.copytree(trained / "other", here / "outputs/secret/run")
    list_of = os.scandir

    def scandir(path="."):
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_of(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = f"{here}/outputs/secret: cannot be read (Permission denied)"
    assert load_runs(here / "outputs").attrs["faults"] == [said]
    assert runs.newest(here / "outputs") == here / "outputs/a/run"
    assert f"left out: {said}" in capfd.readouterr().err
    with pytest.raises(UserError, match="secret: cannot be read"):
        load_runs(here / "outputs/secret")


def test_runs_behind_links_are_found_each_once(trained, here):
    """As someone has them who moved some to a larger disk."""
    big = here / "big"
    shutil.copytree(trained / "run", big / "a/run")
    shutil.copytree(trained / "other", big / "b/run")
    (here / "outputs").mkdir()
    for name in ("a", "b"):
        (here / "outputs" / name).symlink_to(big / name)
    (here / "outputs/loop").symlink_to(here / "outputs")
    found = files.named_below(here / "outputs", "config.yaml", print)
    assert [path.parent.parent.name for path in found] == ["a", "b"]
    assert set(load_runs("outputs")["seed"]) == {0, 1}
    expected = max((trained / "run", trained / "other"), key=runs.started_at)
    assert weights(runs.newest(here / "outputs")).keys() == weights(expected).keys()
    assert config(runs.newest(here / "outputs"))["seed"] == config(expected)["seed"]


def test_what_people_put_on_a_disk_is_found_behind_links_everywhere():
    """`rglob` leaves links out. It is only for code, of which a link is somebody else's."""
    allowed = {"plugins.py", "own_code.py", "code.py", "folder.py"}  # folder.py refuses links
    users = {path for path in (ROOT / "lmlab").rglob("*.py") if "rglob(" in path.read_text()}
    assert {path.name for path in users} <= allowed
