"""What goes wrong in a plug-in is said in one line; what it does cannot harm a run or hide."""

import os
import random
import re
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore

import lmlab
from lmlab import plugins, register
from lmlab.commands import evaluate
from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.isolation import torch_settings
from tests.conftest import history, metrics, refused
from tests.test_plugins import plugin

LINE = (
    "model=bigram data=sentence val_fraction=0.2 threads=1 device=cpu precision=32-true batch_size=4 "
    "block_size=16 max_steps=4 eval_interval=2 log_interval=1 warmup_steps=0 name=x "
)
MODEL = """
    import torch
    from typing import Annotated

    class KeysConfig(lmlab.ModelConfig):
        width: {width} = {default}

    @lmlab.register.model("own", KeysConfig)
    class Own({base}):
        def __init__(self, config, vocab_size):
            super().__init__({config})
            self.table = torch.nn.Embedding(vocab_size, vocab_size)
            {start}

        def forward(self, idx):
            x = self.table(idx)
            return {scores}
"""
USUAL = {
    "width": "int",
    "default": "8",
    "base": "lmlab.LanguageModel",
    "config": "config",
    "start": "pass",
    "scores": "x",
}
TOKENIZER = """
    import numpy as np

    @lmlab.register.tokenizer("own")
    class Own(lmlab.Tokenizer):
        def __init__(self):
            self.vocab_size = 256
            self.byte_lengths = np.full(256, {length})
        @classmethod
        def train(cls, text, config):
            return cls()
        def encode_pieces(self, pieces, drop=False):
            for piece in pieces:
                yield np.frombuffer(piece.encode(), np.uint8)
                {stop}
        {decode}
        def to_values(self):
            return {{}}
        @classmethod
        def from_values(cls, values):
            return cls()
"""
DECODE = "def decode(self, ids): return bytes(list(ids)).decode()"


def model(**parts):
    return MODEL.format(**USUAL | parts)


def tokenizer(length="1", stop="pass", decode=DECODE):
    return TOKENIZER.format(length=length, stop=stop, decode=decode)


def lightnings(written):
    """A callback that is one of Lightning's own."""
    return f"import pytorch_lightning.callbacks as c\nlmlab.register.callback('own')(lambda: c.{written})"


def callback(hook):
    """A callback with one method."""
    text = "import pytorch_lightning as pl\n@lmlab.register.callback('own')\n"
    return f"{text}class Own(pl.Callback):\n    {hook}\n"


def corpus(body):
    text = '\n@lmlab.register.corpus("own")\ndef own(config):\n' + textwrap.indent(body, "    ")
    return text + "\n"


def optimizer(returned):
    return f"""
    import torch

    class OwnConfig(lmlab.OptimizerConfig):
        lr: float = 0.1

    @lmlab.register.optimizer("own", OwnConfig)
    def own(weights, config, precision):
        return {returned}
    """


# The text of a plug-in, what is typed beside it, and words of the one line.
MISUSES = {
    "no parentheses": (
        "@lmlab.register.evaluation\ndef accuracy(model, data): return {}",
        "",
        ["own.py: line 2", "accuracy", "@lmlab.register.evaluation("],
    ),
    "no name": (
        "@lmlab.register.corpus\ndef recipes(config): yield 'a'",
        "",
        ["own.py: line 2", '@lmlab.register.corpus("recipes")'],
    ),
    "a name that is a number": ("lmlab.register.model(5, None)", "", ["own.py: line 2", "model"]),
    "keys that are none": ("lmlab.register.model('a', None)", "", ["None", "lmlab.ModelConfig"]),
    **{
        f"keys of no {kind}": (
            f"class K:\n    a: int = 1\nlmlab.register.{kind}('own', K)(print)",
            "",
            ["own.py: line 4", "own", "K'>", f"inherit from lmlab.{base}"],
        )
        for kind, base in {
            "model": "ModelConfig",
            "optimizer": "OptimizerConfig",
            "corpus": "CorpusConfig",
            "tokenizer": "TokenizerConfig",
        }.items()
    },
    "better": (
        "@lmlab.register.evaluation(better='max')\ndef a(model, data): return {}",
        "",
        ["better='max'", "lower, higher"],
    ),
    "no range": (
        model(width='Annotated[int, "hello"]'),
        "",
        ["KeysConfig.width", "'hello' is no range"],
    ),
    "two ranges": (
        model(width='Annotated[int, "[1, 10]", "(0, 3)"]'),
        "",
        ["KeysConfig.width", "'[1, 10]' and '(0, 3)'", "needs one"],
    ),
    "a range that is no text": (
        model(width="Annotated[int, range(3)]"),
        "",
        ["KeysConfig.width", "range(0, 3) in its annotation has no effect", "'[1, 100]'"],
    ),
    "a key that is a list": (
        model(width="list", default="[4]"),
        "",
        ["own.py", "KeysConfig.width", "its type cannot be checked", "allowed are int"],
    ),
    "a list for a number": (
        model(default="[4]"),
        "",
        ["own.py", "KeysConfig.width", "[4] is no value of this type"],
    ),
    "a corpus without its keys": (
        "@lmlab.register.corpus('own')\ndef own(): return 'text'",
        "data=own",
        ["data=own", "own()", "needs own(keys)"],
    ),
    "an evaluation without the data": (
        "@lmlab.register.evaluation()\ndef own(model): return {}",
        "",
        ["evaluation own", "own(model)", "needs own(model, data)"],
    ),
    "a logger without the folder": (
        "@lmlab.register.logger('csv')\ndef own(): return None",
        "",
        ["logger csv", "own()", "needs csv(path)"],
    ),
    "a key that is a function": (
        model().replace("width:", "check:"),
        "",
        ["own.py", "KeysConfig.check", "another name"],
    ),
    "a key that is Hydra's": (
        model().replace("width:", "defaults:"),
        "",
        ["own.py", "KeysConfig.defaults", "another name"],
    ),
    "no gradient": (model(scores="x.detach()"), "model=own", ["model=own", "no gradient"]),
    "no numbers": (
        model(scores="(-x.abs() - 1).log()"),
        "model=own",
        ["model=own", "some of its scores are nan"],
    ),
    "sparse scores": (model(scores="x.to_sparse()"), "model=own", ["model=own", "sparse", "dense"]),
    "a preset of what is no key": (
        "lmlab.register.preset('model', 'mine', 'gpt_nano', has_steps=False)",
        "",
        ["own.py: line 2", "no key has_steps", "n_head"],
    ),
    "half characters in pairs": (
        corpus(r"yield 'ab\ud800 c' * 100"),
        "data=own tokenizer=bpe vocab_size=256",
        [r"'\ud800'", "half characters"],
    ),
    "whole numbers": (model(scores="x.long()"), "model=own", ["model=own", "torch.int64"]),
    "complex numbers": (model(scores="x.cfloat()"), "model=own", ["model=own", "complex64"]),
    "a list": (model(width="list[int]"), "", ["KeysConfig.width", "cannot be checked"]),
    "a default out of range": (
        model(width='Annotated[int, "[1, 64]"]', default="100"),
        "",
        ["own.py", "model own", "width=100", "[1, 64]"],
    ),
    "a preset of nothing": (
        "lmlab.register.preset('model', 'mine', 'nope')",
        "",
        ["own.py: line 2", "no model=nope"],
    ),
    "a preset with another key": (
        "lmlab.register.preset('model', 'mine', 'gpt_nano', n_heads=2)",
        "",
        ["own.py: line 2", "no key n_heads"],
    ),
    "no model": (model(base="torch.nn.Module", config=""), "model=own", ["no lmlab.LanguageModel"]),
    "nothing to train": (
        model(start="self.requires_grad_(False)"),
        "model=own",
        ["model=own", "no weights to train"],
    ),
    "looks ahead": (
        model(scores="x + x.mean(1, keepdim=True)"),
        "model=own",
        ["model=own", "looks ahead"],
    ),
    "looks a whole context ahead": (
        model(scores="x + x.roll(-14, 1)"),
        "model=own",
        ["model=own", "looks ahead"],
    ),
    "reads other rows": (
        model(scores="x + x.mean(0)"),
        "model=own",
        ["model=own", "other rows"],
    ),
    "changes its ids": (
        model(scores="x + 0 * idx.zero_()[..., None]"),
        "model=own",
        ["model=own", "changes the ids"],
    ),
    "noise": (
        model(scores="x + torch.rand_like(x)"),
        "model=own",
        ["model=own", "other scores", "called again"],
    ),
    "log-probabilities of another shape": (
        model(start="self.log_probs_of = lambda idx, targets: torch.zeros(3)"),
        "model=own",
        ["model=own", "log_probs_of()", "(B, S)"],
    ),
    "other log-probabilities than those of the scores": (
        model(start="self.log_probs_of = lambda idx, targets: torch.ones(targets.shape)"),
        "model=own",
        ["model=own", "log_probs_of()", "scores give"],
    ),
    "no log-probabilities at all": (
        model(start="self.log_probs_of = lambda idx, targets: 'none'"),
        "model=own",
        ["model=own", "log_probs_of()"],
    ),
    "log-probabilities without targets": (
        model(start="self.log_probs_of = lambda idx: None"),
        "model=own",
        ["model=own: ", "too many positional arguments; needs log_probs_of(idx, targets)"],
    ),
    "windows without a size": (
        model(start="type(self).windows = lambda self, ids: []"),
        "model=own",
        ["model=own: ", "needs windows(ids, block_size, tokens_at_once)"],
    ),
    "windows that are none": (
        model(start="self.windows = lambda ids, block_size, tokens_at_once: None"),
        "model=own",
        ["model=own: TypeError: 'NoneType' object is not iterable; needs windows(…) that yields"],
    ),
    "operations without self": (
        model(start="type(self).flops_per_token = lambda: 7"),
        "model=own",
        ["model=own: ", "lacks self; needs flops_per_token()"],
    ),
    "operations that are no number": (
        model(start="self.flops_per_token = lambda: 'many'"),
        "model=own",
        ["model=own: flops_per_token() returns 'many'; needs a number of 0 or more"],
    ),
    "a state that is no dictionary": (
        model(start="self.state_dict = lambda *_, **__: [('table.weight', self.table.weight)]"),
        "model=own",
        ["model=own", "state_dict() returns list"],
    ),
    "no log-probabilities": (
        model(start="self.gives_log_probs = True"),
        "model=own",
        ["model=own", "gives_log_probs"],
    ),
    "windows that leave tokens out": (
        model(start="self.windows = lambda ids, T, n: iter([(ids[None, :9], ids[None, 1:10])])"),
        "model=own",
        ["model=own", "windows()"],
    ),
    "windows without a shift": (
        model(start="self.windows = lambda ids, T, n: iter([(ids[None, 1:], ids[None, :-1])])"),
        "model=own",
        ["model=own", "windows()"],
    ),
    "a mean of Lightning's": (
        lightnings("StochasticWeightAveraging(0.1)"),
        "",
        ["callback own", "no effect", "ema="],
    ),
    "checkpoints of Lightning's": (lightnings("ModelCheckpoint()"), "", ["checkpoint_interval="]),
    "a bar of Lightning's": (lightnings("TQDMProgressBar()"), "", ["callback own", "bar"]),
    "rates of Lightning's": (
        lightnings("LearningRateMonitor()"),
        "",
        ["callback own", "log_interval="],
    ),
    "an end of Lightning's": (lightnings("EarlyStopping('val/loss')"), "", ["patience="]),
    "a clock of Lightning's": (
        lightnings("Timer('00:00:00:01', interval='epoch')"),
        "",
        ["callback own", "max_minutes="],
    ),
    "zeros of Lightning's": (
        lightnings("ModelPruning('l1_unstructured', amount=0.9)"),
        "",
        ["callback own: ModelPruning has no effect here"],
    ),
    "sizes of Lightning's": (lightnings("BatchSizeFinder()"), "", ["callback own", "batch_size="]),
    "a schedule that climbs": (
        "@lmlab.register.schedule('own')\ndef own(done): return -1 if done > 0.9 else 1",
        "schedule=own",
        ["schedule=own", "returns -1", "[0, 1]"],
    ),
    "bytes": (corpus("yield b'ab'"), "data=own", ["data=own", "yields bytes"]),
    "a number": (corpus("return 5"), "data=own", ["data=own", "but returns 5"]),
    "no corpus": (corpus("print"), "data=own", ["data=own: must yield text", "returns None"]),
    "no text": (corpus("yield ''"), "data=own", ["data=own", "empty"]),
    "another text each time": (
        corpus("import random\nyield 'ab' * random.randrange(50, 10**6)"),
        "data=own",
        ["data=own", "same each time"],
    ),
    "no optimizer": (optimizer("None"), "optimizer=own", ["own returns None"]),
    "an optimizer of foreign weights": (
        optimizer("torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=config.lr)"),
        "optimizer=own",
        ["own returns an optimizer of a tensor (2,)", "weights.matrices"],
    ),
    "an optimizer of copies": (
        optimizer(
            "torch.optim.SGD([torch.nn.Parameter(w.detach()) for w in weights.matrices], lr=config.lr)"
        ),
        "optimizer=own",
        ["none of the model's weights"],
    ),
    "a closure": (
        optimizer("torch.optim.LBFGS(weights.matrices + weights.others)"),
        "optimizer=own",
        ["LBFGS", "closure"],
    ),
    "an optimizer without a step": (
        optimizer(
            "type('Lion', (torch.optim.Optimizer,), {})(weights.groups(0), {'lr': config.lr})"
        ),
        "optimizer=own",
        ["Lion: has no step()"],
    ),
    "an optimizer that is not made": (
        optimizer("type('Lion', (torch.optim.SGD,), {'__init__': lambda self: None})()"),
        "optimizer=own",
        ["Lion: has no param_groups", "super().__init__"],
    ),
    "a step that takes more": (
        optimizer(
            "type('Lion', (torch.optim.SGD,), {'step': lambda self, loss: 0})(weights.groups(0))"
        ),
        "optimizer=own",
        ["optimizer Lion: ", "missing a required argument: 'loss'; needs step()"],
    ),
    "a schedule of texts": (
        "@lmlab.register.schedule('own')\ndef own(done): return 'half'",
        "schedule=own",
        ["schedule=own", "'half'"],
    ),
    "no callback": (
        "@lmlab.register.callback('own')\ndef own(): return 5",
        "",
        ["callback own", "is 5"],
    ),
    "wrong lengths": (tokenizer(length="3"), "tokenizer=own", ["tokenizer=own", "byte_lengths"]),
    "a list of lengths": (
        tokenizer().replace("np.full(256, 1)", "[1] * 256"),
        "tokenizer=own",
        ["tokenizer=own", "byte_lengths must be a numpy array"],
    ),
    "pieces that are missing": (
        tokenizer(stop="return"),
        "tokenizer=own data=file path=long.txt",
        ["tokenizer=own", "add up to 65,536", "260,000"],
    ),
    "a method that is missing": (
        tokenizer(decode=""),
        "tokenizer=own",
        ["tokenizer=own", "decode"],
    ),
    **{
        f"a tokenizer whose {method} returns nothing": (
            tokenizer() + f"\n    Own.{method} = lambda *_: None\n",
            "tokenizer=own",
            [f"tokenizer=own: {method} returns None; needs a "],
        )
        for method in ("train", "to_values", "from_values")
    },
    "weights without a size": (
        model(start="self.table = torch.nn.LazyLinear(vocab_size)"),
        "model=own",
        ["model=own: table.weight has no size yet, as in a LazyLinear"],
    ),
    "a buffer without a size": (
        model(start="self.norm = torch.nn.LazyBatchNorm1d(affine=False)"),
        "model=own",
        ["model=own: norm.running_mean has no size yet"],
    ),
    "weights that are made in forward": (
        model(scores="setattr(self, 'late', torch.nn.Linear(1, 1)) or x"),
        "model=own",
        ["Own.forward makes the weights late.bias, late.weight", "__init__"],
    ),
    "targets in forward": (
        model().replace("idx)", "idx, targets)", 1),
        "model=own",
        ["model=own: Own.forward(idx, targets): missing a required", "needs forward(idx)"],
    ),
    "a step that leaves no gradient": (
        model(scores="x.exp().add_(1)"),
        "model=own",
        ["model=own: RuntimeError: ", "needs scores whose gradient can be computed"],
    ),
    "sparse gradients": (
        model().replace("vocab_size, vocab_size)", "vocab_size, vocab_size, sparse=True)"),
        "model=own",
        ["model=own: the gradient of table.weight is sparse"],
    ),
    "complex weights": (
        model(start="self.c = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))"),
        "model=own",
        ["model=own: the weight c is of torch.complex64"],
    ),
    "weights on the meta device": (
        model(start="self.c = torch.nn.Linear(2, 2, device='meta')"),
        "model=own",
        ["model=own: the weight c.weight is on the meta device"],
    ),
    "no ids in forward": (
        model().replace("self, idx)", "self)"),
        "model=own",
        ["model=own: Own.forward(): too many positional", "needs forward(idx)"],
    ),
    "no forward": (
        model().replace("def forward", "def forwards"),
        "model=own",
        ["model=own: Own has no forward; needs forward(idx)"],
    ),
    "a model without the vocabulary": (
        model().replace("config, vocab_size)", "config, vocab_size=9, *, n)", 1),
        "model=own",
        ["model=own: Own(config, vocab_size, n): missing", "needs __init__(config, vocab_size)"],
    ),
    "a model of torch's": (
        "import torch\nclass C(lmlab.ModelConfig): pass\n"
        "lmlab.register.model('own', C)(torch.nn.Linear)",
        "model=own",
        ["model=own: TypeError: ", "needs __init__(config, vocab_size)"],
    ),
    "a model that does not keep its keys": (
        model().replace("super().__init__(config)", "torch.nn.Module.__init__(self)"),
        "model=own",
        ["model=own: Own.__init__ must call super().__init__(config)"],
    ),
    "the name of what is asked of a model": (
        model(start="self.decoder = torch.nn.Linear(1, 1)"),
        "model=own",
        ["model=own: Own.decoder is what the lab asks", "another name"],
    ),
    "a number in place of what is asked of a model": (
        model(start="self.size = 5"),
        "model=own",
        ["model=own: Own.size is what the lab asks"],
    ),
    "a text in place of the device": (
        model().replace("def forward", "device = 'x'\n        def forward"),
        "model=own",
        ["model=own: Own.device is what the lab asks"],
    ),
    "a short builder of an optimizer": (
        optimizer("None").replace("weights, config, precision", "weights"),
        "optimizer=own",
        ["optimizer=own: own(weights): too many", "needs own(weights, config, precision)"],
    ),
    "a class of torch's as a builder": (
        optimizer("None") + "\n    register = lmlab.register.optimizer\n"
        "    class MoreConfig(OwnConfig): pass\n"
        "    register('more', MoreConfig)(torch.optim.SGD)",
        "optimizer=more",
        ["optimizer=more: TypeError: ", "needs more(weights, config, precision)"],
    ),
    "a schedule of two numbers": (
        "lmlab.register.schedule('own')(lambda step, total: 1.0)",
        "schedule=own",
        ["schedule=own: <lambda>(step, total): missing", "needs own(done)"],
    ),
    "a schedule that is a number": (
        "lmlab.register.schedule('own')(5)",
        "schedule=own",
        ["schedule=own: 5 is no function; needs own(done)"],
    ),
    "a schedule of Python's": (
        "import time\nlmlab.register.schedule('own')(time.strptime)",
        "schedule=own",
        ["schedule=own: TypeError: ", "needs own(done)"],
    ),
    "a callback that needs an argument": (
        callback("def __init__(self, x): pass"),
        "",
        ["callback own: Own(x): missing a required argument: 'x'; needs own()"],
    ),
    "a hook with too few arguments": (
        callback("def on_train_batch_end(self): pass"),
        "",
        ["callback own: Own.on_train_batch_end(): too many", "(trainer, pl_module, outputs, batch"],
    ),
    "a hook without self": (
        callback("def state_dict(): return {}"),
        "",
        ["callback own: Own.state_dict(): lacks self; needs state_dict()"],
    ),
    "a hook that calls its stage otherwise": (
        callback("def setup(self, trainer, module, phase): pass"),
        "",
        ["callback own: Own.setup(trainer, module, phase): missing", "stage=stage)"],
    ),
    "a line break in a name": (
        "lmlab.register.evaluation('val/a\\nb')(print)",
        "",
        ["own.py: line 2", r"'val/a\nb'", "no line break"],
    ),
    "a neighbour": ("from beside import f", "", ["own.py", "beside.py", "package"]),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_one_line(here, capsys, name):
    text, typed, words = MISUSES[name]
    plugin(here, text)
    (here / "beside.py").write_text("def f(): pass\n")
    (here / "long.txt").write_text("The cat sat.\n" * 20_000)
    line = f"{LINE} plugin=own.py"
    for key in ("model", "data", "optimizer", "schedule", "tokenizer"):
        if f"{key}=" in typed:
            line = " ".join(word for word in line.split() if not word.startswith(f"{key}="))
    with pytest.raises(SystemExit) as stop:
        cli.main(f"{line} {typed}".split())
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
    assert all(word in said[0] for word in words), said
    assert not (here / "outputs").exists()


def test_a_model_may_have_a_method_of_the_name_of_what_the_lab_never_asks_it(train, here):
    plugin(here, model(start="type(self).count = lambda self: 3"))
    line = LINE.replace("model=bigram", "model=own")
    assert metrics(train(f"{line} plugin=own.py"))["status"] == "finished"


EDITED = {  # what somebody makes of a tokenizer after a run, and words of the one line
    "no decode": (tokenizer(decode=""), ["tokenizer=own: Own has no decode"]),
    "lengths that are none": (tokenizer(length="3.5"), ["tokenizer=own: byte_lengths must be"]),
    "values that are none": (
        tokenizer().replace("return {}", "pass"),
        ["tokenizer=own: to_values returns None; needs a dict"],
    ),
    "no class method": (
        tokenizer().replace("@classmethod\n        def from", "def from"),
        ["tokenizer=own: TypeError", "from_values() missing 1"],
    ),
    "other parameters": (
        tokenizer().replace("(self, pieces, drop=False)", "(self)"),
        ["tokenizer=own: Own.encode_pieces(): too many", "needs encode_pieces(pieces)"],
    ),
}


@pytest.mark.parametrize("name", EDITED)
def test_a_tokenizer_that_was_broken_after_the_run_is_one_line(train, here, capsys, name):
    text, words = EDITED[name]
    run = train(f"{LINE} tokenizer=own plugin={plugin(here, tokenizer())}")
    plugin(here, text)
    with pytest.raises(UserError) as error:
        evaluate.main([f"run={run}", "plugin=own.py"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([f"resume={run}", "plugin=own.py", "max_steps=5"])
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
    assert all(word in text for word in words for text in (str(error.value), said[0])), said
    assert metrics(run)["status"] == "finished"


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (
            "self.training",
            "returns (4, 1, 9) for ids of (4, 16); needs scores of (4, 16, 9), (B, T, V)",
        ),
        ("len(idx) == 4", "returns (4, 1, 9) for ids of (4, 16)"),
        ("idx.shape[1] not in (1, 16)", "returns (1, 1, 9) for ids of (1, 6)"),
    ],
)
def test_scores_of_a_wrong_shape_are_a_line_whenever_they_come(here, capsys, when, words):
    """In training, in a batch of some size, in the last window of the validation text."""
    plugin(here, model(scores=f"x[:, -1:] if {when} else x"))
    line = f"{LINE.replace('model=bigram', 'model=own')} plugin=own.py"
    refused(capsys, lambda: cli.main(line.split()), ["model=own: its forward", words])
    assert [metrics(run)["status"] for run in here.glob("outputs/x/*")] == ["failed"]


@pytest.mark.parametrize("kind", ["long", "bool", "cfloat"])
def test_scores_of_a_wrong_type_are_a_line_whenever_they_come(here, capsys, kind):
    plugin(here, model(scores=f"x.{kind}() if self.training and len(idx) == 4 else x"))
    line = f"{LINE.replace('model=bigram', 'model=own')} plugin=own.py"
    words = ["model=own: its scores are of torch.", "needs dense torch.float32"]
    refused(capsys, lambda: cli.main(line.split()), words)


@pytest.mark.parametrize(
    ("field", "typed", "words"),
    [
        ("int = 7", "0", "block_size=0: out of range; allowed is [1, inf)"),
        ("int = 7", "-3", "block_size=-3: out of range; allowed is [1, inf)"),
        ("int = 0", None, "block_size=0: out of range"),
        ("str = 'big'", None, "block_size=big: needs a whole number in [1, inf)"),
    ],
)
def test_a_context_of_ones_own_is_a_number_of_tokens(here, capsys, field, typed, words):
    plugin(here, model(default=f"8\n        block_size: {field}"))
    line = re.sub(r"block_size=\d+", f"block_size={typed}" if typed else "", LINE)
    line = f"{line.replace('model=bigram', 'model=own')} plugin=own.py"
    refused(capsys, lambda: cli.main(line.split()), [words])


def test_a_model_may_keep_a_mask_that_forward_makes_and_more_arguments_of_its_own(here, train):
    """What it keeps while the lab tries it without numbers is dropped again."""
    text = model(
        start="self.mask = None", scores="x + 0 * self.kept(x) if not hidden else x[:, 0]"
    ).replace("self, idx)", "self, idx, hidden=False)")
    text += """
        def kept(self, x):
            if self.mask is None:
                self.mask = torch.ones(x.shape[1], 1)
            return self.mask[: x.shape[1]]

    @lmlab.register.evaluation("val/own")
    def own(model, data):
        return {"val/own": model(torch.zeros(2, 3, dtype=torch.long), hidden=True).numel()}
    """
    run = train(f"{LINE.replace('model=bigram', 'model=own')} plugin={plugin(here, text)}")
    assert metrics(run)["status"] == "finished" and metrics(run)["val/own"] == 18


def test_names_of_an_evaluation_are_said_in_short_lines(here, train, capsys):
    text = """
    @lmlab.register.evaluation("val/own")
    def own(model, data):
        return {"val/a\\nb": 1.0} | {f"{n}": 1.0 for n in range(3000)} | {
            f"val/{n}": 1.0 for n in range(4000)
        }
    """
    run = train(f"{LINE.replace('max_steps=4', 'max_steps=1')} plugin={plugin(here, text)}")
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert all(len(line) < 400 for line in said)
    assert r"warning: 'val/a\nb': has a line break or another character that cannot" in said[0]
    assert "warning: 2,981 more names of the evaluation own are left out" in said
    assert any("returns " in line and line.endswith(" and 6,981 more") for line in said), said
    assert metrics(run)["val/3999"] == 1.0 and "val/a\nb" not in metrics(run)


def test_two_files_of_one_name_are_refused(here, capsys):
    for folder in ("a", "b"):
        (here / folder).mkdir()
        plugin(here / folder, "")
    line = f"{LINE} plugin=a/own.py,b/own.py"
    refused(capsys, lambda: cli.main(line.split()), ["a/own.py", "b/own.py", "rename"])


HARMLESS = """
    import random
    import numpy as np
    import torch

    @lmlab.register.evaluation("val/mine")
    def validation_loss(model, data):
        model.eval()
        random.random(), np.random.rand(), torch.rand(3)
        with torch.enable_grad():
            model(torch.zeros(1, 4, dtype=torch.long)).logsumexp(2).sum().backward()
        for module in model.modules():
            module.register_forward_hook(lambda *a: a[2] * 0)
        for weight in model.parameters():
            weight.data.mul_(0.5)
            weight.data = weight.data * 0.5
        model.requires_grad_(False)
        torch.set_grad_enabled(False)
        return {"val/mine": 1.0}

    @lmlab.register.evaluation("val/other")
    def sample(model, data):
        return {"val/other": 2.0, "val/loss": 0.001, "sample": "hello", "step": 9, "train/loss": 3.0,
                "n_params": 5.0, "data_sha256": 1.0, "tokens": 7.0, 3: 1.0, "val/huge": 10**400,
                "own/tensor": torch.tensor(0.5), "own/numpy": np.float32(0.5), "own/bool": True}

    @lmlab.register.evaluation("val/third")
    def third(model, data):
        return 1 / 0

    @lmlab.register.evaluation("val/text")
    def text(model, data):
        return {"val/text": "word"}

    @lmlab.register.evaluation("val/promised")
    def promised(model, data):
        return {"val/given": 1.0, 5: 2.0, None: 3.0}

    @lmlab.register.evaluation()
    def silent(model, data):
        return {"val/words": "a text of its own"}

    @lmlab.register.evaluation("val/counted")
    def worded(model, data):
        return {"val/more_words": "a text in place of the number that it names"}
"""


def test_an_evaluation_of_ones_own_changes_nothing_else(here, train, capsys):
    line = LINE.replace("model=bigram", "model=gpt_nano dropout=0.5")
    plain = train(line)
    capsys.readouterr()
    own = train(f"{line} plugin={plugin(here, HARMLESS)}")
    for name in ("train/loss", "val/loss", "sample"):
        assert history(own, name) == history(plain, name)
    assert (metrics(own)["val/mine"], metrics(own)["val/other"]) == (1.0, 2.0)
    said = capsys.readouterr()
    for name in ("n_params", "data_sha256", "tokens"):
        assert metrics(own)[name] == metrics(plain)[name]
    for name in (
        "val/loss",
        "sample",
        "step",
        "train/loss",
        "3",
        "val/huge",
        "n_params",
        "val/text",
        "val/promised",
        "val/counted",
    ):
        assert f"warning: {name}: " in said.err + said.out
    assert "val/text: was declared as a number and is str" in said.err
    assert "val/silent" not in said.err
    assert "warning: the evaluation validation_loss changed weights" in " ".join(said.err.split())
    assert [metrics(own)[f"own/{kind}"] for kind in ("tensor", "numpy", "bool")] == [0.5, 0.5, 1]
    assert said.err.count("return 1 / 0") == 1  # the line of the plug-in, once


MEDDLING = {  # what an evaluation does with the model, which is as before afterwards
    "a new weight": "model.head.weight = nn.Parameter((model.head.weight.detach() * 16).round() / 16)",
    "new weights everywhere": """
        for part in model.modules():
            for key, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[key] = nn.Parameter(weight.detach() * 0)
        """,
    "another type": "model.to(torch.bfloat16)",
    "another device": "model.to('meta')",
    "pruned": """
        from torch.nn.utils import prune
        for part in model.modules():
            if isinstance(part, nn.Linear):
                prune.l1_unstructured(part, "weight", 0.5)
        """,
    "another head": "model.head = nn.Linear(16, 9)",
    "an attribute": "model.head.forward = lambda x: x",
    "torch's settings": """
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        """,
}


@pytest.mark.parametrize("kind", ["gpt_nano", "modern", "lstm"])
@pytest.mark.parametrize("what", MEDDLING)
def test_whatever_an_evaluation_does_with_the_model_it_is_as_before(
    here, train, capsys, what, kind
):
    sizes = "n_embd=16" if kind == "lstm" else "n_layer=1 n_embd=16 n_head=2"
    line = f"{LINE} model={kind} {sizes}".replace("model=bigram", "")
    plain = train(line)
    body = textwrap.indent(textwrap.dedent(MEDDLING[what]).strip(), " " * 8)
    text = f"""
    import torch
    from torch import nn

    @lmlab.register.evaluation()
    def meddling(model, data):
{body}
        return {{"val/meddling": 1}}
    """
    capsys.readouterr()
    own = train(f"{line} plugin={plugin(here, text)}")
    for name in ("train/loss", "val/loss", "sample"):
        assert history(own, name) == history(plain, name)
    said = capsys.readouterr()
    is_told = "the evaluation meddling changed weights" in said.err
    assert is_told == (what not in ("an attribute", "torch's settings"))
    assert said.err.count("warning: ") == said.err.count("changed weights")
    assert re.search(r"val/meddling +1.0000", said.out)  # a whole number is one, too


@pytest.mark.parametrize("returned", ['{"val/mine": 1} if data.step == 0 else {}', "{}"])
def test_a_number_that_an_evaluation_lacks_at_the_end_is_named(here, train, capsys, returned):
    text = f"""
    @lmlab.register.evaluation()
    def mine(model, data):
        return {returned}
    """
    train(f"{LINE} plugin={plugin(here, text)}")
    assert capsys.readouterr().err.count("val/mine: was declared, but") == 1


ENDS = """
    import pytorch_lightning as pl

    @lmlab.register.callback("ends")
    class Ends(pl.Callback):
        def {hook}(self, *_, **__):
            raise StopIteration
"""
HOOKS = ("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start")
HOOKS += ("on_before_zero_grad", "on_before_backward", "on_after_backward", "state_dict")
HOOKS += ("on_before_optimizer_step", "on_train_batch_end", "on_validation_start")
HOOKS += ("on_validation_end", "on_train_end", "on_fit_end", "setup", "teardown")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (model(scores="x if not self.training else next(iter([]))"), "model=own"),
        (model(scores="x if self.training else next(iter([]))"), "model=own"),
        *((ENDS.format(hook=hook), "") for hook in HOOKS),
    ],
    ids=["training", "evaluation", *HOOKS],
)
def test_the_end_of_an_iterator_is_no_end_of_the_text(here, capsys, text, key):
    """Lightning would begin again with the first batch, or go on as if nothing had happened."""
    line = f"{LINE} plugin={plugin(here, text)} {key}"
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "own.py:" in said.splitlines()[-1] and "StopIteration" in said.splitlines()[-1]
    for run in here.glob("outputs/x/*"):
        assert metrics(run)["status"] == "failed"


LOGS = """
    import numpy as np
    import pytorch_lightning as pl
    import torch

    @lmlab.register.callback("logs")
    class Logs(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.log({logged})
"""


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        ("'a/b', torch.ones(2)", "a/b: must be one number, and is tensor([1., 1.])"),
        ("'a/b', torch.ones(1) * 1j", "a/b: must be one number"),
        ("'a/b', '1'", "a/b: must be one number, and is '1'"),
        ("'a/b', None", "a/b: must be one number, and is None"),
        ("'a/b', np.ones(3)", "a/b: must be one number"),
        ("'a/b', 10**400", "a/b: must be one number"),
        ("5, 1", "5: the name of a number must be a text"),
        ("'', 1", "'': the name of a number must be a text"),
    ],
)
def test_what_a_callback_logs_is_a_name_and_one_number(here, capsys, logged, words):
    line = f"{LINE} plugin={plugin(here, LOGS.format(logged=logged))}"
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "own.py:" in said and words in said


@pytest.mark.parametrize(
    ("name", "number"),
    [("self", "1"), ("values", "np.float32(1)"), ("a", "torch.ones(1, 1, requires_grad=True)")],
)
def test_any_name_and_any_kind_of_number_can_be_logged(here, train, name, number):
    text = LOGS.format(logged=f"{name!r}, {number}")
    assert set(history(train(f"{LINE} plugin={plugin(here, text)}"), name).values()) == {1.0}


MEDDLES = """
    import pytorch_lightning as pl

    @lmlab.register.callback("meddles")
    class Meddles(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            {at_step}
        def on_save_checkpoint(self, trainer, module, checkpoint):
            {at_save}
"""


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (
            {"at_step": "trainer.fit_loop.epoch_loop.max_steps = 1", "at_save": "pass"},
            "a callback has ended Lightning's loop after step 1 of",
        ),
        (
            {"at_step": "pass", "at_save": "checkpoint.clear()"},
            "a callback's on_save_checkpoint has taken state_dict, loops",
        ),
        (
            {"at_step": "pass", "at_save": "checkpoint['optimizer_states'] = []"},
            "a callback has changed the optimizer's state: its form could not be given back",
        ),
    ],
)
def test_what_a_callback_takes_from_lightning_is_told(here, capsys, places, words):
    line = f"{LINE} plugin={plugin(here, MEDDLES.format(**places))}"
    refused(capsys, lambda: cli.main(line.split()), ["plugin=own.py: ", words])
    (run,) = here.glob("outputs/x/*")
    assert metrics(run)["status"] == "failed"


def test_an_error_of_a_callback_of_lightnings_names_it(here, capsys):
    text = lightnings("EarlyStopping('val/nothing', check_on_train_epoch_end=False)")
    line = f"{LINE} plugin={plugin(here, text)}"
    words = ["plugin=own.py: callback EarlyStopping: ", "val/nothing", "not available"]
    refused(capsys, lambda: cli.main(line.split()), words)


def test_a_loss_of_ones_own_is_not_the_labs_where_there_is_no_validation(here, train):
    line = LINE.replace("val_fraction=0.2", "val_fraction=0")
    run = train(f"{line} plugin={plugin(here, HARMLESS)}")
    assert "val/loss" not in metrics(run) and metrics(run)["val/other"] == 2.0


def test_a_library_of_ones_own_elsewhere_may_be_imported(here, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("library")
    (folder / "own_library.py").write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(folder)
    name = plugin(here, "from own_library import f\nlmlab.register.schedule('s')(abs)")
    with plugins.active(plugins.sources(name)):
        assert sys.modules["plugin_own"].f


def package(here, factor):
    (here / "pack").mkdir(exist_ok=True)
    (here / "pack/__init__.py").write_text(
        "import lmlab\nlmlab.register.schedule('s')(abs)\nfrom .core import F\ndef later():\n    from . import late\n    return late.F\n"
    )
    for name in ("core", "late"):
        (here / f"pack/{name}.py").write_text(f"F = {factor}\n")


def test_a_package_runs_as_it_was_read(here):
    """Also what it imports later, and in processes that start later."""
    package(here, 1)
    sources = plugins.sources("pack")
    package(here, 50)
    with plugins.active(sources):
        assert sys.modules["pack"].F == 1 and sys.modules["pack"].later() == 1
    again = plugins.sources("pack")
    assert again[0].sha256 != sources[0].sha256
    with plugins.active(again):
        assert sys.modules["pack"].F == 50 and sys.modules["pack"].later() == 50


@pytest.mark.parametrize("keys", ["ema=1", "ema=1.5", "skip_spikes=-1", "skip_spikes=1"])
def test_the_range_of_a_key_that_may_be_null_holds(here, capsys, keys):
    refused(capsys, lambda: cli.main(f"{LINE} {keys}".split()), [keys, "out of range"])


def test_a_value_out_of_range_names_the_range_in_any_form_of_annotation():
    from typing import Annotated

    from lmlab.config.check import check_value

    for hint in (
        Annotated[float | None, "(0, 1)"],
        Annotated[float, "(0, 1)"] | None,
        Annotated[float, "(0, 1)"],
    ):
        with pytest.raises(UserError, match=r"allowed is \(0, 1\)"):
            check_value("x", 1.0, hint)
        assert check_value("x", 0.5, hint) == 0.5


EXIT = {
    "import sys\nsys.exit(0)": "calls sys.exit(0)",
    "raise SystemExit": "calls sys.exit()",
    "import argparse\nargparse.ArgumentParser().exit(3)": "calls sys.exit(3)",
    "x = 1": "own.py registers nothing; a plug-in calls",
}


@pytest.mark.parametrize("text", EXIT)
def test_a_plugin_that_ends_the_program_or_registers_nothing_is_refused(here, capsys, text):
    name = plugin(here, text)
    words = ["plugin=own.py: ", EXIT[text]]
    refused(capsys, lambda: cli.main(f"{LINE} plugin={name}".split()), words)
    with pytest.raises(UserError, match="plugin=own"):
        lmlab.train(*LINE.split(), plugin=name)
    assert not (here / "outputs").exists()


def test_a_plugin_that_is_no_file_is_refused_and_not_waited_for(here, capsys):
    (here / "folder.py").mkdir()
    os.mkfifo(here / "pipe.py")
    for name in ("folder.py", "pipe.py"):
        words = f"{LINE} plugin={name}".split()
        refused(capsys, partial(cli.main, words), [f"plugin={name}: is no file"])


@pytest.mark.parametrize(
    "fault", ["sys.exit(0)", "open('gone.txt')", "len(1)", "{}['key']", "next(iter([]))"]
)
def test_an_error_in_a_text_names_the_plugin_whatever_its_kind(here, capsys, fault):
    name = plugin(
        here,
        f"""
        import sys

        @lmlab.register.corpus("own")
        def own(config):
            yield "some text " * 100
            {fault}
        """,
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(f"{LINE} plugin={name} data=own".replace("data=sentence", "").split())
    *frames, line = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and frames[0].startswith("Traceback") and len(frames) < 6
    assert line.startswith(f"error: plugin={name}: own failed at own.py:8: ")
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("module", ["torch", "numpy.linalg", "PIL"])
def test_a_library_is_no_plugin(here, capsys, module):
    """It is not imported a second time, which torch does not survive."""
    words = [f"plugin={module}: is a library", "registers nothing", "plugin=my_lab.py"]
    refused(capsys, lambda: cli.main([f"plugin={module}"]), words)


def test_a_module_whose_package_imports_it_is_registered_once(here, monkeypatch, capsys):
    """And what the package registers beside it is part of no hash, so the package is asked for."""
    folder = here / "pack_of_mine"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.py").write_text(
            f"import lmlab\nlmlab.register.schedule('{name}')(abs)\n"
        )
    (folder / "__init__.py").write_text("from . import b\n")
    for name in ("pack_of_mine.b", "pack_of_mine"):
        with plugins.active(plugins.sources(name)):
            assert [one.name for one in plugins.ACTIVE[-1].additions] == ["b"]
    for name in [name for name in sys.modules if name.startswith("pack_of_mine")]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "__init__.py").write_text("from . import a, b\n")
    words = ["plugin=pack_of_mine.b", "a.py: line 2", "plugin=pack_of_mine"]
    refused(capsys, lambda: cli.main(["plugin=pack_of_mine.b"]), words)


@pytest.mark.parametrize("module", ["os", "sys", "math", "xml.dom", "lmlab", "lmlab.register"])
def test_a_module_of_python_or_of_the_lab_is_no_plugin(here, capsys, module):
    words = [f"plugin={module}: is a module of ", "registers nothing", "plugin=my_lab.py"]
    refused(capsys, lambda: cli.main([f"plugin={module}"]), words)


def test_a_file_that_is_typed_in_several_ways_is_one_plugin(here):
    name = plugin(here, "lmlab.register.schedule('s')(abs)")
    (here / "sub").mkdir()
    (here / "link.py").symlink_to(name)
    names = name, here / name, f"sub/../{name}", "link.py"
    (source,) = plugins.sources(",".join(map(str, names)))
    with plugins.active([source]):
        for other in names:
            with plugins.active(plugins.sources(str(other))):
                assert plugins.names() == name
    with plugins.active(plugins.sources(str(here / name))):
        assert plugins.names() == str(here / name)  # as it was typed this time


FAILED = {
    "a value that no YAML holds": (
        "lmlab.register.model('mm', keys(np.int64(3)))(print)",
        "model mm: .*int64.*; allowed as the value",
    ),
    "an ending": (
        "lmlab.register.model('mm.yaml', keys(3))(print)",
        "'mm.yaml': allowed in a name",
    ),
    "the second number": (
        "lmlab.register.evaluation('val/mine', 'val/loss')(f)",
        "number val/loss: the name is taken",
    ),
    "a tokenizer": (
        "lmlab.register.tokenizer('char')(C)",
        "tokenizer char: the name is taken, by the lab itself",
    ),
    "something anew": (
        "lmlab.register.preset('model', 'pp', 'gpt_nano', n_layer=np.int64(2))",
        "model pp: ",
    ),
}


@pytest.mark.parametrize("fault", FAILED)
def test_a_registration_that_fails_leaves_nothing_behind(fault):
    """One by a program itself, which can go on after it; what was there before stays."""

    def keys(default):
        space = {"__annotations__": {"n": int}, "n": default}
        return type("C", (lmlab.ModelConfig,), space)

    def f(model, data): ...

    class C: ...

    def state():
        tables = {kind: dict(table) for kind, table in register.TABLES.items()}
        stored = {kind: {*ConfigStore.instance().repo.get(kind, ())} for kind in register.USUAL}
        return (
            tables,
            stored,
            [*register.PRESENT],
            {k: {**v} for k, v in register.VALUES.items() if v},
        )

    lmlab.register.preset("model", "pp", "gpt_nano", n_layer=2)
    before = state()
    line, message = FAILED[fault]
    try:
        with pytest.raises(UserError, match=message):
            eval(line, {"lmlab": lmlab, "np": np, "keys": keys, "f": f, "C": C})
        assert state() == before and not vars(C).get("kind")
    finally:
        for one in [*register.PRESENT]:
            one.take_out()


LEAKING = """
    import os, random, sys
    import numpy as np
    import torch

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("medium")
    os.chdir("/")
    sys.argv[:] = ["other"]
    sys.argv = []
    lmlab.register.schedule("s")(abs)
"""


def test_what_a_plugin_does_when_imported_changes_nothing_else(here):
    def state():
        numbers = [random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())]
        modes = torch.is_grad_enabled(), torch.get_default_device(), Path.cwd(), [*sys.argv]
        return numbers, modes, torch_settings()

    before = state()
    with plugins.active(plugins.sources(plugin(here, LEAKING))):
        assert state() == before
    assert state() == before


def test_a_callback_that_freezes_all_weights_is_a_line(here, capsys):
    name = plugin(
        here,
        """
        from pytorch_lightning import Callback

        @lmlab.register.callback("own")
        class Own(Callback):
            def on_train_start(self, trainer, module):
                module.requires_grad_(False)
        """,
    )
    line = f"{LINE} plugin={name}"
    refused(capsys, lambda: cli.main(line.split()), ["no weight is left to train", "a callback"])


MOVING = """
    import os

    import torch
    from pytorch_lightning import Callback

    def move():
        os.chdir("/")

    @lmlab.register.corpus("moving")
    def text(config):
        move()
        yield "some text " * 100
        move()

    @lmlab.register.model("mover", lmlab.ModelConfig)
    class Mover(lmlab.LanguageModel):
        def __init__(self, config, vocab_size):
            super().__init__(config)
            move()
            self.embed = torch.nn.Embedding(vocab_size, vocab_size)

        def forward(self, idx):
            move()
            return self.embed(idx)

    @lmlab.register.evaluation("val/moves")
    def moves(model, data):
        move()
        return {"val/moves": 1.0}

    @lmlab.register.callback("moving")
    class Moving(Callback):
        def __init__(self):
            move()

        def on_train_batch_end(self, *_):
            move()
"""


@pytest.mark.parametrize("typed", ["", "-m hydra/launcher=basic seed=0,1"])
def test_code_that_changes_the_working_folder_moves_nothing(here, capsys, typed):
    name = plugin(here, MOVING)
    line = LINE.replace("bigram", "mover").replace("sentence", "moving")
    cli.main(f"{line} plugin={name} {typed}".split())
    assert Path.cwd() == here
    runs = [config.parent for config in here.glob("outputs/**/config.yaml")]
    assert len(runs) == 1 + ("-m" in typed)
    for run in runs:
        assert metrics(run)["status"] == "finished"
        assert history(run, "val/moves") == {0: 1.0, 2: 1.0, 4: 1.0}
        run = run.relative_to(here)
        if not typed:
            cli.main([f"resume={run}", "max_steps=6", f"plugin={name}"])
            assert metrics(run)["step"] == 6
        evaluate.main([f"run={run}", f"plugin={name}"])
        assert (run / "evaluations.jsonl").exists()
        assert Path.cwd() == here
    assert "warning" not in capsys.readouterr().err


IMPORTS = {
    "a value": "from helper1 import SCALE",
    "an instance": "from helper1 import keys",
    "by name": "import importlib; S = importlib.import_module('helper1').SCALE",
    "in a function": "def f():\n    import helper1\nf()",
    "later": "@lmlab.register.schedule('t')\ndef t(done):\n    from helper1 import SCALE\n    return SCALE",
}


@pytest.mark.parametrize("way", IMPORTS)
def test_a_file_beside_a_plugin_is_noticed_however_it_is_imported(here, capsys, way):
    """Also the second time in a process."""
    (here / "helper1.py").write_text("class Keys: pass\nkeys, SCALE = Keys(), 1.0\n")
    name = plugin(here, f"{IMPORTS[way]}\nlmlab.register.schedule('s')(abs)")
    line = f"{LINE} plugin={name}" + " schedule=t" * (way == "later")
    for _ in range(2):
        words = ["plugin=own.py: imports ", "helper1.py", "plugin=my_package"]
        refused(capsys, lambda: cli.main(line.split()), words)
    assert way == "later" or "helper1" not in sys.modules
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("kind", ["a module", "a package"])
def test_what_a_module_imports_beside_itself_is_refused_too(here, kind):
    """Also if the program itself has imported it before."""
    (here / "near.py").write_text("SCALE = 2\n")
    folder = here / "nearby" if kind == "a package" else here
    folder.mkdir(exist_ok=True)
    name = "__init__.py" if kind == "a package" else "nearby.py"
    (folder / name).write_text("import lmlab\nfrom near import SCALE\n")
    with plugins.searching_here():
        import near  # noqa: F401
    try:
        with (
            pytest.raises(UserError, match=r"plugin=nearby: imports .*near\.py"),
            plugins.active(plugins.sources("nearby")),
        ):
            pass
    finally:
        del sys.modules["near"]


ENDING = """
    import sys
    import torch

    class Stop(BaseException):
        pass

    class KeysConfig(lmlab.ModelConfig):
        where: str = "step"
        how: str = "exit"

    @lmlab.register.model("own", KeysConfig)
    class Own(lmlab.LanguageModel):
        def __init__(self, config, vocab_size):
            super().__init__(config)
            self.table = torch.nn.Embedding(vocab_size, vocab_size)

        def forward(self, idx):
            place = {"step": self.training and len(idx) > 1, "first": True}
            if place.get(self.config.where):
                if self.config.how == "exit":
                    sys.exit(0)
                raise Stop("it") if self.config.how == "stop" else KeyboardInterrupt
            return self.table(idx)

    @lmlab.register.evaluation("val/own")
    def own(model, data):
        if model.config.where == "evaluation":
            sys.exit(0)
        return {"val/own": 1.0}
"""


ENDINGS = [
    ("first", "exit", "calls sys.exit(0)"),
    ("first", "stop", "raises Stop: it"),
    ("step", "exit", "calls sys.exit(0)"),
    ("step", "stop", "raises Stop: it"),
    ("step", "interrupt", "raises KeyboardInterrupt"),  # while the lab handles signals itself
]


@pytest.mark.parametrize(("where", "how", "why"), ENDINGS)
def test_what_would_end_the_program_is_an_error_of_the_plugin(here, capsys, where, how, why):
    line = f"{LINE.replace('model=bigram', 'model=own')} plugin={plugin(here, ENDING)} how={how}"
    run = f"{line} where={where}"
    with pytest.raises(SystemExit) as stop:
        cli.main(run.split())
    said = capsys.readouterr()
    assert stop.value.code == 2 and "to continue" not in said.out + said.err
    assert "own.py" in said.err and said.err.endswith(f"RuntimeError: {why}\n")
    folders = [*here.glob("outputs/x/*")]
    assert [metrics(folder)["status"] for folder in folders] == ["failed"] * (where != "first")
    if where == "first":  # no cell can be planned
        return
    with pytest.raises(SystemExit) as stop:
        cli.main(["-m", *line.split(), f"where={where},nowhere", "hydra/launcher=basic", "name=s"])
    cells = [metrics(path.parent)["status"] for path in here.glob("outputs/sweeps/s/*/config.yaml")]
    assert stop.value.code == 1 and sorted(cells) == ["failed", "finished"]


def test_an_evaluation_may_return_nothing_and_else_returns_names(here, train, capsys):
    """Before the end of a run nothing is also what a function without return gives."""
    text = """
        @lmlab.register.evaluation("val/at_the_end")
        def own(model, data):
            if data.is_last:
                return {"val/at_the_end": 1.0}

        @lmlab.register.evaluation()
        def bare(model, data):
            return 0.5

        @lmlab.register.evaluation()
        def words(model, data):
            return [("val/words", 2.0)]
    """
    run = train(f"{LINE} plugin={plugin(here, text)}")
    assert metrics(run)["val/at_the_end"] == 1.0
    said = " ".join(capsys.readouterr().err.split())
    assert "the evaluation own" not in said
    assert "the evaluation bare failed and is left out: returns float; needs names and" in said
    assert metrics(run)["val/words"] == 2.0  # whatever dict takes is names and values


def test_an_evaluation_that_calls_sys_exit_is_left_out(here, train, capsys):
    line = f"{LINE.replace('model=bigram', 'model=own')} plugin={plugin(here, ENDING)}"
    assert metrics(train(f"{line} where=evaluation"))["status"] == "finished"
    assert "the evaluation own failed and is left out: RuntimeError: calls sys.exit(0)" in (
        " ".join("".join(capsys.readouterr()).split())
    )


FAILING = """
    calls = []

    @lmlab.register.evaluation("val/own")
    def own(model, data):
        calls.append(model)
        if len(calls) % 3 == 0:  # the last of the three of each run
            raise ZeroDivisionError("boom")
        return {"val/own": 1.0}
"""


def test_an_evaluation_that_fails_leaves_no_earlier_number_and_is_told_of_below_a_table(
    here, train, capsys
):
    line = f"{LINE} plugin={plugin(here, FAILING)} -m seed=0,1 hydra/launcher=basic"
    runs = train(line)
    for run in runs:
        assert history(run, "val/own") == {0: 1.0, 2: 1.0}
        assert metrics(run)["val/own"] is None and metrics(run)["best/val/own"] is None
        assert metrics(run)["warnings"] == (
            "the evaluation own failed and is left out: ZeroDivisionError: boom "
            "(plugin=own.py: own failed at own.py:9)"
        )
    sentence = f"2 of 2 runs warned: {metrics(run)['warnings']}."
    assert sentence in " ".join(capsys.readouterr().out.split())
    for page in ("leaderboard.md", "report.html"):
        assert sentence in (run.parent / page).read_text(encoding="utf-8")


def test_a_search_says_which_trials_have_no_value_and_the_best_of_the_others(here, capsys):
    search = "hydra/sweeper=search hydra.sweeper.objective=val/own hydra.sweeper.n_trials=3"
    name = plugin(here, FAILING.replace("% 3 == 0", "> 6"))  # the third trial
    line = f"{LINE} plugin={name} -m {search} hydra/launcher=basic"
    cli.main([*line.split(), "lr=tag(log,interval(1e-3,1e-1))"])
    said = capsys.readouterr().out
    (best,) = [
        line for line in said.splitlines() if line.startswith("best val/own: 1.0000, of lr=")
    ]
    assert "sorted by another number" in best
    assert "\n1 of 3 trials finished without val/own" in said


def test_a_logger_that_calls_sys_exit_is_left_out(here, train, capsys):
    name = plugin(
        here,
        """
        import sys

        class Broken:
            def log_metrics(self, values, step):
                sys.exit(3)
            def __getattr__(self, name):
                return lambda *_: None

        lmlab.register.logger("broken")(lambda path: Broken())
        lmlab.register.logger("worse")(lambda path: sys.exit())
        """,
    )
    run = train(f"{LINE} plugin={name}")
    assert metrics(run)["status"] == "finished"
    said = capsys.readouterr().err
    assert "the logger broken failed and ends here: RuntimeError: calls sys.exit(3)" in said
    assert (
        "the logger worse cannot be made, and is left out: RuntimeError: calls sys.exit()" in said
    )


def test_a_number_that_is_not_finite_is_said_once(here, capsys):
    code = """
        @lmlab.register.evaluation("val/odd", "val/even")
        def odd(model, data):
            return {"val/odd": float("nan"), "val/even": float("inf")}
    """
    code += """
        import pytorch_lightning as pl

        @lmlab.register.callback("logging")
        class Logging(pl.Callback):
            def on_train_batch_end(self, trainer, module, *_):
                module.log("logged", float("nan"))
    """
    plugin(here, code)
    cli.main(f"{LINE} plugin=own.py eval_interval=1 max_steps=3 name=odd".split())
    err = capsys.readouterr().err
    assert err.count("logged is nan, which history.jsonl keeps as null") == 1
    assert err.count("val/odd is nan, which history.jsonl keeps as null") == 1
    assert err.count("val/even is inf") == 1
    (run,) = (here / "outputs/odd").iterdir()
    assert {*history(run, "val/odd").values()} == {None}


RAISING = """
    import sys
    import pytorch_lightning as pl
    import torch

    class KeysConfig:
        where: str = "nowhere"
        how: str = "error"

    def act(how):
        if how == "exit":
            sys.exit(3)
        if how == "file":
            open("no/such/file")
        return 1 / 0

    class Own(pl.Callback):
        def __init__(self, keys):
            self.keys = keys
        def __getattribute__(self, name):
            if name != "keys" and name == self.keys.where:
                return lambda *_, **__: act(self.keys.how)
            return super().__getattribute__(name)

    lmlab.register.callback("own", KeysConfig)(Own)

    class TextConfig(lmlab.CorpusConfig):
        breaks: bool = False

    @lmlab.register.corpus("own", TextConfig)
    def text(config):
        yield "hello world " * 16
        if config.breaks:
            act("error")

    class ModelKeys(lmlab.ModelConfig):
        pass

    @lmlab.register.model("own", ModelKeys)
    class Model(lmlab.LanguageModel):
        def __init__(self, config, vocab_size):
            super().__init__(config)
            self.table = torch.nn.Embedding(vocab_size, vocab_size)
        def forward(self, idx):
            if self.training and len(idx) > 1:
                act("error")
            return self.table(idx)
"""
HOOKS = ("state_dict", "on_train_batch_end", "on_train_end", "on_validation_end", "teardown")
RAISED = {
    **{f"where={hook}": "ZeroDivisionError: division by zero" for hook in HOOKS},
    "where=on_train_start how=exit": "RuntimeError: calls sys.exit(3)",
    "where=on_train_end how=exit": "RuntimeError: calls sys.exit(3)",
    "where=on_train_end how=file": "FileNotFoundError: [Errno 2] No such file or directory",
    "model=own": "ZeroDivisionError: division by zero",
    "data=own breaks=true": "ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("typed", RAISED)
def test_an_error_of_a_plugin_is_its_own_frames_and_a_line(here, capsys, typed):
    plugin(here, RAISING)
    keys = [key.partition("=")[0] for key in typed.split()]
    usual = [text for text in LINE.split() if text.partition("=")[0] not in keys]
    with pytest.raises(SystemExit) as stop:
        cli.main([*usual, *typed.split(), "plugin=own.py"])
    first, *lines, said = capsys.readouterr().err.splitlines()
    files = [line.split('"')[1] for line in lines if line.startswith("  File ")]
    assert stop.value.code == 2 and first == "Traceback (most recent call last):"
    assert files and set(files) == {str(here / "own.py")}
    assert said.startswith("error: plugin=own.py: ") and " failed at own.py:" in said
    assert RAISED[typed] in said and RAISED[typed] in lines[-1]
    for folder in here.glob("outputs/x/*"):  # of a text that cannot be read there is none
        assert metrics(folder)["status"] == "failed"
        assert metrics(folder)["reason"].startswith(RAISED[typed])


def test_a_cell_whose_plugin_fails_has_the_same_lines_in_its_log(here, capsys):
    plugin(here, RAISING)
    with pytest.raises(SystemExit):
        cli.main(["-m", *LINE.split(), "plugin=own.py", "where=on_train_end", "seed=0"])
    log = next((here / "outputs/sweeps/x/.sweep/logs").glob("*.log")).read_text()
    assert log.count("  File ") == log.count('own.py"') == 2
    assert log.splitlines()[-1].startswith("error: plugin=own.py: ")
    cell = next((here / "outputs/sweeps/x").glob("*/metrics.json")).parent
    why = metrics(cell)["reason"]
    assert re.fullmatch(
        r"plugin=own\.py: .* failed at own\.py:\d+: ZeroDivisionError: division by zero", why
    )


def test_in_python_an_error_of_a_plugin_is_the_cause(here, capsys):
    plugin(here, RAISING)
    keys = {key: yaml.safe_load(text) for key, text in (word.split("=") for word in LINE.split())}
    with pytest.raises(UserError, match=r"^plugin=own\.py: .* failed at own\.py:") as raised:
        lmlab.train(**keys, plugin="own.py", where="on_train_end", verbose=False)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_the_lab_keeps_its_whole_traceback(here, monkeypatch, capsys):
    plugin(here, RAISING)
    monkeypatch.setattr("lmlab.training.summary.introduction", lambda *_: 1 / 0)
    monkeypatch.setattr("lmlab.plugins.is_own_file", lambda file: False)  # this one is none
    with pytest.raises(ZeroDivisionError) as stop:
        cli.main([*LINE.split(), "plugin=own.py"])
    assert "experiment.py" in {frame.path.name for frame in stop.traceback}
    assert "plugin=own.py: " not in capsys.readouterr().err
