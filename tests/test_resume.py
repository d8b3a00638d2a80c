"""A run that was stopped, however, goes on as if it had never been: the same weights, losses and
TensorBoard points.
"""

import itertools
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache as memory
from multiprocessing import connection

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from lmlab.processes.server import context
from lmlab.runs import folder as runs
from tests.conftest import ROOT, metrics
from tests.victim import child

# a process starts in a second, so a run of few small steps is as good to stop and takes half as
# long
STEPS = 30
COMMON = (
    f"device=cpu threads=1 max_steps={STEPS} eval_interval=10 checkpoint_interval=4 log_interval=3 name=x "
    "val_fraction=0.01 warmup_steps=5 batch_size=4 "
)
# "modern" over pairs of bytes, the others over characters.
RUNS = {
    "bigram": COMMON + "model=bigram",
    "gpt": COMMON + "model=gpt_nano n_layer=1 dropout=0.2 grad_accumulation=2 schedule=cosine",
    "modern": COMMON
    + "model=modern n_layer=1 n_head=2 n_embd=32 block_size=32 dropout=0.2 optimizer=muon "
    "grad_accumulation=2 schedule=linear hold_steps=5 tokenizer=bpe vocab_size=300",
}
PLUGINS = f"plugin={ROOT / 'examples/my_lab.py'},{ROOT / 'tests/drift_lab.py'}"
RUNS["plugin"] = f"{COMMON} {PLUGINS} model=rnn n_embd=16 data=recipes block_size=16 ema=0.9"
TIMINGS = {"tokens_per_second", "train_seconds"}
STARTING = threading.Lock()
POINTS = [
    "training_step 1",
    "training_step 20",
    "evaluate 3",
    "write 3",
    "write 16",
    "replace 25",
    "replace 27",
    "save_checkpoint 5",
]


@pytest.fixture(scope="module")
def start(cache):
    """Starts train.py in a folder, as a fresh process forked from one that has imported everything."""

    def start(folder, arguments, point=None):
        process = context().Process(target=child, args=(folder, arguments, point))
        with STARTING:
            process.start()
        return process

    ready = context().Process(target=int)  # what is timed below is a run, not the server's imports
    ready.start(), ready.join()
    return start


def exit_status(process):
    """Waits for it. To start a process is to ask after all others too, and of two threads that ask
    after one at the same time the second is told 255.
    """
    connection.wait([process.sentinel])
    with STARTING:
        process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """A function that returns a run of a kind that nothing happened to, and how long it took."""

    @memory
    def undisturbed(kind):
        folder, begun = tmp_path_factory.mktemp(kind), time.perf_counter()
        start(folder, RUNS[kind]).join()
        return next(folder.glob("outputs/x/*")), time.perf_counter() - begun

    return undisturbed


def resumed(run, kind):
    """The command that resumes a run; without its plug-ins it cannot be."""
    return f"resume={run} {PLUGINS}" if kind == "plugin" else f"resume={run}"


def finish(start, folder, kind, run=None):
    """What a person does after a stop: resume, or if nothing was there yet, start again."""
    run = run or next((path.parent for path in folder.glob("outputs/x/*/config.yaml")), None)
    process = start(folder, resumed(run, kind) if run else RUNS[kind])
    assert exit_status(process) == 0, (folder / "out.txt").read_text()
    return run or next(path.parent for path in folder.glob("outputs/x/*/config.yaml"))


def points(run):
    """All that TensorBoard shows when it reads as with --load_fast=false, but timings: by name,
    (step, value).
    """
    board = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    return {
        name: [(e.step, make_ndarray(e.tensor_proto).tolist()) for e in board.Tensors(name)]
        for name in board.Tags()["tensors"]
        if name != "train/tokens_per_second" and not name.startswith("setup/")
    }


def written(run):
    """The steps of all points in the files of TensorBoard, by name, as they stand there: a reader
    may know nothing of points that were written again.
    """
    steps = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("setup/"):
                    steps.setdefault(value.tag, []).append(event.step)
    return {name: sorted(found) for name, found in steps.items()}


def lines(run):
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMINGS}
        for line in (run / "history.jsonl").read_text().splitlines()
    ]


def assert_same(run, other):
    for name in ("last", "best"):
        one, two = (
            torch.load(r / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
            for r in (run, other)
        )
        assert one.keys() == two.keys() and all(
            weight.equal(two[key]) for key, weight in one.items()
        )
    assert lines(run) == lines(other)
    assert points(run) == points(other)
    assert written(run) == written(other)
    same = {
        "step",
        "status",
        "val/loss",
        "train/loss",
        "best/val/loss",
        "best/step",
        "tokens",
        "n_params",
    }
    assert {key: metrics(run)[key] for key in same} == {key: metrics(other)[key] for key in same}
    assert not list(run.rglob(".*"))


def test_a_kill_at_any_point_loses_nothing_but_time(start, undisturbed, tmp_path):
    run, _ = undisturbed("modern")

    def kill(point):
        folder = tmp_path / point.replace(" ", "-")
        folder.mkdir()
        process = start(folder, RUNS["modern"], point)
        assert exit_status(process) == -signal.SIGKILL, point
        for path in folder.glob("outputs/x/*/config.yaml"):
            assert metrics(path.parent)["status"] == "running"
            assert runs.read_metrics(path.parent)["status"] == "interrupted"
        assert_same(finish(start, folder, "modern"), run)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill, POINTS))


def test_so_does_one_at_any_moment(start, undisturbed, tmp_path, request):
    """python -m pytest tests/test_resume.py --kills 20"""
    moments = random.Random(0)
    kills = request.config.getoption("--kills")
    kinds = RUNS if kills > 1 else ["plugin"]
    for kind, n in itertools.product(kinds, range(kills)):
        run, seconds = undisturbed(kind)
        folder = tmp_path / f"{kind}-{n}"
        folder.mkdir()
        process = start(folder, RUNS[kind])
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert_same(finish(start, folder, kind), run)


@pytest.mark.parametrize("kind", ["bigram", "modern"])
def test_stops_moves_and_resumes_in_a_row_lose_nothing(start, undisturbed, tmp_path, kind):
    """Each stop lets the step end, saves, says how to go on, and has its own exit status."""
    out, run, steps = tmp_path / "out.txt", None, 0
    for n, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGTERM)):
        begun = out.read_text().count("batch") if n else 0
        process = start(tmp_path, f"resume={run}" if run else RUNS[kind], "wait 7 1")
        wait_for(lambda begun=begun: out.exists() and out.read_text().count("batch") > begun + 6)
        if run:  # nobody else may have it meanwhile
            other = start(tmp_path, f"resume={run}")
            other.join()
            assert other.exitcode == 2 and "another process is using this run" in out.read_text()
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == 128 + number, out.read_text()
        (run,) = (path.parent for path in tmp_path.glob("**/config.yaml"))
        saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert (
            metrics(run)["status"] == "interrupted"
            and steps < metrics(run)["step"] == saved < STEPS
        )
        name = run.relative_to(tmp_path)
        assert (
            f"interrupted at step {saved}; to continue: python train.py resume=" in out.read_text()
        )
        assert f"{name}\n" in out.read_text().split("interrupted")[-1]
        steps, run = saved, run.rename(tmp_path / f"moved-{n}")  # each time to another place
    assert_same(finish(start, tmp_path, kind, run), undisturbed(kind)[0])


def test_a_second_signal_does_not_wait(start, tmp_path):
    process = start(tmp_path, RUNS["bigram"] + " max_steps=1000000", "wait 1 2")
    wait_for(
        lambda: (tmp_path / "out.txt").exists() and "batch" in (tmp_path / "out.txt").read_text()
    )
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)  # together with the first one
    process.join(1.5)
    assert process.is_alive() and "once more" in (tmp_path / "out.txt").read_text()
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    (run,) = tmp_path.glob("outputs/x/*")
    assert process.exitcode == 130 and metrics(run)["status"] == "interrupted"
    assert "resume=" in (tmp_path / "out.txt").read_text()


def run_of(folder):
    (run,) = (path.parent for path in folder.glob("outputs/x/*/config.yaml"))
    return run


@pytest.mark.parametrize("kind", ["modern"])
def test_a_signal_is_heard_in_a_long_evaluation_which_the_resumed_run_repeats(
    start, undisturbed, tmp_path, kind
):
    """In the first evaluation, in one between, in the last; an evaluation takes a minute."""
    out = tmp_path / "out.txt"
    stops = ((1, signal.SIGHUP, 0), (2, signal.SIGINT, 10), (3, signal.SIGTERM, 30))
    for n, (evaluation, number, step) in enumerate(stops):
        line = f"resume={run_of(tmp_path)}" if n else RUNS[kind]
        process = start(tmp_path, line, f"evaluation {evaluation}")
        wait_for(lambda n=n: out.exists() and out.read_text().count("slow") > n)
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == 128 + number, out.read_text()
        assert metrics(run_of(tmp_path))["status"] == "interrupted"
        assert metrics(run_of(tmp_path))["step"] == step
    assert_same(finish(start, tmp_path, kind, run_of(tmp_path)), undisturbed(kind)[0])


def test_a_signal_while_references_are_counted_keeps_the_results(start, undisturbed, tmp_path):
    """The results are shown; references are made up for by resume=."""
    out = tmp_path / "out.txt"
    process = start(tmp_path, RUNS["bigram"], "evaluation 5")
    wait_for(lambda: out.exists() and "slow" in out.read_text())
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130 and "val/perplexity" in out.read_text()
    run = run_of(tmp_path)
    assert metrics(run)["status"] == "finished" and "reference/ngram" not in metrics(run)
    assert_same(finish(start, tmp_path, "bigram", run), undisturbed("bigram")[0])
    assert "reference/ngram" in metrics(run)


@pytest.mark.parametrize("number", [signal.SIGHUP])
def test_a_signal_that_ends_the_reader_of_the_output_as_well_saves(
    start, undisturbed, tmp_path, number
):
    """As Ctrl-C does to both sides of `2>&1 | tee log`."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = start(tmp_path, RUNS["bigram"] + " max_steps=1000000 decay_steps=30", "pipe")
    wait_for(lambda: list(tmp_path.glob("outputs/x/*/checkpoints/previous.ckpt")))
    os.close(reader)
    os.kill(process.pid, number)
    process.join(30)
    run = run_of(tmp_path)
    assert process.exitcode == 128 + number and metrics(run)["status"] == "interrupted"
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved == metrics(run)["step"] > 0


@pytest.mark.parametrize("limit", [100, 6000, 20_000, 70_000])
def test_a_file_that_cannot_grow_is_one_line_and_what_was_saved_goes_on(
    start, undisturbed, tmp_path, limit
):
    """The system refuses to write, in whatever file comes first: text, log, history, checkpoint.

    TensorBoard's file is no loss: the run goes on without it.
    """
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = start(tmp_path, RUNS["bigram"] + " log_interval=1", f"limit {limit}")
    process.join()
    said = os.read(reader, 2**16).decode()
    os.close(reader)
    assert "Traceback" not in said
    if process.exitcode == 0:  # only TensorBoard's file would have grown further
        assert "warning: TensorBoard's curves end here" in said and "error: " not in said
    else:
        assert process.exitcode == 2, said
        assert said.count("error: ") == 1 and "File too large" in said.splitlines()[-1]
    run = next((path.parent for path in tmp_path.glob("outputs/x/*/config.yaml")), None)
    assert run or not list(tmp_path.glob("outputs/x/*"))
    if run:
        process = start(tmp_path, f"resume={run} log_interval=3")
        process.join()
        assert process.exitcode == 0
        one, two = (
            torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for r in (run, undisturbed("bigram")[0])
        )
        assert all(weight.equal(two[key]) for key, weight in one.items())


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
