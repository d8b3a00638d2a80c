"""Sweeps as a user runs them: faults, kills, company, growth; every launcher ends in the same
table.
"""

import errno
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hydra.core.utils import JobReturn, JobStatus

from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.processes import server
from lmlab.runs import folder as runs
from lmlab.runs.code import LIBRARY, own_code
from lmlab.sweeps import cells, cluster, costs, load_runs, report, table, worker
from lmlab.sweeps.cells import Sweep
from tests.conftest import ROOT, content, history, metrics, refused
from tests.victim import child

BIGRAM = "-m model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu eval_interval=50 log_interval=5 "
TIMES = ["train_seconds", "tokens_per_second"]


@pytest.fixture
def sweep(here):
    """Runs train.py in this process; returns its exit status."""

    def sweep(line):
        try:
            cli.main(line.split())
        except SystemExit as stop:
            return stop.code
        return 0

    return sweep


def wait_for(condition, seconds=60):
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen")


def workers(folder):
    """The processes that are at work on runs below a folder: those that have a train.log open."""
    found = {}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):  # closed meanwhile
                    target = os.readlink(f"/proc/{process}/fd/{descriptor}")
                    if target.startswith(str(folder)) and target.endswith("train.log"):
                        found[int(process)] = Path(target).parent.name
    return found


def in_company(here, sweep, line, far_enough):
    """The exit status of a sweep that another process is at work on too, until it is killed -9."""
    other = server.context().Process(target=child, args=(here, line, None))
    other.start()

    def kill():
        wait_for(lambda: set(workers(here)) - theirs)
        other.kill()

    try:
        wait_for(lambda: len(set(workers(here).values())) >= 2 and far_enough())
        theirs = set(workers(here))
        with ThreadPoolExecutor(1) as pool:
            killed = pool.submit(kill)
            status = sweep(line)
        killed.result()
        return status
    finally:  # whatever went wrong, no later test finds it running
        other.kill()
        other.join()


def lost(log):
    """Whether a cell was begun anew after some of it was there. One that is killed as it begins has
    nothing yet.
    """
    return re.search(r"\nstep +[1-9]", log[: log.rindex("\nrun  ")])


def results(folder):
    """The leaderboard without what is about time, every number to its last bit."""
    return (
        table.leaderboard(load_runs(folder))
        .drop(columns=TIMES, errors="ignore")
        .map(repr)
        .to_dict("records")
    )


def losses(folder):
    return {
        run.parent.name.rsplit("-", 1)[1]: history(run.parent, "val/loss")
        for run in folder.glob("*/metrics.json")
    }


linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@linux
def test_what_happens_to_one_cell_happens_to_no_other(here, sweep, capsys):
    """One diverges, one is killed, one takes too long: all others finish, the table has each with why."""

    def kill():
        wait_for(
            lambda: any(
                "seed=1" in name and "max_steps=9" in name for name in workers(here).values()
            )
        )
        (pid,) = [
            pid for pid, name in workers(here).items() if "seed=1" in name and "max_steps=9" in name
        ]
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    line = (
        "-m model=gpt_nano data=sentence val_fraction=0.2 device=cpu optimizer=sgd grad_clip=0 warmup_steps=0 "
        "eval_interval=1000 log_interval=5 max_steps=10,9000000 lr=0.1,1e39 seed=0,1 name=f "
    )
    assert sweep(line + "hydra.launcher.time_limit=0.08 hydra.launcher.n_jobs=2") == 1
    killer.join()
    shown = " ".join(capsys.readouterr().out.split())
    found = load_runs("outputs/sweeps/f")
    assert len(found) == 8
    for _, run in found.iterrows():
        if run["lr"] == 1e39:
            expected = ("diverged", "at step 5")
        elif run["max_steps"] == 10:
            assert run["status"] == "finished" and run["reason"] == ""
            continue
        else:
            expected = (
                "failed",
                "killed by SIGKILL" if run["seed"] == 1 else "time limit of 0.08 minutes",
            )
        assert run["status"] == expected[0] and expected[1] in run["reason"], dict(run)
        assert expected[1] in shown
    assert workers(here) == {}


@linux
def test_a_sweep_in_company_and_killed_ends_as_one_that_nothing_happened_to(here, sweep, capsys):
    """Two processes at once share the cells; one is killed -9, its cells stop by themselves and the
    other finishes them; then the grid grows. No cell is run twice, no finished file touched.
    """
    line = (
        BIGRAM.replace("-m ", "-m max_steps=400 ")
        + "lr=0.1,0.2 seed=0,1 checkpoint_interval=100 name=k "
    )
    folder = here / "outputs/sweeps/k"
    assert (
        in_company(
            here,
            sweep,
            line,
            lambda: any(
                metrics(run.parent).get("step", 0) >= 100 for run in folder.glob("*/metrics.json")
            ),
        )
        == 0
    )
    said = capsys.readouterr().out
    logs = [path.read_text() for path in (folder / ".sweep/logs").iterdir()]
    assert len(logs) == 4 and not any(map(lost, logs))
    assert "4 cells" in said and "report" in said
    wait_for(lambda: workers(here) == {})
    before = content(folder)
    assert sweep(line) == 0
    assert sweep(line.replace("lr=0.1,0.2", "lr=0.2,0.1,0.4").replace("seed=0,1", "seed=1,0")) == 0
    kept = {
        path: text
        for path, text in content(folder).items()
        if path.parts[0] != ".sweep" and len(path.parts) > 1
    }
    assert {path: text for path, text in before.items() if path in kept} == {
        path: kept[path] for path in before if path in kept
    }
    assert len(load_runs(folder)) == 6
    other = line.replace("name=k", "name=other").replace("lr=0.1,0.2", "lr=0.1,0.2,0.4")
    assert sweep(other) == 0
    assert losses(folder) == losses(here / "outputs/sweeps/other")
    assert results(folder) == results(here / "outputs/sweeps/other")


def test_every_launcher_gives_the_same_bits(here, sweep, capsys):
    line = "-m model=bigram,gpt_nano data=sentence val_fraction=0.2 device=cpu max_steps=6 seed=0,1 eval_interval=3 "
    assert sweep(line + "name=a") == 0
    assert sweep(line + "name=b hydra/launcher=basic") == 0
    a, b = here / "outputs/sweeps/a", here / "outputs/sweeps/b"
    assert losses(a) == losses(b) and len(losses(a)) == 4 and results(a) == results(b)
    capsys.readouterr()
    before = content(a)
    assert (
        sweep(line + "name=a hydra/launcher=basic") == 0
    )  # what one launcher has finished no other runs again
    assert "4 of them done already" in capsys.readouterr().out
    after = content(a)
    assert all(after[path] == text for path, text in before.items() if "report" not in path.name)


def test_a_cell_that_fails_is_tried_again_as_often_as_asked(here, sweep, capsys):
    line = "-m model=gpt_nano n_embd=100000 data=sentence val_fraction=0.2 device=cpu seed=0 name=r retries=2"
    assert sweep(line) == 1
    assert capsys.readouterr().err.count("trying again") == 2
    (run,) = load_runs("outputs/sweeps/r").to_dict("records")
    assert run["status"] == "failed" and "out of memory" in run["reason"]


@linux
def test_ctrl_c_stops_all_cells_and_the_same_command_goes_on(here, sweep):
    line = BIGRAM + "max_steps=40000 seed=0,1 name=c hydra.launcher.n_jobs=2 "
    folder = here / "outputs/sweeps/c"

    def interrupt():
        wait_for(
            lambda: (
                len([run for run in folder.glob("*/history.jsonl") if run.stat().st_size > 2000])
                == 2
            )
        )
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert sweep(line) == 130
    thread.join()
    assert workers(here) == {}
    runs = [path.parent for path in folder.glob("*/metrics.json")]
    assert [metrics(run)["status"] for run in runs] == ["interrupted"] * 2
    assert all(0 < metrics(run)["step"] < 40000 for run in runs)


@linux
def test_the_launcher_stays_as_it_is_however_many_cells_it_runs(here, sweep):
    """Memory within 20 MB, no file handle, thread or process more from the 8th cell to the 22nd."""
    seen = {}

    def watch():
        for _ in itertools.count():
            done = len(list((here / "outputs/sweeps/m").glob("*/metrics.json")))
            memory = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])
            seen[done] = memory, len(os.listdir("/proc/self/fd")), threading.active_count()
            if stop.wait(0.02):
                return

    stop = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    assert sweep(BIGRAM + "max_steps=2 seed=range(22) name=m hydra.launcher.n_jobs=2") == 0
    stop.set()
    thread.join()
    early, late = (
        [value for n, value in seen.items() if n in span] for span in (range(6, 11), range(18, 22))
    )
    for i, allowed in ((0, 20 * 1024), (1, 4), (2, 0)):
        assert max(value[i] for value in late) - max(value[i] for value in early) <= allowed
    assert workers(here) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("model=gpt n_embd=100000 n_head=1000 n_layer=1000 block_size=64", "GB of memory"),
        (
            "model=mlp n_hidden=1000000 n_embd=10000",
            "a step needs 320 GB of memory, and there are",
        ),
        ("model=bigram batch_size=1000000000000", "the tokens of a batch take"),
    ],
)
def test_a_dry_run_of_what_is_too_large_for_the_machine_is_a_line(sweep, capfd, line, words):
    assert sweep(f"-m {line} data=sentence val_fraction=0.2 device=cpu dry_run=true") == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith("error: model=") and "its time cannot be measured" in error
    assert words in error


def test_dry_run_lists_the_cells_and_runs_none(here, sweep, capsys):
    line = "-m model=bigram,gpt_nano data=sentence val_fraction=0.2 device=cpu max_steps=2 seed=0,1 name=d "
    assert sweep(line + "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "2 configurations, 4 cells" in shown and not (here / "outputs").exists()
    assert shown.count("x 2 seeds") == shown.count(" 2 new ") == 2 and " 4 new " in shown
    sweep(line.replace("seed=0,1", "seed=0"))
    capsys.readouterr()
    assert sweep(line + "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert shown.count("1 finished, 1 new") == 2 and "2 finished, 2 new" in shown
    runs = [*(here / "outputs/sweeps/d").glob("model=*")]
    assert len(runs) == 2
    for run in runs:
        label = metrics(run)["label"].replace(",seed=0", "")
        (row,) = [line for line in shown.splitlines() if label in line]
        assert (
            costs.si(metrics(run)["n_params"]).strip() in row
            and costs.si(metrics(run)["flops"]).strip() in row
        )
    (total,) = [line for line in shown.splitlines() if " total  " in line]
    assert costs.si(2 * sum(metrics(run)["flops"] for run in runs)).strip() in total


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_averages_the_seeds_of_a_configuration(here, sweep):
    """As its own HParams backend answers over HTTP."""
    from tensorboard import program

    assert (
        sweep(
            "-m model=bigram,gpt_nano data=sentence val_fraction=0.2 device=cpu max_steps=6 seed=0,1 "
            "lr=0.01,0.02 eval_interval=3 name=t"
        )
        == 0
    )
    assert (
        sweep(
            "-m model=bigram data=sentence val_fraction=0.2 device=cpu max_steps=6 seed=0 grad_clip=0 "
            "warmup_steps=0 optimizer=sgd lr=1e39 eval_interval=3 name=t"
        )
        == 0
    )
    board = program.TensorBoard()
    options = "--logdir outputs/sweeps/t --port 0 --load_fast=false"
    # Read once: a thread that went on would miss the folder later.
    board.configure(argv=[None, *f"{options} --reload_interval 0".split()])
    url = board.launch() + "data/plugin/hparams/"

    def ask(name, **body):
        request = urllib.request.Request(
            url + name,
            json.dumps({"experimentName": "", **body}).encode(),
            {"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request))

    states = [f"STATUS_{name}" for name in ("SUCCESS", "FAILURE", "UNKNOWN", "RUNNING")]

    def groups():
        return ask(
            "session_groups",
            allowedStatuses=states,
            startIndex=0,
            sliceSize=99,
            aggregationType="AGGREGATION_AVG",
        ).get("sessionGroups", [])

    wait_for(lambda: len(groups()) == 5)
    columns = ask("experiment", hparamsLimit=1000, includeMetrics=True)
    assert {"model", "lr"} <= {one["name"] for one in columns["hparamInfos"] if one.get("differs")}
    tags = {one["name"]["tag"] for one in columns["metricInfos"]}
    assert {"val/loss", "best/val/loss", "train/loss"} <= tags and "hp_metric" not in tags
    found = {group["name"].replace(f" {own_code()}", ""): group for group in groups()}
    rows = {
        row["group"]: row
        for row in table.leaderboard(load_runs("outputs/sweeps/t")).to_dict("records")
    }
    (diverged,) = set(found) - set(rows)
    assert diverged.endswith("diverged")
    for name in set(found) & set(rows):
        values = {one["name"]["tag"]: one["value"] for one in found[name]["metricValues"]}
        assert len(found[name]["sessions"]) == 2 == rows[name]["n"]
        for key in ("val/loss", "best/val/loss"):
            assert values[key] == pytest.approx(rows[name][key], abs=1e-6)
        assert found[name]["hparams"]["lr"] == rows[name]["lr"]


def test_a_cell_that_is_resumed_by_hand_holds_up_no_other_and_keeps_its_name(here, sweep, capsys):
    line = BIGRAM + "max_steps=4 name=h hydra.launcher.n_jobs=1 seed="
    assert sweep(line + "0") == 0
    (run,) = [path.parent for path in (here / "outputs/sweeps/h").glob("*/metrics.json")]
    with pytest.raises(SystemExit) as stop:
        cli.main([f"resume={run}", "max_steps=8"])
    assert stop.value.code == 2 and "started with max_steps=4" in capsys.readouterr().err
    numbers = metrics(run) | {"status": "interrupted"}
    (run / "metrics.json").write_text(json.dumps(numbers))
    by_hand = runs.RunDirectory(run)
    other = threading.Thread(
        target=lambda: [
            wait_for(lambda: len(list(run.parent.glob("*/config.yaml"))) == 2),
            by_hand.close(),
        ]
    )
    other.start()
    assert sweep(line + "0,1") == 0
    other.join()
    assert {metrics(path.parent)["status"] for path in run.parent.glob("*/metrics.json")} == {
        "finished"
    }


def test_a_cell_that_failed_elsewhere_meanwhile_is_not_tried_again_here(here, sweep, capsys):
    """Both commands asked for one try, and that has been."""
    line = "-m model=gpt_nano n_embd=100000 data=sentence val_fraction=0.2 device=cpu seed=0 name=e"
    assert sweep(line) == 1
    (cell,) = [path.parent for path in (here / "outputs/sweeps/e").glob("*/metrics.json")]
    lock = here / "outputs/sweeps/e/.sweep/locks" / cell.name.rsplit("-", 1)[1]

    def fail_elsewhere():
        with open(lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held.set()
            time.sleep(2)
            (cell / "metrics.json").write_text(
                json.dumps(metrics(cell) | {"reason": "of the other process"})
            )

    held = threading.Event()
    other = threading.Thread(target=fail_elsewhere)
    other.start()
    held.wait()
    assert sweep(line) == 1
    other.join()
    assert metrics(cell)["reason"] == "of the other process"
    assert "failed by another process: of the other process" in capsys.readouterr().err


def test_results_that_another_process_was_stopped_before_are_added(here, sweep):
    """It had finished a cell and was killed while it counted the references."""
    line = BIGRAM + "max_steps=10 seed=0 name=p "
    assert sweep(line) == 0
    (cell,) = [path.parent for path in (here / "outputs/sweeps/p").glob("*/metrics.json")]
    lock = here / "outputs/sweeps/p/.sweep/locks" / cell.name.rsplit("-", 1)[1]
    whole = metrics(cell)
    without = {key: value for key, value in whole.items() if not key.startswith("reference/")}
    (cell / "metrics.json").write_text(json.dumps(without))

    def be_busy():
        with open(lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            held.set()
            time.sleep(1)

    held = threading.Event()
    other = threading.Thread(target=be_busy)
    other.start()
    held.wait()
    assert sweep(line) == 0
    other.join()
    references = {key for key in whole if key.startswith("reference/")}
    assert {key: metrics(cell)[key] for key in references} == {
        key: whole[key] for key in references
    }


def test_a_temporary_folder_with_a_long_name_is_no_obstacle(tmp_path):
    """As in the jobs of a cluster; the name of a socket may have some hundred characters."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    lines = (
        "import multiprocessing",
        "from lmlab.processes import server",
        "server.choose_short_folder()",
        "context = multiprocessing.get_context('forkserver')",
        "process = context.Process(target=print, args=('started',))",
        "process.start(), process.join()",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr


def test_a_failure_that_cannot_be_written_is_said_and_is_a_failure(
    here, sweep, capsys, monkeypatch
):
    """As on a disk that is full from the beginning of a cell to its end."""

    def full(*_):
        raise UserError("metrics.json: cannot be written (No space left on device)")

    monkeypatch.setattr(cells, "fail", full)
    line = "-m model=gpt_nano n_embd=100000,8 data=sentence val_fraction=0.2 device=cpu max_steps=1 seed=0 name=w"
    monkeypatch.setattr(worker, "run_cell", die_if_wide)
    assert sweep(line) == 1
    shown, said = capsys.readouterr()
    assert "n_embd=100000" in said and "failed, and metrics.json: cannot be written" in said
    assert "whose folders could not be marked so: 1; the table" in shown


def die_if_wide(cell, gpu):
    """Instead of worker.run_cell: one of the cells dies without a word."""
    if cell.config.model.n_embd == 100000:
        os._exit(1)
    cells.run(cell)


def test_the_folder_for_hydras_notes_is_the_commands_own(here, sweep, monkeypatch):
    """Others may have put anything into the shared folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    (here / f"lmlab-{os.getuid()}").write_text("in the way")
    assert sweep(BIGRAM + "max_steps=2 seed=0 name=t") == 0
    assert [path.name for path in here.iterdir() if path.name.startswith("lmlab-")] == [
        f"lmlab-{os.getuid()}"
    ]


def test_a_server_of_processes_ends_with_its_command_also_while_it_imports(tmp_path):
    """It has the command's stdout, so that `train.py | tee` would wait for it."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    code = "from lmlab.processes import server; server.start_server(['slow']); print('ended')"
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "ended\n" and not done.stderr


def test_a_process_that_ends_without_an_answer_is_a_line(here):
    with pytest.raises(UserError, match="ended with exit status 3; code of a plug-in may have"):
        server.call(os._exit, 3)


def leave_a_thread():
    thread = threading.Thread(target=time.sleep, args=(1000,))
    thread.start()
    return os.getpid()


def test_a_process_with_a_thread_of_a_plug_in_ends_all_the_same(here):
    number = server.call(leave_a_thread)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_cell_does_not_wait_for_a_thread_for_ever(capfd):
    """In a process forked from this one: that of the server has the usual patience."""
    if os.fork() == 0:
        server.LASTING = 0.2
        server.work(leave_a_thread, ())
        time.sleep(60)
    _, status = os.wait()
    assert status == 0
    assert "still runs, and ends with its process" in capfd.readouterr().err


@linux
def test_a_server_of_processes_without_memory_is_a_line_and_no_traceback(here):
    line = "-m model=bigram data=sentence val_fraction=0.2 device=cpu max_steps=2 seed=0 name=x"
    command = f"ulimit -v 500000; exec {sys.executable} {ROOT / 'train.py'} {line}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: no process can be started: the server" in done.stderr
    assert "ulimit -v allows 0.5 GB of memory" in done.stderr


def test_a_cluster_that_takes_no_job_is_one_line(capsys):
    error = type("FailedJobError", (RuntimeError,), {"__module__": "submitit.core.utils"})

    def submit(error):
        launcher = mock.Mock(**{"launch.side_effect": error})
        return cluster.launch(launcher, [["seed=0"]], 0, faults)

    faults = []
    refusal = error("sbatch: error: invalid partition specified: nope\n")
    words = ["hydra/launcher", "invalid partition specified: nope"]
    refused(capsys, lambda: submit(refusal), words)
    with pytest.raises(ZeroDivisionError):
        submit(ZeroDivisionError())
    assert faults == []
    died = "Job 7_0 (task: 0) with path /x/r.pkl\nhas not produced any output (state: CANCELLED)\nError"
    assert submit(error(died)) == {}
    assert len(faults) == 1 and "job 7_0 has ended without a result (state: CANCELLED)" in faults[0]


def test_a_job_that_gave_up_is_told_once_and_the_others_count():
    error = type("UncompletedJobError", (RuntimeError,), {"__module__": "submitit.core.utils"})
    why = "Job not requeued because: timed-out too many times."
    gave_up = [JobReturn(_return_value=error(why), status=JobStatus.FAILED) for _ in range(2)]
    done = JobReturn(_return_value=3, status=JobStatus.COMPLETED)
    launcher, faults = mock.Mock(), []
    launcher.launch.return_value = [gave_up[0], done, gave_up[1]]
    assert cluster.launch(launcher, [["seed=0"]] * 3, 0, faults) == {1: 3}
    assert len(faults) == 1 and why in faults[0] and "hydra.launcher.max_num_timeout=" in faults[0]
    own = JobReturn(_return_value=ZeroDivisionError(), status=JobStatus.FAILED)
    launcher.launch.return_value = [own]
    with pytest.raises(ZeroDivisionError):
        cluster.launch(launcher, [["seed=0"]], 0, faults)


def test_a_cluster_gets_no_cell_that_is_done(here, sweep, monkeypatch):
    line = "-m hydra/launcher=basic model=bigram data=sentence val_fraction=0.2 device=cpu max_steps=1 name=x "
    assert sweep(line + "seed=0,2") == 0
    monkeypatch.setattr(cluster, "LOCAL", ())
    launch = mock.Mock(return_value={})
    monkeypatch.setattr(cluster, "launch", launch)
    sweep(line + "seed=0,1,2,3")
    ((_, left, _, _), _) = launch.call_args
    assert [{"seed=1", "seed=3"} & {*overrides} for overrides in left] == [{"seed=1"}, {"seed=3"}]
    sweep(line + "seed=0,2")
    assert launch.call_count == 1


def test_submitit_hears_of_the_queue_which_jobs_are_over(monkeypatch):
    class Watcher:
        def __init__(self, delay_s):
            self._registered, self._finished = {"7_0"}, set()

    slurm = SimpleNamespace(SlurmInfoWatcher=Watcher, SlurmJob=SimpleNamespace())
    for name in ("submitit", "submitit.slurm"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(slurm=slurm))
    cluster.ask_the_queue()
    watcher = slurm.SlurmJob.watcher
    answer = b"7_0|CONFIGURING\n7_1|CANCELLED\n7_2|COMPLETING\n\n"
    assert watcher.read_info(answer) == {
        "7_0": {"State": "RUNNING"},
        "7_1": {"State": "CANCELLED"},
        "7_2": {"State": "RUNNING"},
    }
    assert watcher._make_command()[0] == "squeue"
    watcher._finished = {"7_0"}
    assert watcher._make_command() is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), SystemExit(1)])
@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_signal_says_that_the_jobs_of_a_cluster_go_on(
    tmp_path, monkeypatch, capfd, launcher, stop
):
    monkeypatch.setattr(cluster, "queue", lambda: None)  # there is no cluster
    sweep = Sweep("x", "", out=str(tmp_path))
    for job in ("9", "12"):
        (sweep.own / ".submitit" / job).mkdir(parents=True)
    with pytest.raises(type(stop)), cluster.telling_of_jobs(sweep, launcher):
        raise stop
    is_told = "scancel 12 ends them" in capfd.readouterr().err
    assert is_told == (launcher == "slurm" and repr(stop) != "SystemExit(1)")


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ("9_0|RUNNING\n12_[1-3]|PENDING\n", "scancel 12 ends them"),
        ("9_0|RUNNING\n", "no job of 12 is in the cluster's queue"),
        (None, "scancel 12 ends them"),
    ],
)
def test_what_goes_on_is_what_is_in_the_queue(tmp_path, monkeypatch, queue, words):
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\n" + ("exit 1" if queue is None else f"printf '{queue}'"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert words in cluster.what_goes_on("12")


def test_a_signal_to_all_processes_of_the_launchers_group_leaves_the_server_alone(here, sweep):
    """As timeout and service managers send it; the server would be made anew, with all imports."""
    from multiprocessing import forkserver

    server.context()
    number = forkserver._forkserver._forkserver_pid
    wait_for(lambda: os.getpgid(number) == number)
    assert os.getpgid(0) != number


def test_failures_that_cannot_be_noted_are_said_whatever_the_report_says(
    here, sweep, monkeypatch, capfd
):
    """The disk fails for the launcher, which has to note that it ended the cells."""

    def fails(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    line = BIGRAM + "max_steps=20000 seed=0,1 name=s hydra.launcher.time_limit=0.0001"

    def no_report(*_):
        raise UserError("no run there")

    for finish in (report.finish, no_report):
        monkeypatch.setattr(report, "finish", finish)
        capfd.readouterr()
        assert sweep(line) != 0
        said = capfd.readouterr().err
        found = re.findall(r"^error: seed=(\d): failed, and .*Input/output error", said, re.M)
        assert sorted(found) == ["0", "1"], said


def test_a_signal_to_the_server_before_it_hears_any_waits_and_reaches_no_cell():
    """It would end in a traceback of Python's, which begins."""
    asked = signal.SIGINT, signal.SIGHUP
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with server.blocked(*asked):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {*asked}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert not {*asked} & server.call(signal.pthread_sigmask, signal.SIG_BLOCK, ())


def test_a_process_that_a_program_forks_has_a_server_of_its_own():
    """It can neither ask that of its parent nor end it."""
    from multiprocessing import forkserver

    server.context()
    number = forkserver._forkserver._forkserver_pid
    child = os.fork()
    if child == 0:
        server.end_server()
        is_anew = (
            forkserver._forkserver._forkserver_pid is None
            and not server.context.cache_info().currsize
        )
        os._exit(0 if is_anew else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert forkserver._forkserver._forkserver_pid == number and server.call(os.getppid) == number


def test_the_path_of_the_library_may_be_written_in_two_ways(here, sweep, monkeypatch):
    """As ../train.py is: the processes of the cells find the same folder by another path."""
    twisted = partial(Sweep, library=LIBRARY / ".." / LIBRARY.name)
    monkeypatch.setattr(cli, "Sweep", twisted)
    line = "model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu max_steps=2 name=d"
    assert sweep(f"-m {line} seed=0,1") == 0
    assert {metrics(run)["status"] for run in here.glob("outputs/sweeps/d/seed*")} == {"finished"}
