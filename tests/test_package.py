"""The wheel: it is built, unpacked into a folder of its own, and used from an empty one."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from lmlab import __version__
from lmlab.__main__ import VERBS
from lmlab.errors import EXTRAS
from lmlab.runs import typed
from tests.conftest import ROOT, metrics

IN_PACKAGE = ("lmlab", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SMALL = "data=recipes device=cpu threads=1 max_steps=3 batch_size=2"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what the wheel installs."""
    source = tmp_path_factory.mktemp("source")
    for name in IN_PACKAGE:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "out").iterdir()
    zipfile.ZipFile(wheel).extractall(source / "site")
    return source / "site"


@pytest.fixture
def lmlab(site, here):
    """Runs the command of the package in an empty folder; returns its status, output and errors."""
    environment = os.environ | {"PYTHONPATH": str(site)}

    def lmlab(line, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "lmlab", *line.split()],
            env=environment | variables,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return lmlab


def test_the_wheel_has_the_configuration_and_the_texts(site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for folder in ("conf", "lmlab"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".txt", ".html"):
                inside = path.relative_to(ROOT).as_posix()
                assert (inside if folder == "lmlab" else f"lmlab/{inside}") in names
    (points,) = site.glob("*.dist-info/entry_points.txt")
    assert "lmlab = lmlab.__main__:main" in points.read_text()


def test_the_package_trains_sweeps_and_samples_with_a_file_from_anywhere(lmlab, here):
    shutil.copy(ROOT / "examples/my_lab.py", here)
    status, out, err = lmlab(f"train -m plugin=my_lab.py model=rnn,gpt_nano seed=0 name=s {SMALL}")
    assert status == 0, err
    assert "rnn" in out and "val/accuracy" in out
    (run,) = (here / "outputs/sweeps/s").glob("*model=rnn*")
    assert metrics(run)["git_commit"] is None and metrics(run)["status"] == "finished"
    assert f"lmlab sample run={run.relative_to(here)}" in (run / "train.log").read_text()
    status, out, _ = lmlab(f"sample plugin=my_lab.py run={run} max_tokens=20")
    assert status == 0 and len(out) == 21
    status, out, err = lmlab(f"sample run={run}")
    assert (status, out) == (2, "") and "plugin=my_lab.py" in err and err.count("\n") == 1


def test_pages_name_every_command_as_it_is_typed():
    assert {*typed.VERBS.split("|"), "train"} == {*VERBS}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ["lmlab train", "lmlab plot", "--help"]),
        (
            "train --help",
            ["lmlab train model=bigram", "n_layer", "lmlab evaluate split=test", "checkout"],
        ),
        ("sample --help", ["lmlab sample run="]),
        ("--version", [__version__]),
        ("train --version", [__version__]),
        ("-sc install=bash", ["complete -o default -F _lmlab_completion lmlab"]),
    ],
)
def test_the_command_says_what_it_can_do(lmlab, line, words):
    status, out, err = lmlab(line)
    assert (status, err) == (0, "")
    assert all(word in out for word in words) and "scripts/evaluate.py" not in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian", ["lmlab trian", "did you mean train?", "sample"]),
        ("-sc install=csh", ["-sc install=csh", "install=bash"]),
        ("compare", ["lmlab compare needs a folder"]),
        ("--help foo", ["lmlab --help foo: allowed is lmlab --help alone"]),
        ("--version x", ["lmlab --version x: allowed is lmlab --version alone"]),
        ("train --help x", ["--help x: it shows all keys"]),
        ("sample --help x", ["--help x: allowed is --help alone"]),
    ],
)
def test_a_wrong_word_gets_one_line(lmlab, line, words):
    status, out, err = lmlab(line)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("lmlab sa", "sample"),
        ("lmlab train eval_int", "eval_interval="),
        ("lmlab train plugin=my_lab.py model=r", "model=rnn"),
        ("lmlab sample checkpoint=b", "checkpoint=best"),
        ("lmlab sample run", "run="),
    ],
)
def test_bash_completes_verbs_keys_and_choices(lmlab, here, typed, completed):
    shutil.copy(ROOT / "examples/my_lab.py", here)
    assert lmlab("-sc query=bash", COMP_LINE=typed)[1].split() == [completed]


def test_bash_completes_an_empty_line_with_all_verbs(lmlab):
    for line in ("lmlab", "lmlab ", ""):
        assert lmlab("-sc query=bash", COMP_LINE=line)[1].split() == list(VERBS)


def test_the_library_is_imported_without_torch():
    code = "import lmlab, sys; print(lmlab.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[1] == "False"


WITHOUT_EXTRAS = """
import contextlib, importlib.machinery as machinery, importlib.metadata as metadata, io, re, sys
find, distribution = machinery.PathFinder.find_spec, metadata.distribution
extras = sys.argv[1].split(",")

def found(name, path=None, target=None):
    return None if name.partition(".")[0] in extras else find(name, path, target)

def known(name):
    if re.split("[^a-z]", name.lower())[0] in extras:
        raise metadata.PackageNotFoundError(name)
    return distribution(name)

machinery.PathFinder.find_spec, metadata.distribution = found, known

from lmlab.__main__ import obey
from lmlab.errors import one_line_errors

def call(*lines):
    for line in lines:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with one_line_errors():
                    obey(line.split())
                status = 0
            except SystemExit as end:
                status = end.code or 0
        print(status, err.getvalue().strip().split(chr(10))[-1] if status else "")

call("train model=gpt_nano data=sentence val_fraction=0.2 block_size=8 device=cpu threads=1 max_steps=2 batch_size=2 name=a",
     "sample max_tokens=5", "evaluate", "explain out=e.html", "page out=p.html",
     "train model=bigram data=sentence val_fraction=0.2 device=cpu threads=1 max_steps=2 name=b")
call("compare outputs", "plot out=x.png", "export", "train tokenizer=bpe", "train -m seed=0,1",
     "coordinates model=gpt_nano widths=16,32 steps=1 seeds=0 out=x.png")
assert not {*extras} & {*sys.modules}, {*extras} & {*sys.modules}
"""


def test_without_the_extras_what_needs_none_works_and_the_rest_says_what_to_install(site, here):
    """As after `pip install .`: no pandas, scipy, optuna, matplotlib, tokenizers or safetensors."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, ",".join(EXTRAS)],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    works, refused = done.stdout.splitlines()[:6], done.stdout.splitlines()[6:]
    assert [line.strip() for line in works] == ["0"] * 6
    needed = ["pandas", "matplotlib", "safetensors", "tokenizers", "pandas", "matplotlib"]
    for line, name in zip(refused, needed, strict=True):
        assert line == f"2 error: {name} is not installed; install it with: pip install {name}"
