"""Without the lab's libraries, or with a Python that is too old, a program says what to type."""

import ast
import os
import signal
import subprocess
import sys

import pytest

from lmlab import environment
from tests.conftest import ROOT, refused

ALONE = {"tiny_lm", "tiny_bpe", "nanogpt_mini"}  # files to read, which do not import the lab
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PROGRAMS = [ROOT / "train.py", *(path for path in SCRIPTS if path.stem != "site_pages")]  # a hook


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_program_that_misses_a_library_says_what_to_type(program, tmp_path):
    """Python's -S leaves out the folder in which libraries are installed."""
    command = [sys.executable, "-S", str(program), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    if program.stem == "tiny_bpe":  # needs Python alone
        assert ended.returncode == 0
        return
    assert "activate" in ended.stderr or "make" in ended.stderr
    if program.stem not in ALONE:
        assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1
        assert ended.stderr.startswith("error: this Python has no library ")


DOORS = [path for path in PROGRAMS if path.stem not in ALONE]


@pytest.mark.parametrize("program", [*DOORS, ROOT / "examples/exercises/check.py"], ids=str)
def test_a_program_is_run_as_a_command(program):
    """So Ctrl-C is quiet, a closed pipe too, and what a terminal cannot show is replaced."""
    assert "    run_command(" in program.read_text(encoding="utf-8")


@pytest.fixture
def checkout(here, monkeypatch):
    """A checkout without an environment, in which one stands."""
    (here / "Makefile").touch()
    monkeypatch.setattr(environment, "CHECKOUT", here)
    return here


def make_environment(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/installed").touch()


def test_what_to_type_depends_on_what_is_there(checkout, monkeypatch):
    assert environment.cure() == "make install && . .venv/bin/activate"
    make_environment(checkout)
    assert environment.cure() == ". .venv/bin/activate"
    monkeypatch.chdir("/")
    assert environment.cure() == f". {checkout}/.venv/bin/activate"
    monkeypatch.setattr(sys, "prefix", str(checkout / ".venv"))
    assert environment.cure() == f"make -C {checkout} clean install"


def test_a_python_that_is_too_old_is_named(checkout, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))

    def start():
        with environment.imports():
            raise AssertionError("it tried the imports")

    words = ["Python 3.9", "3.11 or newer", sys.executable]
    refused(capsys, start, [*words, "make PYTHON=python3.11 install && . .venv/bin/activate"])
    make_environment(checkout)
    refused(capsys, start, [*words, "type: . .venv/bin/activate"])


@pytest.mark.parametrize("name", ["environment", "snapshot", "__init__"])
def test_such_a_python_can_read_what_tells_it(name):
    text = (ROOT / f"lmlab/{name}.py").read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    unions = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]
    late = "from __future__ import annotations" in text
    assert late or not any(isinstance(node.op, ast.BitOr) for node in unions)


def test_ctrl_c_ends_the_imports_at_once_and_other_errors_pass(checkout, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(signal.SIGINT)
    with environment.imports():
        signal.raise_signal(signal.SIGINT)
    assert ended == [130] and signal.getsignal(signal.SIGINT) == before
    for name in ("lmlab.nothing", "somebody"):
        with pytest.raises(ModuleNotFoundError), environment.imports():
            raise ModuleNotFoundError(name=name)


def test_a_library_that_is_missing_later_is_a_line_too(checkout, capsys):
    def imports_late():
        with environment.libraries():
            raise ModuleNotFoundError(name="torch.nn")

    refused(capsys, imports_late, ["library torch", "make install"])


def test_threads_that_wait_sleep_soon_unless_a_person_says_otherwise(tmp_path):
    """torch's threads read it when torch is imported, which the lab does later."""
    code = "import lmlab, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    for given, seen in (
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ):
        variables = {"PYTHONPATH": str(ROOT), **given}
        said = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True
        )
        assert said.stdout.split() == [seen, "False"]
