"""The exercises: what checks them knows a right solution, the unchanged file, and near misses."""

import re
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

ALSO_RIGHT = [  # written in another way
    (
        "6",
        [
            (MASK, "        if self.causal:\n    " + MASK),
            (SIGNATURE, SIGNATURE.replace("(self)", "(self, causal=True)", 1)),
            ("        self.qkv", "        self.causal = causal\n        self.qkv"),
            ("bias=False), Attention()", "bias=False), Attention(causal=False)"),
        ],
    ),
    (
        "7",
        [
            (SIGNATURE, SIGNATURE.replace("(self)", "(self, heads=None)", 1)),
            ("        self.qkv", "        self.n = heads or n_head\n        self.qkv"),
            HEADS[2],
            RIGHT["7"][3],
        ],
    ),
]
DROPPED = "y = self.proj(F.gelu(self.widen(x)))\n        return y * {} / (1 - dropout) if self.training else y"

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
    ("3", [*MOMENTUM, (NUDGE, "velocity = momentum * velocity + gradient\n        W[:] -= velocity\n")], "lr=0.25"),
    ("3", [*RIGHT["3"], ("    return losses\n", "")], "does not return the losses"),
    ("5", [*RIGHT["5"], ("    return losses\n", "")], "does not return the losses"),
    ("2", [("\n\ndef generate", "\n\ndef perplexity():\n    return np.exp(train(1)[0])\n\n\ndef generate")], "only looks at it"),
    ("2", [("\n\ndef generate", f"{PERPLEXITY} print(1)\n\n\ndef generate")], "returns None, which is not a number"),
    ("2", [("\n\ndef generate", "\n\nperplexity = 9.0\n\n\ndef generate")], "not a function"),
    ("4", [("\n\ndef generate", COUNT.format("ones", "W + np.log(n / n.sum(1)[:, None])") + "\n\ndef generate")], "what W was before"),
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
    ("9", [RIGHT["9"][0], (RIGHT["9"][1][0], DROPPED.format("(torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) >= dropout)"))], "the same numbers"),
    ("9", [RIGHT["9"][0], (RIGHT["9"][1][0], DROPPED.format("(torch.rand(*y.shape[:-1], 1) >= dropout)"))], "whole rows"),
    ("10", [TAKES["10"]], "top_k=1"),
    (
        "10",
        [TAKES["10"], (CHOICE, "logits.topk(top_k)[1][:, torch.randint(top_k, (1,))] if top_k else " + CHOICE)],
        "by the chances",
    ),
    (
        "10",
        [TAKES["10"], (CHOICE, "logits.argmax(-1, keepdim=True) if top_k else " + CHOICE)],
        "never draws",
    ),
    ("10", [("idx, length):", "idx, length, top_k=None):\n    raise KeyError('x')")], "raises KeyError"),
    ("1", [TAKES["1"], (DRAW, "c = " + COLD.format("softmax(W[c] / (temperature if len(ids) == 1 else 1))"))], "0.5"),
    ("6", [*RIGHT["6"], (POSITION, ""), (RIGHT["8"][1][0], "")], "no more"),
    ("6", [*RIGHT["6"], ("return x + self.mlp", "return self.mlp")], "more has changed"),
    (
        "6",
        [
            (MASK, "        if self.causal:\n    " + MASK),
            ("        self.qkv", "        self.causal = True\n        self.qkv"),
            ("for _ in range(n_layer))", "for _ in range(n_layer))\n        self.blocks[0].attention.causal = False"),
        ],
        "a block has its mask still",
    ),
    ("7", [(SIGNATURE, SIGNATURE.replace("(self)", "(self, heads=4)", 1)), *RIGHT["7"][1:]], "n_head = 2 at the top"),
    (
        "9",
        [RIGHT["9"][0], (RIGHT["9"][1][0], RIGHT["9"][1][1].replace("dropout, ", "0.2, "))],
        "with dropout = 0.5 at the top 20%",
    ),
    ("9", [*RIGHT["9"], ("return self.proj(gathered)", "return F.dropout(self.proj(gathered), 0.5)")], "the attention drops"),
    ("9", [*RIGHT["9"], ("return self.head(self.norm(x))", "return self.head(F.dropout(self.norm(x), 0.5))")], "the model gives"),
    (
        "10",
        [TAKES["10"], (RIGHT["10"][1][0], RIGHT["10"][1][1].replace(".values[:, -1:]", ".values.min()"))],
        "each of two texts",
    ),
    (
        "10",
        [TAKES["10"], (CHOICE, "torch.multinomial(((logits.index_fill(1, torch.arange(logits.shape[1] - top_k), float('-inf')) if top_k else logits) / 0.8).softmax(-1), 1)")],
        "each of two texts",
    ),
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
    status, line = check.judge(number, copy)
    assert "\n" not in line
    return status, line


@pytest.mark.parametrize("number", check.EXERCISES)
def test_a_right_solution_is_right_and_the_unchanged_file_gets_a_hint(tmp_path, number):
    assert answer(tmp_path, number, RIGHT[number]) == (0, f"exercise {number}: right.")
    status, said = answer(tmp_path, number, [])
    assert status == 1 and said.startswith("not yet: ") and "raises" not in said


@pytest.mark.parametrize(("number", "changes"), ALSO_RIGHT)
def test_how_it_is_written_is_up_to_the_learner(tmp_path, number, changes):
    assert answer(tmp_path, number, changes) == (0, f"exercise {number}: right.")


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


ENDS = {  # a copy's first lines, and the words of the line that they get
    "raise SystemExit(0)": "line 1 of copy.py raises SystemExit",
    "import os\nos._exit(0)": "copy.py ends the program",
    "class E(BaseException): pass\nraise E('hm')": "line 2 of copy.py raises E: hm",
    "class E(Exception):\n    def __str__(self): 1 / 0\nraise E": "its text cannot be read",
    "def generate()\n": "line 1 of copy.py cannot be read: expected ':'",
    "import numpy\nimpor numpy": "line 2 of copy.py cannot be read: invalid syntax",
    "exec('(')": "line 1 of copy.py raises SyntaxError",
    "while True: pass": "copy.py has not come to an end",
    "input('? ')": "line 1 of copy.py raises EOFError",
    "import sys\nsys.argv.remove('copy.py')": "no function perplexity",
}


@pytest.mark.parametrize("lines", ENDS)
def test_whatever_a_copy_does_it_gets_a_line(here, monkeypatch, capfd, lines):
    monkeypatch.setattr(check, "LIMIT", 3)
    (here / "copy.py").write_text(f"{lines}\n{(ROOT / 'scripts/tiny_lm.py').read_text()}")
    assert check.main(["2", "copy.py"]) == 1
    said = capfd.readouterr()
    assert said.out.startswith("not yet: ") and said.out.count("\n") == 1 and not said.err
    assert ENDS[lines] in said.out


def test_a_copy_may_be_written_as_a_program_may(here):
    """With a file beside it, and a dataclass whose annotations are texts."""
    (here / "beside_it.py").write_text("SIZE = 1\n")
    more = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport beside_it\n"
        "@dataclass\nclass Sizes:\n    size: int = beside_it.SIZE\n"
    )
    text = (ROOT / "scripts/tiny_lm.py").read_text()
    for old, new in RIGHT["3"]:
        text = text.replace(old, new)
    (here / "copy.py").write_text(more + text)
    assert check.main(["3", "copy.py"]) == 0


def test_the_page_has_each_exercise_with_its_file():
    sections = re.split(r"^## (\d+)\. ", PAGE, flags=re.M)[1:]
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    assert {number: name for number, (name, _) in check.EXERCISES.items()} == {
        number: re.search(r"`(\w+)\.py`", text)[1] for number, text in found.items()
    }
