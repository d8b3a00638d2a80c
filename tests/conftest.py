"""What tests share: a place of their own, and the program as a user runs it, in this process."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

from lmlab import files
from lmlab.commands import train as cli
from lmlab.config import overrides
from lmlab.processes.server import PRELOAD_SEARCH, start_server

# A slow machine is no failure, and a failure comes back at the next run.
settings.register_profile(
    "lab", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lab")
# Two tests run at once, and more threads than cores are far slower. torch reads it when imported.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parent.parent
MEMORY = Path("/dev/shm")  # Linux's file system in memory
ROOM = 2**32  # bytes that it must have; all tests together write half of that
NANO = (
    "model=gpt_nano threads=1 batch_size=4 max_steps=4 eval_interval=2 log_interval=1 device=cpu "
    "precision=32-true "
)  # whatever the machine is fastest with


@pytest.fixture(scope="session", autouse=True)
def foreground():
    """Hears Ctrl-C and a closed terminal, which a suite that was started with & or nohup ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, foreground):
    """A cache of the tests' own, with a text in the place of tiny-shakespeare."""
    from lmlab.data import corpora  # not above: pytest's own process would import torch, too

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LMLAB_CACHE", str(folder))
        patch.setenv(
            "CUDA_VISIBLE_DEVICES", ""
        )  # the tests are about the CPU, whatever else there is
        patch.setattr("torch.backends.mps.is_available", lambda: False)
        text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 60
        (folder / "tinyshakespeare.txt").write_text(text)
        patch.setattr(corpora, "SHAKESPEARE_SHA256", files.sha256(text.encode()))
        patch.setattr(
            "lmlab.inference.references.ORDERS", range(2, 4)
        )  # counting takes seconds for each text that is new
        start_server([*PRELOAD_SEARCH, "tests.short_samples"])  # imports while the first tests run
        importlib.import_module("tests.short_samples")
        yield folder


@pytest.fixture(scope="module")
def short_texts():
    """Of the built-in texts the first characters alone, after one each of all that they have: the
    vocabulary stays. For runs in this process, which else spend their time on validation.
    """
    from lmlab.data import corpora

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tales", "pydoc"):
            text = "".join(getattr(corpora, name)(None))
            short = "".join(sorted({*text})) + text[:5_000]
            patch.setattr(corpora, name, lambda _, short=short: [short])
        yield


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    return tmp_path


@contextmanager
def working_in(folder):
    """For fixtures that outlast a test: what `here` does for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pytest"])
        yield folder


@pytest.fixture
def train(here):
    """Runs `train.py` with a line of arguments and returns the new run's folder, or of a sweep all
    of them.
    """

    def train(line):
        before = set(here.rglob("config.yaml"))
        cli.main(shlex.split(line))
        new = sorted(path.parent for path in set(here.rglob("config.yaml")) - before)
        return new if "-m " in f"{line} " else new[0]

    return train


SMALL_RUN = (
    "model=bigram data=sentence val_fraction=0.2 block_size=8 batch_size=2 threads=1 device=cpu "
    "precision=32-true "
    "eval_interval=10 checkpoint_interval=5 log_interval=1 max_steps=20 name=x"
)
LAST, *_ = CHECKPOINTS = [f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best")]


def three_runs(folder, line):
    """Trains a run of 20 steps, one like it but for its seed, and one that went on to 30."""
    with working_in(folder):
        for name, more in (
            ("run", ""),
            ("other", " seed=1"),
            ("longer", " max_steps=30 decay_steps=20"),
        ):
            cli.main(f"{line} {more}".split())
            shutil.move(next((folder / "outputs/x").iterdir()), folder / name)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs over characters."""
    return three_runs(tmp_path_factory.mktemp("trained"), SMALL_RUN)


@pytest.fixture
def run(trained, here):
    """A copy of the first of them, to damage."""
    return shutil.copytree(trained / "run", here / "run", symlinks=True)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys, command, words):
    """The one line with which a command is refused, after those about keys that are typed twice."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command()
    stderr = re.sub(r"warning: \S+: has no effect, since .*\n", "", capsys.readouterr().err)
    assert stop.value.code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert all(word in stderr for word in words), stderr


def history(run, key):
    """The values of a key in a run's history, by step."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def weights(run, checkpoint="last"):
    """The weights in one of a run's checkpoints."""
    import torch

    return torch.load(run / f"checkpoints/{checkpoint}.ckpt", weights_only=True)["state_dict"]


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def script(name):
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def some_config():
    """A checked configuration: a tiny GPT on the stories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        return overrides.resolved(("model=gpt_nano", "device=cpu"))[0]


# The files that `make quick` leaves out, and then those that take longest of the others.
LONG = ("resume", "search", "sweep", "readme", "additions", "recipes", "finetune", "cli", "learn")
LONG += ("training", "disk", "damage", "device", "old_runs", "code", "embedding")
FIRST = ("ranks", *LONG, "misuse", "one_file", "cells")


def pytest_addoption(parser):
    parser.addoption(
        "--kills",
        type=int,
        default=1,
        help="how many kills at random moments (tests/test_resume.py)",
    )


def pytest_configure(config):
    """Puts the tests' folders into memory, where it has room: the lab calls fsync for each file, which
    takes half of a short run's time on a disk. With PYTEST_DEBUG_TEMPROOT they are there, and stay.
    """
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not has_room(MEMORY):
        return
    folder = tempfile.mkdtemp(prefix="lmlab-tests-", dir=MEMORY)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = folder  # for the workers of pytest-xdist, too
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def has_room(folder):
    """Whether it is there, and can take what the tests write."""
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > ROOM


def pytest_collection_modifyitems(items):
    """Sorts the files that take longest first, so that no worker is left alone with one at the
    end, and marks the tests of all files but the long ones as quick.
    """
    order = [f"test_{name}" for name in FIRST]
    items.sort(key=lambda item: (*order, item.path.stem).index(item.path.stem))
    for item in items:
        if item.path.stem.removeprefix("test_") not in LONG:
            item.add_marker("quick")


@contextmanager
def ready(program):
    """A process that runs a program, once it has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
