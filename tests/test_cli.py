"""Whatever a user can get wrong: one line on stderr, exit status 2, no traceback, nothing left
behind.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmlab
from lmlab.commands import continued, sample
from lmlab.commands import train as cli
from lmlab.config import composition, grammar, overrides
from lmlab.config.check import ELSEWHERE, meant_by
from lmlab.config.keys import (
    GROUPS,
    SETTINGS,
    RunConfig,
    SweepConfig,
    all_keys,
    choices_of,
    keys_of,
)
from lmlab.errors import UserError
from lmlab.registry import importing
from tests.conftest import NANO, ROOT, config, metrics, refused

WRONG = {
    # too many values, too small ones, and what stands in the way of the right word
    "-m seed=range(0,1000000000)": ["has 1,000,000,000 values; allowed are 100,000"],
    "-m seed=range(0,1000) max_steps=range(1,1001)": ["1,000,000 cells; allowed are 100,000"],
    "--device=cpu fast_dev_run=true": ["unrecognized arguments: --device=cpu; keys are written"],
    "temperature=0,8": ["temperature=0,8: there is no key temperature"],
    "min_lr=1e-400": ["min_lr=1e-400: 1e-400 is too small"],
    "lr=1e-3,.5E-500": [".5E-500 is too small"],
    # a key that the chosen model, optimizer or text doesn't take
    "lr=1 1e-3": ["1e-3: needs the form key=value, without blanks"],
    "model=bigram n_layer=4": ["n_layer=4", "model=bigram", "block_size", "|gpt|"],
    "model=bigram +n_layer=4": ["n_layer=4", "model=bigram", "block_size"],
    "model=bigram ++n_layer=4": ["n_layer=4", "model=bigram", "block_size"],
    "model=bigram ~n_layer": ["n_layer", "model=bigram", "block_size"],
    "optimizer=sgd beta1=0.5": ["beta1=0.5", "optimizer=sgd", "momentum", "optimizer=adamw"],
    "path=my.txt": ["path=my.txt", "data=tales", "data=file"],
    # a key that is not there, or is not to be taken away
    "n_layr=4": ["n_layr=4", "did you mean n_layer?"],
    "+n_layr=4": ["n_layr=4", "did you mean n_layer?"],
    "model.n_layer=4": ["model.n_layer=4", "did you mean"],
    "+seed=4": ["+seed=4", "seed=…"],
    "~seed": ["~seed", "seed=…"],
    "~model": ["~model"],
    "vocab_size=9": ["vocab_size=9", "no key"],
    # a choice that is not there
    "model=gtp": ["model=gtp", "did you mean gpt?", "bigram"],
    "model=gpté": ["model=gpté: allowed are bigram"],
    "experiment=tiny": ["experiment=tiny", "tiny_lm"],
    "device=0": ["device=0", "auto, cpu, cuda, mps"],
    "model=null": ["model=null", "bigram"],
    "model=[gpt]": ["model=[gpt]", "bigram"],
    "hydra/launcher=none_such": ["none_such", "basic"],
    # a wrong type, a value out of range, an impossible combination
    "n_layer=four": ["n_layer=four", "whole number"],
    "n_layer=2.5": ["n_layer=2.5", "whole number"],
    "lr=fast": ["lr=fast", "number in (0, inf)"],
    "bias=1": ["bias=1", "true or false"],
    "n_layer=[1]": ["n_layer=[1]", "whole number"],
    "n_layer=0": ["n_layer=0", "[1, 1000]"],
    "dropout=1": ["dropout=1", "[0, 1)"],
    "lr=inf": ["lr=inf", "(0, inf)"],
    "lr=nan": ["lr=nan", "number"],
    "seed=-1": ["seed=-1", "[0, 4294967296)"],
    "schedule=step": ["schedule=step", "cosine, linear, constant"],
    "hold_steps=5 schedule=constant": ["hold_steps=5", "cosine or linear"],
    "model=modern n_embd=36 n_head=4": ["n_embd=36 n_head=4", "multiple of twice n_head"],
    "model=modern bias=true": ["bias=true: model=modern doesn't take bias"],
    "hold_steps=90 max_steps=100": [
        "hold_steps=90 warmup_steps=50 decay_steps=100",
        "below the third",
    ],
    "model=bigram optimizer=muon": ["optimizer=muon", "model=bigram", "sgd, adamw"],
    "optimizer=muon ns_steps=0": ["ns_steps=0", "[1, 20]"],
    "n_embd=130 n_head=4": ["n_embd=130 n_head=4", "multiple"],
    "val_fraction=0.6 test_fraction=0.4": ["val_fraction=0.6 test_fraction=0.4", "below 1"],
    "lr=0.1 min_lr=0.2": ["min_lr=0.2 lr=0.1"],
    "name=../up": ["name=../up", "a letter"],
    # what the machine or the text can't do
    "device=cuda": ["device=cuda", "auto, cpu"],
    "device=mps": ["device=mps", "auto, cpu"],
    "precision=16-mixed": ["precision=16-mixed", "32-true, bf16-mixed"],
    "block_size=300000": ["block_size=300000", "300001", "259488"],
    "data=file": ["path", "data=file"],
    "data=file path=missing.txt": ["path=missing.txt", "no file there"],
    "data=file path=empty.txt": ["path=empty.txt", "empty"],
    "data=file path=latin1.txt": ["path=latin1.txt", "byte 3"],
    "data=file path=short.txt": ["block_size=64", "at least 65", "are 10"],
    "data=file path=short.txt block_size=2 val_fraction=0.05": ["val_fraction=0.05"],
    # a variable of the shell that was not set
    "data=file path=": ["path=: is empty"],
    "init_from=": ["init_from=: is empty"],
    "resume=": ["resume=: is empty"],
    "replay=": ["replay=: is empty"],
    "name=": ["name=", "a letter"],
    "model=gpt n_layer=1e1": ["n_layer=1e1: needs a whole number"],
    "lr=1e400": ["lr=1e400: "],
    "-m model=gpt n_layer=1,2e1": ["n_layer=20.0: needs a whole number"],
    "name=-x": ["name=-x", "begins with a letter, a digit or _"],
    # settings and flags of Hydra that would have no effect
    "hydra.run.dir=elsewhere": ["hydra.run.dir=elsewhere", "has no effect here"],
    "-m seed=0,1 hydra.sweep.dir=elsewhere": ["hydra.sweep.dir=elsewhere", "has no effect here"],
    "hydra.job.chdir=true": ["hydra.job.chdir=true", "has no effect here"],
    "hydra.mode=MULTIRUN": ["hydra.mode=MULTIRUN", "has no effect here"],
    "-m hydra.sweeper.n_trials=3 seed=0,1": ["hydra.sweeper.n_trials=3", "hydra/sweeper=search"],
    "-m hydra.sweeper.params.seed='0,1'": ["hydra.sweeper.params.seed", "key=value,value"],
    "--config-name other": ["--config-name=other", "conf/experiment"],
    "--config-dir here": ["--config-dir=here", "is no folder"],
    "--experimental-rerun foo": ["--experimental-rerun=foo"],
    "--resolve": ["--resolve", "--cfg job"],
    "-m 'seed=range(3,0)'": ["seed=range(3,0): has no values"],
    "-m 'seed=range(0,3,0)'": ["seed=range(0,3,0): has no values"],
    "-m 'lr=range(1,3),5'": ["lr=range(1,3),5: has no values", "range(1,3)"],
    "-m hydra.launcher.n_job=1 seed=0,1": ["hydra.launcher.n_job", "there is no such key"],
    "schedule=constant min_lr=1e-4": ["min_lr=0.0001: has no effect with schedule=constant"],
    "schedule=constant decay_steps=9": ["decay_steps=9: has no effect"],
    "-m hydra/sweeper=search hydra.sweeper.batch=3 lr=0.1,0.2": [
        "hydra.sweeper.batch=3: has no effect with hydra/launcher=local"
    ],
    "model@x=gpt": ["model@x=gpt", "has no effect here"],
    "'lr: 0.1'": ["lr: 0.1: needs the form key=value, without blanks: lr=0.1"],
    "lr = 0.1": ["lr: needs the form key=value, without blanks: lr=…"],
    "lr=0,1": ["several values", "a number has a decimal point: lr=0.1"],
    "seed=???": ["seed: needs seed=…"],
    "epochs=3": ["did you mean max_steps?"],
    "batch=3": ["did you mean batch_size?"],
    "--cfg job -m seed=0,1": ["--cfg: shows one run", "dry_run=true"],
    "--info -m": ["--info: shows one run"],
    "--info model=bigram": ["--info model=bigram: allowed are all, config"],
    "--cfg job -p model": ["--package=model", "has no effect here"],
    "hydra/sweeper=search hydra.sweeper.n_trials=3": ["hydra/sweeper=search", "add -m"],
    "-m 'hydra/launcher=[1,2]' seed=0,1": ["hydra/launcher=[1, 2]", "needs text"],
    "-m 'hydra/sweeper=[1,2]' seed=0,1": ["hydra/sweeper=[1, 2]", "needs text"],
    "-m 'n_layer=glob(*)'": ["n_layer=glob(*)", "is for model, data"],
    "-m 'model=glob(x*)'": ["model=glob(x*)", "fits none of bigram"],
    # the words of other tools
    "learning_rate=1e-3": ["learning_rate", "did you mean lr?"],
    "max_iters=10": ["max_iters=10", "did you mean max_steps?"],
    "--device=cpu": ["--device=cpu", "keys are written without dashes: device=cpu"],
    "--max-iters 10": ["--max-iters", "without dashes: max_steps=…"],
    "--max-iters=10": ["--max-iters=10", "without dashes: max_steps=10"],
    "--fp16=true": ["--fp16=true", "without dashes: precision=…"],
    "--compile=True": ["--compile=True", "without dashes: compile=True"],
    "--eval_only=True": ["--eval_only=True: there is no key eval_only"],
    "optimizer.lr=0.1": ["optimizer.lr=0.1", "did you mean lr?"],
    "device=gpu": ["device=gpu", "did you mean cuda?"],
    "schedule=none": ["schedule=none", "did you mean constant?"],
    "precision=bf16": ["precision=bf16", "did you mean bf16-mixed?"],
    "max_length=8": ["max_length=8", "did you mean block_size?"],
    # not of the form that is read
    "name=${oc.env:HOME}": ["name=${oc.env:HOME}", "interpolation"],
    "seed=${oc.env:HOME}": ["seed=${oc.env:HOME}", "interpolation"],
    "model=${oc.env:HOME}": ["model=${oc.env:HOME}"],
    "seed": ["seed", "key=value"],
    "-m data=file path=missing.txt seed=0,1": ["path=missing.txt"],
    "-m lr='tag(log,range(0.1,1,0.3))'": ["the tag log has no effect", "of a search"],
    "-m lr='tag(log,choice(0.1,1))'": ["the tag log has no effect", "of a search"],
    "-m hydra/sweeper=search lr='tag(Log,interval(0.1,1))'": ["the tag Log", "allowed are log"],
    "-m hydra/sweeper=search lr='interval(1e-2,1e-3)' dry_run=true": ["interval(0.001,0.01)"],
    "-m hydra/sweeper=search n_embd='tag(log,range(16,64,16))' dry_run=true": ["steps other"],
    "-m hydra/sweeper=search dropout='tag(log,range(0.1,0.5,0.1))'": ["steps other than 1"],
    "-m hydra/sweeper=search dropout='tag(log,interval(0,0.5))'": ["must be above 0"],
    "-m hydra/sweeper=search lr='tag(log,x,interval(0.1,1))'": ["the tag x", "allowed are log"],
    "-m hydra/sweeper=search n_layer='tag(log,choice(1,2))'": [
        "the tag log has no effect",
        "interval",
    ],
    "-m lr='interval(0.1,1)'": ["lr=interval(0.1,1)", "hydra/sweeper=search"],
    "data=file 'path=a b(c'": ["path=a b(c: no file there"],
    "data=file 'path=a,b'": ["path=a,b", "twice", "path=\"'…'\""],
    "lr=0.1,0.2": ["lr=0.1,0.2", "add -m"],
    "name=sweeps": ["name=sweeps", "the folder of sweeps"],
    "-m name=a,b": ["name=a,b", "a key other than dry_run fast_dev_run init_from name"],
    "-m model=bigram,gpt n_layer=2": [
        "n_layer=2",
        "model=bigram",
    ],  # a cell that is wrong: none is run
    "-m n_embd=128,130": ["n_embd=130", "multiple"],
    # of sweeps
    "=2": ["=2", "needs a key"],
    f"seed={'1' * 5000}": ["seed=111", "key=value"],
    "--package model": ["--package=model", "--cfg job"],
    f"name={'x' * 201}": ["name=xxx", "201 characters"],
    "n_layer=null": ["n_layer=null", "a whole number"],
    "schedule=null": ["schedule=null", "cosine"],
    "threads=100000": ["threads=100000", "[1, 1024]"],
    "dry_run=true": ["dry_run=true", "add -m"],
    "retries=1": ["retries=1", "add -m"],
    "hydra.launcher.n_jobs=2": ["hydra.launcher.n_jobs=2", "add -m"],
    "-m retries=1,2": ["retries=1,2", "a key other than"],
    "-m retries=-1 seed=0,1": ["retries=-1", "[0, 100]"],
    "-m trial=x": ["trial=x", "search"],
    "-m hydra.launcher.n_jobs=0 seed=0,1": ["hydra.launcher.n_jobs=0", "[1, inf)"],
    "-m hydra.launcher.n_job=2 seed=0,1": ["hydra.launcher.n_job"],
    "-m +hydra.launcher.n_job=2 seed=0,1": ["hydra.launcher.n_job=2", "did you mean n_jobs?"],
    "-m hydra.launcher.time_limit=soon seed=0,1": ["hydra.launcher.time_limit=soon", "(0, inf)"],
    "-m hydra/launcher=lokal seed=0,1": [
        "hydra/launcher=lokal: there is no launcher 'lokal' (did you mean local?); installed are",
        "basic, local, slurm",
    ],
    "-m hydra/launcher= seed=0,1": [
        "hydra/launcher=: there is no launcher ''; installed are basic"
    ],
    "-m hydra/sweeper=serch seed=0,1": [
        "hydra/sweeper=serch: there is no sweeper 'serch' (did you mean search?); installed are",
    ],
    "-m hydra/sweeper=list seed=0,1": ["hydra/sweeper=list: has no effect here; sweep=…"],
    "-m hydra/job_logging=foo seed=0,1": ["hydra/job_logging=foo: has no effect here; of Hydra's"],
    "-m hydra/sweeper=search seed=interval(0,9) lr=1,2": ["seed=interval(0,9)", "seed=0,1,2"],
    "-m hydra/sweeper=search seed=0,1 lr=1,2 hydra.sweeper.pruner=median": [
        "pruner=median",
        "none",
    ],
    "-m hydra/sweeper=search model=gpt_nano": ["hydra/sweeper=search", "several values"],
    "-m hydra/sweeper=search lr='interval(0,1)'": [
        "lr=0",
        "(0, inf)",
    ],  # an end that is out of range
    "-m hydra/sweeper=search model=bigram n_layer='range(1,4)'": ["n_layer=1", "model=bigram"],
    "-m hydra/sweeper=search n_layer='interval(0.5,4)'": ["n_layer=0.5", "whole number"],
    "-m hydra/sweeper=search lr=1,2 hydra.sweeper.n_trials=0": [
        "hydra.sweeper.n_trials=0",
        "[1, inf)",
    ],
    "-m hydra/sweeper=search lr=1,2 hydra.sweeper.sampler=tpa": [
        "hydra.sweeper.sampler=tpa",
        "did you mean tpe?",
    ],
    "-m hydra/sweeper=search lr=1,2 hydra.sweeper.storage=here": [
        "hydra.sweeper.storage=here",
        "cannot store a study",
    ],
    "-m hydra/sweeper=search lr=1,2 data=sentence": [
        "hydra.sweeper.objective=val/loss",
        "val_fraction",
    ],
    "-m block_size=64,300000": ["block_size=300000", "300001"],
    "-m seed=0,1 device=cuda": ["device=cuda", "auto, cpu"],
    "-m init_from=nowhere seed=0,1": ["init_from=nowhere", "no trained run"],
    "--no-such-flag": ["--no-such-flag"],
    # beside a flag that shows a page, and cannot show more for it
    "--help foo": ["--help foo: it shows all keys; allowed beside it are plugin=…"],
    "model=gpt --help": ["--help model=gpt: it shows all keys"],
    "--help -m": ["--help -m: "],
    "-h --cfg job": ["--help --cfg: "],
    "--help --version": ["--help --version: "],
    "--help None": ["--help None: it shows all keys"],
    "--version foo": ["--version foo: allowed is --version alone"],
    "--version -m": ["--version -m: allowed is --version alone"],
    "--version plugin=a.py": ["--version plugin=a.py: allowed is --version alone"],
    "--hydra-help": ["--hydra-help: has no effect here; --help shows all keys"],
    "--hydra-help foo": ["--hydra-help: has no effect here"],
    "-m -r seed=0,1": ["--run --multirun: allowed is one of them"],
    "-m hydra/launcher=local,basic seed=0,1": ["hydra/launcher=local,basic: needs one value"],
    "-m hydra/sweeper=basic,search seed=0,1": ["hydra/sweeper=basic,search: needs one value"],
    "-sc install=tcsh": ["-sc install=tcsh: allowed is -sc install=bash, or fish or zsh"],
    "-sc": ["-sc: allowed is -sc install=bash"],
    "--cfg job foo": ["foo: needs the form key=value"],
    "config.yaml": ["error: config.yaml: needs the form key=value, without blanks\n"],
    "'a b=1'": ["a b=1: needs the form key=value; a key has no blanks"],
    "-m hydra/sweeper=search 'lr=shuffle(interval(1e-3,1e-2))'": [
        "cannot be computed",
        "IntervalSweep",
    ],
    "-m 'lr=range(a,b)'": ["lr=range(a,b): cannot be computed", "start: str"],
    "--info all foo": ["foo: needs the form key=value"],
    "-sc install=bash foo": ["-sc install=bash foo: allowed is -sc install=bash"],
}


@pytest.fixture
def texts(here):
    (here / "empty.txt").write_text("")
    (here / "latin1.txt").write_bytes(b"caf\xe9 and more")
    (here / "short.txt").write_text("a short text")
    return here


def check(left, code, stderr, words):
    assert code == 2
    assert stderr.startswith(("error: ", "train.py: error: ")) and stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert sorted(path.name for path in left.iterdir()) == ["empty.txt", "latin1.txt", "short.txt"]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_answered_by_one_line(texts, capsys, line):
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    check(texts, stop.value.code, capsys.readouterr().err, WRONG[line])


def test_a_backend_that_matplotlib_does_not_have_is_one_line(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "foo")
    why = "Key backend: 'foo' is not a valid value for backend"
    with pytest.raises(UserError, match=r"MPLBACKEND=foo: .* allowed is agg"), importing():
        raise ValueError(why)
    with pytest.raises(ValueError, match="another"), importing():
        raise ValueError("another")
    why = "a library cannot be imported: JSONDecodeError: Expecting value"
    with pytest.raises(UserError, match=why), importing():
        json.loads("as a library would fail at its first line")
    with pytest.raises(UserError, match="matplotlibrc"), importing():
        b"\xff".decode()


def test_so_is_it_in_a_process_of_its_own(texts):
    line = "model=bigram n_layer=4"
    command = [sys.executable, ROOT / "train.py", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check(texts, done.returncode, done.stderr, WRONG[line])
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "typed"),
    [("train", "n_layr=4"), ("train", "seed=4294967296"), ("sample", "seed=-1")],
)
def test_a_wrong_key_or_value_is_answered_without_torch(texts, command, typed):
    code = f"""
import sys
from lmlab.commands.{command} import main
from lmlab.errors import one_line_errors
try:
    with one_line_errors():
        main(['{typed}'])
finally:
    assert 'torch' not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=texts,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    check(texts, done.returncode, done.stderr, [typed])


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_the_folder_of_a_run_is_taken_as_it_is_typed(text):
    """Folders of sweeps have Hydra's own signs in their names."""
    if text != "null" and text[0] not in "'\"":
        assert grammar.parse(continued.literal(f"resume={text}")).value() == text


@given(
    st.sampled_from(["path", "tokenizer_path", "name"]),
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
        st.sampled_from(["true", "1e3", "[x]", "{a:1}", "é", "nan", "0x1", " a ", "a "]),
    ),
)
def test_a_name_is_text_whatever_it_looks_like(key, text):
    """One of several values is still typed with a comma."""
    if text != "null" and text[0] not in "'\"":
        override = grammar.parse(continued.literal(f"{key}={text}"))
        assert override.is_sweep_override() or override.value() == text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not heed the limit")
def test_a_limit_of_memory_that_is_too_small_for_torch_is_named(texts):
    program = shlex.join([sys.executable, str(ROOT / "train.py"), *NANO.split()])
    command = ["bash", "-c", f"ulimit -v 500000; exec {program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = ["a library cannot be imported", "ulimit -v allows 0.5 GB of memory"]
    check(texts, done.returncode, done.stderr, words)


def test_the_trace_is_there_for_who_asks(here, monkeypatch, capsys):
    """With the same exit status as the line alone; a program gets the error itself."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as stop:
        cli.main(["n_layr=4"])
    *_, last = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "UserError: n_layr=4" in last
    with pytest.raises(UserError, match="n_layr=4"):
        lmlab.train(n_layr=4)


def test_a_precision_that_the_device_cannot_do(texts, capsys, monkeypatch):
    monkeypatch.setattr("lmlab.machine.precisions", lambda device: ["32-true"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["precision=bf16-mixed"])
    check(
        texts,
        stop.value.code,
        capsys.readouterr().err,
        ["precision=bf16-mixed", "cpu", "auto, 32-true"],
    )


def test_a_run_that_cannot_make_its_folder_says_so(here, capsys):
    (here / "outputs").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        cli.main((NANO + "name=x").split())
    assert stop.value.code == 2 and "outputs/x" in capsys.readouterr().err


def test_help_is_a_page_with_every_key_and_choice(capsys):
    cli.main(["--help"])
    page = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group}=" in page
        for choice, row in choices_of(group).items():
            assert all(f"  {word}" in page for word in [choice, *keys_of(row.config)])
    assert all(f"  {key}: " in page for key in keys_of(RunConfig))
    assert "tiny_lm" in page and "hydra:" not in page
    for choice, kind in (("local", "launcher"), ("search", "sweeper")):
        assert (
            all(f"  hydra.{kind}.{key}: " in page for key in keys_of(SETTINGS[choice]))
            and f"  {choice} " in page
        )
    assert all(f"  {key}: " in page for key in keys_of(SweepConfig))


def test_an_experiment_with_another_model_keeps_the_rest_and_says_so(train, capsys):
    run = train("experiment=tiny_lm model=gpt_nano max_steps=1 threads=1")
    assert (
        "made for model=bigram; with model=gpt_nano it keeps its other values: lr=10"
        in capsys.readouterr().err
    )
    values = config(run)
    assert (values["model"], values["data"], values["optimizer"]) == ("gpt_nano", "sentence", "sgd")
    assert (values["lr"], values["block_size"], values["schedule"]) == (10, 191, "constant")
    run = train("experiment=nanogpt_mini model=bigram max_steps=1 threads=1")
    assert config(run)["batch_size"] == 12 and "n_embd" not in config(run)
    assert "n_embd" not in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    "line, count", [("experiment=glob(ladder_*) data=sentence", 6), ("model=glob(gpt*)", 4)]
)
def test_a_glob_of_choices_is_a_sweep_over_those_that_fit(here, capsys, line, count):
    with pytest.raises(SystemExit):  # without -m, where the line names the list
        cli.main([*line.split(), "val_fraction=0.2"])
    first = line.split()[0].partition("=")[0]
    assert f"error: {first}=" in (said := capsys.readouterr().err) and said.count(",") >= count
    arguments = [composition.without_glob(text) for text in line.split()]
    assert len(overrides.checked([*arguments, "val_fraction=0.2"], multirun=True).runs) == count


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("batch_size=1000000000000", ["batch_size=1000000000000 block_size=32", "GB"]),
        ("batch_size=10000000000000000", ["batch_size=10000000000000000", "1,000,000,000,000"]),
        ("block_size=1000000000000", ["block_size=1000000000000", "characters of training text"]),
        ("grad_accumulation=99999999999999999999999", ["grad_accumulation=9", "[1, 10000]"]),
    ],
)
def test_numbers_that_no_machine_takes_are_refused_before_the_run(here, capsys, line, words):
    refused(capsys, lambda: cli.main([*NANO.split(), "data=sentence", line]), words)
    assert not (here / "outputs").exists()


def test_a_run_that_is_out_of_memory_ends_in_one_line_with_what_needs_less(
    here, capsys, monkeypatch
):
    monkeypatch.setattr("lmlab.training.preparation.check_batch", lambda *_: None)
    line = f"{NANO} batch_size={10**12} data=sentence"
    refused(capsys, lambda: cli.main(line.split()), ["out of memory", "a smaller batch_size"])
    (run,) = (here / "outputs/gpt_nano").iterdir()
    assert metrics(run)["status"] == "failed" and "out of memory" in metrics(run)["reason"]


def test_a_glob_is_a_list_for_a_search_too():
    assert composition.without_glob("model=glob(gpt_*)") == "model=gpt_baby,gpt_nano"
    assert composition.without_glob("lr=1,2") == "lr=1,2"


def test_a_copy_without_its_configuration_says_how_it_is_installed(monkeypatch, here, capsys):
    monkeypatch.setattr(cli, "CONF", here / "conf")
    refused(capsys, lambda: cli.main(["--help"]), ["conf: is missing", "install it again"])


@pytest.mark.parametrize("sweep", ["", "-m seed=0,1 "])
@pytest.mark.parametrize("obstacle", ["link", "file"])
def test_a_place_where_no_folder_can_be_made_is_named_at_once(here, capsys, sweep, obstacle):
    if obstacle == "link":  # its disk is not mounted
        (here / "outputs").symlink_to("/nowhere/gone")
        words = ["outputs is a link to /nowhere/gone"]
    else:
        (here / "outputs").touch()
        words = ["outputs is no folder"]
    refused(capsys, lambda: cli.main((sweep + NANO).split()), words)
    assert [path.name for path in here.iterdir()] == ["outputs"]


def test_the_last_value_of_a_key_counts_and_the_others_are_named(here, capsys):
    cli.main(["lr=0.1", "seed=1", "--cfg", "job", "lr=0.2", "model=gpt", "model=bigram", "seed=1"])
    shown, said = capsys.readouterr()
    assert "lr: 0.2\n" in shown and "seed: 1\n" in shown and "no effect" not in shown
    assert said.splitlines() == [
        "warning: lr=0.1: has no effect, since lr=0.2 comes after it",
        "warning: model=gpt: has no effect, since model=bigram comes after it",
    ]
    cli.main(
        [
            "-m",
            "seed=0,1",
            "seed=5,6",
            "model=bigram",
            "data=sentence",
            "dry_run=true",
            "val_fraction=0",
        ]
    )
    shown, said = capsys.readouterr()
    assert "warning: seed=0,1: has no effect, since seed=5,6 comes" in said
    assert "1 configuration, 2 cells" in shown and "x 2 seeds" in shown


@pytest.mark.parametrize(
    ("typed", "is_idle"),
    [
        ("decay_steps=30", True),
        ("decay_steps=50", True),
        ("decay_steps=51", False),
        ("decay_steps=9 warmup_steps=8", False),
        ("decay_steps=9 warmup_steps=9 schedule=linear", True),
        ("decay_steps=9 warmup_steps=9 -m seed=0,1", True),
        ("max_steps=20", False),  # nobody asked for a fall
        ("decay_steps=null", False),
        ("model=ngram,bigram -m decay_steps=60", False),
    ],
)
def test_a_fall_that_would_end_within_the_warm_up_is_told_once(here, capsys, typed, is_idle):
    overrides.checked([text for text in typed.split() if text != "-m"], multirun="-m" in typed)
    said = capsys.readouterr().err
    assert said.count("\n") == is_idle
    assert ("warning: decay_steps=" in said and "the first has no effect" in said) == is_idle


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("val_fraction=0 eval_tokens=9", "eval_tokens=9: has no effect, since val_fraction is 0"),
        ("val_fraction=0 eval_tokens=null", ""),
        ("val_fraction=0", ""),
        ("eval_tokens=9", ""),
        ("model=gpt_nano dropout_masks=fast", "dropout_masks=fast: has no effect, since dropout"),
        ("model=gpt_nano dropout_masks=fast dropout=0.1", ""),
        ("model=gpt_nano -m dropout_masks=fast dropout=0,0.1", "dropout_masks=fast: has no"),
        ("skip_spikes=2 max_steps=20", "skip_spikes=2 max_steps=20: the first has no effect"),
        ("skip_spikes=2 max_steps=21", ""),
        ("skip_spikes=1.0000001 max_steps=9", "skip_spikes=1.0000001 max_steps=9"),
        ("ema=0.75 max_steps=25", "ema=0.75 max_steps=25: is as ema=0.74286"),
        ("ema=0.75 max_steps=26", ""),
        ("patience=2 eval_interval=5 max_steps=10", "max_steps=10: the first has no effect"),
        ("patience=2 eval_interval=5 max_steps=11", ""),
        (
            "patience=1 eval_interval=5 max_steps=3 -m seed=0,1",
            "the first has no effect; the evaluations between the run's first step and its last are 0",
        ),
        ("model=ngram,bigram -m skip_spikes=2 max_steps=9", "skip_spikes=2 max_steps=9"),
    ],
)
def test_what_has_no_effect_in_a_run_is_told_once(here, capsys, typed, words):
    line = f"model=bigram data=sentence val_fraction=0.2 {typed}".replace("-m", "")
    overrides.checked(line.split(), multirun="-m" in typed)
    said = [line for line in capsys.readouterr().err.splitlines() if "comes after" not in line]
    assert len(said) == bool(words) and words in "".join(said)


@pytest.mark.parametrize(("context", "is_longer"), [(8, False), (9, True)])
def test_a_context_beyond_the_window_is_said_to_be_empty(here, capfd, context, is_longer):
    line = f"model=mlp data=sentence val_fraction=0.2 block_size=8 max_steps=1 context={context}"
    cli.main(line.split())
    said = capfd.readouterr().err
    assert (f"warning: context={context} block_size=8: a window has no more" in said) == is_longer


def test_line_ends_of_windows_are_told(here, capsys):
    """They are characters like others, which a learner may not have meant."""
    for name, content in (
        ("windows", b"ab\r\ncd\r\n" * 200),
        ("unix", b"ab\ncd\n" * 200),
        ("mac", b"ab\rcd\r" * 200),
        ("cut_windows", b"a" + b"\r\n" * 200),  # the training part ends between the two
    ):
        Path(f"{name}.txt").write_bytes(content)
        line = f"data=file path={name}.txt model=bigram max_steps=1 warmup_steps=0 threads=1 name={name}"
        cli.main([*line.split(), "device=cpu"])
        said = capsys.readouterr().err
        assert ("line ends of Windows" in said and "sed 's/\\r$//'" in said) == ("windows" in name)
        assert ("as old Macs ended lines" in said and "tr '\\r' '\\n'" in said) == (name == "mac")


def test_the_words_of_other_tools_lead_to_what_there_is_and_hide_nothing_of_ours():
    keys = {*all_keys(), *keys_of(sample.Options)}
    words = {"cuda", "mps", "32-true", "bf16-mixed", "constant", "rotary"}
    assert {*ELSEWHERE} <= keys | words
    hidden = {word for key in {*ELSEWHERE} & keys for word in ELSEWHERE[key].split()} & keys
    assert not hidden
    for key in keys:
        assert meant_by(key, keys) == key  # also where another tool means something else by it
