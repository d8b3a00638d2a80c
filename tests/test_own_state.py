"""What an optimizer, a callback or a model of one's own keeps comes back to the bit, or is not written."""

import pytest

from lmlab.commands import train as cli
from lmlab.runs import checkpoints
from tests.conftest import history, metrics, refused, weights
from tests.test_callbacks import assert_same, resumed
from tests.test_misuse import LINE, model
from tests.test_plugins import plugin


def own_optimizer(step, given="weights.groups(0.0)"):
    """An optimizer whose step for a weight p with the state s is the line `step`."""
    return f"""
    import torch

    class OwnConfig(lmlab.OptimizerConfig):
        lr: float = 0.1

    class Own(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    s = self.state[p]
                    {step}

    @lmlab.register.optimizer("own", OwnConfig)
    def own(weights, config, precision):
        return Own({given}, {{"lr": config.lr, "n": 0}})
    """


def callback(hook, body, state="{}"):
    """A callback with one hook, and a state if `state` has values."""
    own = f"def state_dict(self): return {state}" if state != "{}" else ""
    return f"""
    from pytorch_lightning import Callback

    @lmlab.register.callback("own")
    class Own(Callback):
        {own}
        def {hook}(self, trainer, module, *_):
            {body}
    """


KEPT = """group["n"] += 1
                    s["n"] = s.get("n", 0) + 1
                    s["on"] = not s.get("on")
                    s["old"] = [*s.get("old", []), p.grad.clone()][-3:]
                    if s["n"] == 4:
                        s["late"] = p.clone()
                    change = sum(s["old"]) / s["n"] + group["n"] * s["on"] * p.grad / 9
                    p.sub_(change + 0.1 * s.get("late", 0) * s["on"], alpha=0.1)"""


def test_what_an_optimizer_keeps_comes_back_to_the_bit(here, train, monkeypatch):
    """A count in its group; numbers, truth values and lists of tensors; a tensor that comes late."""
    line = f"{LINE} plugin={plugin(here, own_optimizer(KEPT))} optimizer=own checkpoint_interval=1"
    assert_same(*resumed(train, monkeypatch, line.replace("max_steps=4", ""), steps=8))


NUMPYS = "__import__('numpy').float64(1)"
UNREADABLE = {  # the text of a plug-in, and words of the one line
    "a text in an optimizer": (own_optimizer("s['n'] = 'x'"), ["Own: n of its state"]),
    "a number of numpy's": (own_optimizer(f"s['n'] = {NUMPYS}"), ["the optimizer's state holds"]),
    "a tensor that grows": (
        own_optimizer("s['n'] = torch.cat([s.get('n', torch.zeros(0)), torch.ones(1)])"),
        ["Own: n of its state"],
    ),
    "another type": (own_optimizer("s['n'] = p.double()"), ["Own: n, whose numbers have another"]),
    "a callback's state": (
        callback("on_train_batch_end", f"self.n = {NUMPYS}", "{'n': getattr(self, 'n', 1)}"),
        ["the state of the callback Own holds more than"],
    ),
    "an entry": (
        callback("on_save_checkpoint", f"_[0]['mine'] = {NUMPYS}"),
        ["the entry mine holds more than"],
    ),
    "a part that is added": (
        callback("on_train_start", "module.model.late = __import__('torch').nn.Linear(2, 2)"),
        ["late.", "the model's state_dict does not fit"],
    ),
    "an extra state": (
        model() + "\n        def get_extra_state(self): return {'a': 1}\n"
        "        def set_extra_state(self, state): pass\n",
        ["_extra_state", "tensors alone"],
    ),
    "one number for many": (
        model(start="self.e = torch.nn.Parameter(torch.zeros(1).expand(5, 5))"),
        ["e: the model's state_dict does not fit"],
    ),
    "a table that grows": (
        model(
            start="self.register_buffer('b', torch.zeros(1))",
            scores="x if not self.training else x + self.grow()",
        )
        + "\n        def grow(self):\n            self.b = torch.cat([self.b, torch.zeros(1)])\n"
        "            return 0\n",
        ["b: the model's state_dict does not fit"],
    ),
    "a start that needs numbers": (
        model(start="self.n = float(torch.ones(1))"),
        ["Own: cannot be built without numbers"],
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_checkpoint_that_could_not_be_resumed_from_is_not_written(here, capsys, kind):
    """The one before, if there is one, stays as it is."""
    text, words = UNREADABLE[kind]
    line = f"{LINE} plugin={plugin(here, text)} checkpoint_interval=1"
    line += " optimizer=own" * ("register.optimizer" in text)
    if "register.model" in text:
        line = line.replace("model=bigram", "model=own")
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert stop.value.code == 2 and len(said) == 1
    assert all(word in said[0] for word in words), said
    (run,) = (here / "outputs/x").iterdir()
    assert metrics(run)["status"] == "failed"
    for path in run.glob("checkpoints/*.ckpt"):
        assert checkpoints.read(path)


def test_two_callbacks_of_one_name_with_state_are_refused(here, capsys):
    text = callback("on_train_start", "pass", "{'n': 1}").replace("class Own", "class Average")
    line = f"{LINE} plugin={plugin(here, text)} ema=0.2"
    refused(capsys, lambda: cli.main(line.split()), ["callback Average: there are two", "rename"])


@pytest.mark.parametrize(
    "hook",
    [
        "on_fit_start",
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_validation_end",
    ],
)
def test_a_callback_may_end_a_run_in_any_hook_after_a_step(here, train, hook):
    run = train(f"{LINE} plugin={plugin(here, callback(hook, 'trainer.should_stop = True'))}")
    assert metrics(run)["status"] == "finished" and 0 < metrics(run)["step"] < 4


def test_weights_that_no_optimizer_trains_are_a_warning(here, train, capsys):
    text = own_optimizer("p.sub_(p.grad, alpha=0.1)", given="weights.matrices[:1]")
    train(f"{LINE} plugin={plugin(here, text)} optimizer=own".replace("bigram", "gpt_nano"))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "warning: optimizer=own: " in said and "were not given to it" in said


IN_TRUTH = """
    import torch
    from pytorch_lightning import Callback

    @lmlab.register.evaluation("val/mine")
    def mine(model, data):
        tokens = torch.tensor(data.tokens.astype(int))
        losses = [
            torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), targets.flatten(), reduction="none")
            for idx, targets in model.windows(tokens, data.block_size, 4096)
        ]
        return {"val/mine": torch.cat(losses).mean()}

    @lmlab.register.callback("own")
    class Own(Callback):
        modes = set()

        def note(self, trainer, module):
            self.modes |= {part.training for part in module.modules()}

        on_validation_start = on_validation_epoch_start = on_validation_epoch_end = on_validation_end = note

        def on_train_end(self, trainer, module):
            assert self.modes == {False} and module.model.training
"""


@pytest.mark.parametrize("model", ["gpt_nano dropout=0.5", "lstm dropout=0.5"])
def test_an_evaluation_and_the_hooks_around_it_see_a_model_without_dropout(here, train, model):
    """So a loss computed by hand is val/loss."""
    found = metrics(train(f"{LINE} plugin={plugin(here, IN_TRUTH)} model={model}"))
    assert found["val/mine"] == pytest.approx(found["val/loss"], rel=1e-5)


MEDDLES = """
    @lmlab.register.evaluation("val/n")
    def n(model, data):
        data.{array}[:] = 1
        return {{"val/n": 1.0}}
"""


@pytest.mark.parametrize(
    "array",
    ['text.documents["val"].scored', 'text.documents["val"].starts', "tokenizer.byte_lengths"],
)
def test_an_evaluation_cannot_change_what_the_next_one_is_measured_on(here, train, capsys, array):
    line = f"{LINE} separator=o score_after=l"
    plain = train(line)
    run = train(f"{line} plugin={plugin(here, MEDDLES.format(array=array))}")
    assert "val/n" not in metrics(run) and "read-only" in capsys.readouterr().err
    for key in ("val/loss", "val/bits_per_byte"):
        assert history(run, key) == history(plain, key)


@pytest.mark.parametrize(("settings", "warns"), [('"lr": 9.0', True), ('"lr_scale": 0.0', False)])
def test_a_rate_of_a_group_is_a_scale(here, train, capsys, settings, warns):
    """The schedule sets lr before each step; a group's own would be replaced."""
    text = f"""
        import lmlab, torch

        class Keys(lmlab.OptimizerConfig):
            lr: float = 0.1

        @lmlab.register.optimizer("two", Keys)
        def two(weights, config, precision):
            "Matrices at lr, the rest at another rate."
            groups = [{{"params": weights.matrices}}, {{"params": weights.others, {settings}}}]
            return torch.optim.SGD(groups, lr=config.lr)
    """
    line = LINE.replace("bigram", "gpt_nano") + " eval_interval=1 warmup_steps=0"
    run = train(f"{line} plugin={plugin(here, text)} optimizer=two max_steps=1")
    said = " ".join("".join(capsys.readouterr()).split())
    assert ("its groups have several lr (0.1, 9.0), but each step sets" in said) == warns
    first, last = (weights(run, name) for name in ("previous", "last"))
    assert first["model.norm.weight"].equal(last["model.norm.weight"]) != warns
