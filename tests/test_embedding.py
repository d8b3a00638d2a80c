"""The lab called by another program: it finds its settings as they were, and no secret is kept."""

import os
import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lmlab import own_code, plugins
from lmlab.commands import compare, evaluate, explain, plot, sample
from lmlab.commands import train as cli
from lmlab.commands.door import run_command
from lmlab.errors import UserError, reason_of, without_secrets
from lmlab.sweeps import load_runs
from tests.conftest import config, metrics, refused, script, weights

LINE = (
    "model=bigram data=sentence val_fraction=0.2 block_size=8 batch_size=2 device=cpu "
    "precision=32-true max_steps=3 "
)


def test_a_caller_finds_its_settings_as_they_were_and_gets_the_folder(here):
    before = torch.get_num_threads(), list(sys.argv)
    path = cli.main((LINE + "threads=1 name=a").split())
    assert metrics(path)["status"] == "finished" and path.parent.name == "a"
    assert (torch.get_num_threads(), list(sys.argv)) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert cli.main([f"resume={path}", "max_steps=5"]) == path
    sweep = cli.main(("-m hydra/launcher=basic seed=0 name=b " + LINE).split())
    assert (sweep / "leaderboard.csv").exists()


def test_no_command_leaves_a_variable_of_the_environment(here):
    """Torch, Lightning, plug-ins and the server of processes set some."""
    (here / "own.py").write_text(
        "import os, lmlab\nos.environ['OWN'] = '1'\nlmlab.register.schedule('own')(abs)"
    )
    before = dict(os.environ)
    run = cli.main(f"{LINE} threads=1 name=a plugin=own.py".split())
    assert dict(os.environ) == before
    cli.main(["-m", *LINE.split(), "seed=0,1", "dry_run=true", "hydra/launcher=local"])
    assert dict(os.environ) == before
    for command in (sample, evaluate, explain, plot, compare):
        name = {plot: "runs=", compare: ""}.get(command, "run=")
        own = [] if command is plot else ["plugin=own.py"]
        plugins.IMPORTED.clear()
        command.main([f"{name}{run}", *own])
        assert dict(os.environ) == before


def test_a_run_is_the_same_whatever_its_caller_has_set(here):
    """Types, devices, gradients, precisions; and the caller has all of it, and its random numbers,
    afterwards."""
    line = LINE.replace("bigram", "gpt_nano").split()
    usual = weights(cli.main([*line, "name=a"]))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    numbers = random.random(), np.random.random(), torch.rand(1).item()
    variables = dict(os.environ)
    filters = list(warnings.filters)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            unusual = cli.main([*line, "name=b"])
            assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
            assert torch.get_default_device().type == "meta" and not torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert (random.random(), np.random.random(), torch.rand(1).item()) == numbers
    assert dict(os.environ) == variables and list(warnings.filters) == filters
    for name, weight in weights(unusual).items():
        assert weight.dtype == torch.float32 and torch.equal(weight, usual[name])
    with torch.no_grad():
        cli.main([f"resume={unusual}", "max_steps=4"])
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://me:word@host/db", "mysql://me:***@host/db"),
        ("'postgresql+psycopg2://me:w:o/r@host'", "'postgresql+psycopg2://me:***@host'"),
        ("see https://a:b@c and http://d:e@f", "see https://a:***@c and http://d:***@f"),
        ("init_from=https:/a:b@c/x: no run", "init_from=https:/a:***@c/x: no run"),
        ("mysql://h/db?user=me&password=w&ssl=1", "mysql://h/db?user=me&password=***&ssl=1"),
        ("token=w api_key='w' --password w", "token=*** api_key='w' --password ***"),
        ("hf_token=w: no such key", "hf_token=***: no such key"),
        (
            "AWS_SECRET_ACCESS_KEY=w tokens_per_second=5",
            "AWS_SECRET_ACCESS_KEY=*** tokens_per_second=5",
        ),
        ("max_tokens=5 token=w", "max_tokens=5 token=***"),
        ("'https://h/x?API_KEY=w' y", "'https://h/x?API_KEY=***' y"),
        ("http://h/x?X-Amz-Signature=w&b=1", "http://h/x?X-Amz-Signature=***&b=1"),
        ("init_from=https://ghp_w@github.com/x", "init_from=https://***@github.com/x"),
        ("plugin=Bearer w7: no file", "plugin=Bearer ***: no file"),
        ("the Bearer of news", "the Bearer of news"),
        ("Authorization: Basic dTp3", "Authorization: Basic ***"),
        ("out=a/b@c x@y", "out=a/b@c x@y"),
        ("sqlite:///study.db name@place", "sqlite:///study.db name@place"),
    ],
)
def test_the_password_of_an_address_is_not_shown(text, shown):
    assert without_secrets(text) == shown
    assert reason_of(UserError(text)) == shown


def test_a_password_in_an_argument_is_shown_nowhere_and_kept_nowhere(here, capsys):
    search = "-m hydra/sweeper=search hydra/launcher=basic hydra.sweeper.n_trials=1 lr=0.1,0.2 "
    line = search + "hydra.sweeper.storage=mysql://me:secret@nowhere/db name=s " + LINE
    refused(capsys, lambda: cli.main(line.split()), ["mysql://me:***@nowhere/db"])
    (here / "x:/me:secret@y").mkdir(parents=True)
    (here / "x:/me:secret@y/a.txt").write_text("one cat and two dogs " * 9)
    line = LINE.replace("data=sentence", "data=file path=x://me:secret@y/a.txt")
    cli.main(["--cfg", "job", *line.split()])
    assert "path: x://me:***@y/a.txt" in capsys.readouterr().out
    run = cli.main(line.split())
    assert "path=x://me:***@y/a.txt" in metrics(run)["command"]
    # A path is no secret (docs/trust.md): the text is found by it.
    assert config(run)["path"] == metrics(run)["config/path"] == "x://me:secret@y/a.txt"
    cli.main([f"resume={run}", "max_steps=4"])
    assert metrics(run)["step"] == 4


def test_names_that_are_not_utf_8_are_as_good_as_others(here, monkeypatch):
    """A text, and the folder of the run: a single run, a sweep, and every command on them."""
    (here / os.fsdecode(b"caf\xe9")).mkdir()
    os.chdir(here / os.fsdecode(b"caf\xe9"))
    name = os.fsdecode(b"caf\xe9.txt")
    Path(name).write_text("one cat and two dogs " * 9)
    line = LINE.replace("data=sentence", f"data=file path={name}").split()
    run = Path.cwd() / cli.main([*line, "threads=1"])
    cli.main([f"resume={run}", "max_steps=5"])
    cli.main([f"replay={run}"])
    cli.main([f"init_from={run}", *line, "threads=1", "name=tuned"])
    sweep = cli.main(["-m", "hydra/launcher=basic", "seed=0,1", "name=s", *line])
    for command, arguments in (
        ("sample", [f"run={run}", "max_tokens=3"]),
        ("evaluate", [f"run={run}"]),
        ("explain", [f"run={run}"]),
        ("plot", [f"runs={run}"]),
        ("compare", [str(sweep), str(run)]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [command, *arguments])
            run_command(script(command).main)
    found = load_runs(sweep)
    assert [*found["status"]] == ["finished"] * 2 and [*found["data"]] == [f"file {name}"] * 2
    assert r"caf\\udce9.txt" in (sweep / "report.html").read_text(encoding="utf-8")


class Deadline(BaseException):
    """What a program's own handler raises."""


def test_what_a_handler_of_signals_raises_ends_the_program(monkeypatch):
    """It comes between two instructions of any code; a cluster's handler ends a job so."""

    def ring(number, frame):
        raise Deadline

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with pytest.raises(Deadline), plugins.exits_as_errors():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(RuntimeError, match="raises Deadline"), plugins.exits_as_errors():
        raise Deadline


def test_code_of_packages_on_pythonpath_is_not_the_programs_own(tmp_path, monkeypatch):
    """Clusters keep theirs in such folders, and so does pip install --target."""
    monkeypatch.syspath_prepend(tmp_path)
    assert own_code.is_own_file(str(tmp_path / "idea.py"))
    (tmp_path / "tool-1.0.dist-info").mkdir()
    assert not own_code.is_own_file(str(tmp_path / "tool/core.py"))
