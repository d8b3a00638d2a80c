"""LEARN.md, its notebook and its words: commands work in their order, and code is where it is said to be."""

import math
import re
import runpy
import shlex
from pathlib import Path

import nbformat
import pytest

from lmlab.commands import train as cli
from lmlab.errors import UserError
from tests.conftest import ROOT, metrics, script

PAGE = (ROOT / "LEARN.md").read_text()
STEPS = re.split(r"^## (?=\d)", PAGE.split("## Which")[0], flags=re.M)[1:]
BETTER, SHOWN = PAGE.split("## Which")[1].split("## Let it write")
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
WORDS = re.findall(r"^- \*\*(.+?)\*\*: ", GLOSSARY, re.M)
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
SHAPES = {
    "model=mlp": {"n_hidden": 8},
    "model=lstm": {"n_embd": 4},
    "model=modern": {"n_embd": 8},
    "data=pydoc": {"n_layer": 1, "n_head": 1, "n_embd": 8},
    "experiment=recall": {"n_examples": 300, "hold_steps": 0, "n_embd": 8},
}


def shortened(words):
    """Returns the arguments of train.py for a run of two steps, or for an n-gram, which has none.

    Models that are fine-tuned keep their shape.
    """
    values = dict(word.split("=", 1) for word in words if "=" in word)
    words = [word for word in words if "=" not in word]
    values["threads"] = 1
    if values.get("model") != "ngram":
        values |= {"max_steps": 2, "eval_interval": 1, "device": "cpu", "precision": "32-true"}
    for key, value in [*values.items()]:
        values |= SHAPES.get(f"{key}={value}", {})
    return words + [f"{key}={value}" for key, value in values.items()]


def cells(words):
    """Returns how many runs a command makes: one for each combination of its values."""
    return math.prod(word.count(",") + 1 for word in words)


def test_the_notebook_runs_commands_in_a_checkout_alone(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples/learn.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(ROOT / "examples")
    for _ in range(2):  # the same cell twice
        exec(first, {})
        assert Path.cwd() == ROOT
    (tmp_path / "mine/notebooks").mkdir(parents=True)
    (tmp_path / "mine/train.py").touch()  # of somebody's own project
    monkeypatch.chdir(tmp_path / "mine/notebooks")
    with pytest.raises(FileNotFoundError, match="belongs in the folder examples of a checkout"):
        exec(first, {})


def test_thirteen_steps_each_with_a_command_some_code_and_one_folded_answer():
    assert [step.split(".")[0] for step in STEPS] == [str(n) for n in range(1, 14)]
    for step in STEPS:
        assert re.findall(r"^```.*$", step, re.M) == ["```sh", "```", "```python", "```"]
        assert len(re.findall(r"^<details><summary>.+\?</summary>\n\n", step, re.M)) == 1
        assert step.count("<details>") == len(re.findall(r"^</details>$", step, re.M)) == 1
        assert len(re.findall(r"^Now open `", step, re.M)) == 1
    assert re.findall(r"^```.*$", BETTER, re.M) == ["```sh", "```"]
    assert re.findall(r"^```.*$", SHOWN, re.M) == ["```sh", "```", "```js", "```"]
    assert max(map(len, PAGE.splitlines())) <= 120


OPENED = r"^Now open `(\S+?)`.*? at `(\w+)`.*?^```python\n(.*?)^```"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.split(".")[0])
def test_the_code_that_a_step_shows_stands_where_it_says(step):
    path, name, lines = re.search(OPENED, step, re.M | re.S).groups()
    code = (ROOT / path).read_text()
    (part,) = re.findall(rf"^(?:def|class) {name}\b.*?(?=^[^\s)]|\Z)", code, re.M | re.S)
    assert lines in part, f"{path} has no longer in {name}:\n{lines}"


def test_the_code_of_the_page_stands_where_it_says():
    path, name, lines = re.search(OPENED.replace("python", "js"), SHOWN, re.M | re.S).groups()
    (part,) = re.findall(rf"^function {name}\(.*?^}}", (ROOT / path).read_text(), re.M | re.S)
    assert lines in part


def test_a_bold_word_is_in_the_glossary():
    bold = {word.lower() for word in re.findall(r"\*\*(.+?)\*\*", PAGE)} - {"bold"}
    known = [word.lower() for word in WORDS]
    assert {word.replace("heads", "head") for word in bold} <= {*known}
    assert known == sorted(known)


def test_each_line_of_code_is_where_the_glossary_says(tmp_path):
    """To bring it up to date: python scripts/glossary.py."""
    numbered = script("glossary").numbered
    assert numbered(GLOSSARY, ROOT / "docs").splitlines() == GLOSSARY.splitlines()
    assert len(re.findall("#L", GLOSSARY)) == len(WORDS) - 1  # one word only names another
    with pytest.raises(UserError, match=r"train\.py: `def nothing` stands in 0 of its lines"):
        numbered("[`def nothing`](../train.py#L1)", ROOT / "docs")
    (tmp_path / "bad.py").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"bad\.py: byte 0 is not UTF-8 text"):
        numbered("[`x`](bad.py#L1)", tmp_path)
    assert numbered("[`import sys`](../train.py#L99)", ROOT / "docs").endswith("train.py#L3)")


COURSE = (
    "language model, loss, cross-entropy, gradient descent, self-attention, causal masking, token embedding, "
    "position embedding, residual connection, layer norm, MLP, nanoGPT, perplexity, token, fine-tuning, scale"
)


def test_the_words_of_the_course_are_explained():
    assert {*COURSE.split(", ")} <= {*WORDS}


def test_the_notebook_is_what_the_page_makes(tmp_path):
    """To bring it up to date: python scripts/learn_notebook.py."""
    committed = ROOT / "examples/learn.ipynb"
    made = script("learn_notebook").notebook(PAGE, ROOT / "LEARN.md", ROOT / "examples")
    assert committed.read_text() == made
    notebook = nbformat.reads(made, 4)
    nbformat.validate(notebook)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    typed = [line.removeprefix("!") for cell in code[1:] for line in cell.splitlines()]
    assert typed == COMMANDS
    words = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert words.count("<details>") == words.count("</details>") == len(STEPS)
    for link in re.findall(r"\]\((?!http)([^)#]+)", words):
        assert (ROOT / "examples" / link).exists(), link


def test_a_page_is_not_replaced_by_its_notebook(here):
    Path("page.md").write_bytes(b"# t\n\nwords\n")
    Path("title.md").write_bytes(b"# t")
    Path("latin.md").write_bytes(b"\xff")
    make = script("learn_notebook").main
    for words, fault in (
        ("page=page.md out=page.md", "out=page.md: needs the name of a notebook"),
        ("page=title.md out=a.ipynb", "page=title.md: needs a title"),
        ("page=latin.md out=a.ipynb", "page=latin.md: byte 0 is not UTF-8"),
    ):
        with pytest.raises(UserError, match=fault):
            make(words.split())
    assert Path("page.md").read_bytes() == b"# t\n\nwords\n" and not Path("a.ipynb").exists()


def test_the_pictures_are_small_and_described():
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 3
    for words, path in pictures:
        assert len(words) > 50 and (ROOT / path).stat().st_size < 60_000


def test_every_command_works_after_those_before_it(here, short_texts, capsys):
    for command in COMMANDS:
        python, program, *words = shlex.split(command)
        values = dict(word.split("=", 1) for word in words if "=" in word)
        assert python == "python" and (ROOT / program).is_file()
        for key in {"run", "init_from"} & {*values}:
            for folder in values[key].split(","):
                assert [*(here / folder).glob("*/metrics.json")], (
                    f"{command}: {key} names what nobody has made"
                )
        capsys.readouterr()
        if program == "train.py":
            run_train(here, words, values["name"])
        elif program == "scripts/compare.py":
            script("compare").main(words)
            assert "to the best" in capsys.readouterr().out
        elif program == "scripts/tiny_bpe.py":
            runpy.run_path(str(ROOT / program), run_name="__main__")
            assert "the longest:" in capsys.readouterr().out
        else:
            script(program.removeprefix("scripts/").removesuffix(".py")).main(words)
            if values.get("out", "").endswith(".png"):
                assert (here / values["out"]).read_bytes().startswith(b"\x89PNG")
            elif "out" in values:
                assert "</html>" in (here / values["out"]).read_text()
            else:
                assert len(capsys.readouterr().out) > len(values["prompt"]) + 100


def run_train(here, words, name):
    """Trains. The cells of a sweep run one by one in this process, where the texts are short."""
    sweep = "-m" in words
    cli.main(shortened(words) + ["hydra/launcher=basic"] * sweep)
    folder = here / ("outputs/sweeps" if sweep else "outputs") / name
    runs = [path.parent for path in folder.glob("*/metrics.json")]
    assert len(runs) == cells(shortened(words)) and {metrics(run)["status"] for run in runs} == {
        "finished"
    }
    assert (folder / "report.html").is_file() == sweep
