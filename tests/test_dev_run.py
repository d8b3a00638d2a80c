"""fast_dev_run=true tries everything in two steps and one evaluation, and keeps nothing."""

import numpy as np
import pytest

import lmlab
from lmlab.commands import train as cli
from lmlab.config.overrides import resolved
from lmlab.data.splits import Splits, shortened
from tests.conftest import ROOT, refused

SMALL = "fast_dev_run=true data=sentence val_fraction=0.2 device=cpu threads=1 "


def test_a_run_is_tried_and_nothing_is_kept(here, capsys):
    assert cli.main((SMALL + "model=gpt_nano max_steps=10000 max_minutes=1").split()) is None
    out, err = capsys.readouterr()
    assert "model=gpt_nano: 2 steps and an evaluation in" in out and "val/loss" in out
    assert out.count("\n") == 2 and err == "" and list(here.iterdir()) == []


def test_each_configuration_of_a_sweep_is_tried_once(here, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main((SMALL + "-m model=gpt_nano,bigram,ngram lr=0.1,1e39 seed=0,1").split())
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and list(here.iterdir()) == []
    assert "2 of 12 cells are the same as another" in err  # a model that counts has no rate
    assert err.count("\n") == 3 and "error: model=bigram lr=1e+39: after" in err.replace(
        "e39", "e+39"
    )
    assert "model=ngram lr=0.1: counted in" in out and out.count("\n") == 4


def test_what_a_plug_in_does_wrong_is_shown(here, capsys):
    code = (ROOT / "examples/my_lab.py").read_text()
    (here / "lab.py").write_text(
        code.replace("def accuracy(", "def accuracy(model, data): 1 / 0\n\n\ndef later(")
    )
    line = "fast_dev_run=true plugin=lab.py model=rnn data=recipes device=cpu threads=1"
    cli.main(line.split())
    out, err = capsys.readouterr()
    assert "warning:" in err and "ZeroDivisionError" in err and "model=rnn: 2 steps" in out


def test_only_the_beginning_of_a_text_is_used(here):
    config, _ = resolved(("data=tales", "test_fraction=0.1"))
    whole = Splits.of_run(config)
    with shortened(100):
        text = Splits.of_run(config)
    for name, part in text.parts.items():
        assert np.array_equal(part, whole.parts[name][:100])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fast_dev_run=yes", ["fast_dev_run=yes", "needs true or false"]),
        (SMALL + "resume=outputs/x", ["not allowed with resume="]),
        (SMALL + "lr=1e39", ["after", "not finite"]),
        (SMALL + "n_embd=33", ["n_embd=33"]),
    ],
)
def test_what_cannot_run_is_one_line(here, capsys, line, words):
    refused(capsys, lambda: cli.main(line.split()), words)
    assert list(here.iterdir()) == []


def test_in_python_nothing_is_returned(here):
    keys = {"data": "sentence", "val_fraction": 0.2, "device": "cpu", "threads": 1}
    assert lmlab.train(fast_dev_run=True, model="bigram", **keys) is None
    assert lmlab.sweep(fast_dev_run=True, model=["bigram"], verbose=False, **keys) is None


def test_of_several_that_raise_each_is_a_line(here, capsys):
    code = (ROOT / "examples/my_lab.py").read_text()
    broken = code.replace(
        "super().__init__(config)", "super().__init__(config)\n        1 / (config.n_embd - 8)"
    )
    (here / "lab.py").write_text(broken)
    line = SMALL + "-m plugin=lab.py model=rnn n_embd=8,9,10 seed=0"
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and out.count("n_embd=") == 2
    assert "error: n_embd=8: plugin=lab.py: __init__ failed at lab.py:" in err
    assert "ZeroDivisionError" in err


def test_a_window_and_a_mark_fit_into_what_is_used(here, capsys):
    (here / "a.txt").write_text("abc\n" * 6000 + "a=b\n" * 3000)
    line = "fast_dev_run=true data=file path=a.txt device=cpu threads=1 model=bigram batch_size=1 "
    cli.main([*line.split(), "separator=\\n", "score_after=="])
    cli.main([*line.split(), "block_size=21000"])
    assert capsys.readouterr().out.count("2 steps and an evaluation") == 2
