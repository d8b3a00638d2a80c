"""The benchmark: its suites are explained, and wrong input is refused before measuring."""

import importlib
import subprocess
import sys
import time

import pytest

from lmlab.errors import one_line_errors
from tests.conftest import ROOT, refused, script


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: importlib.import_module(f"suites.{name}")


def test_every_suite_is_there_and_explained(suite):
    benchmark = script("benchmark")
    assert {path.stem for path in (ROOT / "scripts/suites").glob("*.py")} == {
        *benchmark.SUITES,
        "__init__",
        "commands",
    }
    for name in benchmark.SUITES:
        assert callable(suite(name).measure) and f"\n  {name} " in benchmark.__doc__


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["speed"], ["speed", "startup, data, train, sample, context, ranks, sweep, scale, all"]),
        (["train", "nanogpt=/nowhere"], ["nanogpt=/nowhere", "model.py"]),
        (["sweep", "nanogpt=/nowhere"], ["nanogpt=/nowhere", "train or sample"]),
        (["repeats=0"], ["repeats=0"]),
    ],
)
def test_wrong_input_is_answered_by_one_line(capsys, arguments, words):
    benchmark = script("benchmark")

    def with_one_line():
        with one_line_errors():
            benchmark.main(arguments)

    refused(capsys, with_one_line, words)


def test_a_clone_without_its_text_is_named_before_anything_is_measured(
    capsys, here, suite, monkeypatch
):
    (here / "model.py").write_text("x = 1")
    benchmark = script("benchmark")

    def with_one_line():
        with one_line_errors():
            benchmark.main([f"nanogpt={here}"])

    suite("train")
    refused(capsys, with_one_line, ["nanogpt=", "its model.py has no class GPT"])
    (here / "model.py").write_text("class GPT(nn.Module):")
    refused(capsys, with_one_line, ["nanogpt=", "prepare.py"])
    (here / "data/shakespeare_char").mkdir(parents=True)
    (here / "data/shakespeare_char/train.bin").touch()
    monkeypatch.setenv("LMLAB_CACHE", str(here))
    (here / "tinyshakespeare.txt").write_text("another text")
    refused(capsys, with_one_line, ["tinyshakespeare.txt"])
    assert capsys.readouterr().out == ""


def test_a_measured_command_that_fails_is_named(capsys, here, suite, monkeypatch):
    def measure(repeats):
        subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)

    benchmark = script("benchmark")
    monkeypatch.setattr(suite("startup"), "measure", measure)

    def with_one_line():
        with one_line_errors():
            benchmark.main(["startup"])

    refused(capsys, with_one_line, ["startup: a command has failed with exit status 3: ", "-c"])


@pytest.mark.parametrize("name", ["explain", "plot", "compare"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(capsys, here, name):
    (here / "file").touch()
    arguments = ["out=file/below/x.png"] if name != "compare" else ["outputs", "out=file/below"]

    def with_one_line():
        with one_line_errors():
            script(name).main(arguments)

    refused(capsys, with_one_line, ["out=file/below", "is no folder"])


def test_the_two_loops_share_the_time_of_one_run(suite, monkeypatch, here):
    train = suite("train")
    monkeypatch.setattr(train, "STEPS", 40)
    begun = time.perf_counter()
    lab, openly = train.in_turn(["model=bigram", "compile=false", "threads=1"])
    assert 0 < lab * 40 + openly * 40 < time.perf_counter() - begun
    assert not any(here.iterdir())
