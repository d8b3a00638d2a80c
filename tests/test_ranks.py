"""Several processes train one run: the same batches, the same losses, one writer, one end."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmlab
from lmlab import machine, ranks
from lmlab.catalogue import DeviceConfig
from lmlab.commands import train as cli
from lmlab.config.keys import marked
from lmlab.data.batches import Batches
from lmlab.data.documents import Documents
from lmlab.errors import UserError
from lmlab.inference.loss import Turns, log_probs
from lmlab.markers import CHANGEABLE, LAST_BITS, UNTOUCHING
from lmlab.models.base import build_model
from lmlab.processes.server import context
from lmlab.ranks import Ranks
from lmlab.register import PRESENT
from lmlab.signals import Interrupted, StopSignals
from lmlab.training import experiment, launch
from lmlab.training.recorder import Recorder
from tests.conftest import ROOT, config, history, metrics, refused, weights
from tests.victim import child

SMALL = (
    "data=tales n_layer=2 n_embd=32 n_head=2 block_size=16 batch_size=6 val_fraction=0.02 threads=1 "
    "device=cpu precision=32-true warmup_steps=5 log_interval=5 max_steps=50 eval_interval=25 name=x "
)


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def as_rank(folder, line, rank, size, port, point):
    """Runs train.py in this process as one of those that torchrun starts."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    folder.mkdir(exist_ok=True)
    if not line.startswith("resume="):
        line = f"{line} out={folder.parent}/outputs"
    child(folder, line, point)


class Team:
    """Processes that torchrun would start for one command; each prints into a folder of its own."""

    def __init__(self, folder, size, line, points=()):
        self.folder = folder
        port = free_port()
        self.processes = []
        for rank in range(size):
            point = dict(points).get(rank, "")
            arguments = (folder / f"rank{rank}", line, rank, size, port, point)
            self.processes.append(context().Process(target=as_rank, args=arguments))
            self.processes[-1].start()

    def wait(self):
        """The exit statuses of all."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]

    def run(self):
        """The run's folder, after all have ended well."""
        assert {*self.wait()} == {0}, self.printed(0)[-3000:]
        (path,) = (self.folder / "outputs/x").iterdir()
        return path

    def printed(self, rank):
        path = self.folder / f"rank{rank}/out.txt"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def team(tmp_path):
    """Starts a team in a folder of its own, and leaves no process behind."""
    teams = []

    def start(name, size, line, **points):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        by_rank = {int(key.removeprefix("rank")): point for key, point in points.items()}
        teams.append(Team(folder, size, line, by_rank))
        return teams[-1]

    yield start
    for one in teams:
        for process in one.processes:
            process.kill()


def losses(run):
    return {
        **history(run, "train/loss"),
        **{(step, 0): v for step, v in history(run, "val/loss").items()},
    }


def test_ranks_that_wait_for_each_other_end_with_one_signal():
    """In their call of C code they hear nothing, and there is nothing to save."""
    crew = launch.Crew(2)
    with crew.ended():
        for _ in range(2):
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            process.start()
            crew.ranks.append(launch.Rank(process, multiprocessing.Pipe(duplex=False)[0]))
        stop = StopSignals("")
        stop.receive(signal.SIGTERM, None)
        crew.wait(stop)
        assert [rank.process.exitcode for rank in crew.ranks] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize(
    "line",
    [
        "model=gpt optimizer=adamw grad_accumulation=2",
        "model=modern optimizer=muon",
        "model=gpt data=addition",  # some tokens are not scored
    ],
)
def test_two_processes_of_half_the_batch_follow_one(train, team, line):
    """To 1e-5 in each loss, and a second time to the bit."""
    line = SMALL.replace("data=tales ", "") + line
    if "data=" not in line:
        line += " data=tales"
    if "data=addition" in line:
        line = line.replace("val_fraction=0.02 ", "")
    one = losses(train(line))
    first, second = (team(name, 2, line).run() for name in ("first", "second"))
    two = losses(first)
    assert one.keys() == two.keys() and len(one) > 10
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    assert two == losses(second)
    assert all(torch.equal(w, weights(second)[name]) for name, w in weights(first).items())
    assert config(first)["devices"] == 2  # what torchrun has started


EXCHANGES = """
import torch.distributed as dist
from pytorch_lightning import Callback
import lmlab

class Exchanges(Callback):
    def __init__(self):
        self.n = 0

    def on_train_start(self, trainer, module):
        trainer.strategy.model.register_comm_hook(None, self.count)

    def count(self, state, bucket):
        self.n += 1
        mean = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])

    def on_train_end(self, trainer, module):
        module.log("exchanges", self.n)

@lmlab.register.callback("exchanges")
def exchanges():
    return Exchanges()
"""


def test_gradients_are_exchanged_once_a_step(team, tmp_path):
    """Not with each batch that a step accumulates."""
    (tmp_path / "exchanges.py").write_text(EXCHANGES)
    line = SMALL.replace("max_steps=50", "max_steps=5") + "model=bigram grad_accumulation=4"
    line = re.sub(r"n_\w+=\d+ ", "", line)
    run = team("team", 2, f"{line} plugin={tmp_path / 'exchanges.py'}").run()
    assert history(run, "exchanges") == {5: 5}


MEANS = """
from dataclasses import dataclass
import torch
import lmlab

@dataclass(frozen=True)
class MeansConfig(lmlab.ModelConfig):
    block_size: int = 16

@lmlab.register.model("means", MeansConfig)
class Means(lmlab.LanguageModel):
    def __init__(self, config, vocab_size):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(vocab_size, 16)
        self.output = torch.nn.Linear(16, vocab_size)
        self.idle = torch.nn.Linear(2, 2)  # weights that get no gradient
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("mask", torch.ones(2, 2).bool())

    def forward(self, idx):
        x = self.embedding(idx)
        if self.training and not x.is_meta:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
        return self.output(x - self.mean)
"""


def test_what_is_evaluated_is_what_is_saved_also_if_training_changes_buffers(team, tmp_path):
    """Each rank has seen rows of its own."""
    (tmp_path / "means.py").write_text(MEANS)
    line = re.sub(r"n_\w+=\d+ ", "", SMALL.replace("max_steps=50", "max_steps=10"))
    run = team("team", 2, f"{line} model=means lr=0.01 plugin={tmp_path / 'means.py'}").run()
    found = lmlab.load_run(run, plugin=str(tmp_path / "means.py")).evaluate(checkpoint="last")
    assert found["val/loss"] == metrics(run)["val/loss"]


DROPPING = SMALL + "model=gpt dropout=0.1 checkpoint_interval=10 "


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_run_goes_on(
    team, tmp_path, monkeypatch
):
    """With as many processes to the bit; with another number over the same batches."""
    whole = team("whole", 3, DROPPING).run()
    stopped = team("stopped", 3, DROPPING, rank2="wait 14 1")
    until(lambda: stopped.printed(2).count("batch\n") == 14)
    os.kill(stopped.processes[2].pid, signal.SIGTERM)
    assert {*stopped.wait()} <= {0, 128 + signal.SIGTERM}
    (path,) = (tmp_path / "stopped/outputs/x").iterdir()
    assert metrics(path)["status"] == "interrupted" and metrics(path)["step"] == 14
    assert "interrupted at step 14" in stopped.printed(0)
    assert "stopping" not in stopped.printed(1) + stopped.printed(2)
    alone = shutil.copytree(path, tmp_path / "alone")
    resumed = team("again", 3, f"resume={path}")
    assert {*resumed.wait()} == {0}, resumed.printed(0)
    assert losses(path) == losses(whole)
    assert all(torch.equal(w, weights(path)[name]) for name, w in weights(whole).items())
    monkeypatch.chdir(tmp_path)
    cli.main([f"resume={alone}", "devices=1"])
    assert config(alone)["devices"] == 1 and metrics(alone)["status"] == "finished"
    ours, theirs = losses(alone), losses(whole)
    assert ours.keys() == theirs.keys()
    assert ours != theirs  # other numbers are dropped out
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 0.1


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(0, 50), st.sampled_from(["epoch", "window"])
)
def test_the_rows_of_all_ranks_are_the_batch(share, size, t, align):
    """Whatever the number of ranks, batch t is the same."""
    tokens = np.random.default_rng(0).integers(50, size=300).astype(np.uint8)
    arguments = tokens, share * size, 7, 3, align
    whole = Batches(*arguments)
    parts = []
    for rank in range(size):
        own = Ranks()
        own.rank, own.size = rank, size
        batches = Batches(*arguments, rows=own.rows(share * size))
        streamed = batches.stream(t, torch.device("cpu"))
        parts.append(next(streamed))
        assert all(torch.equal(a, b) for a, b in zip(next(streamed), batches[t + 1], strict=True))
    for number in (0, 1):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[t][number])


class Pretended(Ranks):
    """A rank whose sums are made by hand."""

    def __init__(self, rank, size, asked=False):
        self.rank, self.size, self.asked = rank, size, asked

    def agree(self, *votes):
        return [int(self.asked) or vote for vote in votes]

    def add_up(self, tensor):
        pass


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("model", ["bigram", "mlp", "lstm", "gpt", "modern"])
def test_the_validation_loss_is_the_same_number_for_any_number_of_processes(
    some_config, model, within
):
    """Each token is computed by one of them, in a batch of windows that does not depend on how many."""
    keys = lmlab.config.overrides.resolved((f"model={model}", "device=cpu", "block_size=16"))[
        0
    ].model
    torch.manual_seed(0)
    built = build_model(keys, 40)
    tokens = np.random.default_rng(1).integers(40, size=9_011).astype(np.uint8)
    documents = Documents(np.arange(0, 9_011, 250), None) if within else None
    arguments = built, tokens, 16, "32-true", documents
    expected = log_probs(*arguments)
    for size in (2, 3, 5):
        parts = [log_probs(*arguments, Turns(Pretended(rank, size))) for rank in range(size)]
        assert torch.equal(sum(parts), expected)
        assert (torch.stack(parts) != 0).sum(0).max() == 1


def test_an_evaluation_that_is_shared_ends_with_a_signal_to_any_of_them(some_config):
    model = build_model(some_config.model, 40)
    tokens = np.zeros(100, np.uint8)
    with pytest.raises(Interrupted):
        log_probs(model, tokens, 16, turns=Turns(Pretended(0, 2, asked=True)))


PLUGIN = """
import os, signal, time
from datetime import timedelta
from pytorch_lightning import Callback
import lmlab
from lmlab import ranks

class Trouble(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 12 and os.environ.get("RANK") == "1":
            {what}

@lmlab.register.callback("trouble")
def trouble():
    return Trouble()
"""


def trouble(folder, what):
    (folder / "trouble.py").write_text(PLUGIN.replace("{what}", what))
    return "plugin=trouble.py"


HERE = (
    "data=sentence val_fraction=0.2 model=gpt n_layer=1 n_embd=16 n_head=2 block_size=16 batch_size=4 "
    "threads=1 device=cpu precision=32-true max_steps=40 eval_interval=20 checkpoint_interval=10 name=x "
    "devices=2 "
)


def processes_left(folder):
    """The other processes that work in a folder."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if Path(os.readlink(process / "cwd")) == folder:
                left.append(int(process.name))
    return [pid for pid in left if pid != os.getpid()]


def test_an_error_in_one_rank_is_shown_once_and_ends_all(here, capfd):
    """The lab's own launcher, from the command line."""
    plug = trouble(here, 'raise RuntimeError("a request of its own timed out")')
    with pytest.raises(SystemExit) as stop:
        cli.main((HERE + plug).split())
    printed = capfd.readouterr()
    assert stop.value.code == 2
    assert printed.err.count("Traceback") == 1 and "Traceback" not in printed.out
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: rank 1 of 2: plugin=trouble.py: on_train_batch_end failed")
    (run,) = (here / "outputs/x").iterdir()
    assert metrics(run)["status"] == "failed" and "rank 1 of 2" in metrics(run)["reason"]
    assert not processes_left(here)


OTHERS = '{"status": "interrupted"}'


def runs_of_the_next_minutes(folder):
    """Makes a run of another command for each second that comes, so that a new one is numbered."""
    names = [
        time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(time.time() + s)) for s in range(120)
    ]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text(OTHERS)
    return {folder / name for name in names}


def test_a_rank_that_is_killed_ends_all_and_the_run_goes_on_to_the_bit(here, capfd):
    """Without the plug-in's trouble it is the same run."""
    plug = trouble(here, "os.path.exists('once') or (open('once', 'w'), os.kill(os.getpid(), 9))")
    others = runs_of_the_next_minutes(here / "outputs/x")
    with pytest.raises(SystemExit) as stop:
        cli.main((HERE + plug).split())
    (run,) = {*(here / "outputs/x").iterdir()} - others
    assert {(other / "metrics.json").read_text() for other in others} == {OTHERS}
    for other in others:
        shutil.rmtree(other)
    error = capfd.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert (
        error.startswith("error: rank 1 of 2 was killed by SIGKILL")
        and f"resume={run.relative_to(here)}" in error
    )
    assert metrics(run)["status"] == "interrupted"
    assert not processes_left(here)
    alone = shutil.copytree(run, here / "alone")
    cli.main([f"resume={run}", plug])
    cli.main((HERE + plug).split())
    (whole,) = {*(here / "outputs/x").iterdir()} - {run}
    assert losses(run) == losses(whole)
    cli.main([f"resume={alone}", plug, "devices=1"])
    assert re.fullmatch(r"until step \d+ it had devices=2", metrics(alone)["changed"])
    assert "changed" not in metrics(run)
    by_one, by_two = losses(alone), losses(whole)
    assert by_one.keys() == by_two.keys()
    assert max(abs(by_one[step] - by_two[step]) for step in by_one) < 1e-4
    assert all(torch.equal(w, weights(whole)[name]) for name, w in weights(run).items())


def test_each_key_that_a_resumed_run_may_change_touches_no_bit_or_is_noted():
    """Or it says how long a run goes on, and what of it is looked at."""
    how_long = {"max_steps", "max_minutes", "patience", "eval_interval"}
    touching = marked(CHANGEABLE) - marked(UNTOUCHING)
    assert touching - how_long == marked(LAST_BITS)


def test_a_rank_that_hangs_is_ended_and_named(here, capfd, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 1)
    plug = trouble(here, "time.sleep(1000)")
    (here / "trouble.py").write_text(
        (here / "trouble.py").read_text() + "\nranks.HANG = timedelta(seconds=3)\n"
    )
    with pytest.raises(SystemExit) as stop:
        cli.main((HERE + plug).split())
    error = capfd.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert re.match(r"error: rank 1 of 2 did not answer for [\d.]+ minutes, and was ended", error)
    assert not processes_left(here)


def test_ranks_whose_weights_part_are_refused(here, capfd):
    """What a callback or an optimizer does on one rank alone would never be seen."""
    plug = trouble(here, "next(module.parameters()).data.add_(1e-3)")
    with pytest.raises(SystemExit):
        cli.main((HERE + plug).split())
    error = capfd.readouterr().err.splitlines()[-1]
    assert "after step 20 rank 1 has other weights than rank 0" in error


@pytest.mark.parametrize(
    ("sums", "is_equal"),
    [((1.0, 1.0), True), ((1.0, 2.0), False), ((np.nan, np.nan), True), ((1.0, np.nan), False)],
)
def test_weights_of_two_ranks_are_equal_also_if_they_are_no_numbers(sums, is_equal):
    here = SimpleNamespace(gather=lambda own: [*sums])
    recorder = SimpleNamespace(ranks=here, meter=SimpleNamespace(step=1))
    with nullcontext() if is_equal else pytest.raises(UserError, match="rank 1 has other weights"):
        Recorder.check_equal(recorder, torch.nn.Linear(1, 1))


def test_a_program_gets_what_the_ranks_print_where_it_wants_it(here, capfd):
    """Also a sweep has cells of several processes, which count as so many."""
    keys = [word for word in HERE.split() if not word.startswith("name=")]
    code = textwrap.dedent(
        f"""
        import contextlib, io, lmlab
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run = lmlab.train(*{keys}, name="x")
        assert "2 processes, each with 1 threads and 2 rows" in printed.getvalue()
        assert run.metrics["step"] == 40
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reader_of_the_output_that_is_gone_stops_no_rank(here):
    """As after | head -1, or a connection that is lost."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "train.py"), *HERE.split()]
    done = subprocess.run(command, cwd=here, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    (run,) = (here / "outputs/x").iterdir()
    assert (done.returncode, done.stderr) == (0, "") and metrics(run)["status"] == "finished"


def test_what_a_program_has_registered_itself_cannot_go_to_other_processes(here):
    @lmlab.register.callback("of_this_program_alone")
    def alone():
        return None

    try:
        with pytest.raises(
            UserError, match=r"devices=2: callback of_this_program_alone .* plugin="
        ):
            lmlab.train(*HERE.split())
    finally:
        for addition in [one for one in PRESENT if not one.of_plugin]:
            addition.take_out()


def test_trying_out_takes_the_beginning_of_the_text_in_all_processes(here, capfd):
    cli.main(f"{HERE} data=tales val_fraction=0.1 fast_dev_run=true".split())
    assert "2 steps and an evaluation" in capfd.readouterr().out


def test_cells_of_several_processes_run_beside_cells_of_one(here, capfd):
    cli.main(["-m", *HERE.replace("devices=2", "devices=1,2").split()])
    cells = [*(here / "outputs/sweeps/x").glob("devices=*")]
    by_devices = {config(cell)["devices"]: history(cell, "val/loss") for cell in cells}
    assert by_devices.keys() == {1, 2}
    assert by_devices[1] == pytest.approx(by_devices[2], abs=1e-5)
    again = capfd.readouterr()
    cli.main(["-m", *HERE.replace("devices=2", "devices=1,2").split()])
    assert "2 cells, 2 of them done already" in capfd.readouterr().out, again


class Job:
    def __init__(self, processes):
        self.processes = processes


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(1, 4))
def test_as_many_cells_run_as_fit(widths, n_jobs):
    """Each waits for room, in its turn; one that never fits runs alone."""
    from lmlab.sweeps.launcher import LocalLauncher

    launcher = LocalLauncher(n_jobs, None)
    launcher.stop = type("Stop", (), {"came": False})
    launcher.view = type("View", (), {"show": lambda *_: None})
    left = [Job(width) for width in widths]
    launcher.next_job = lambda _: left.pop(0) if left else None
    most = []

    def start(job):
        launcher.jobs.append(job)
        job.cell = None
        job.process = type("P", (), {"sentinel": None})
        most.append(launcher.busy())
        assert launcher.busy() <= n_jobs or len(launcher.jobs) == 1

    launcher.start = start
    launcher.poll = launcher.jobs.remove
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.sweeps.launcher.connection.wait", lambda *_, **__: None)
        launcher.run_all(None, n_jobs)
    assert len(most) == len(widths) and not launcher.jobs


def test_a_number_of_processes_that_does_not_fit_is_refused(capsys, here, monkeypatch):
    line = HERE.replace("batch_size=4", "batch_size=12")
    words = ["batch_size=12 devices=5", "batch_size=10 or 15", "devices=4 or 6"]
    refused(capsys, lambda: cli.main(f"{line} devices=5".split()), words)
    refused(
        capsys, lambda: cli.main(f"{line} devices=0".split()), ["devices=0", "[1, 1024], or auto"]
    )
    refused(capsys, lambda: cli.main(f"{line} devices=many".split()), ["devices=many", "or auto"])
    refused(capsys, lambda: cli.main(f"{line} nodes=2".split()), ["nodes=2", "torchrun", "slurm"])
    with monkeypatch.context() as patch:
        for key, value in {
            "TORCHELASTIC_RUN_ID": "a",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
        }.items():
            patch.setenv(key, value)
        refused(capsys, lambda: cli.main(f"-m {HERE}".split()), ["-m", "without torchrun"])
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("device", "keys", "gpus", "expected"),
    [
        ("cpu", {"devices": None}, 0, 1),
        ("cpu", {"devices": "auto"}, 0, 1),
        ("cpu", {"devices": 3}, 0, 3),
        ("cuda", {"devices": "auto"}, 4, 4),
        ("cuda", {"devices": None}, 4, 1),
        ("cuda", {"devices": 8}, 4, "this machine has 4 GPUs"),
        ("mps", {"devices": 2}, 0, "device=mps has one"),
    ],
)
def test_devices_of_a_machine(monkeypatch, device, keys, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = DeviceConfig(precision="auto", nodes=1, **keys)
    if isinstance(expected, int):
        assert machine.pick_devices(torch.device(device), asked).processes == expected
    else:
        with pytest.raises(UserError, match=expected):
            machine.pick_devices(torch.device(device), asked)


@pytest.mark.parametrize(
    ("env", "keys", "expected"),
    [
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, {}, 2),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, {"devices": 3}, "torchrun has started 2"),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, {"nodes": 2}, 4),
        # A job of several tasks, which without devices= are runs by themselves, as they were before.
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {}, 1),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {"devices": 2}, 2),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {"devices": 4}, "srun has started 2"),
        # What other programs leave in the environment means nothing.
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, {}, 1),
    ],
)  # fmt: skip
def test_devices_where_torchrun_or_srun_has_started_processes(monkeypatch, env, keys, expected):
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    asked = replace(DeviceConfig(precision="auto", devices=None, nodes=1), **keys)
    if isinstance(expected, int):
        assert machine.pick_devices(torch.device("cpu"), asked).processes == expected
    else:
        with pytest.raises(UserError, match=expected):
            machine.pick_devices(torch.device("cpu"), asked)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("RANK=", ["RANK=: ", "type: unset RANK"]),
        ("LOCAL_RANK=x", ["LOCAL_RANK=x: "]),
        ("SLURM_PROCID=-1", ["SLURM_PROCID=-1: "]),
        ("SLURM_STEP_NUM_TASKS=", ["SLURM_STEP_NUM_TASKS=: "]),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0", ["SLURM_LOCALID=: "]),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0 SLURM_LOCALID=0", ["SLURM_NODELIST: "]),
        ("TORCHELASTIC_RUN_ID=a RANK=0", ["WORLD_SIZE=: "]),
    ],
)
@pytest.mark.parametrize("line", ["", "devices=2", "-m seed=0,1"])
def test_a_variable_of_a_rank_that_holds_no_number_is_refused(
    capsys, here, monkeypatch, variables, words, line
):
    if "NODELIST" in words[0]:
        line = "devices=2"  # without it each of the tasks trains a run by itself
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    refused(capsys, lambda: cli.main(f"model=bigram data=sentence {line}".split()), words)
    assert not (here / "outputs").exists()


def test_a_network_interface_that_is_not_there_is_named(monkeypatch):
    alone = ranks.Place(rank=0, size=1, local_rank=0, starter="lmlab")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for key, value in ranks.variables(alone, "localhost", port).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")  # the store is in this process, too
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nix0")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=nix0: "), ranks.joined(alone):
        pass
    assert ranks.here() is ranks.ALONE


def test_a_run_that_a_signal_ends_before_rank_0_hears_it_says_how_it_goes_on(run, capsys):
    """Rank 0 hears signals when the training begins, and has the folder before."""
    noted = run / "metrics.json"
    for has_result, before, status in (
        (True, "running", "running"),
        (False, "running", "interrupted"),
        (False, "finished", "finished"),  # it was to be made longer
    ):
        noted.write_text(json.dumps(metrics(run) | {"status": before}))
        capsys.readouterr()
        with pytest.raises(SystemExit), experiment.noting_ranks() as notice:
            notice.folder = run
            notice.has_result = has_result  # it has noted and said it itself
            raise SystemExit(128 + signal.SIGINT)
        assert metrics(run)["status"] == status
        said = f"interrupted; to continue: python train.py resume={run}\n"
        assert capsys.readouterr().out == (said if status == "interrupted" else "")


def test_threads_are_divided_among_the_processes_of_a_machine(some_config, monkeypatch):
    """Two processes with all cores each would be four times slower."""
    monkeypatch.setattr(machine, "CORES", 8)
    asked = replace(
        some_config,
        device=replace(some_config.device, devices=4),
        run=replace(some_config.run, threads=None, batch_size=12),
    )
    assert machine.resolve(asked).run.threads == 2


def test_an_error_about_another_rank_is_told_from_others():
    ended = ["[gloo/transport/tcp/pair.cc:547] Connection closed by peer", "Socket closed"]
    late = [
        "Timed out waiting 600000ms",
        "Application timeout caused pair closure",
        "Connect timeout",
    ]
    for text in (*ended, *late):
        error = RuntimeError(text)
        assert ranks.is_lost(error) and ranks.lost_contact(error).hangs == (text in late)
    assert ranks.is_lost(torch.distributed.DistBackendError("remote process exited"))
    assert not ranks.is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ranks.is_lost(ValueError("timed out"))
    note = launch.note_of_error(RuntimeError("Timed out waiting 1000ms for recv operation"))
    assert note.is_lost and note.hung and note.error is None
    assert str(ranks.LostContact(hangs=True)) == "another process of this run does not answer"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_whose_partner_never_comes_says_so_and_hears_a_signal(number):
    """As with the variables that a shell of torchrun's has left over."""
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever has started the test
from lmlab import ranks
ranks.WAITING = 0.1
with ranks.joined(ranks.place()):
    pass
"""
    left = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | left | place,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stderr.readline()
        process.send_signal(number)
        assert process.wait(10) == -number
    assert line.startswith(
        f"rank 0 of 2 waits for the others at 127.0.0.1:{place['MASTER_PORT']}; "
    )
    assert "without RANK, which torchrun sets" in line
