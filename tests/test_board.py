"""lmlab board: runs under names that can be read, TensorBoard's tabs, how it begins and ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lmlab.commands import board, run_links
from lmlab.errors import one_line_errors
from lmlab.runs.folder import EVENTS
from tests.conftest import ROOT, SMALL_RUN, refused, script


def made(folder, **metrics):
    """The folder of a run with a file of events, as far as the board looks at it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "events.out.tfevents.1.x").touch()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def cell(sweep, label, n=0, **metrics):
    group = re.sub(r",seed=\d+", "", label)
    keys = {f"config/{key}": value for key, value in re.findall(r"(\w+)=(\w+)", label)}
    known = {"cell": "x", "group": group, "label": label, "started": n, "status": "finished"}
    return made(sweep / f"{label}-{n}", **{**known, **keys, **metrics})


def single(folder, command, n=0):
    facts = {"command": f"python train.py {command}", "started": n, "status": "finished"}
    return made(folder, **facts)


def names(*folders):
    links = run_links.RunLinks(folders, folders[0].parent / "view")
    links.refresh()
    return {name: path for name, (path, _) in links.written.items()}


def test_cells_are_named_by_what_differs_and_told_apart_where_a_card_cuts(tmp_path):
    rest = "max_steps=60,threads=1"
    for n, label in enumerate(["n_layer=2,seed=0", "n_layer=2,seed=1", "n_layer=4,seed=0"]):
        cell(tmp_path / "short", f"{label},{rest}", n)
    assert [*names(tmp_path / "short")] == [
        "n_layer=2 seed=0",
        "n_layer=2 seed=1",
        "n_layer=4 seed=0",
    ]
    for n, lr in enumerate([0.001, 0.002]):
        for seed in range(2):
            cell(tmp_path / "long", f"seed={seed},model=gpt,weight_decay={lr},{rest}", 2 * n + seed)
    found = [*names(tmp_path / "long")]
    assert found[1] == "02 weight_decay=0.001 seed=1"  # the seed last, and what is common nowhere
    assert len({name[:15] for name in found}) == 4


def test_single_runs_are_named_by_their_folder_what_differs_and_the_time(tmp_path):
    single(tmp_path / "gpt/2026-11-29_10-00-00", "model=gpt lr=0.01 name=gpt", 1)
    single(tmp_path / "gpt/2026-11-29_10-00-07", "model=gpt", 2)
    single(tmp_path / "bigram/2026-11-29_10-01-00", "model=bigram", 3)
    wanted = ["01 gpt lr=0.01 10-00-00", "02 gpt 10-00-07", "03 bigram 10-01-00"]
    assert [*names(tmp_path)] == wanted
    single(tmp_path / "gpt/2026-11-30_09-00-00", "model=gpt", 4)
    assert "04 gpt 2026-11-30_09-00-00" in names(tmp_path)  # of two days


def test_runs_of_several_folders_and_odd_names_are_each_there_once(tmp_path):
    cell(tmp_path / "a", "lr=1,seed=0", 1)
    cell(tmp_path / "a", "lr=2,seed=0", 2)
    cell(tmp_path / "a", "lr=2,seed=0", 3)  # the same label with another text
    cell(tmp_path / "b", "lr=1", 1)
    single(tmp_path / "x/now", "'prompt=a/b", 1)  # a command that cannot be taken apart
    made(tmp_path / "broken/now")
    (tmp_path / "broken/now/metrics.json").write_text("{")
    made(tmp_path / "y/now", label=7, command=None, started="never", status=0)
    assert {*names(tmp_path)} == {"a/lr=1", "a/lr=2", "a/lr=2'", "b/b", "x now", "y now"}


def test_names_in_any_alphabet_and_encoding_fit_into_a_file_system(tmp_path):
    folder = tmp_path / "runs"
    for n, path in enumerate(["语" * 100, "b"]):
        single(folder / f"r/{n}", f"data=file path={path}.txt", n)
    for n in range(2):  # of equal labels, in folders whose names are not UTF-8
        cell(folder / os.fsdecode(b"\xff%d" % n), "model=gpt", n, group=os.fsdecode(b"\xfe"))
    found = names(folder)
    assert len(found) == 4
    assert all(len(part.encode()) <= 255 for name in found for part in name.split("/"))


def content(links, name):
    """What is added to a run, by kind: its group and values, and the columns."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for event in EventFileLoader(str(links.view / name / run_links.ADDED)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                found[data.WhichOneof("data")] = getattr(data, data.WhichOneof("data"))
    return found["session_start_info"], found["experiment"]


def test_columns_are_what_was_varied_and_then_the_losses(tmp_path):
    sweep = tmp_path / "s"
    for n in range(3):
        metrics = {"val/accuracy": 0.5, "config/min_lr": 0.1 * n}
        cell(sweep, f"n_layer={1 + n // 2},model=gpt,seed={n % 2},max_steps=9", n, **metrics)
    cell(sweep, "n_layer=2,model=gpt,seed=1,max_steps=9", 9, status="diverged")
    links = run_links.RunLinks([sweep], tmp_path / "view")
    links.refresh()
    begin, columns = content(links, "n_layer=1 seed=0")
    assert [column.name for column in columns.hparam_infos] == ["n_layer"]
    assert [column.name.tag for column in columns.metric_infos][:3] == [
        "val/loss",
        "best/val/loss",
        "train/loss",
    ]
    assert begin.group_name == content(links, "n_layer=1 seed=1")[0].group_name == "n_layer=1"
    assert dict(begin.hparams)["n_layer"].string_value == "1"
    assert content(links, "n_layer=2 seed=1")[0].group_name == "n_layer=2 diverged"


def test_new_runs_get_links_and_a_run_that_is_named_anew_comes_as_a_new_one(tmp_path):
    sweep, view = tmp_path / "s", tmp_path / "view"
    first = cell(sweep, "lr=1,model=gpt,seed=0", 1)
    links = run_links.RunLinks([sweep], view)

    def shown():
        links.refresh()
        return {path.name for path in view.iterdir()}

    assert shown() == {"s"}
    cell(sweep, "lr=1,model=gpt,seed=1", 2)
    assert shown() == {"seed=0", "seed=1"}
    (first / "events.out.tfevents.2.x").touch()  # after a stop
    cell(sweep, "lr=1,model=gpt,seed=2", 3)
    assert shown() == {"seed=0", "seed=1", "seed=2"}
    assert len([*(view / "seed=0").glob(EVENTS)]) == 3
    cell(sweep, "lr=1,model=lstm,seed=2", 4)
    shown()
    assert shown() == {"gpt seed=0", "gpt seed=1", "gpt seed=2", "lstm seed=2"}
    shutil.rmtree(first)
    assert "gpt seed=0" not in shown()


def test_a_run_that_goes_on_is_read_again_and_what_cannot_be_read_is_named(tmp_path, capfd):
    failed = cell(tmp_path / "s", "seed=0", status="failed")
    damaged = cell(tmp_path / "s", "seed=1", n=1)
    (damaged / "metrics.json").write_text("{")
    links = run_links.RunLinks([tmp_path], tmp_path / "view")
    for _ in range(2):
        assert [links.listed(path).metrics["status"] for path in [failed]] == ["failed"]
        assert links.listed(damaged) is None
    assert capfd.readouterr().err.count(f"left out      {damaged}") == 1
    noted = json.loads((failed / "metrics.json").read_text())
    (failed / "metrics.json").write_text(json.dumps(noted | {"status": "finished"}))
    os.utime(failed / "metrics.json", ns=(1, 1))
    assert links.listed(failed).metrics["status"] == "finished"


@pytest.mark.parametrize("number", [-7.5, -1, 0, 0.003, 1, 40])
def test_the_range_of_a_column_holds_its_values_and_seldom_changes(number):
    assert -run_links.rounded_up(-number) <= number <= run_links.rounded_up(number)
    assert run_links.rounded_up(41) == run_links.rounded_up(99) == 100


def test_the_first_page_smooths_nothing_pins_the_losses_and_ticks_all_runs():
    def read(page):
        parts = urlsplit(page)
        query = parse_qs(parts.query)
        return query["smoothing"], json.loads(query["pinnedCards"][0]), parts.fragment

    smoothing, pins, fragment = read(board.first_page(["a", "b"]))
    assert smoothing == ["0"] and fragment == "timeseries&_smoothingWeight=0"
    assert [pin["tag"] for pin in pins][:2] == ["val/loss", "train/loss"]
    assert all(pin["plugin"] == "scalars" for pin in pins)
    (image, *_) = [p for p in read(board.first_page(["a b"]))[1] if p["plugin"] == "images"]
    assert image["runId"] == "defaultExperimentId/a b"
    many = [f"run {n}" for n in range(41)]
    ticked = unquote(read(board.first_page(many))[2].split("runSelectionState=")[1])
    import base64

    assert json.loads(base64.b64decode(ticked)) == dict.fromkeys(many, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("runs=nowhere", ["runs=nowhere: is no folder"]),
        ("runs=.", ["runs=.: no run there has events"]),
        ("port=0", ["port=0", "[1, 65536)"]),
        ("prot=7000", ["prot", "did you mean port?"]),
    ],
)
def test_wrong_arguments_are_answered_by_one_line(here, capsys, line, words):
    refused(capsys, lambda: one_line_errors()(script("board").main)(line.split()), words)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A board of three runs as its own process, its address and what it has printed."""
    folder = tmp_path_factory.mktemp("board")
    temporary = folder / "tmp"
    temporary.mkdir()
    for n in range(3):
        cell(folder / "s", f"lr={n},seed=0", n)
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/board.py", "runs=s"],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    assert process.stdout.readline() == "Ctrl-C ends it\n"
    yield process, first.split()[-1], temporary
    process.kill()


def test_the_bare_address_leads_to_the_first_page_and_all_runs_are_there(shown):
    _, url, _ = shown
    with urllib.request.urlopen(url) as answer:
        page = answer.read().decode()
    assert "location.replace(" in page and "/?smoothing=0&pinnedCards=" in page
    with urllib.request.urlopen(f"{url}?smoothing=0") as answer:
        assert "location.replace(" not in answer.read().decode()
    until = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{url}data/runs") as answer:
            found = json.load(answer)
        if len(found) == 3 or time.monotonic() > until:
            break
        time.sleep(0.2)
    assert sorted(found) == ["lr=0", "lr=1", "lr=2"]


def test_a_port_that_is_taken_is_one_line(shown, capsys, monkeypatch):
    _, url, temporary = shown
    port = urlsplit(url).port
    monkeypatch.chdir(temporary.parent)
    monkeypatch.setenv("TMPDIR", str(temporary))
    refused(
        capsys,
        lambda: one_line_errors()(script("board").main)(["runs=s", f"port={port}"]),
        [f"port={port}", "in use", "free one"],
    )
    with socket.socket() as probe:
        assert probe.connect_ex(("localhost", port)) == 0  # the first one goes on


def test_ctrl_c_ends_it_quietly_and_nothing_is_left_behind(shown):
    process, _, temporary = shown
    assert [path.name[:12] for path in temporary.iterdir() if "lmlab" in path.name]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err == "" and out == ""
    assert not [path for path in Path(temporary).iterdir() if "lmlab" in path.name]


def test_a_run_in_a_folder_whose_name_is_not_utf8_has_curves(train, here):
    run = train(f"{SMALL_RUN} out='caf\udce9'")
    assert next(run.glob(EVENTS)).stat().st_size > 1000
    links = run_links.RunLinks([here], here / "view")
    links.refresh()
    assert len(links.written) == 1
    log = (run / "train.log").read_text(encoding="utf-8")
    assert "TensorBoard" not in log
