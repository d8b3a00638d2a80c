"""Ideas of other people's papers, each in one file outside of the lab, and each against a formula."""

import json
import math
import shlex
import sys
import textwrap

import numpy as np
import pytest
import torch

import lmlab
from lmlab import plugins
from lmlab.commands import train as cli
from lmlab.models.base import build_model
from tests.conftest import history, metrics, script, weights
from tests.test_additions import MODEL
from tests.test_callbacks import assert_same, resumed
from tests.test_plugins import plugin

LINE = (
    "data=sentence val_fraction=0.2 threads=1 device=cpu precision=32-true batch_size=4 block_size=16 "
    "warmup_steps=0 log_interval=1 eval_interval=5 checkpoint_interval=5 name=x "
)

ALIBI = """
    from typing import Annotated

    class AlibiConfig(lmlab.ModelConfig):
        n_layer: int = 1
        n_head: int = 2
        n_embd: int = 16
        strength: Annotated[float, "(0, 10]"] = 1.0
    """ + textwrap.indent(
    MODEL.replace("from lmlab.catalogue import AlibiConfig\n", "")
    .replace("class Alibi(", '@lmlab.register.model("alibi", AlibiConfig)\nclass Alibi(')
    .split('"""\n', 1)[1],
    "    ",
)


def test_a_gpt_with_alibi_positions_sees_the_past_and_the_near_more(here, train):
    name = plugin(here, ALIBI)
    run = train(f"{LINE} plugin={name} model=alibi strength=2 max_steps=5")
    assert metrics(run)["status"] == "finished"
    with plugins.active(plugins.sources(name)):
        alibi = sys.modules["plugin_own"]
        model = build_model(alibi.AlibiConfig(block_size=16), 9)
    ids = torch.arange(16)[None] % 9
    other = ids.clone()
    other[0, -1] = 0
    assert torch.equal(model(ids)[:, :-1], model(other)[:, :-1])
    attention = model.blocks[0]
    with torch.no_grad():  # without content only the distance decides: softmax of -slope * distance
        attention.qkv.weight[: 2 * 16] = 0
        attention.qkv.bias.zero_()
        attention.qkv.weight[32:] = torch.eye(16)
        attention.proj.weight.copy_(torch.eye(16))
        attention.proj.bias.zero_()
        x = torch.randn(1, 5, 16)
        slopes = [2.0 ** (-8 * head / 2) for head in (1, 2)]
        shares = [torch.softmax(-slope * torch.arange(4.0, -1, -1), 0) for slope in slopes]
        expected = torch.cat([shares[0] @ x[0, :, :8], shares[1] @ x[0, :, 8:]])
        torch.testing.assert_close(attention(x)[0, -1], expected)


OPTIMIZERS = """
    import torch
    from typing import Annotated

    class NAdamConfig(lmlab.OptimizerConfig):
        lr: float = 0.01
        decay: Annotated[float, "[0, 1)"] = 0.004

    @lmlab.register.optimizer("nadam", NAdamConfig)
    def nadam(weights, config, precision):
        groups = weights.groups(config.weight_decay)
        return torch.optim.NAdam(groups, lr=config.lr, momentum_decay=config.decay)

    class AdafactorConfig(lmlab.OptimizerConfig):
        lr: float = 0.01

    @lmlab.register.optimizer("adafactor", AdafactorConfig)
    def adafactor(weights, config, precision):
        return torch.optim.Adafactor(weights.groups(config.weight_decay), lr=config.lr)

    class LionConfig(lmlab.OptimizerConfig):
        lr: float = 0.001
        beta1: float = 0.9
        beta2: float = 0.99

    @lmlab.register.optimizer("lion", LionConfig)
    class Lion(torch.optim.Optimizer):
        def __init__(self, weights, config, precision):
            self.betas = config.beta1, config.beta2
            super().__init__(weights.groups(config.weight_decay), {"lr": config.lr})

        @torch.no_grad()
        def step(self, closure=None):
            if closure is not None:
                with torch.enable_grad():
                    closure()
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is None:
                        continue
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    update = momentum.lerp(weight.grad, 1 - self.betas[0]).sign()
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
                    momentum.lerp_(weight.grad, 1 - self.betas[1])

    @lmlab.register.optimizer("soap", type("SoapConfig", (NAdamConfig,), {}))
    def soap(weights, config, precision):
        return Soap(weights.groups(config.weight_decay), lr=config.lr)

    class Soap(torch.optim.Optimizer):
        # Adam in the eigenbases of the gradients' products (Vyas et al. 2024)

        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr, "weight_decay": 0.0})

        @torch.no_grad()
        def step(self, closure=None):
            if closure is not None:
                with torch.enable_grad():
                    closure()
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        grad = weight.grad if weight.ndim == 2 else weight.grad.reshape(-1, 1)
                        weight.sub_(group["lr"] * self.update(self.state[weight], grad).view_as(weight))

        def update(self, state, grad):
            if not state:
                sizes = grad.shape
                state |= {"step": torch.zeros(()), "m": torch.zeros_like(grad), "v": torch.zeros_like(grad)}
                state |= {f"sum{i}": torch.zeros(n, n) for i, n in enumerate(sizes)}
                state |= {f"basis{i}": torch.eye(n) for i, n in enumerate(sizes)}
            for i, product in enumerate((grad @ grad.T, grad.T @ grad)):
                state[f"sum{i}"].lerp_(product, 0.05)
                if state["step"] % 4 == 0:
                    state[f"basis{i}"] = torch.linalg.eigh(state[f"sum{i}"]).eigenvectors
            state["step"] += 1
            left, right = state["basis0"], state["basis1"]
            state["m"].lerp_(grad, 0.1)
            state["v"].lerp_((left.T @ grad @ right) ** 2, 0.05)
            seen = 1 - 0.95 ** state["step"]
            turned = (left.T @ state["m"] @ right) / ((state["v"] / seen).sqrt() + 1e-8)
            return left @ turned @ right.T
    """


@pytest.mark.parametrize("optimizer", ["nadam", "adafactor", "lion", "soap"])
def test_an_optimizer_whatever_its_state_is_resumed_to_the_bit(here, train, monkeypatch, optimizer):
    """NAdam keeps a number a weight, Adafactor two vectors for a matrix, SOAP four matrices more."""
    name = plugin(here, OPTIMIZERS)
    line = f"{LINE} plugin={name} model=gpt_nano optimizer={optimizer}"
    assert_same(*resumed(train, monkeypatch, line))


def test_lion_is_its_formula(here, train):
    """Chen et al. 2023, algorithm 2: the sign of a mixture of gradient and momentum."""
    name = plugin(here, OPTIMIZERS)
    line = f"{LINE} plugin={name} model=bigram optimizer=lion weight_decay=0.5 lr=0.25 schedule=constant"
    start, one = (train(f"{line} max_steps={n}") for n in (1, 2))
    key = next(iter(weights(start)))
    first, second = weights(start)[key], weights(one)[key]
    moved = (second - first * (1 - 0.25 * 0.5)) / 0.25
    assert {*moved.round(decimals=4).flatten().tolist()} <= {-1.0, 0.0, 1.0}


RECALL = """
    import random
    import torch
    import numpy as np
    from typing import Annotated

    class RecallConfig(lmlab.CorpusConfig):
        pairs: Annotated[int, "[1, 26]"] = 3
        n_documents: int = 400

    @lmlab.register.corpus("lookup", RecallConfig)
    def lookup(config):
        draw = random.Random(0)
        for _ in range(config.n_documents):
            keys = draw.sample("abcdefghijklmnopqrstuvwxyz", config.pairs)
            values = [draw.choice("0123456789") for _ in keys]
            asked = draw.randrange(config.pairs)
            text = "".join(key + value for key, value in zip(keys, values))
            yield f"{text}?{keys[asked]}={values[asked]}\\n"

    @lmlab.register.evaluation("val/accuracy", better="higher")
    def accuracy(model, data):
        starts = data.text.documents["val"].starts
        right = []
        for start in starts[:50]:
            document = data.tokens[start:][: 2 * 3 + 4].astype(np.int64)
            with torch.inference_mode():
                guess = model(torch.from_numpy(document[None, :-1]))[0, -1].argmax()
            right.append(guess == document[-1])
        return {"val/accuracy": float(np.mean(right))}
    """


def test_an_associative_recall_is_scored_at_the_answers_alone(here, train):
    """Accuracy is an objective; a search finds the larger learning rate by it."""
    name = plugin(here, RECALL)
    line = f"plugin={name} data=lookup pairs=3 separator='\\n' score_after='=' model=bigram block_size=9 "
    line += LINE.replace("data=sentence", "").replace("block_size=16", "")
    run = train(f"{line} align=document max_steps=5")
    untrained = history(run, "val/loss")[0]
    vocabulary = len(json.loads((run / "tokenizer.json").read_text())["chars"])
    assert untrained == pytest.approx(math.log(vocabulary), abs=0.7)
    assert 0 <= metrics(run)["val/accuracy"] <= 1
    train(
        f"-m hydra/sweeper=search {line} max_steps=2 lr=0.001,0.5 name=s hydra/launcher=basic "
        "hydra.sweeper.objective=val/accuracy hydra.sweeper.n_trials=2"
    )
    cells = [*here.glob("outputs/sweeps/s/*/metrics.json")]
    assert all("val/accuracy" in json.loads(cell.read_text()) for cell in cells)


def test_a_csv_of_names_is_a_document_a_name(here, train):
    """As makemore reads them: windows begin with a name."""
    (here / "names.csv").write_text("name,count\n" + "emma,3\nolivia,2\nava,1\n" * 60)
    name = plugin(
        here,
        """
        import csv

        @lmlab.register.corpus("names")
        def names(config):
            with open("names.csv", encoding="utf-8") as file:
                yield from (row["name"] + "\\n" for row in csv.DictReader(file))
        """,
    )
    line = LINE.replace("data=sentence", "data=names").replace("block_size=16", "block_size=8")
    run = train(rf"{line} plugin={name} model=bigram separator='\n' align=document max_steps=5")
    assert "".join(json.loads((run / "tokenizer.json").read_text())["chars"]) == "\naeilmov"
    assert metrics(run)["status"] == "finished"


def test_a_callback_notes_the_entropy_of_each_head_every_fifty_steps(here, train):
    """Of an attention that is uniform over the past it is the logarithm of the place, on average."""
    name = plugin(
        here,
        """
        import torch
        import torch.nn.functional as F
        from pytorch_lightning import Callback

        @lmlab.register.callback("entropy")
        class Entropy(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                self.idx = batch[0]

            def on_train_batch_end(self, trainer, module, *_):
                if trainer.global_step % 50:
                    return
                weights = attention_weights(module.model, self.idx)
                for layer, heads in enumerate(weights):
                    entropy = -(heads * heads.clamp_min(1e-30).log()).sum(-1).mean((0, 2))
                    for head, number in enumerate(entropy):
                        module.log(f"entropy/layer{layer}.head{head}", number)

        def attention_weights(model, idx):
            seen = []
            plain = F.scaled_dot_product_attention

            def noting(q, k, v, *args, **options):
                scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
                past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
                seen.append(scores.masked_fill(~past, float("-inf")).softmax(-1))
                return plain(q, k, v, *args, **options)

            F.scaled_dot_product_attention = noting
            try:
                with torch.no_grad():
                    model(idx)
            finally:
                F.scaled_dot_product_attention = plain
            return seen
        """,
    )
    line = f"{LINE} plugin={name} model=gpt_nano lr=1e-30 min_lr=0 weight_decay=0 eval_interval=100"
    run = train(f"{line} max_steps=100")
    found = history(run, "entropy/layer0.head1")
    assert [*found] == [50, 100]
    uniform = np.log(np.arange(1, 17)).mean()  # of untrained weights it is nearly that
    assert found[50] == pytest.approx(uniform, rel=0.1)


def test_an_installed_package_is_active_without_being_typed(here, train, monkeypatch, capsys):
    """By its entry point; the run notes the hash of its code."""
    (here / "their_lab.py").write_text(
        "import lmlab\nlmlab.register.preset('model', 'theirs', 'gpt_nano', n_layer=1)\n"
    )
    entry = type("Entry", (), {"name": "their_lab", "module": "their_lab"})
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    run = train(f"{LINE} model=theirs max_steps=1")
    assert metrics(run)["plugin_sha256"] and metrics(run)["config/plugin"] is None
    cli.main([f"resume={run}", "max_steps=2"])
    assert metrics(run)["step"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda group: [])
        earlier = train(f"{LINE} model=bigram max_steps=1")
    cli.main([f"resume={earlier}", "max_steps=2"])  # made before the package was installed
    assert metrics(earlier)["step"] == 2 and "plugin=" not in capsys.readouterr().out


WORDS = """
    import re
    from typing import Annotated
    import numpy as np

    class WordsConfig(lmlab.TokenizerConfig):
        most: Annotated[int, "[2, 100000]"] = 300

    @lmlab.register.tokenizer("words", WordsConfig)
    class Words(lmlab.Tokenizer):
        def __init__(self, words):
            self.words = words
            self.vocab_size = len(words)
            self.ids = {word: i for i, word in enumerate(words)}
            self.byte_lengths = np.array([len(w.encode()) for w in words])

        @classmethod
        def train(cls, text, config):
            from collections import Counter
            counts = Counter()
            for piece in text.pieces():
                counts.update(re.findall(r"\\w+", piece))
            common = [w for w, _ in counts.most_common(config.most) if len(w) > 1]
            return cls(sorted({*common, *text.characters}))

        def encode_pieces(self, pieces, drop=False):
            for piece in pieces:
                ids = []
                for part in re.findall(r"\\w+|\\W", piece):
                    ids += [self.ids[part]] if part in self.ids else [self.ids[c] for c in part]
                yield np.array(ids, np.min_scalar_type(self.vocab_size - 1))

        def decode(self, ids):
            return "".join(self.words[i] for i in ids)

        def to_values(self):
            return {"words": self.words}

        @classmethod
        def from_values(cls, values):
            return cls(values["words"])
    """


def test_a_tokenizer_of_ones_own_is_used_by_everything(here, train, capsys, monkeypatch):
    """Text and ids are each other's, the run resumes to the bit, and without it nothing opens."""
    name = plugin(here, WORDS)
    text = LINE.replace("data=sentence val_fraction=0.2", "data=tales val_fraction=0.001")
    line = f"{text} plugin={name} tokenizer=words most=20 model=gpt_nano"
    assert_same(*resumed(train, monkeypatch, line))
    (run, *_) = sorted((here / "outputs/x").iterdir())
    saved = json.loads((run / "tokenizer.json").read_text())
    assert saved["type"] == "words" and "the" in saved["words"] and " " in saved["words"]
    assert metrics(run)["val/bits_per_byte"] > 0
    capsys.readouterr()
    for command, words in (
        ("sample", "prompt=the max_tokens=5 seed=1"),
        ("evaluate", "split=val"),
        ("explain", "'text=the cat'"),
    ):
        script(command).main([f"run={run}", f"plugin={name}", *shlex.split(words)])
        assert capsys.readouterr().out
        with pytest.raises(lmlab.UserError, match=f"plugin={name}, name it"):
            script(command).main([f"run={run}"])
    tuned = train(f"{text} plugin={name} init_from={run} max_steps=2")
    assert (tuned / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()


LATE = """Words.calls = getattr(Words, "calls", 0) + 1
            if Words.calls > 7:
                raise ValueError("too late")
            """


def test_a_decoder_that_fails_late_harms_the_samples_alone_and_is_shown(here, train, capsys):
    last = 'return "".join(self.words[i]'
    name = plugin(here, WORDS.replace(last, LATE + last))
    (here / "text.txt").write_text("It was late when the words came.\n" * 40)
    line = LINE.replace("data=sentence", "data=file path=text.txt")
    run = train(f"{line} plugin={name} tokenizer=words most=20 model=bigram max_steps=20")
    said = capsys.readouterr().err
    why = f"ValueError: too late (plugin={name}: decode failed at own.py:"
    assert metrics(run)["status"] == "finished"
    assert f"the evaluation sample failed and is left out: {why}" in said
    assert f"no sample: {why}" in said
    assert "in decode" in said and "experiment.py" not in said


def test_runs_with_different_tokens_are_ranked_by_bits_per_byte(here, train, capsys):
    name = plugin(here, WORDS)
    train(
        f"-m plugin={name} tokenizer=char,words model=ngram data=tales val_fraction=0.01 "
        "seed=0 name=s"
    )
    board = lmlab.compare("outputs/sweeps/s", plugin=name).leaderboard
    assert list(board["val/bits_per_byte"]) == sorted(board["val/bits_per_byte"])
    said = " ".join(capsys.readouterr().out.split())
    assert "The tokenizers differ, so bits per byte are compared" in said


BROKEN = {  # a line of the tokenizer above, what stands there instead, and the words of the error
    "a dtype of its own": ("np.min_scalar_type(self.vocab_size - 1)", "np.int64", None),
    "ids of floats": ("np.min_scalar_type(self.vocab_size - 1)", "np.float32", ["whole numbers"]),
    "ids too large": (
        "np.array(ids,",
        "np.array([200] * len(ids),",
        ["ids from 200", "allows 0 to"],
    ),
    "lengths too few": ("for w in words])", "for w in words[1:]])", ["byte_lengths"]),
    "lengths below zero": ("len(w.encode())", "-len(w.encode())", ["byte_lengths"]),
    "no whole vocabulary": (
        "self.vocab_size = len(words)",
        "self.vocab_size = 2.5",
        ["vocab_size is 2.5"],
    ),
    "another decode": (
        '"".join(self.words[i] for',
        '"".join(self.words[i].upper() for',
        ["decode does not"],
    ),
    "values lost": ('"words": self.words', '"words": self.words[1:]', ["tokenizer=words"]),
    "a type of its own": ('{"words": self.words}', '{"words": self.words, "type": "x"}', None),
    "train raises": ("counts = Counter()", "1 / 0", ["ZeroDivisionError"]),
    "no JSON": ('"words": self.words', '"words": {*self.words}', ["JSON"]),
    "nothing yielded": ("yield np.array(", "yield None and np.array(", ["tokenizer=words"]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_of_a_tokenizer_is_a_line_before_the_first_step(here, train, capsys, fault):
    old, new, words = BROKEN[fault]
    assert WORDS.count(old) == 1
    name = plugin(here, WORDS.replace(old, new))
    line = f"plugin={name} tokenizer=words model=bigram block_size=8 data=sentence val_fraction=0.2 max_steps=1 device=cpu"
    if words is None:
        run = train(f"{line} threads=1")
        assert metrics(run)["val/loss"] > 0
        script("sample").main([f"run={run}", f"plugin={name}", "max_tokens=3"])
        return
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    *traceback, said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said.startswith("error: ")
    assert all(word in said for word in words)
    # An error of its own code is shown with the line of that code; one of use is not.
    assert any("1 / 0" in line for line in traceback) == (fault == "train raises")
    assert not (here / "outputs").exists()


def test_an_edited_tokenizer_makes_its_tokens_anew(here, train):
    line = (
        f"plugin={plugin(here, WORDS)} tokenizer=words model=ngram data=sentence val_fraction=0.2"
    )
    before = train(line)
    edited = WORDS.replace("ids += [self.ids[part]] if part in self.ids else", "ids +=")
    assert plugin(here, edited) and edited != WORDS
    assert metrics(train(line))["val/loss"] != metrics(before)["val/loss"]
