"""LEARN.md: each of its commands works, after the ones before it."""

import math
import re
import runpy
import shlex

from lmlab.commands import train as cli
from tests.conftest import ROOT, metrics, script

PAGE = (ROOT / "LEARN.md").read_text()
STEPS = re.split(r"^## ", PAGE, flags=re.M)[1:]
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


def test_thirteen_steps_each_with_one_command_and_one_folded_answer():
    assert [step.split(".")[0] for step in STEPS] == [str(n) for n in range(1, 14)]
    for step in STEPS:
        assert re.findall(r"^```.*$", step, re.M) == ["```sh", "```"]
        assert len(re.findall(r"^<details><summary>.+\?</summary>\n\n", step, re.M)) == 1
        assert step.count("<details>") == len(re.findall(r"^</details>$", step, re.M)) == 1
    assert len(COMMANDS) == len(STEPS)
    assert max(map(len, PAGE.splitlines())) <= 120


def test_every_command_works_after_those_before_it(here, short_texts, capsys):
    for command in COMMANDS:
        python, program, *words = shlex.split(command)
        values = dict(word.split("=", 1) for word in words if "=" in word)
        assert python == "python" and (ROOT / program).is_file()
        for key in {"run", "init_from"} & {*values}:
            assert [*(here / values[key]).glob("*/metrics.json")], (
                f"{command}: {key} names what nobody has made"
            )
        capsys.readouterr()
        if program == "train.py":
            run_train(here, words, values["name"])
        elif program == "scripts/tiny_bpe.py":
            runpy.run_path(str(ROOT / program), run_name="__main__")
            assert "the longest:" in capsys.readouterr().out
        else:
            script(program.removeprefix("scripts/").removesuffix(".py")).main(words)
            if "out" in values:
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
