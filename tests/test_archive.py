"""A sweep's archive: all of it or nothing, the same bytes again, and the same table from it."""

import errno
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import lmlab
from lmlab import files
from lmlab.commands import archive, export
from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.runs.folder import read_config, write_config
from lmlab.sweeps import load_runs, table
from tests.conftest import NANO, ROOT, metrics, script

OLD = ROOT / "tests/old_runs/sweeps/grid"


@pytest.fixture
def grid(here):
    """A sweep of five runs, which an earlier version made."""
    return shutil.copytree(OLD, here / "outputs/sweeps/grid")


def names_in(path):
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        return packed.namelist()


def page_of(path, name="grid"):
    return zipfile.ZipFile(path).read(f"{name}/README.md").decode()


def test_what_is_unpacked_has_the_same_leaderboard(grid, here, capsys):
    script("export").main(["sweep=outputs/sweeps/grid", "out=grid.zip"])
    assert "grid.zip: " in capsys.readouterr().out
    zipfile.ZipFile("grid.zip").extractall("elsewhere")
    boards = [table.leaderboard(load_runs(path)) for path in (grid, "elsewhere/grid")]
    pd.testing.assert_frame_equal(*boards)
    for config in grid.glob("*/config.yaml"):
        copy = here / "elsewhere/grid" / config.parent.name
        assert read_config(copy).flat() == read_config(config.parent).flat()
        for name in ("history.jsonl", "metrics.json", "tokenizer.json", "train.log"):
            assert (copy / name).read_bytes() == (config.parent / name).read_bytes()


def test_the_same_folder_gives_the_same_bytes(grid, here):
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    for path in grid.rglob("*"):
        os.utime(path, (1, 1))
    export.main(["sweep=outputs/sweeps/grid", "out=b.zip"])
    assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()
    names = names_in("a.zip")
    assert names == sorted(names) and all(name.startswith("grid/") for name in names)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], set()),
        (["checkpoints=best"], {"best.ckpt"}),
        (["checkpoints=all"], {"best.ckpt", "last.ckpt"}),
    ],
)
def test_checkpoints_are_packed_as_asked(grid, typed, expected):
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip", *typed])
    packed = {Path(name).name for name in names_in("a.zip") if name.endswith(".ckpt")}
    assert packed - {"previous.ckpt"} == expected


@pytest.mark.parametrize("kept, other", [("best", "last"), ("last", "best")])
def test_what_is_unpacked_can_be_used_by_the_checkpoint_that_it_has(
    train, here, capsys, kept, other
):
    train(f"-m {NANO} data=sentence val_fraction=0.2 block_size=8 name=x seed=0")
    export.main(["sweep=outputs/sweeps/x", "out=x.zip", f"checkpoints={kept}"])
    zipfile.ZipFile("x.zip").extractall("elsewhere")
    line = ["run=elsewhere", "max_tokens=5", "device=cpu"]
    capsys.readouterr()
    script("sample").main([*line, f"checkpoint={kept}", "seed=1"])
    said = capsys.readouterr().out
    script("sample").main([*line, "seed=1"])
    assert capsys.readouterr().out == said
    with pytest.raises(UserError, match=f"checkpoint={other}: .*; allowed is {kept}"):
        script("sample").main([*line, f"checkpoint={other}"])
    run = lmlab.load_run("elsewhere")
    assert run.metrics["step"] == 4 and run.model is not None


def test_the_numbers_of_runs_without_checkpoints_can_be_read(grid, here):
    export.main(["sweep=outputs/sweeps/grid", "out=x.zip"])
    zipfile.ZipFile("x.zip").extractall("elsewhere")
    with pytest.raises(UserError, match=r"none of checkpoints/last\.ckpt"):
        script("sample").main(["run=elsewhere"])
    assert lmlab.load_run("elsewhere").metrics["status"] == "interrupted"  # the newest
    script("plot").main(["runs=elsewhere", "out=curve.png"])
    assert (here / "curve.png").exists()


def test_the_page_says_what_made_the_runs_and_the_command_to_repeat(grid):
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    page = page_of("a.zip")
    runs = [metrics(path.parent) for path in grid.glob("*/metrics.json")]
    for run in runs:
        assert f"`{run['command']}`" in page and run["torch"] in page and run["machine"] in page
    assert f"{len(runs)} runs of lmlab" in page and "pip install torch==" in page
    assert "+" not in page.partition("pip install torch")[2].partition("`")[0]  # builds of torch
    assert page.count(runs[0]["command"]) == 1 and "What is not here" not in page


def test_a_text_and_a_plug_in_of_ones_own_are_named_as_missing_or_packed(grid, here, capsys):
    shutil.copy(ROOT / "examples/my_lab.py", here)
    from lmlab import plugins

    (source,) = plugins.sources("my_lab.py")
    own = files.sha256(source.sha256.encode())  # of all plug-ins of a run
    run = next(path.parent for path in grid.glob("*/config.yaml"))
    noted = read_config(run).as_saved() | {"plugin": "my_lab.py", "path": "my.txt"}
    write_config(run, noted)
    text = (run / "metrics.json").read_text()
    (run / "metrics.json").write_text(text.replace("{", f'{{"plugin_sha256": "{own}",', 1))
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    assert f"the code of plugin=my_lab.py (sha256 {own}) is not packed" in capsys.readouterr().err
    page = page_of("a.zip")
    assert "What is not here" in page and "the text my.txt" in page and own in page
    assert "grid plugin=…` makes the leaderboard" in page and "replay=… plugin=…`" in page
    export.main(["sweep=outputs/sweeps/grid", "out=b.zip", "plugin=my_lab.py"])
    assert capsys.readouterr().err == "" and "grid/plugins/my_lab.py" in names_in("b.zip")
    assert "grid plugin=grid/plugins/my_lab.py` makes the leaderboard" in page_of("b.zip")
    packed = zipfile.ZipFile("b.zip").read("grid/plugins/my_lab.py")
    assert packed == (here / "my_lab.py").read_bytes()
    with open("my_lab.py", "a") as file:
        file.write("# changed\n")
    export.main(["sweep=outputs/sweeps/grid", "out=c.zip", "plugin=my_lab.py"])
    assert "is not what plugin=my_lab.py is now" in capsys.readouterr().err
    assert not any("my_lab" in name for name in names_in("c.zip"))


def test_the_page_of_a_search_has_its_commands_in_order_and_says_where_its_study_is(here, capsys):
    line = (
        "-m hydra/sweeper=search model=bigram data=sentence val_fraction=0.2 threads=1 device=cpu "
        "max_steps=1 name=s lr=interval(0.1,1) hydra.sweeper.storage=sqlite:///shared.db hydra.sweeper.n_trials="
    )
    for n_trials in (1, 2, 3):
        cli.main(f"{line}{n_trials}".split())
    capsys.readouterr()
    export.main(["sweep=outputs/sweeps/s", "out=s.zip"])
    page = page_of("s.zip", "s")
    assert [int(n) for n in re.findall(r"n_trials=(\d)", page)] == [1, 2, 3]
    for said in (page, capsys.readouterr().err):
        assert "the study, which is where hydra.sweeper.storage= names it, is not packed" in said
    assert "optuna==" in page and "'.[sweeps,tokens]'" in page


def test_the_folder_of_the_files_that_a_command_read_is_said_to_be_missing(here, capsys):
    (here / "mine/model").mkdir(parents=True)
    (here / "mine/model/tiny.yaml").write_text(
        "# @package _global_\ndefaults:\n- bigram\nblock_size: 8\n"
    )
    line = (
        "-m --config-dir=mine model=tiny data=sentence val_fraction=0.2 max_steps=1 seed=0 name=s"
    )
    cli.main([*line.split(), "threads=1"])
    export.main(["sweep=outputs/sweeps/s", "out=s.zip"])
    assert "the files in the folder of --config-dir" in capsys.readouterr().err
    assert (
        "--config-dir, which the command needs"
        in zipfile.ZipFile("s.zip").read("s/README.md").decode()
    )


def test_a_plug_in_that_made_none_of_the_runs_is_refused(grid, here):
    shutil.copy(ROOT / "examples/my_lab.py", here)
    with pytest.raises(UserError, match=r"plugin=my_lab\.py: none of the runs of sweep="):
        export.main(["sweep=outputs/sweeps/grid", "out=a.zip", "plugin=my_lab.py"])
    assert not (here / "a.zip").exists()


def test_the_file_of_a_sweep_is_packed(grid):
    for path in grid.glob("*/metrics.json"):
        text = re.sub(
            '"command": ".*"', '"command": "python train.py -m sweep=ladder"', path.read_text()
        )
        path.write_text(text)
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    packed = zipfile.ZipFile("a.zip").read("grid/conf/sweep/ladder.yaml")
    assert packed == (ROOT / "conf/sweep/ladder.yaml").read_bytes()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("sweep=outputs/sweeps/grid", "out=export: needs the name of an archive, such as grid.zip"),
        ("sweep=outputs/sweeps/grid out=a.tar", "out=a.tar: needs the name of an archive"),
        ("sweep=nowhere out=a.zip", "sweep=nowhere: is no folder"),
        ("sweep=. out=a.zip", "sweep=.: no run there"),
        ("sweep=outputs/sweeps/grid out=a.zip run=x", "run=x: has no effect with sweep="),
        ("sweep=outputs/sweeps/grid out=a.zip checkpoint=best", "checkpoint=best: has no effect"),
        ("checkpoints=all", "checkpoints=all: needs sweep="),
        (
            "sweep=outputs/sweeps/grid out=a.zip checkpoints=some",
            "allowed are none, best, last, all",
        ),
        ("sweep=outputs/sweeps/grid out=there.zip", "out=there.zip: is there already"),
    ],
)
def test_what_cannot_be_packed_is_refused(grid, here, typed, words):
    (here / "there.zip").write_text("mine")
    before = {*here.iterdir()}
    with pytest.raises(UserError, match=re.escape(words)):
        export.main(typed.split())
    assert {*here.iterdir()} == before and (here / "there.zip").read_text() == "mine"


def test_an_archive_that_another_command_has_written_meanwhile_stays(grid, here, monkeypatch):
    readme = archive.readme

    def late(*arguments):
        (here / "a.zip").write_text("the other's")
        return readme(*arguments)

    monkeypatch.setattr(archive, "readme", late)
    with pytest.raises(UserError, match=r"out=a\.zip: is there already"):
        export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    assert (here / "a.zip").read_text() == "the other's"
    assert not list(here.glob(".a.zip*"))


def test_what_is_missing_is_said(grid, here, capsys):
    (first, second, *_) = sorted(path.parent for path in grid.glob("*/config.yaml"))
    (first / "config.yaml").unlink()
    (second / "tokenizer.json").unlink()
    (second / "checkpoints/best.ckpt").unlink()
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip", "checkpoints=best"])
    told = capsys.readouterr().err
    assert f"warning: {first.name} has no config.yaml, and is not packed" in told
    assert (
        f"{second.name} has no tokenizer.json, checkpoints/best.ckpt, and is packed without" in told
    )
    assert told.count("warning:") == 2 and first.name in page_of("a.zip")


def test_a_run_that_is_trained_now_is_not_packed_half(grid, here):
    run = next(path.parent for path in grid.glob("*/config.yaml"))
    with files.lock(run / "train.log"), pytest.raises(UserError, match="is being trained"):
        export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    assert not Path("a.zip").exists()


def test_a_full_disk_leaves_nothing(grid, here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left"):
        export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    assert {path.name for path in here.iterdir()} == {"outputs"}


def test_a_link_in_the_folder_is_not_followed(grid):
    next(grid.glob("*/history.jsonl")).with_name("tokenizer.json.old").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])


def test_what_submitit_leaves_is_no_part_of_a_sweep(grid):
    """It has links in it."""
    notes = grid / ".sweep/.submitit"
    notes.mkdir(parents=True, exist_ok=True)
    (notes / ".submission_file_f834.sh").symlink_to("/etc/hostname")
    (notes / "1_0_log.out").write_text("a job")
    export.main(["sweep=outputs/sweeps/grid", "out=a.zip"])
    assert not any("submi" in name or "1_0" in name for name in names_in("a.zip"))


def test_a_name_that_is_not_utf8_is_written_in_the_page_and_the_card(grid, here):
    odd = "caf\udce9"
    (run,) = sorted(grid.glob("*/config.yaml"))[:1]
    shutil.move(grid, here / odd)
    for path in (here / odd).glob("*/metrics.json"):
        path.write_text(json.dumps(metrics(path.parent) | {"command": f"train.py out={odd}"}))
    export.main([f"sweep={odd}", "out=a.zip"])
    assert any(name.endswith("README.md") for name in names_in("a.zip"))
    export.main([f"run={odd}/{run.parent.name}", "out=exported"])
    assert r"caf\udce9" in Path("exported/README.md").read_text(encoding="utf-8")
