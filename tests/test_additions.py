"""What CONTRIBUTING.md promises: a built-in choice costs a class, a row and a YAML file.

A copy of the checkout gets a model (a GPT with ALiBi positions), an optimizer (torch's NAdam, whose
state holds a scalar) and a metric. Nothing else in the copy is changed.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, history, metrics

MODEL = '''"""A GPT without position embeddings: scores fall with the distance (Press et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.catalogue import AlibiConfig
from lmlab.models.base import LanguageModel


class Attention(nn.Module):
    def __init__(self, config: AlibiConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.strength = config.strength

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        place = torch.arange(T, device=x.device)
        distance = (place[:, None] - place).float()
        heads = torch.arange(1, self.n_head + 1, device=x.device)
        slopes = self.strength * 2.0 ** (-8 * heads / self.n_head)
        bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Alibi(LanguageModel):
    def __init__(self, config: AlibiConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Attention(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token_embedding(idx)
        for attention in self.blocks:
            x = x + attention(x)
        return self.head(x)
'''
ROWS = '''

@dataclass(frozen=True)
class AlibiConfig(TransformerConfig):
    """The keys of the GPT with ALiBi positions."""

    strength: Annotated[float, "(0, 10]"]


@dataclass(frozen=True)
class NAdamConfig(OptimizerConfig):
    """The keys of NAdam."""

    decay: Share


MODELS["alibi"] = Choice(AlibiConfig, "lmlab.models.alibi:Alibi")
OPTIMIZERS["nadam"] = Choice(NAdamConfig, "lmlab.training.optimizers:nadam")
'''
OPTIMIZER = '''

def nadam(weights: Weights, config: Any, precision: str) -> torch.optim.Optimizer:
    """Returns NAdam (Dozat 2016)."""
    return torch.optim.NAdam(
        weights.groups(config.weight_decay), lr=config.lr, momentum_decay=config.decay
    )
'''
METRIC = '''
from lmlab.numbers import METRIC


@evaluation(numbers={"val/accuracy": METRIC})
def accuracy(subject: Subject) -> dict[str, float]:
    """Returns the share of the first validation tokens that the model expects most."""
    ids = torch.from_numpy(subject.text.val[:33].astype(np.int64)).to(subject.model.device)
    with torch.inference_mode():
        expected = subject.model(ids[None, :-1]).argmax(-1)[0]
    return {"val/accuracy": (expected == ids[1:]).double().mean().item()}
'''
YAML = {
    "model/alibi": "A GPT with ALiBi positions.\n"
    "block_size: 32  # characters it sees at once\nn_layer: 2  # layers\nn_head: 2  # heads\n"
    "n_embd: 16  # width\ndropout: 0.0  # share zeroed\nstrength: 1.0  # of the positions\n",
    "optimizer/nadam": "NAdam.\n"
    "lr: 0.01  # learning rate\nweight_decay: 0.0  # pull\ndecay: 0.004  # of the momentum\n",
}
LINE = (
    "model=alibi optimizer=nadam data=sentence val_fraction=0.2 device=cpu precision=32-true threads=1 batch_size=2 "
    "decay_steps=8 checkpoint_interval=4 eval_interval=4 log_interval=1 "
)
COMMANDS = [
    ("train", "--help"),
    ("train", f"{LINE} max_steps=8 name=whole"),
    ("train", f"{LINE} max_steps=4 name=one"),
    ("train", "resume={one} max_steps=8"),
    ("explain", "run={one} text='hello world' device=cpu"),
    ("sample", "run={one} max_tokens=20 device=cpu"),
    ("compare", "outputs"),
]
DRIVER = """
import contextlib, importlib, io, json, pathlib, shlex, sys
answers = []
for command, line in json.loads(sys.argv[1]):
    one = next(iter(sorted(pathlib.Path("outputs/one").glob("*"))), "")
    main = importlib.import_module(f"lmlab.commands.{command}").main
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(shlex.split(line.replace("{one}", str(one))))
    answers.append(printed.getvalue())
pathlib.Path("answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Makes the additions in a copy of the checkout, and runs the commands there, in one process."""
    copy = tmp_path_factory.mktemp("checkout")
    here = tmp_path_factory.mktemp("here")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("lmlab", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    (copy / "lmlab/models/alibi.py").write_text(MODEL)
    for file, text in (
        ("lmlab/catalogue.py", ROWS),
        ("lmlab/training/optimizers.py", OPTIMIZER),
        ("lmlab/inference/evaluations.py", METRIC),
    ):
        with open(copy / file, "a") as opened:
            opened.write(text)
    for file, text in YAML.items():
        (copy / f"conf/{file}.yaml").write_text(f"# @package _global_\n# {text}")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(COMMANDS)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return here, dict(zip(COMMANDS, json.loads((here / "answers.json").read_text()), strict=True))


def test_help_names_the_new_choices_and_keys(answers):
    _, printed = answers
    page = printed[COMMANDS[0]]
    assert "  alibi " in page and "  nadam " in page
    assert "  strength: 1.0" in page and "  decay: 0.004" in page


def test_a_resumed_run_ends_as_one_that_never_stopped(answers):
    here, _ = answers
    [one] = (here / "outputs/one").iterdir()
    [whole] = (here / "outputs/whole").iterdir()
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert history(one, key) == history(whole, key)
    assert metrics(whole)["status"] == metrics(one)["status"] == "finished"


def test_the_metric_is_noted_and_stands_beside_the_best_loss(answers):
    here, _ = answers
    [one] = (here / "outputs/one").iterdir()
    assert 0 <= metrics(one)["val/accuracy"] <= 1
    assert "best/val/accuracy" in metrics(one)


def test_flops_hold_the_attention_that_the_model_does_not_mention(answers):
    """Six for each weight of a matrix, 12 T C for a layer's attention (Kaplan et al. 2020)."""
    here, _ = answers
    [one] = (here / "outputs/one").iterdir()
    layers, width, context = 2, 16, 32
    vocab = len(json.loads((one / "tokenizer.json").read_text())["chars"])
    weights = layers * 4 * width**2 + width * vocab
    assert metrics(one)["flops_per_token"] == 6 * weights + layers * 12 * context * width


def test_the_new_models_attention_is_on_its_page(answers):
    here, _ = answers
    page = (here / "explain.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    shape = (data["attention"]["layers"], data["attention"]["heads"])
    assert shape == (2, 2) and len(data["attention"]["sizes"]) == len("hello world") - 1


def test_the_leaderboard_has_the_metric(answers):
    here, _ = answers
    [one] = (here / "outputs/one").iterdir()
    board = (here / "outputs/leaderboard.md").read_text()
    assert "val/accuracy" in board and f"{metrics(one)['val/accuracy']:.4f}" in board
