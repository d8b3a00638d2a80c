"""The lab in Python: the same runs as the commands make, errors as exceptions, nothing left behind."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmlab
from lmlab import api
from lmlab.commands import train as cli
from lmlab.commands.continued import literal
from lmlab.config.grammar import parse
from lmlab.register import PRESENT, unlisted_code
from tests.conftest import ROOT, metrics, script, weights

SMALL = {
    "model": "bigram",
    "data": "sentence",
    "val_fraction": 0.2,
    "block_size": 8,
    "batch_size": 2,
    "device": "cpu",
    "precision": "32-true",
    "threads": 1,
    "max_steps": 3,
    "verbose": False,
}
TYPED = [f"{key}={value}" for key, value in SMALL.items() if key != "verbose"]


def test_a_run_is_the_one_that_is_typed(here, capsys):
    run = lmlab.train(**SMALL, name="a", lr=np.float64(0.01))
    typed = cli.main([*TYPED, "name=b", "lr=0.01"])
    assert all(torch.equal(w, weights(typed)[name]) for name, w in weights(run.path).items())
    assert run.status == "finished" and run.config["lr"] == 0.01
    assert run.metrics["val/loss"] == metrics(typed)["val/loss"]
    capsys.readouterr()
    script("sample").main([f"run={typed}", "prompt=he", "max_tokens=9", "seed=3"])
    assert run.sample("he", max_tokens=9, seed=3) + "\n" == capsys.readouterr().out
    script("evaluate").main([f"run={typed}", "split=train"])
    shown = capsys.readouterr().out
    assert [f"{value:.6f}" for value in run.evaluate(split="train").values()] == shown.split()[1::2]
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, weights(typed)[f"model.{name}"])
    assert list(run.history["step"]) == [0, 3] and lmlab.load_run("outputs/a").path == run.path


def test_what_other_threads_print_is_shown_whatever_a_run_hides(here, capsys):
    said = []
    over = threading.Event()

    def tick():
        while not over.wait(0.005):
            said.append(f"tick {len(said)}")
            print(said[-1])
            print(said[-1], file=sys.stderr)

    thread = threading.Thread(target=tick)
    thread.start()
    lmlab.train(**SMALL)
    over.set()
    thread.join()
    shown = capsys.readouterr()
    assert len(said) > 3 and shown.out.splitlines() == said and shown.err.splitlines() == said


def test_a_process_that_may_have_no_children_is_told_how_to_sweep(here, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    with pytest.raises(lmlab.UserError, match=r"daemonic process.*hydra/launcher=basic"):
        lmlab.sweep(**SMALL | {"seed": [0, 1]})
    assert not [*here.iterdir()]


def test_without_verbose_nothing_is_shown(here, capfd):
    lmlab.train(**SMALL)
    assert capfd.readouterr() == ("", "")


def test_a_sweep_is_the_one_that_is_typed(here, capsys):
    keys = SMALL | {"model": ["bigram", "gpt_nano"], "seed": (0, 1), "name": "s"}
    sweep = lmlab.sweep(**keys)
    assert len(sweep.runs) == 4 and set(sweep.runs["status"]) == {"finished"}
    assert list(sweep.leaderboard["n"]) == [2, 2]
    words = [word for word in TYPED if not word.startswith("model=")]
    cli.main(["-m", "model=bigram,gpt_nano", "seed=0,1", *words, "name=s"])
    assert "4 of them done already" in capsys.readouterr().out
    assert len(lmlab.compare(sweep, sweep.path / sweep.runs["path"][0].split("/")[-1]).runs) == 4
    claims = sweep.claims("model", record=1.0)
    assert sorted(claims["model"]) == ["bigram", "gpt_nano"]
    means = sweep.runs.groupby("model")["val/loss"].mean()
    assert claims["difference"][1] == pytest.approx(means.max() - means.min())
    (axes,) = sweep.figure("model").axes
    for wrong in (lambda: sweep.figure(None), lambda: sweep.figure(["model"])):
        with pytest.raises(lmlab.UserError, match=r"^x=.*: needs "):
            wrong()
    with pytest.raises(lmlab.UserError, match=r"^vary=\['model'\]: needs text$"):
        sweep.claims(["model"])
    assert axes.get_xlabel() == "model"
    with pytest.raises(lmlab.UserError, match="within=model: needs vary="):
        sweep.claims(within="model")
    page = sweep._repr_html_()
    assert "gpt_nano" in page and "data:image/png;base64," in page


@pytest.mark.parametrize("text", ["\n", "o\t", "h, o", "null", "'", "ü\\"])
def test_a_separator_is_the_text_that_is_given(text):
    from lmlab.data.documents import unescaped

    override = parse(literal(f"separator={api.as_text('separator', text)}"))
    assert not override.is_sweep_override() and unescaped(override.value()) == text


def test_values_of_numpy_and_paths_are_taken_everywhere(here):
    shutil.copy(ROOT / "examples/my_lab.py", here)
    keys = SMALL | {"data": "recipes", "plugin": here / "my_lab.py", "seed": np.int64(1)}
    run = lmlab.train(**keys)
    assert len(run.sample(max_tokens=np.int64(3), seed=np.int32(1))) == 3
    os.chdir("/")
    assert run.metrics["seed"] == 1 and run.config["data"] == "recipes"
    assert run.resume(max_steps=4, verbose=False).metrics["step"] == 4
    typed = lmlab.load_run(here / "outputs", plugin=here / "my_lab.py")
    assert typed.evaluate(path=None)["val/loss"] > 0 and typed.path == run.path


def test_looking_at_a_run_leaves_the_random_numbers_as_they_are(here):
    run = lmlab.train(**SMALL | {"model": "gpt_nano"})
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    run.sample(seed=1, max_tokens=3), run.evaluate(), run.model, run._repr_html_()
    assert torch.rand(1) == expected


def test_threads_take_turns(here, capsys):
    """Each run is there, and stdout is the program's own afterwards."""
    before = sys.stdout, sys.stderr
    with ThreadPoolExecutor(4) as pool:
        runs = list(
            pool.map(lambda seed: lmlab.train(**SMALL, seed=seed, name=f"n{seed}"), range(4))
        )
    assert [run.metrics["seed"] for run in runs] == [0, 1, 2, 3]
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr() == ("", "")


def test_a_replay_with_other_losses_is_an_exception(here):
    run = lmlab.train(**SMALL)
    assert lmlab.train(replay=run, verbose=False).path == run.path
    history = (run.path / "history.jsonl").read_text()
    (run.path / "history.jsonl").write_text(re.sub(r'"train/loss": \d', '"train/loss": 9', history))
    with pytest.raises(lmlab.UserError, match="the losses are not the same"):
        lmlab.train(replay=run, verbose=False)


def test_a_cell_without_a_history_is_left_out_of_the_picture(here):
    sweep = lmlab.sweep(**SMALL | {"seed": [0, 1], "name": "s"})
    for path in sorted(sweep.path.glob("*/history.jsonl"))[:1]:
        path.unlink()
    assert "data:image" in sweep._repr_html_()
    for path in sweep.path.glob("*/history.jsonl"):
        path.unlink()
    assert "nothing to draw" in sweep._repr_html_()
    assert lmlab.sweep(**SMALL | {"seed": [2], "dry_run": True}) is None


def test_a_run_goes_on(here):
    run = lmlab.train(**SMALL, seed=1)
    assert run.resume(max_steps=5, verbose=False).metrics["step"] == 5
    assert lmlab.train(resume=run.path, max_steps=7, verbose=False).path == run.path
    assert run.metrics["step"] == 7


def test_a_run_that_diverged_is_returned_with_its_status(here):
    run = lmlab.train(**SMALL | {"max_steps": 10, "lr": 1e39})
    assert run.status == "diverged" and "diverged" in run._repr_html_()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lmlab.train(modl="gpt"), ["modl=gpt", "did you mean model?"]),
        (lambda: lmlab.train(model="gtp"), ["model=gtp", "did you mean gpt?"]),
        (lambda: lmlab.train(n_layer=2.5), ["n_layer=2.5"]),
        (lambda: lmlab.train(seed=[0, 1]), ["seed=[0, 1]", "lmlab.sweep() takes lists"]),
        (lambda: lmlab.train(lr={}), ["lr={}", "allowed are text, numbers"]),
        (lambda: lmlab.train("-m", seed=0), ["-m", "lmlab.sweep() is -m"]),
        (lambda: lmlab.train("-mm", seed=0), ["-mm: not allowed here"]),
        (lambda: lmlab.train("--version"), ["--version: not allowed here"]),
        (lambda: lmlab.sweep("--help"), ["--help: not allowed here"]),
        (lambda: lmlab.train(3), ["3: needs text"]),
        (lambda: lmlab.train(name=b"abc"), ["name=b'abc': allowed are text"]),
        (lambda: lmlab.train(out="a\0b"), ["out='a\\x00b': allowed are text"]),
        (lambda: lmlab.train(seed=10**5000), ["seed=…"]),
        (lambda: lmlab.sweep(out=["a", "b"]), ["out=['a', 'b']: a sweep has one value"]),
        (lambda: lmlab.sweep(seed=[]), ["seed=[]: is empty"]),
        (lambda: lmlab.sweep(fast_dev_run=True, dry_run=True), ["allowed is one of them"]),
        (lambda: lmlab.load_run(""), ["'': needs the name of a folder"]),
        (lambda: lmlab.load_runs(""), ["'': needs the name of a folder"]),
        (lambda: lmlab.compare("", "x"), ["'': needs the name of a folder"]),
        (lambda: lmlab.load_run(None), ["None: needs the name of a folder"]),
        (lambda: lmlab.load_runs(b"x"), ["b'x': needs the name of a folder"]),
        (lambda: lmlab.compare(".", plugin=b"x"), ["plugin=b'x': needs text"]),
        (lambda: lmlab.load_run(".", plugin=["x"]), ["plugin=['x']: needs text"]),
        (lambda: api.Run(ROOT).page(3), ["out=3: needs text or a path"]),
        (lambda: lmlab.train(verbose="no"), ["verbose='no': needs True or False"]),
        (lambda: lmlab.sweep(verbose=0), ["verbose=0: needs True or False"]),
        (lambda: lmlab.load_runs(".", same_code="no"), ["same_code='no': needs True or False"]),
        (lambda: lmlab.compare(["x"]), ["['x']: needs the name of a folder"]),
        (lambda: lmlab.train("--frob"), ["--frob: not allowed here"]),
        (lambda: lmlab.train("--cfg=job", model="bigram"), ["--cfg=job: not allowed here"]),
        (lambda: lmlab.train(resume="nowhere"), ["resume=nowhere", "not the folder of a run"]),
        (lambda: lmlab.train(plugin="no.py"), ["plugin=no.py", "cannot be read"]),
        (lambda: lmlab.sweep(model=["gpt", "gtp"]), ["model=gtp", "did you mean gpt?"]),
        (lambda: lmlab.load_run("nowhere"), ["nowhere: no trained run"]),
        (lambda: lmlab.load_runs("nowhere"), ["nowhere: no run there"]),
        (lambda: lmlab.compare("nowhere"), ["nowhere: no run there"]),
    ],
)
def test_an_error_is_an_exception_with_the_one_line(here, capsys, call, words):
    with pytest.raises(lmlab.UserError) as error:
        call()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
    assert capsys.readouterr().err == "" and list(here.rglob("config.yaml")) == []


def test_a_wrong_option_of_a_run_is_an_exception(here):
    run = lmlab.train(**SMALL)
    for call, word in (
        (lambda: run.sample(temprature=1), "did you mean temperature?"),
        (lambda: run.sample(samples=2), "samples=2: not allowed here"),
        (lambda: run.sample("é"), "prompt=é"),
        (lambda: run.sample(5), 'is quoted: prompt="5"'),
        (lambda: run.evaluate(split="valid"), "split=valid"),
        (lambda: run.evaluate(run="x"), "run=x: not allowed here"),
        (lambda: run.resume(resume="x"), "resume=x: not allowed here"),
    ):
        with pytest.raises(lmlab.UserError, match=re.escape(word)):
            call()


@given(st.one_of(st.text(), st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False)))
def test_a_value_of_python_is_typed_so_that_it_is_read_again(value):
    override = parse(f"name={api.as_text('name', value)}")
    assert not override.is_sweep_override()
    assert override.value() == value and type(override.value()) is type(value)


class Odd(Exception):
    """An error of somebody's own model."""


def test_an_error_of_ones_own_model_comes_out_as_it_is(here):
    """The model is registered in this process, where it exists from then on."""

    class OddConfig(lmlab.ModelConfig):
        pass

    @lmlab.register.model("odd", OddConfig)
    class OddModel(lmlab.LanguageModel):
        def __init__(self, config, vocab_size):
            raise Odd("it will not be built")

    lmlab.register.model("odd", OddConfig)(OddModel)  # as a notebook's cell that is run again
    one, *_ = unlisted_code()
    lmlab.register.model("odd", OddConfig)(
        type("OddModel", (OddModel,), {"__qualname__": OddModel.__qualname__})
    )
    assert unlisted_code() != [one]
    lmlab.register.model("odd", OddConfig)(OddModel)
    assert unlisted_code() == [one]
    try:
        with pytest.raises(Odd, match="it will not be built"):
            lmlab.train(**SMALL | {"model": "odd"})
        with pytest.raises(lmlab.UserError, match=r"in this process alone .*test_api.py"):
            lmlab.sweep(**SMALL | {"seed": [0, 1]})
        sweep = lmlab.sweep("hydra/launcher=basic", **SMALL | {"seed": [0, 1], "name": "s"})
        assert list(sweep.runs["status"]) == ["finished"] * 2
    finally:
        for addition in [one for one in PRESENT if not one.of_plugin]:
            addition.take_out()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_and_is_an_exception_of_its_kind(here, number, raised):
    def interrupt():
        while not list(here.rglob("last.ckpt")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(raised) as stop:
        lmlab.train(**SMALL | {"max_steps": 10**6, "eval_interval": 10**5})
    thread.join()
    if raised is SystemExit:
        assert stop.value.code == 128 + number  # as a process that the signal has ended
    assert lmlab.load_run("outputs").status == "interrupted"
    assert signal.getsignal(number) is handler


def test_a_text_of_a_run_cannot_act_as_html(here):
    run = lmlab.train(**SMALL)
    with open(run.path / "history.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "sample": "<script>alert(1)</script>"}) + "\n")
    assert "<script>" not in run._repr_html_() and "&lt;script&gt;" in run._repr_html_()


STATE = """
import logging, multiprocessing, os, random, signal, sys, warnings
def state():
    chance = random.getstate(), multiprocessing.get_start_method(allow_none=True)
    handlers = [signal.getsignal(n) for n in (1, 2, 15)]
    root = logging.getLogger()
    arguments = list(sys.argv), root.handlers, root.level
    return list(warnings.filters), dict(os.environ), handlers, *arguments, *chance
before = state()
"""
SAME_STATE = """
assert state() == before, [(a, b) for a, b in zip(before, state()) if a != b]
import torch
assert not torch.are_deterministic_algorithms_enabled()
assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
lmlab.compare(sweep, run)
"""


def test_the_first_notebook_runs_leaves_nothing_behind_and_is_committed_without_outputs(here):
    """Filters of warnings, variables, handlers of signals and of logging, arguments, settings."""
    notebook = nbformat.read(ROOT / "examples/first_steps.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    for cell in code:
        cell.source = re.sub(r"max_steps=(\d)00", r"max_steps=\1", cell.source)
    code[0].source = STATE + code[0].source
    notebook.cells.append(nbformat.v4.new_code_cell(SAME_STATE))
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    ).execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    pages = [
        output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})
    ]
    assert sum("data:image/png;base64," in page for page in pages) >= 3
    assert not [page for page in pages if "━" in page]  # the bar is gone when a cell has ended
    texts = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "val/loss" in texts and "\x1b" not in texts and "did you mean gpt?" in texts


def test_the_names_are_listed_for_editors():
    assert {"train", "sweep", "load_run", "register"} <= set(dir(lmlab))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(getattr(lmlab, name) for name in dir(lmlab))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lmlab.trian


def test_a_working_folder_that_was_deleted_is_a_line_in_python_too(here, tmp_path_factory):
    key = "the working folder was deleted; change to one that exists"
    usual = {"model": "bigram", "data": "sentence", "max_steps": 1, "val_fraction": 0.2}
    run = lmlab.train(**usual, device="cpu", threads=1, block_size=8, verbose=False)
    gone = tmp_path_factory.mktemp("gone")
    os.chdir(gone)
    gone.rmdir()
    calls = {
        "train": lambda: lmlab.train(**usual),
        "sweep": lambda: lmlab.sweep(**usual, seed=[0, 1]),
        "load_run": lambda: lmlab.load_run("outputs"),
        "load_runs": lambda: lmlab.load_runs("outputs"),
        "compare": lambda: lmlab.compare("outputs"),
        "resume": lambda: run.resume(max_steps=2),
        "evaluate": run.evaluate,
        "sample": run.sample,
        "model": lambda: run.model,
        "config": lambda: run.config,
    }
    for name, call in calls.items():
        with pytest.raises(lmlab.UserError, match=key):
            call()
            pytest.fail(name)
    assert run.status == "finished"  # which needs no working folder
