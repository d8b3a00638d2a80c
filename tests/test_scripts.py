"""The scripts as a user runs them, and the course's two programs against the Lightning runs."""

import errno
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch

from lmlab import files
from lmlab.catalogue import CATALOGUE
from lmlab.commands import options, picture, plot
from lmlab.commands import train as cli
from lmlab.commands.door import run_command
from lmlab.data import corpora
from lmlab.data.batches import Batches
from lmlab.data.splits import Splits
from lmlab.errors import UserError, one_line_errors
from lmlab.runs import checkpoints
from lmlab.training import preparation
from tests.conftest import NANO, ROOT, content, history, metrics, refused, script, working_in

pytestmark = pytest.mark.usefixtures("short_texts")


@pytest.fixture(scope="module")
def trained_folder(short_texts, tmp_path_factory):
    """A folder with one trained run."""
    with working_in(tmp_path_factory.mktemp("trained")) as folder:
        cli.main(NANO.split())
    return folder


@pytest.fixture
def run_script(here, capsys):
    """Runs a script's main with a line of arguments; returns its stdout and stderr."""

    def run_script(name, line):
        capsys.readouterr()
        with one_line_errors():
            script(name).main(shlex.split(line))
        return capsys.readouterr()

    return run_script


def test_tiny_lm_and_its_lightning_run_follow_the_same_losses(train, capsys):
    tiny = script("tiny_lm")
    assert [tiny.text] == list(corpora.sentence(None))
    losses = tiny.train()
    run = train("experiment=tiny_lm threads=1")
    assert losses[0] == pytest.approx(2.197, abs=1e-3) and losses[-1] <= 0.5
    assert list(history(run, "train/loss").values()) == pytest.approx(losses, abs=1e-4)
    assert set(tiny.generate(100)) <= set(tiny.chars)


def test_nanogpt_mini_and_its_lightning_run_follow_the_same_losses(train, monkeypatch):
    """Given the same first weights and the same batches."""
    mini, started = script("nanogpt_mini"), {}

    def build_and_remember(*args):
        started["model"] = checkpoints.build_model(*args)
        started["weights"] = {
            name: weight.clone() for name, weight in started["model"].state_dict().items()
        }
        return started["model"]

    monkeypatch.setattr(preparation, "build_model", build_and_remember)
    run = train("experiment=nanogpt_mini threads=1 max_steps=25 log_interval=1 eval_interval=25")
    config = checkpoints.load(run).config
    data = Splits.of_run(config)
    batches = Batches(data.train, config.run.batch_size, config.model.block_size, config.run.seed)
    model = mini.GPT(data.tokenizer.vocab_size)
    model.load_state_dict(started["weights"])
    losses = mini.train(model, batches.__getitem__, 25)
    assert list(history(run, "train/loss").values()) == pytest.approx(losses, abs=1e-4)
    assert mini.generate(model, torch.zeros(1, 1, dtype=torch.long), 5).shape == (1, 6)


@pytest.mark.parametrize("name", ["tiny_lm", "nanogpt_mini"])
def test_the_courses_programs_need_nothing_of_ours(name):
    source = (ROOT / "scripts" / f"{name}.py").read_text()
    assert "lmlab" not in source and "open(" not in source


def test_sample_writes_the_text_to_stdout_and_the_same_text_again(train, run_script):
    run = train(NANO)
    one = run_script("sample", f"run={run} prompt='The cat' max_tokens=50 seed=3")
    assert one.out.startswith("The cat") and len(one.out) == len("The cat") + 50 + 1
    assert str(run) in one.err and "seed=3" in one.err
    assert (
        run_script("sample", f"run={run.parent} prompt='The cat' max_tokens=50 seed=3").out
        == one.out
    )
    assert run_script("sample", "prompt='The cat' max_tokens=50 seed=4").out != one.out
    several = run_script(
        "sample",
        "prompt='The cat' max_tokens=50 seed=3 samples=2 temperature=2e0 top_k=5 top_p=0.9",
    )
    assert several.out.count("The cat") == 2 and "2 of 2" in several.err
    greedy = run_script("sample", "prompt=a max_tokens=20 temperature=0 stop=zz")
    assert "seed" not in greedy.err and "best.ckpt, temperature=0)" in greedy.err
    assert greedy.out == run_script("sample", "prompt=a max_tokens=20 temperature=0 seed=9").out


def test_a_prompt_a_stop_and_a_text_may_have_several_lines(train, run_script, here):
    train(NANO)
    drawn = run_script("sample", "prompt='The cat\nsat' max_tokens=5 seed=0").out
    assert drawn.startswith("The cat\nsat")
    long = run_script("sample", "max_tokens=300 seed=0").out
    stopped = run_script("sample", "max_tokens=300 seed=0 stop='\n'").out
    assert stopped.rstrip("\n") == long.split("\n")[0]
    run_script("explain", "text='one cat\ntwo cats'")
    page = (here / "explain.html").read_text()
    assert page.count('"text":') == len("one cat\ntwo cats") and re.search(r'"text": ?"\\n"', page)


def test_the_newest_run_of_a_folder_is_taken(train, run_script):
    train(NANO + "name=one")
    newer = train(NANO + "name=two")
    assert str(newer.relative_to(newer.parents[2])) in run_script("sample", "max_tokens=1").err


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_path_may_stand_in_the_quotes_that_train_needs(train, run_script, quote):
    run = train(NANO + "name=a")
    assert "val/loss" in run_script("evaluate", f"run=\\{quote}{run}\\{quote}").out


def test_evaluate_says_what_the_run_said(train, run_script, here):
    run = train(NANO + "test_fraction=0.1")
    numbers = dict(line.split() for line in run_script("evaluate", f"run={run}").out.splitlines())
    assert set(numbers) == {"val/loss", "val/perplexity", "val/bits_per_byte"}
    for key, value in numbers.items():
        assert float(value) == pytest.approx(metrics(run)[key], abs=1e-6)
    best = run_script("evaluate", f"run={run} checkpoint=best").out
    assert float(best.split()[1]) == pytest.approx(metrics(run)["best/val/loss"], abs=1e-6)
    assert "test/loss" in run_script("evaluate", f"run={run} split=test").out
    (here / "my.txt").write_text("The cat sat.")
    assert "text/loss" in run_script("evaluate", f"run={run} data=file path=my.txt").out
    written = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert written[0]["val/loss"] == metrics(run)["val/loss"] and written[0]["checkpoint"] == "last"
    assert [line["text"] for line in written] == ["val", "val", "test", "my.txt"]


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("sample", "run=nowhere", ["run=nowhere", "no trained run"]),
        ("sample", "promt=x", ["promt=x", "did you mean prompt?"]),
        ("sample", "temperature=-1", ["temperature=-1", "[0, inf)"]),
        ("sample", "temperature=${x}", ["temperature=${x}", "number"]),
        ("sample", "top_p=1.5", ["top_p=1.5", "(0, 1]"]),
        ("sample", "max_tokens=many", ["max_tokens=many", "whole number"]),
        ("sample", "prompt=日本", ["prompt=日本", "'日' (1)"]),
        ("sample", "device=cuda", ["device=cuda", "auto, cpu"]),
        ("sample", "checkpoint=worst", ["checkpoint=worst", "best, last"]),
        ("sample", "run=", ["run=: is empty"]),
        (
            "sample",
            "temperature=0,8",
            ["temperature=0,8", "write a decimal point: temperature=0.8"],
        ),
        ("sample", "temperature=0.5,0.7", ["temperature=0.5,0.7: needs a number"]),
        ("sample", "seed='range(1,3)'", ["seed=range(1,3): needs a whole number"]),
        ("sample", "seed=1 seed=2", ["seed=2: seed is there twice"]),
        ("sample", "temperature=0 top_k=5", ["top_k=5: has no effect with temperature=0"]),
        ("sample", "temperature=0 top_p=0.5", ["top_p=0.5: has no effect"]),
        ("sample", "temperature=0 samples=3", ["samples=3", "would be the same text"]),
        ("sample", "stop=", ["stop=: is empty"]),
        ("sample", "stop=日", ["stop=日: can never be written", "'日' (1)"]),
        ("sample", r"stop=\\n", [r"stop=\n: can never be written", r"$'\n' is a newline"]),
        ("explain", "text=cat path=x", ["path=x: has no effect with text=…"]),
        ("evaluate", "data=nosuch", ["data=nosuch: allowed are sentence, tales"]),
        ("evaluate", "data=my.txt", ["data=my.txt: ", "is data=file path=my.txt"]),
        ("sample", "max_new_tokens=5", ["max_new_tokens", "did you mean max_tokens?"]),
        ("explain", "out=", ["out=: is empty"]),
        ("evaluate", "run=", ["run=: is empty"]),
        ("benchmark", "startup startup", ["startup: is given 2 times"]),
        ("evaluate", "split=test", ["split=test", "train, val"]),
        ("evaluate", "split=all", ["split=all", "train, holdout, val, test"]),
        ("evaluate", "data=file path=nowhere", ["path=nowhere", "no file there"]),
        ("evaluate", "data=file", ["path", "data=file"]),
        ("evaluate", "path=x", ["path=x", "data=file"]),
        ("evaluate", "data=tales path=x", ["path=x", "data=file"]),
        ("evaluate", "data=tales split=test", ["split=test", "data=tales"]),
        ("evaluate", "data=shakespeare", ["outside the vocabulary", "':'"]),
    ],
)
def test_wrong_arguments_are_answered_by_one_line(
    trained_folder, run_script, monkeypatch, capsys, name, line, words
):
    monkeypatch.chdir(trained_folder)
    with pytest.raises(SystemExit) as stop:
        run_script(name, line)
    stderr = capsys.readouterr().err
    assert stop.value.code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert all(word in stderr for word in words), stderr


@pytest.mark.parametrize(
    "name", ["sample", "evaluate", "plot", "explain", "page", "board", "coordinates"]
)
def test_help_names_every_argument(run_script, capsys, name):
    with pytest.raises(SystemExit) as stop:
        run_script(name, "--help")
    page = capsys.readouterr().out
    assert not stop.value.code
    options = importlib.import_module(f"lmlab.commands.{name}").Options
    assert all(field in page for field in options.__dataclass_fields__)
    if "device" in options.__dataclass_fields__:
        assert " | ".join(CATALOGUE["device"]) in page


@pytest.mark.parametrize(
    "name", ["sample", "evaluate", "plot", "explain", "page", "export", "compare", "coordinates"]
)
@pytest.mark.parametrize("line", ["--help foo", "out=x --help", "foo -h"])
def test_nothing_is_ignored_beside_help(run_script, capsys, name, line):
    with pytest.raises(SystemExit) as stop:
        run_script(name, line)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert ": allowed is --help alone" in said.err and said.err.startswith("error: --help ")


def test_a_page_that_python_has_left_out_is_a_line(capsys, monkeypatch):
    """As with python -OO."""
    command = script("sample")
    monkeypatch.setattr(sys.modules[command.main.__module__], "__doc__", None)
    refused(capsys, one_line_errors()(lambda: command.main(["--help"])), ["--help: ", "-OO"])


@pytest.mark.parametrize(
    ("name", "line", "usual"),
    [
        ("plot", "runs=run", "curves.png"),
        ("explain", "run=run text=hello", "explain.html"),
        ("page", "run=run", "model.html"),
    ],
)
def test_a_file_of_somebody_else_at_the_usual_place_is_kept(trained, here, name, line, usual):
    """A person has not named it; what a command wrote there before is replaced."""
    shutil.copytree(trained / "run", here / "run")
    for _ in range(2):
        script(name).main(line.split())
    Path(usual).write_text("mine")
    with pytest.raises(UserError, match=f"^{usual}: is there and was not written by lmlab; out="):
        script(name).main(line.split())
    assert Path(usual).read_text() == "mine"
    script(name).main([*line.split(), f"out={usual}"])
    assert Path(usual).read_bytes() != b"mine"


NUMBERS_ALONE = {"plot", "board", "growth"}  # they read no configuration


@pytest.mark.parametrize(
    "name",
    sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "benchmark"),
)
def test_a_script_that_reads_the_configurations_of_runs_takes_plugin(name):
    """Without it nobody's own model could be in its tables: it says that the plug-in must be named."""
    module = script(name)
    home = sys.modules[module.main.__module__] if hasattr(module, "main") else module
    options = getattr(home, "Options", None)
    keys = {*getattr(options, "__dataclass_fields__", {})}
    if keys & {"run", "runs", "sweep", "sweeps"} and name not in NUMBERS_ALONE:
        assert "plugin" in keys


def test_no_script_hides_a_module_of_the_standard_library():
    """The folder of a script that runs is the first place where Python looks for modules."""
    assert not {path.stem for path in (ROOT / "scripts").iterdir()} & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("raised", "status"), [(UserError("x=1: is wrong"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_command_ends_with_the_status_of_what_stopped_it(capsys, raised, status):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == status
    assert capsys.readouterr().err == "error: x=1: is wrong\n" * (status == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_a_signal_ends_leaves_no_temporary_folder(tmp_path, number):
    def main(argv):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "command",
    [
        "train.py --help",
        "train.py model=bigram data=sentence val_fraction=0.2 block_size=8 threads=1 device=cpu max_steps=30 eval_interval=10 name=signs",
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(here, command):
    program, *arguments = shlex.split(command)
    variables = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / program, *arguments], env=variables, capture_output=True
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr and done.stdout


def test_what_is_output_alone_fails_if_it_cannot_be_written(here):
    command = (
        f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'train.py'))} --cfg job >/dev/full"
    )
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("error: output: No space left on device\n")


@pytest.mark.parametrize(
    "output, expected",
    [
        ("| true", ("", "0")),  # as of `| head -1`, whose reader is gone before the page is written
        (">&-", ("", "0")),
        (">/dev/full", ("error: output: No space left on device\n", "2")),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(here, output, expected):
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'train.py'))} --help"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    if output.startswith("|"):
        script = f"{{ {command}; echo $? >status; }} {output}"
    else:
        script = f"{command} {output}; echo $? >status"
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True)
    assert (done.stderr, (here / "status").read_text().strip()) == expected


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("sample", "run"),
        ("evaluate", "run"),
        ("train", "resume"),
        ("train", "replay"),
        ("train", "init_from"),
    ],
)
@pytest.mark.parametrize("part", ["checkpoints/best.ckpt", "checkpoints", "config.yaml"])
def test_a_part_of_a_run_leads_to_its_folder(run, capsys, command, key, part):
    more = ["data=sentence"] if key == "init_from" else []
    main = cli.main if command == "train" else script(command).main
    refused(
        capsys,
        one_line_errors()(lambda: main([f"{key}={run / part}", *more])),
        [f"{key}={run / part}: is a part of a run; needs its folder: {key}={run}"],
    )


def test_an_export_into_a_folder_that_is_there_leaves_it_the_same_folder(run, here):
    """It may be a mounted disk, or have permissions of its own."""
    folder = here / "mine"
    folder.mkdir(mode=0o700)
    before = folder.stat()
    script("export").main([f"run={run}", "out=mine"])
    script("export").main([f"run={run}", "out=other"])
    after = folder.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert content(folder) == content(here / "other")


def test_names_of_folders_may_have_the_character_between_them(here):
    for name in ("a", "b c", "d,e"):
        (here / name).mkdir()
    assert options.named_folders("a b c d,e", " ") == (["a", "b c", "d,e"], "")
    assert options.named_folders("d,e,b c,a", ",") == (["d,e", "b c", "a"], "")
    (here / "a b c").mkdir()
    assert options.named_folders("a b c", " ") == (["a b c"], "")
    assert options.named_folders("a a b c d,e", " ") == (["a", "a b c", "d,e"], "")
    assert options.named_folders("a  x b c", " ") == (["a", ""], "x b c")


@pytest.mark.parametrize("name", ["sample", "evaluate", "explain", "page", "plot", "compare"])
def test_a_script_imports_the_library_beside_it(tmp_path, name):
    """As with two checkouts and one environment, in which the other one is installed."""
    for path in ("scripts", "lmlab/commands"):
        (tmp_path / path).mkdir(parents=True)
    shutil.copy(ROOT / f"scripts/{name}.py", tmp_path / "scripts")
    (tmp_path / "lmlab/__init__.py").touch()
    (tmp_path / "lmlab/commands/door.py").write_text("def run_command(main): main()\n")
    (tmp_path / f"lmlab/commands/{name}.py").write_text("def main(): print('beside')\n")
    command = [sys.executable, tmp_path / f"scripts/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("beside\n", "")


def test_a_picture_that_cannot_be_written_leaves_the_old_one(trained, monkeypatch):
    with working_in(trained):
        command = script("plot")
        command.main(["runs=run", "out=a.png"])
        before = Path("a.png").read_bytes()
        assert before.startswith(b"\x89PNG")
        for name in ("a.png", "b.png"):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full_disk)
                with pytest.raises(UserError, match=f"{name}: cannot be written \\(No space left"):
                    command.main(["runs=run", f"out={name}"])
        assert Path("a.png").read_bytes() == before and not list(Path().glob("*b.png*"))


@pytest.mark.parametrize(
    "line",
    [
        "explain run=run",
        "page run=run",
        "plot runs=run",
        "export run=run",
        "ladder sweep=.",
        "recall sweep=.",
        "compare run",
    ],
)
def test_what_is_no_plain_file_is_not_replaced(run, line):
    """A pipe or a device would be lost, and what a link names would stay as it was."""
    name, words = line.split()
    os.mkfifo("pipe.png")
    Path("link.png").symlink_to("target.png")
    for out, reason in (("pipe.png", "is no plain file"), ("link.png", "is a link to target.png")):
        with pytest.raises(UserError, match=f"out={out}: {reason}"):
            script(name).main([words, f"out={out}"])
    assert Path("pipe.png").is_fifo() and Path("link.png").is_symlink()
    with pytest.raises(UserError, match=r"pipe\.png: is no plain file"):
        files.write(Path("pipe.png"), b"")


def test_null_is_no_text_where_it_means_nothing_given(run):
    words = ["run=run", "text=null", "plugin=null", "out=a.html"]
    script("explain").main(words)
    script("explain").main(["run=run", "out=b.html"])
    assert Path("a.html").read_text() == Path("b.html").read_text()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(here):
    (here / "folder").mkdir()
    for name, arguments in (("benchmark", ["startup"]), ("explain", ["run=x"])):
        for out in ("folder", "/proc/x.json"):
            with pytest.raises(UserError, match=f"out={out}: .*(is a folder|cannot be written)"):
                script(name).main([*arguments, f"out={out}"])
    with pytest.raises(UserError, match="is empty"):
        script("compare").main([""])


def test_a_working_folder_that_was_deleted_is_named(here):
    gone = f"mkdir gone; cd gone; rmdir ../gone; {shlex.quote(sys.executable)} "
    for program in ("train.py", "scripts/sample.py"):
        done = subprocess.run(
            ["sh", "-c", gone + shlex.quote(str(ROOT / program))], capture_output=True, text=True
        )
        assert done.returncode == 2 and done.stderr == (
            "error: the working folder was deleted; change to one that exists\n"
        )


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_leaderboard_that_cannot_be_shown_is_an_error(trained):
    command = [sys.executable, ROOT / "scripts/compare.py", "run", "out=board"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=trained, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: output: No space left on device\n")
    assert (trained / "board/leaderboard.csv").exists()


@pytest.mark.parametrize("out", ["curves", "folder"])
def test_a_picture_without_a_suffix_is_refused(here, out):
    (here / "folder").mkdir()
    with pytest.raises(UserError, match=f"out={out}: needs the name of a picture"):
        script("plot").main([f"out={out}"])


def test_what_was_measured_is_shown_where_nothing_can_be_written(run, run_script, monkeypatch):
    """As on a disk of somebody else."""

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("lmlab.inference.loss.open", read_only, raising=False)
    (run / "leaderboard.csv").mkdir()
    evaluated = run_script("evaluate", f"run={run}")
    assert "val/loss" in evaluated.out
    assert evaluated.err.startswith("warning: ") and "the numbers were not kept" in evaluated.err
    compared = run_script("compare", str(run))
    assert "val/loss" in compared.out and "report.html" not in compared.out
    assert compared.err.count("\n") == 1 and "out= names another folder" in compared.err
    elsewhere = run_script("compare", f"{run} out=elsewhere")
    assert not elsewhere.err and "elsewhere/report.html" in elsewhere.out


def test_an_out_that_cannot_be_written_is_refused_after_the_table(run, run_script, capsys):
    (run / "leaderboard.csv").mkdir()
    with pytest.raises(SystemExit) as stop:
        run_script("compare", f"{run} out={run}")
    said = capsys.readouterr()
    assert stop.value.code == 2 and "val/loss" in said.out and said.err.startswith("error: ")


@pytest.mark.parametrize(("n", "named"), [(2, 2), (11, 11), (45, 40)])
def test_each_of_many_curves_has_a_color_and_a_name_below(run, run_script, n, named, monkeypatch):
    drawn = []
    save = plot.save_picture
    monkeypatch.setattr(
        plot, "save_picture", lambda figure, out: drawn.append(figure) or save(figure, out)
    )
    copies = [str(shutil.copytree(run, run.parent / f"copy{i}")) for i in range(n)]
    said = run_script("plot", f"runs='{' '.join([*copies, copies[0]])}' out=many.png")  # one twice
    (figure,) = drawn
    (axes,) = figure.axes
    colors = {line.get_color() for line in axes.lines}
    assert len(colors) == n
    legends = figure.legends or [axes.get_legend()]
    lines = len(legends[0].get_texts())
    assert lines == named or (n <= 10 and lines == 2 * named)
    assert axes.get_position().height > 0.3
    assert (f"{n - named} of the runs are drawn without a name" in said.err) == (n > named)


def test_bars_of_equal_seeds_have_no_length(here):
    """Though the mean of three equal numbers is not always that number."""
    loss = 1.9
    rows = pd.DataFrame(
        {"loss": [(loss + loss + loss) / 3, 1.0], "low": [loss, 0.5], "high": [loss, 3]}
    )
    assert rows["loss"][0] != loss
    assert all((bar >= 0).all() for bar in script("ladder").bars(rows))
    figure = picture.new_figure(width=4)
    shares = rows.rename(columns={"loss": "mean", "low": "min", "high": "max"})
    script("recall").line(figure.subplots(), shares, "C0", "x")


def test_no_text_of_a_picture_is_latex(tmp_path):
    """A person's matplotlibrc may say that texts are; n_layer=2 is none."""
    with matplotlib.rc_context({"text.usetex": True}):
        figure = picture.new_figure(width=4)
        figure.subplots().plot([1, 2], label="n_layer=2")
        figure.legend()
        picture.save_picture(figure, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_ladder_has_a_panel_of_text_read_where_that_differs(here, monkeypatch, capsys):
    command = script("ladder")
    drawn = []
    monkeypatch.setattr(command, "save_picture", lambda figure, _: drawn.append(figure))
    rows = [
        {"model": "gpt", "n_params": n, "tokens": tokens, "seed": seed, "val/loss": 2.0 + seed}
        | {"flops": 0, "train_seconds": 1.0, "status": "finished", "group": f"{n} {tokens}"}
        | {"started": 1.0}
        for n, tokens, seed in [
            (10, 10**6, 0),
            (20, 10**6, 0),
            (20, 10**6, 1),
            (20, 4 * 10**6, 0),
            (20, 4 * 10**6, 1),
        ]
    ]
    rows.append(rows[0] | {"model": "ngram", "val/loss": 1.5, "group": "ngram"})
    table = pd.DataFrame(rows)
    for runs, panels in ((table[table["tokens"] == 1e6], 2), (table, 3)):
        monkeypatch.setattr("lmlab.sweeps.table.load_runs", lambda _, runs=runs: runs)
        monkeypatch.setattr("lmlab.sweeps.table.objective", lambda _: "val/loss")
        command.main([])
        assert len(drawn[-1].axes) == panels
    by_size, _, by_text = drawn[-1].axes
    (line,) = [line for line in by_text.lines if line.get_marker() == "o"]
    assert [*line.get_xdata()] == [1e6, 4e6] and [*line.get_ydata()] == [2.5, 2.5]
    (counted,) = [line for line in by_text.lines if line.get_marker() != "o"]
    assert {*counted.get_ydata()} == {1.5}
    sizes = [bar[0].get_xdata() for bar in by_size.containers]
    assert sorted(map(len, sizes)) == [1, 2]  # longer runs are no points there
    said = capsys.readouterr().out
    assert "| gpt | 20 | 4,000,000 | 2.500 ± 0.500 | 2 |" in said
    assert "| gpt | 10 | 1,000,000 | 2.000 | 1 |" in said  # one seed has no error


def test_single_runs_are_called_by_what_was_typed_for_them():
    from lmlab.commands.plot import label_of

    run = Path("outputs/gpt/10-00-00")
    typed = {"command": "python train.py model=gpt lr=0.1 name=x out=y"}
    assert label_of(run, typed) == "gpt/10-00-00,model=gpt,lr=0.1"
    assert label_of(run, typed | {"label": "seed=0"}) == "seed=0"
    assert label_of(run, {"command": "python 'x"}) == label_of(run, {}) == "gpt/10-00-00"
