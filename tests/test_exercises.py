"""The exercises: what checks them knows a right solution, the unchanged file, and near misses."""

import io
import re
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "examples/exercises"
PAGE = (ROOT / "docs/exercises.md").read_text()
SPEC = spec_from_file_location("check", FOLDER / "check.py")
check = module_from_spec(SPEC)
SPEC.loader.exec_module(check)

DRAW = "c = random.choice(V, p=softmax(W[c]))"
NUDGE = "W[:] -= lr * gradient\n"
MASK = (
    '        scores = scores.masked_fill(future, float("-inf"))  # nobody sees what comes later\n'
)
SIGNATURE = "def __init__(self):\n        super().__init__()\n        self.qkv"
POSITION = "        self.position_embedding = nn.Embedding(block_size, n_embd)  # where it stands\n"
CHOICE = "torch.multinomial((logits / 0.8).softmax(-1), 1)"
PERPLEXITY = (
    "\n\ndef perplexity():\n    P = softmax(W[now])[np.arange(len(now)), following]\n    return"
)
COUNT = "\n\ndef count():\n    n = np.{}((V, V))\n    np.add.at(n, (now, following), 1)\n    W[:] = {}\n"
TAKES = {
    "1": ("length, seed=0)", "length, seed=0, temperature=1.0)"),
    "3": ("lr=10.0)", "lr=10.0, momentum=0.0)"),
    "10": ("idx, length)", "idx, length, top_k=None)"),
}
MOMENTUM = [TAKES["3"], ("    losses = []\n", "    losses, velocity = [], np.zeros_like(W)\n")]
COLD = "(W[c].argmax() if temperature == 0 else random.choice(V, p={}))"
LARGEST = "logits.topk(top_k or logits.shape[-1])"
BEST = f"logits[logits < {LARGEST}.values[:, -1:]] = float('-inf')"
HEADS = [
    (SIGNATURE, SIGNATURE.replace("(self)", "(self, heads=n_head)", 1)),
    ("super().__init__()\n        self.qkv", "super().__init__()\n        self.n = heads\n        self.qkv"),
    ("T, n_head, D", "T, self.n, D"),
]  # fmt: skip

RIGHT = {  # of each exercise, the changes that solve it
    "1": [TAKES["1"], (DRAW, "c = " + COLD.format("softmax(W[c] / temperature)"))],
    "2": [("\n\ndef generate", f"{PERPLEXITY} np.exp(-np.log(P).mean())\n\n\ndef generate")],
    "3": [
        *MOMENTUM,
        (NUDGE, "velocity = momentum * velocity + gradient\n        W[:] -= lr * velocity\n"),
    ],
    "4": [
        ("\n\ndef generate", COUNT.format("ones", "np.log(n / n.sum(1)[:, None])") + "\n\ndef generate")
    ],
    "5": [(NUDGE, "W[:] -= lr * (1 - step / steps) * gradient\n")],
    "6": [(MASK, "")],
    "7": [*HEADS, ("D = C // n_head", "D = C // self.n")],
    "8": [(POSITION, ""), (" + self.position_embedding.weight[: idx.shape[1]]", "")],
    "9": [
        ("lr = 1e-3\n", "lr = 1e-3\ndropout = 0.2\n"),
        (
            "return self.proj(F.gelu(self.widen(x)))",
            "return F.dropout(self.proj(F.gelu(self.widen(x))), dropout, self.training)",
        ),
    ],
    "10": [
        TAKES["10"],
        ("        idx = torch.cat([idx, " + CHOICE, f"        {BEST}\n        idx = torch.cat([idx, {CHOICE}"),
    ],
}  # fmt: skip

WRONG = [  # near misses, and a word of the hint that each gets
    ("1", [TAKES["1"]], "temperature=0"),
    ("1", [TAKES["1"], (DRAW, "c = " + COLD.format("softmax(W[c] * temperature)"))], "0.5"),
    ("1", [TAKES["1"], (DRAW, "c = random.choice(V, p=softmax(W[c] / temperature))")], "raises"),
    ("2", [("\n\ndef generate", f"{PERPLEXITY} -np.log(P).mean()\n\n\ndef generate")], "it is 9"),
    ("2", [("\n\ndef generate", f"{PERPLEXITY} V\n\n\ndef generate")], "after 30 steps"),
    ("3", MOMENTUM, "momentum=0.5"),
    (
        "3",
        [*MOMENTUM, (NUDGE, "velocity += momentum * gradient\n        W[:] -= lr * velocity\n")],
        "with momentum=0",
    ),
    ("4", [("\n\ndef generate", COUNT.format("ones", "n") + "\n\ndef generate")], "logarithms"),
    ("4", [("\n\ndef generate", COUNT.format("ones", "0") + "\n\ndef generate")], "as before"),
    ("5", [(NUDGE, "W[:] -= lr / (1 + step) * gradient\n")], "1 - step / steps"),
    ("6", [("weights = scores.softmax(-1)", "weights = scores.softmax(-2)"), (MASK, "")], "over all"),
    ("7", HEADS, "raises RuntimeError"),
    ("7", HEADS[:1], "heads=1"),
    ("8", [(" + self.position_embedding.weight[: idx.shape[1]]", "")], "take it away"),
    ("9", [("lr = 1e-3\n", "lr = 1e-3\ndropout = 0.2\n")], "no number"),
    (
        "9",
        [
            RIGHT["9"][0],
            (RIGHT["9"][1][0], RIGHT["9"][1][1].replace("self.training", "True")),
        ],
        "evaluation",
    ),
    ("10", [TAKES["10"]], "top_k=1"),
    (
        "10",
        [TAKES["10"], (CHOICE, "logits.argmax(-1, keepdim=True) if top_k else " + CHOICE)],
        "never draws",
    ),
    ("10", [("idx, length):", "idx, length, top_k=None):\n    raise KeyError('x')")], "raises KeyError"),
]  # fmt: skip


def answer(folder, number, changes):
    """What check.py says of the original file of an exercise after some changes."""
    name, _ = check.EXERCISES[number]
    text = (ROOT / f"scripts/{name}.py").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    copy = folder / "my_copy.py"
    copy.write_text(text)
    said = io.StringIO()
    with redirect_stdout(said):
        status = check.main([number, str(copy)])
    assert said.getvalue().count("\n") == 1
    return status, said.getvalue()


@pytest.mark.parametrize("number", check.EXERCISES)
def test_a_right_solution_is_right_and_the_unchanged_file_gets_a_hint(tmp_path, number):
    assert answer(tmp_path, number, RIGHT[number]) == (0, f"exercise {number}: right.\n")
    status, said = answer(tmp_path, number, [])
    assert status == 1 and said.startswith("not yet: ") and "raises" not in said


@pytest.mark.parametrize(("number", "changes", "word"), WRONG)
def test_a_near_miss_is_told_what_it_lacks(tmp_path, number, changes, word):
    status, said = answer(tmp_path, number, changes)
    assert status == 1 and said.startswith("not yet: ") and word in said


def test_what_is_no_exercise_or_no_file_is_one_line(capsys):
    for words, line in (
        (["11", __file__], "type the number of an exercise"),
        (["1"], "type the number of an exercise"),
        (["1", "nobody.py"], "nobody.py: no file there"),
        (
            ["6", str(ROOT / "scripts/tiny_lm.py")],
            "exercise 6 needs a copy of scripts/nanogpt_mini",
        ),
    ):
        assert check.main(words) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"error: {line}") and said.err.count("\n") == 1
        assert not said.out


def test_a_copy_that_ends_the_program_is_not_right(tmp_path, capsys):
    copy = tmp_path / "copy.py"
    copy.write_text("raise SystemExit(0)")
    assert check.main(["1", str(copy)]) == 1
    assert f"line 1 of {copy} raises SystemExit" in capsys.readouterr().out


def test_the_page_has_each_exercise_with_its_file():
    sections = re.split(r"^## (\d+)\. ", PAGE, flags=re.M)[1:]
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    assert {number: name for number, (name, _) in check.EXERCISES.items()} == {
        number: re.search(r"`(\w+)\.py`", text)[1] for number, text in found.items()
    }
