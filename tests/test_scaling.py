"""What is said of runs whose law is known, because it was planted."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lmlab.commands import scaling as command
from lmlab.errors import UserError
from lmlab.sweeps import table as tables
from lmlab.sweeps.law import Law
from lmlab.sweeps.scaling import scaling_of

TRUTH = Law(E=1.2, A=30.0, B=60.0, alpha=0.35, beta=0.3)


def runs(noise=0.002, sizes=5, lengths=5, seeds=3, **changed):
    """A table of runs as the lab makes them, whose losses follow the law."""
    random = np.random.default_rng(0)
    rows = []
    for N in np.geomspace(1e4, 1e6, sizes).round():
        for D in np.geomspace(1e5, 1e7, lengths).round():
            for seed in range(seeds):
                loss = TRUTH.loss(N, D) * np.exp(noise * random.standard_normal())
                row = dict.fromkeys(("data", "tokenizer", "device", "optimizer"), "x")
                row |= {"model": "gpt", "n_embd": N, "lr": 0.1, "val_fraction": 0.1, "seed": seed}
                row |= {
                    "test_fraction": 0,
                    "separator": None,
                    "score_after": None,
                    "max_steps": 1000,
                }
                row |= {"schedule": "linear", "warmup_steps": 10, "hold_steps": 700}
                row |= {"decay_steps": 1000, "reason": "", "label": f"n_embd={N},lr=0.1"}
                row |= {"n_params": N, "tokens": D, "flops": 6 * N * D, "val/loss": loss}
                row |= {"group": f"{N} {D}", "status": "finished", "step": 1000}
                row |= {"data_sha256": "a", "started": 1.0}
                rows.append(row | changed)
    return pd.DataFrame(rows)


@pytest.fixture
def typed(here, monkeypatch, capsys):
    """Types the command about a table; returns what was printed, and scaling.json."""

    def typed(table, line=""):
        monkeypatch.setattr(tables, "load_runs", lambda *folders: table)
        command.main(["bootstraps=200", *line.split()])
        return capsys.readouterr().out, json.loads((here / "scaling.json").read_text())

    return typed


def test_the_law_is_found_and_all_that_is_printed_is_in_the_file(typed):
    out, numbers = typed(runs(), "predict=3e6,3e7 budget=6e12")
    for name, planted in vars(TRUTH).items():
        value, low, high = numbers["law"][name]
        assert low < planted < high and low < value < high
    assert numbers["runs"] == 75 and numbers["configurations"] == 25 and numbers["doubts"] == []
    _, low, high = numbers["predicted"]["loss"]
    assert low < TRUTH.loss(3e6, 3e7) < high and high - low < 0.1
    assert numbers["predicted"]["reach"] == pytest.approx(9)
    assert "9 times the largest of the runs" in out
    best_N, best_D = TRUTH.best(6e12)
    assert numbers["best"]["N"][1] < best_N < numbers["best"]["N"][2]
    assert numbers["best"]["D"][1] < best_D < numbers["best"]["D"][2]
    assert "scaling.png" in out and "doubt" not in out


def test_an_interval_of_a_run_holds_what_runs_do_by_chance():
    """Of many runs of a size that the law knows well, nineteen in twenty lie within it."""
    scaling = scaling_of(runs(noise=0.01, sizes=7, lengths=7), 200)
    N, D = 1e5, 1e6
    _, low, high = scaling.predicted(N, D)
    drawn = TRUTH.loss(N, D) * np.exp(0.01 * np.random.default_rng(1).standard_normal(4000))
    assert 0.92 < np.mean((low < drawn) & (drawn < high)) < 0.98


@pytest.mark.parametrize(
    "table, words",
    [
        (runs(sizes=3), "only 3 different sizes"),
        (runs(lengths=4), "only 4 different lengths"),
        (runs(seeds=1), "one seed each"),
        (runs(decay_steps=2000), "75 of 75 runs ended before their learning rate had fallen"),
        (runs(flops=1.0), "0.00 times 6 N D"),
        (runs(schedule="constant"), "75 of 75 runs have schedule=constant"),
        (
            runs().assign(lr=lambda table: 1 / table["n_params"]),
            "the runs differ in lr as well; what that does is taken for an effect of size",
        ),
        (
            pd.concat([runs(), runs(started=2.0)], ignore_index=True),
            "the one that started last counts; left out: 75",
        ),
    ],
)
def test_what_makes_a_law_hard_to_believe_is_said(typed, table, words):
    out, numbers = typed(table)
    assert f"doubt: {numbers['doubts'][0]}" in out
    assert any(words in doubt for doubt in numbers["doubts"]) and numbers["runs"] <= 75


@pytest.mark.parametrize(
    "table, words",
    [
        (runs(sizes=2), ["2 different sizes", "needs 3"]),
        (runs(status="failed"), ["0 finished runs"]),
        (
            runs(sizes=3, lengths=3, seeds=1).assign(**{"val/loss": np.nan}),
            ["9 finished runs have no val/loss", "val_fraction above 0"],
        ),
        (pd.concat([runs(), runs(model="lstm", group="other")]), ["model", "gpt, lstm"]),
        (pd.concat([runs(), runs(data_sha256="b", group="other")]), ["data_sha256"]),
        (pd.concat([runs(), runs(val_fraction=0.3, group="other")]), ["val_fraction", "0.1, 0.3"]),
        (pd.concat([runs(), runs(test_fraction=0.2, group="other")]), ["test_fraction"]),
        (pd.concat([runs(), runs(separator="a", group="other")]), ["separator"]),
        (pd.concat([runs(), runs(score_after="a", group="other")]), ["score_after"]),
    ],
)
def test_runs_that_have_no_law_are_refused(typed, here, table, words):
    with pytest.raises(UserError) as refusal:
        typed(table)
    assert all(word in str(refusal.value) for word in words)
    assert not [*here.iterdir()]


@pytest.mark.parametrize(
    ("asked", "lost"),
    [
        (lambda scaling: scaling.predicted(1e5, 1e6), replace(TRUTH, E=math.nan)),
        (lambda scaling: scaling.best(6e11)["loss"], Law(1.0, 1e300, 1e-300, 0.01, 0.01)),
    ],
)
def test_some_drawn_laws_without_a_number_take_no_interval_away(asked, lost):
    scaling = scaling_of(runs(), 200)
    _, low, high = asked(scaling)
    few = replace(scaling, drawn=[lost] * 3 + scaling.drawn[3:])
    assert asked(few)[1:] == pytest.approx((low, high), rel=0.01)
    many = replace(scaling, drawn=[lost] * 10 + scaling.drawn[10:])
    with pytest.raises(UserError, match="10 of 200 laws that fit such runs have no number there"):
        asked(many)


def test_numbers_of_somebody_else_are_not_replaced(typed, here):
    """The picture is named, the file beside it is not."""
    (here / "package.json").write_text('{"name": "mine"}')
    (here / "folder.json").mkdir()
    for name, words in (("package", "was not written by lmlab"), ("folder", "is a folder")):
        with pytest.raises(UserError, match=rf"{name}\.json.*{words}"):
            command.main([f"out={name}.png"])
    assert "mine" in (here / "package.json").read_text()
    for _ in range(2):  # its own are
        typed(runs(sizes=3, lengths=3, seeds=1))


@pytest.mark.parametrize("line", ["predict=1e6", "predict=1e6,-1", "predict=a,b", "budget=0"])
def test_what_cannot_be_predicted_is_refused(typed, line):
    with pytest.raises(UserError, match=line.partition("=")[0]):
        typed(runs(), line)


def strict(text):
    """JSON without NaN and Infinity, which other readers refuse."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in scaling.json"))


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.05), (1, 0.05), (2, 1.0)])
@pytest.mark.parametrize(
    "line", ["", "budget=1", "budget=1e30", "predict=1,1", "predict=1e30,1e30"]
)
def test_whatever_the_losses_what_is_said_is_a_number_or_one_line(typed, here, seed, noise, line):
    """A few short runs have losses that hardly follow a law, or grow with size and length."""
    random = np.random.default_rng(seed)
    table = runs(sizes=3, lengths=3, seeds=2)
    table["val/loss"] = 3 * np.exp(noise * random.standard_normal(len(table)))
    try:
        out, _ = typed(table, line)
    except UserError as refusal:
        assert "\n" not in str(refusal) and not [*here.iterdir()]
    else:
        assert "nan" not in out and "inf" not in out
        strict((here / "scaling.json").read_text())
