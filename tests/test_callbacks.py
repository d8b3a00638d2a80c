"""Callbacks and loggers: the lab's own, and those of plug-ins. A resumed run goes on to the bit."""

import csv
import json
import math
import sys
import textwrap
from collections import OrderedDict, defaultdict
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmlab.commands import evaluate
from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.runs import checkpoints
from lmlab.sweeps import load_runs, table
from lmlab.training import companions
from lmlab.training.callbacks import SkipSpikes
from lmlab.training.recorder import Recorder
from tests.conftest import config, content, history, metrics, refused, weights
from tests.test_plugins import plugin

LINE = (
    "model=gpt_nano data=sentence val_fraction=0.2 threads=1 device=cpu precision=32-true batch_size=4 "
    "warmup_steps=0 log_interval=1 eval_interval=5 checkpoint_interval=5 dropout=0.1 name=x "
)


def stop_after(monkeypatch, steps):
    """Lets a run stop after so many steps, as after a signal."""
    agree = Recorder.agree

    def agree_to_stop(self, *votes):
        agreed = agree(self, *votes)
        self.stopping = self.stopping or self.meter.step >= steps
        return agreed

    monkeypatch.setattr(Recorder, "agree", agree_to_stop)


def resumed(train, monkeypatch, line, steps=20):
    """A run of so many steps, and one that was stopped on the way and resumed."""
    whole = train(f"{line} max_steps={steps}")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        parted = train(f"{line} max_steps={steps}")
    assert 0 < metrics(parted)["step"] < steps, metrics(parted)
    own = [word for word in line.split() if word.startswith("plugin=")]
    cli.main([f"resume={parted}", *own])
    assert metrics(parted)["step"] == steps
    return whole, parted


def assert_same(whole, parted, *names):
    for name in ("val/loss", "train/loss", *names):
        assert history(whole, name) == history(parted, name), name
    for checkpoint in ("last", "best"):
        one, two = weights(whole, checkpoint), weights(parted, checkpoint)
        assert all(weight.equal(two[key]) for key, weight in one.items())


@pytest.mark.parametrize(
    "keys", ["ema=0.9", "skip_spikes=1.05 gradient_norms=true", "ema=0.8 grad_accumulation=2"]
)
def test_a_resumed_run_goes_on_to_the_bit(train, monkeypatch, keys):
    whole, parted = resumed(train, monkeypatch, f"{LINE} lr=0.03 {keys}", steps=40)
    assert_same(whole, parted, *["skipped_steps"] * ("skip" in keys))


DECAY = """
    import lmlab, pytorch_lightning as pl

    @lmlab.register.callback("decay")
    class Decay(pl.Callback):
        "Weight decay that grows with the steps."

        def on_before_optimizer_step(self, trainer, module, optimizer):
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.125 * trainer.global_step
"""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_setting_that_a_callback_changes_comes_back(here, train, monkeypatch, optimizer):
    line = f"{LINE} plugin={plugin(here, DECAY)} optimizer={optimizer} lr=0.03"
    whole, parted = resumed(
        train, monkeypatch, line.replace("gpt_nano", "modern n_embd=16 n_head=1")
    )
    assert_same(whole, parted)
    saved = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)
    assert {g["weight_decay"] for g in saved["optimizer_states"][0]["param_groups"]} == {2.375}


def test_how_many_steps_were_left_out_is_said_at_the_end(train, capsys, monkeypatch):
    whole, parted = resumed(train, monkeypatch, f"{LINE} lr=0.03 skip_spikes=1.05", steps=40)
    n = metrics(whole)["skipped_steps"]
    assert 0 < n == history(whole, "skipped_steps")[40] == metrics(parted)["skipped_steps"]
    said = f"skip_spikes=1.05: {n} of 40 steps were left out\n"
    assert capsys.readouterr().out.count(said) == 2
    runs = load_runs(whole.parent)
    assert f"skip_spikes left out steps, at most {n} of 40." in table.ended_early(runs)[0]
    with monkeypatch.context() as patch:  # its losses of counting are missing, and are added
        patch.setattr("lmlab.training.experiment.is_complete", lambda *_: False)
        cli.main([f"resume={whole}"])
    assert metrics(whole)["skipped_steps"] == n and said in capsys.readouterr().out
    none = train(f"{LINE} max_steps=5 skip_spikes=9")
    assert metrics(none)["skipped_steps"] == 0 and "left out" not in capsys.readouterr().out
    assert "skipped_steps" not in metrics(train(f"{LINE} max_steps=2"))


def test_the_averaged_weights_are_evaluated_kept_and_sampled(train, capsys):
    """In metrics.json, last.ckpt and best.ckpt alike; training goes on with its own weights."""
    plain = train(f"{LINE} lr=0.03 max_steps=10")
    run = train(f"{LINE} lr=0.03 max_steps=10 ema=0.9")
    for name in ("train/loss", "grad_norm"):
        assert history(run, name) == history(plain, name)
    assert history(run, "val/loss")[10] != history(plain, "val/loss")[10]
    evaluate.main([f"run={run}"])
    found = float(capsys.readouterr().out.split("val/loss")[-1].split()[0])
    assert found == pytest.approx(metrics(run)["val/loss"], abs=2e-6)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    trained = saved["callbacks"]["Average"]["trained"]
    loaded = checkpoints.load(plain, "last", "cpu")
    assert all(one.equal(two) for one, two in zip(trained, loaded.model.parameters(), strict=True))


def test_the_mean_is_that_of_its_definition(train):
    runs = [train(f"{LINE} lr=0.03 max_steps={n} decay_steps=4") for n in (1, 2, 3, 4)]
    mean = None
    before = train(f"{LINE} lr=1e-30 min_lr=0 weight_decay=0 max_steps=1")
    mean = weights(before)["model.head.weight"].double()
    for step, run in enumerate(runs, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weights(run)["model.head.weight"].double()
    averaged = train(f"{LINE} lr=0.03 max_steps=4 ema=0.9")
    torch.testing.assert_close(
        weights(averaged)["model.head.weight"].double(), mean, atol=1e-6, rtol=0
    )


OTHER_STORAGE = """
    import torch

    class PlainConfig(lmlab.OptimizerConfig):
        lr: float = 0.1

    @lmlab.register.optimizer("plain", PlainConfig)
    class Plain(torch.optim.Optimizer):
        def __init__(self, weights, config, precision):
            super().__init__(weights.groups(0.0), {"lr": config.lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for weight in group["params"]:
                    UPDATE
"""


def test_the_mean_is_of_the_weights_wherever_an_optimizer_puts_them(here, train, monkeypatch):
    """An optimizer may change a weight in place, or put another tensor in its place."""
    runs = []
    for update in ("sub_(group['lr'] * weight.grad)", "data = weight - group['lr'] * weight.grad"):
        text = OTHER_STORAGE.replace("UPDATE", f"weight.{update}")
        line = f"{LINE} plugin={plugin(here, text)} optimizer=plain ema=0.9"
        runs += resumed(train, monkeypatch, line, steps=10)
    first = weights(runs[0])
    for run in runs[1:]:
        assert all(weight.equal(first[name]) for name, weight in weights(run).items())


def test_patience_ends_a_run_and_more_of_it_continues_it(train, capsys):
    run = train(f"{LINE} lr=1e-30 min_lr=0 weight_decay=0 max_steps=100 patience=2")
    said = capsys.readouterr().out
    assert "patience=2: no lower val/loss since: over at step 10 of 100" in said
    assert (metrics(run)["status"], metrics(run)["step"]) == ("finished", 10)
    cli.main([f"resume={run}"])
    assert "finished already, at step 10" in capsys.readouterr().out
    cli.main([f"resume={run}", "patience=3"])
    assert (metrics(run)["status"], metrics(run)["step"]) == ("finished", 15)


def test_a_spike_is_left_out_and_after_ten_in_a_row_is_the_usual():
    """A gradient that is no number is a spike, too."""
    callback = SkipSpikes(2.0)
    weight = torch.nn.Parameter(torch.zeros(3))
    run = SimpleNamespace(log_interval=1)
    logged = {}

    def is_skipped(norm):
        weight.grad = torch.ones(3)
        module = SimpleNamespace(
            grad_norm=torch.tensor(norm),
            parameters=lambda: [weight],
            run=run,
            log=logged.__setitem__,
        )
        callback.on_before_optimizer_step(SimpleNamespace(global_step=0), module, None)
        return weight.grad is None

    assert not any(is_skipped(norm) for norm in (9.0, *[1.0] * 19, 1.9))
    assert is_skipped(5.0) and is_skipped(float("nan")) and not is_skipped(1.0)
    assert [is_skipped(7.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert logged == {"skipped_steps": 12}


def test_the_gradients_norms_are_those_of_the_matrices(train):
    run = train(f"{LINE} lr=0.003 max_steps=2 gradient_norms=true grad_clip=0")
    names = [name for name in history_names(run) if name.startswith("gradient/")]
    total = math.sqrt(sum(history(run, name)[2] ** 2 for name in names))
    assert total == pytest.approx(history(run, "grad_norm")[2], rel=0.05)


def history_names(run):
    """All names in a run's history."""
    lines = (run / "history.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)}


STATEFUL = """
    from pytorch_lightning import Callback

    class Keys:
        shift: float = 0.001

    @lmlab.register.callback("drift", Keys)
    class Drift(Callback):
        def __init__(self, config):
            self.shift = config.shift
            self.steps = 0

        def on_train_start(self, trainer, module):
            module.log_dict({"drift": 0.0, "start": 1.0})

        def on_train_end(self, trainer, module):
            module.log("end", 2.0)

        def on_train_batch_end(self, trainer, module, *_):
            self.steps += 1
            module.log("drift", self.steps * self.shift)
            for weight in module.parameters():
                weight.data.add_(self.steps * self.shift)

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]
    """


def test_a_callback_of_ones_own_with_state_and_a_key(train, here, monkeypatch, capsys):
    name = plugin(here, STATEFUL)
    line = f"{LINE} plugin={name} lr=0.01 shift=0.002"
    whole, parted = resumed(train, monkeypatch, line)
    assert_same(whole, parted, "drift", "start", "end")
    assert (history(whole, "start"), history(whole, "end")) == ({0: 1.0}, {20: 2.0})
    assert history(whole, "drift")[20] == pytest.approx(0.04)
    assert config(whole)["shift"] == 0.002
    cli.main(["--help", f"plugin={name}"])
    assert "Keys of every run, of drift\n  shift: 0.001" in capsys.readouterr().out
    cells = train(f"-m {line.replace('shift=0.002', 'shift=0.001,0.002')} max_steps=2 name=s")
    assert sorted(config(cell)["shift"] for cell in cells) == [0.001, 0.002]
    refused(capsys, lambda: train(f"{LINE} plugin={name} shift=x"), ["shift=x", "a number"])
    refused(capsys, lambda: train(f"{LINE} shift=1"), ["shift=1", "there is no key shift"])


@pytest.mark.parametrize("fault", ["1 / 0", "raise SystemExit", "self.steps = state['none']"])
def test_a_finished_run_stays_so_if_going_on_fails_before_a_step(train, here, capsys, fault):
    name = plugin(here, STATEFUL.replace('self.steps = state["steps"]', fault))
    run = train(f"{LINE} plugin={name} max_steps=4")
    before = content(run)
    with pytest.raises(SystemExit) as stop:
        cli.main([f"resume={run}", "max_steps=8", f"plugin={name}"])
    assert stop.value.code == 2 and "Traceback (most recent" not in capsys.readouterr().out
    after = content(run)
    for file in ("config.yaml", "metrics.json", "history.jsonl", "checkpoints/last.ckpt"):
        assert after[Path(file)] == before[Path(file)]
    assert metrics(run)["status"] == "finished"


def test_a_state_that_no_checkpoint_could_give_back_is_refused_at_the_start(train, here, capsys):
    name = plugin(here, STATEFUL.replace('{"steps": self.steps}', '{"steps": Keys()}'))
    refused(
        capsys,
        lambda: train(f"{LINE} plugin={name}"),
        ["the state of the callback Drift", "tensors"],
    )


def test_a_logger_gets_every_number_that_tensorboard_gets(train, here):
    name = plugin(
        here,
        """
        from pytorch_lightning.loggers import CSVLogger

        @lmlab.register.logger("csv")
        def csv(path):
            return CSVLogger(path, name="", version="csv")
        """,
    )
    run = train(f"{LINE} plugin={name} max_steps=5")
    with open(run / "csv/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for number in ("train/loss", "val/loss"):
        found = {int(row["step"]): float(row[number]) for row in rows if row[number]}
        assert found == pytest.approx(history(run, number))
    assert (run / "csv/hparams.yaml").exists()


def test_a_logger_that_fails_is_a_warning(train, here, capsys):
    name = plugin(
        here,
        """
        from pytorch_lightning.loggers import CSVLogger

        class Broken(CSVLogger):
            def log_hyperparams(self, values):
                raise ConnectionError("no server")

        lmlab.register.logger("broken")(lambda path: Broken(path))
        lmlab.register.logger("seven")(lambda path: 7)
        lmlab.register.logger("made")(lambda path: CSVLogger)
        """,
    )
    run = train(f"{LINE} plugin={name} max_steps=2")
    assert metrics(run)["status"] == "finished"
    said = capsys.readouterr().err
    assert "warning: the logger broken failed and ends here: ConnectionError: no server" in said
    assert (
        "warning: the logger seven cannot be made, and is left out: is 7, without log_hyperparams, "
        "log_metrics, save, finalize; needs one of Lightning's loggers, or None"
    ) in said
    assert "the logger made cannot be made, and is left out: is the class CSVLogger; needs" in said


def test_the_labs_own_callbacks_are_no_part_of_other_runs(train):
    """Their keys at their defaults change neither the run nor the name of a cell."""
    run = train(f"{LINE} max_steps=2")
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert saved["callbacks"] == {}


GROWN = {
    "a number of numpy's": ('{"steps": np.int64(1)}', "the callback Drift holds more than tensors"),
    "an object": ('{"steps": [self.shift, Keys()]}', "the callback Drift holds more than tensors"),
    "too large": (
        '{"steps": torch.zeros(2**24)}',
        "of which the state of the callback Drift has 67,108,",
    ),
}


@pytest.mark.parametrize("fault", GROWN)
def test_a_state_that_could_not_be_read_again_ends_the_run_before_it_is_written(
    train, here, capsys, fault
):
    """A state that is so from the second checkpoint on; the run goes on from the first."""
    state, message = GROWN[fault]
    text = "import numpy as np\nimport torch\n" + textwrap.dedent(STATEFUL)
    grown = text.replace('{"steps": self.steps}', f'{{"steps": 0}} if self.steps < 8 else {state}')
    line = f"{LINE} max_steps=10 plugin={plugin(here, grown)}"
    refused(capsys, lambda: train(line), [message, ".ckpt: is not written"])
    (run,) = here.glob("outputs/x/*")
    assert metrics(run)["status"] == "failed" and message in metrics(run)["reason"]
    plugin(here, text)
    cli.main([f"resume={run}", "plugin=own.py"])
    assert (metrics(run)["status"], metrics(run)["step"]) == ("finished", 10)


def test_an_optimizers_state_that_could_not_be_read_again_is_not_written(tmp_path):
    io = checkpoints.SealedCheckpointIO(1000)
    for key, value in (("optimizer_states", [{"beta": {1: abs}}]), ("mine", Path("a"))):
        with pytest.raises(UserError, match=r"the (optimizer's state|entry mine) holds more"):
            io.save_checkpoint({"state_dict": {}, key: value}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"the model's state has 4,0.*at most 1,000"):
        io.save_checkpoint({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "last.ckpt")
    assert not [*tmp_path.iterdir()]


PLAIN = [1 + 2j, b"a", bytearray(b"a"), {1}, "a", None, (1, [2.0]), torch.Size([1]), torch.int8]
PLAIN += [OrderedDict(a=1), torch.nn.Parameter(torch.ones(2)), torch.ones(2).to_sparse()]
OTHERS = [np.float64(1), np.zeros(2), frozenset([1]), defaultdict(int), range(3), print, Path("a")]


@pytest.mark.parametrize("value", [*PLAIN, *OTHERS], ids=lambda value: type(value).__name__)
def test_what_is_written_is_what_torch_reads_again(tmp_path, value):
    path = tmp_path / "last.ckpt"
    torch.save(value, path)
    is_read = True
    try:
        torch.load(path, weights_only=True)
    except UnpicklingError:
        is_read = False
    try:
        checkpoints.size_of([value], "it", path)
    except UserError:
        assert not is_read
    else:
        assert is_read


def test_a_state_that_no_callback_of_the_resumed_run_takes_is_refused(train, here, capsys):
    run = train(f"{LINE} max_steps=5 plugin={plugin(here, STATEFUL)}")
    name = plugin(here, STATEFUL.replace("class Drift", "class Other"))
    resume = [f"resume={run}", f"plugin={name}", "max_steps=10"]
    words = ["last.ckpt: holds the state of the callback Drift", "the plug-in as it was"]
    refused(capsys, lambda: cli.main(resume), words)
    assert metrics(run)["step"] == 5
    run = train(f"{LINE} max_steps=5 patience=3")
    cli.main([f"resume={run}", "patience=null", "max_steps=10"])  # which is switched off
    assert metrics(run)["step"] == 10


SPY = """
    import inspect
    from pytorch_lightning import Callback

    CALLED = []

    def noted(name):
        def hook(self, *_, **__):
            CALLED.append(name)
            return {"a": 1} if name == "state_dict" else None
        return hook

    HOOKS = [name for name, one in vars(Callback).items() if inspect.isfunction(one) and name[0] != "_"]
    HOOKS = [name for name in HOOKS if name not in UNCALLED]
    Spy = type("Spy", (Callback,), {name: noted(name) for name in HOOKS})
    lmlab.register.callback("spy")(Spy)
"""
OTHERS = ("test", "predict", "sanity", "exception")  # in names of hooks for what no run does


def test_each_hook_of_lightnings_is_called_or_refused(train, here):
    name = plugin(here, SPY.replace("UNCALLED", str(companions.NEVER_CALLED)))
    run = train(f"{LINE} plugin={name} max_steps=5")
    spy = sys.modules["plugin_own"]
    called = {*spy.CALLED}
    spy.CALLED.clear()
    cli.main([f"resume={run}", "max_steps=7", f"plugin={name}"])
    called |= {*spy.CALLED}
    missing = [hook for hook in spy.HOOKS if hook not in called]
    assert all(any(word in hook for word in OTHERS) for hook in missing), missing


@pytest.mark.parametrize("hook", companions.NEVER_CALLED)
def test_a_hook_that_would_never_be_called_is_refused(here, capsys, hook):
    text = f"""
        from pytorch_lightning import Callback
        lmlab.register.callback("own")(type("Own", (Callback,), {{"{hook}": lambda *_: None}}))
    """
    refused(
        capsys,
        lambda: cli.main(f"{LINE} plugin={plugin(here, text)} max_steps=5".split()),
        ["callback own", f"{hook} is never called here", "on_validation_end"],
    )


def test_what_looks_like_a_hook_and_is_none_is_a_warning(here, train, capsys):
    text = """
        from pytorch_lightning import Callback
        class Own(Callback):
            def on_train_batch_ended(self, *_): raise RuntimeError("never called")
            def step_of_mine(self): pass
        lmlab.register.callback("own")(Own)
    """
    train(f"{LINE} plugin={plugin(here, text)} max_steps=2")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no hook" in line]
    assert line == (
        "warning: callback Own: on_train_batch_ended is no hook of Lightning's, which does not call "
        "it (did you mean on_train_batch_end?)"
    )


def test_the_number_of_threads_is_the_runs_own(here, train):
    """A callback that sets another one is told so, once; what an evaluation sets is set back."""
    code = """
        import lmlab, torch
        from pytorch_lightning import Callback
        class Threads(Callback):
            def on_train_batch_end(self, trainer, module, *_):
                if trainer.global_step == 3:
                    torch.set_num_threads(2)
        @lmlab.register.callback("threads_of_ones_own")
        def threads(): return Threads()
        """
    plugin(here, code)
    run = train(f"{LINE} max_steps=8 plugin=own.py")
    (warning,) = metrics(run)["warnings"].split(" | ")
    assert "torch.set_num_threads(2) was called: threads=1 stands again after step 3" in warning
    plain = train(f"{LINE} max_steps=8")
    assert history(run, "val/loss") == history(plain, "val/loss")


def test_a_callback_that_sets_the_learning_rate_is_told_that_it_has_no_effect(here, train, capsys):
    code = """
        from pytorch_lightning import Callback
        class Rate(Callback):
            def on_train_batch_end(self, trainer, module, *_):
                trainer.optimizers[0].param_groups[0]["lr"] = 0.0
        @lmlab.register.callback("rate_of_ones_own")
        def rate(): return Rate()
        """
    plugin(here, code)
    run = train(f"{LINE} max_steps=8 plugin=own.py")
    (warning,) = metrics(run)["warnings"].split(" | ")
    assert (
        "plugin=own.py: a callback has changed the optimizer's lr, which has no effect" in warning
    )
    assert capsys.readouterr().err.count("has changed the") == 1
    assert history(run, "val/loss") == history(train(f"{LINE} max_steps=8"), "val/loss")


def test_an_optimizer_that_sets_its_own_learning_rate_is_said_to_have_stepped_with_it(here, train):
    code = """
        import torch
        class Fixed(torch.optim.SGD):
            def step(self, closure=None):
                for group in self.param_groups:
                    group["lr"] = 5.0
                return super().step(closure)
        class FixedConfig(lmlab.OptimizerConfig):
            lr: float = 0.1
        @lmlab.register.optimizer("fixed", FixedConfig)
        def fixed(weights, config, precision):
            return Fixed(weights.groups(0.0), lr=config.lr)
        """
    line = f"{LINE} model=bigram max_steps=8".replace("dropout=0.1", "")
    run = train(f"{line} optimizer=fixed plugin={plugin(here, code)}")
    (warning,) = metrics(run)["warnings"].split(" | ")
    assert "the optimizer has set lr=5 in its own step" in warning and "no effect" not in warning
    same = train(f"{line} optimizer=sgd lr=5 schedule=constant weight_decay=0")
    assert history(run, "train/loss") == pytest.approx(history(same, "train/loss"))
