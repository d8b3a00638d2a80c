"""The search: every trial once, however many processes and kills; what Optuna is told is what came
of the cell.
"""

import math
import re
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from unittest import mock

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.catalogue import OWN_EVALUATIONS
from lmlab.commands import train as cli
from lmlab.config.grammar import ends, parse
from lmlab.errors import UserError
from lmlab.inference import evaluations
from lmlab.numbers import METRIC, NUMBERS, objectives
from lmlab.signals import stop_at_once
from lmlab.sweeps import load_runs
from lmlab.sweeps.search import Dimension, SearchSweeper
from lmlab.sweeps.study import sampler, watch_of
from lmlab.training import experiment
from tests.conftest import ROOT, config, history, metrics, refused
from tests.test_sweep import in_company, linux, lost, sweep  # noqa: F401

LINE = (
    "-m hydra/sweeper=search model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu log_interval=5 "
    "optimizer=sgd schedule=constant warmup_steps=0 grad_clip=0 "
)
IN_MEMORY = ("sqlite://", "sqlite:///", "sqlite+pysqlite:///:memory:", "sqlite:///?timeout=9")
IN_MEMORY += ("sqlite:///file:x?mode=memory&uri=true",)


def study(name, folder="outputs/sweeps"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/{name}/study.db")


def states(name):
    return [trial.state.name for trial in study(name).trials]


@linux
def test_searchers_that_share_a_study_and_are_killed_run_each_trial_once(here, sweep):  # noqa: F811
    line = (
        LINE + "max_steps=200 eval_interval=50 lr=tag(log,interval(1e-2,10)) batch_size=2,4 name=s "
    )
    line += "hydra.sweeper.n_trials="
    folder = here / "outputs/sweeps/s"
    assert in_company(here, sweep, line + "5", lambda: len(list(folder.glob("lr=*"))) >= 2) == 0
    trials = study("s").trials
    assert len(trials) == 5 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    logs = [path.read_text() for path in (folder / ".sweep/logs").iterdir()]
    assert len(logs) == len(load_runs(folder)) == 5
    assert not any(map(lost, logs))
    for trial in trials:
        numbers = metrics(folder / trial.user_attrs["folder"])
        assert (
            numbers["config/lr"] == trial.params["lr"]
            and numbers["config/batch_size"] == trial.params["batch_size"]
        )
        assert trial.state.name == {"finished": "COMPLETE", "pruned": "PRUNED"}[numbers["status"]]
        if numbers["status"] == "finished":
            assert trial.value == numbers["val/loss"]
    assert sweep(line + "5") == 0 and len(study("s").trials) == 5
    assert sweep(line + "6") == 0 and len(study("s").trials) == 6


def test_a_trial_whose_process_dies_between_two_looks_is_run(here, sweep, monkeypatch):  # noqa: F811
    line = f"{LINE} max_steps=4 eval_interval=2 lr=interval(0.1,1) name=d hydra.sweeper.n_trials="
    assert sweep(line + "1") == 0
    abandoned = study("d").ask()
    abandoned.set_user_attr("by", "dead")
    (here / "outputs/sweeps/d/.sweep/searches/dead").touch()  # nobody holds its lock
    looks = iter(["other"])  # at the first look it is alive
    owner = SearchSweeper.owner
    monkeypatch.setattr(
        SearchSweeper, "owner", lambda self, trial: next(looks, None) or owner(self, trial)
    )
    assert sweep(line + "2") == 0
    assert states("d") == ["COMPLETE", "COMPLETE"]


def test_a_trial_that_diverges_is_told_as_failed_and_the_search_goes_on(here, sweep):  # noqa: F811
    line = (
        LINE
        + "max_steps=6 eval_interval=3 lr=1,1e39 name=d hydra.sweeper.n_trials=5 hydra.sweeper.pruner=none "
    )
    assert sweep(line + "hydra.sweeper.sampler=random") == 0
    for trial in study("d").trials:
        expected = ("FAIL", "diverged") if trial.params["lr"] == 1e39 else ("COMPLETE", "finished")
        assert (trial.state.name, trial.user_attrs["status"]) == expected
    assert {"FAIL", "COMPLETE"} == set(states("d"))


def test_an_unpromising_trial_is_cut_through_the_study(here, sweep):  # noqa: F811
    """Median of five good ones; the sixth is far behind at its first evaluation."""
    line = LINE + "max_steps=20 eval_interval=10 batch_size=2 name=p hydra/launcher=basic "
    line += "hydra.sweeper.n_trials="
    assert sweep(line + "5 lr=interval(5,6)") == 0
    assert sweep(line + "6 lr=interval(0.0001,0.0002)") == 0
    assert states("p") == ["COMPLETE"] * 5 + ["PRUNED"]
    numbers = metrics(here / "outputs/sweeps/p" / study("p").trials[-1].user_attrs["folder"])
    assert (numbers["status"], numbers["step"]) == ("pruned", 10)
    assert study("p").trials[-1].intermediate_values == {10: pytest.approx(numbers["val/loss"])}
    assert sweep(line + "7 lr=interval(0.0001,0.0002) hydra.sweeper.pruner=none") == 0
    assert states("p")[-1] == "COMPLETE"


def test_the_search_runs_under_hydras_basic_launcher_too(here, sweep):  # noqa: F811
    line = (
        LINE
        + "max_steps=4 eval_interval=2 lr=interval(1,2) hydra.sweeper.n_trials=3 hydra.sweeper.pruner=none "
    )
    assert sweep(line + "name=b hydra/launcher=basic") == 0
    assert sweep(line + "name=l hydra.launcher.n_jobs=1") == 0
    for one, other in zip(study("b").trials, study("l").trials, strict=True):
        assert (one.params, one.value) == (
            other.params,
            other.value,
        )  # the same proposals, the same losses


def test_the_direction_and_the_objective_are_the_studys(here, sweep, capsys):  # noqa: F811
    line = LINE + "max_steps=4 eval_interval=2 lr=0.1,1 name=o hydra.sweeper.n_trials=2 "
    assert (
        sweep(line + "hydra.sweeper.objective=best/val/loss hydra.sweeper.direction=maximize") == 0
    )
    assert study("o").direction == optuna.study.StudyDirection.MAXIMIZE
    for trial in study("o").trials:
        assert (
            trial.value
            == metrics(here / "outputs/sweeps/o" / trial.user_attrs["folder"])["best/val/loss"]
        )
    refused(
        capsys,
        lambda: cli.main(line.split()),
        ["hydra.sweeper.objective=val/loss", "best/val/loss", "name="],
    )


def test_trials_of_a_shared_study_whose_runs_are_in_another_folder_are_said(here, sweep, capsys):  # noqa: F811
    line = (
        LINE
        + f"max_steps=4 eval_interval=2 lr=interval(1,2) name=o hydra/launcher=basic hydra.sweeper.storage=sqlite:///{here}/st.db "
    )
    assert sweep(line + "out=x hydra.sweeper.n_trials=2") == 0
    assert "another folder" not in capsys.readouterr().out
    assert sweep(line + "out=y hydra.sweeper.n_trials=2") == 0
    said = capsys.readouterr().out
    assert "2 of the study's 2 trials have their runs in another folder than y/sweeps/o" in said
    assert sweep(line + "out=y hydra.sweeper.n_trials=3") == 0
    said = capsys.readouterr().out
    assert "2 of the study's 3 trials have their runs in another folder" in said
    assert len(load_runs("y/sweeps/o")) == 1 and "val/loss" in said


def test_a_search_over_what_tokens_are_learned_from_goes_by_bits_and_says_so(here, sweep, capsys):  # noqa: F811
    (here / "t.txt").write_text("".join(f"the {n} cats and a dog. " for n in range(400)))
    line = (
        "-m model=bigram data=file path=t.txt block_size=8 device=cpu max_steps=2 eval_interval=2 "
        "hydra/sweeper=search hydra.sweeper.n_trials=2 hydra/launcher=basic test_fraction=0,0.3 "
    )
    assert sweep(line + "tokenizer=bpe vocab_size=270 name=a") == 0
    said = capsys.readouterr().out
    assert "objective val/bits_per_byte: the tokenizers differ" in said
    assert "the trials are validated on different text (test_fraction), so their losses" in said
    refused(
        capsys,
        lambda: cli.main(
            (line + "tokenizer=bpe vocab_size=270 name=b hydra.sweeper.objective=val/loss").split()
        ),
        ["hydra.sweeper.objective=val/loss", "test_fraction has several values", "bits_per_byte"],
    )
    assert sweep(line + "name=c") == 0
    said = capsys.readouterr().out
    assert "objective val/bits" not in said and "validated on different text" in said


def test_a_trial_that_was_stopped_is_taken_up_again(here, sweep, monkeypatch):  # noqa: F811
    """Also one whose process died before it was said whose it is."""
    line = (
        LINE
        + "max_steps=4 eval_interval=2 lr=interval(1,2) name=u hydra.sweeper.n_trials=3 hydra/launcher=basic"
    )
    run = experiment.run

    def stopped(*arguments):
        if len(study("u").trials) == 2:
            stop_at_once(signal.SIGINT)
        return run(*arguments)

    monkeypatch.setattr(experiment, "run", stopped)
    assert sweep(line) == 130
    assert states("u") == ["COMPLETE", "RUNNING"]
    monkeypatch.setattr(experiment, "run", run)
    assert sweep(line) == 0 and states("u") == ["COMPLETE"] * 3


SEEDS = LINE + "max_steps=4 eval_interval=2 lr=interval(1,2) seed=0,1 "


def test_the_value_of_a_trial_is_the_mean_over_its_seeds(here, sweep, capsys):  # noqa: F811
    line = SEEDS + "name=m hydra.sweeper.n_trials="
    assert sweep(line + "1") == 0
    assert "the mean over 2 seeds; none is pruned" in capsys.readouterr().out
    for trial in study("m").trials:
        runs = [metrics(here / "outputs/sweeps/m" / name) for name in trial.user_attrs["folder"]]
        assert [run["seed"] for run in runs] == [0, 1]
        assert {run["config/lr"] for run in runs} == {trial.params["lr"]}
        assert trial.value == pytest.approx(np.mean([run["val/loss"] for run in runs]), rel=1e-12)
    assert sweep(line + "2") == 0 and len(study("m").trials) == 2
    board = pd.read_csv("outputs/sweeps/m/leaderboard.csv")
    assert board["n"].tolist() == [2] * 2
    assert board["val/loss"][0] == pytest.approx(study("m").best_value)
    assert sweep((line + "3").replace("seed=0,1", "seed=0")) == 2
    assert "seed=0: the study m was started with seed=0,1" in capsys.readouterr().err


def test_a_trial_of_several_seeds_that_was_stopped_goes_on_where_it_was(here, sweep, monkeypatch):  # noqa: F811
    line = SEEDS + "hydra/launcher=basic hydra.sweeper.n_trials=2 name="
    run = experiment.run
    begun = []

    def stopped(*arguments):
        begun.append(arguments)
        if len(begun) == 4:  # the second seed of the second trial
            stop_at_once(signal.SIGINT)
        return run(*arguments)

    monkeypatch.setattr(experiment, "run", stopped)
    assert sweep(line + "u") == 130
    assert states("u") == ["COMPLETE", "RUNNING"]
    monkeypatch.setattr(experiment, "run", run)
    assert sweep(line + "u") == 0 and len(load_runs("outputs/sweeps/u")) == 4
    assert sweep(line + "v") == 0
    for one, other in zip(study("u").trials, study("v").trials, strict=True):
        assert (one.params, one.value) == (other.params, other.value)


@pytest.mark.parametrize(
    "text",
    ["lr=range(1e-3,1e-2)", "lr=interval(0.001,0.001)", "lr=1e-3,1e-3", "n_layer=range(2,3)"],
)
def test_a_search_over_one_value_is_refused(text):
    with pytest.raises(UserError, match=r"has one value, (0\.001|1e-3|2(\.0)?); .*interval"):
        Dimension(parse(text))


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e3), st.booleans(), st.integers(0, 100))
def test_a_number_lies_in_its_interval_and_is_typed_to_its_last_bit(low, factor, log, number):
    text = f"interval({low!r},{low * factor!r})"
    override = parse(f"lr={f'tag(log,{text})' if log else text}")
    value = low + (low * factor - low) * number / 101
    one = Dimension(override)
    assert float(one.text(value).removeprefix("lr=")) == value and one.distribution._contains(value)
    assert (one.distribution.low, one.distribution.high, one.distribution.log) == (
        low,
        low * factor,
        log,
    )
    assert [float(end.removeprefix("lr=")) for end in ends(override)] == [low, low * factor]


@pytest.mark.parametrize(
    ("text", "low", "high", "step"),
    [
        ("n_layer=interval(1,4)", 1, 4, 1),
        ("n_layer=range(1,9,2)", 1, 7, 2),
        ("dropout=interval(0,1)", 0.0, 1.0, None),
        ("dropout=range(0,0.5,0.1)", 0.0, 0.4, 0.1),
    ],
)
def test_whole_numbers_stay_whole_and_others_do_not(text, low, high, step):
    one = Dimension(parse(text)).distribution
    assert (one.low, one.high, one.step) == (low, pytest.approx(high), step) and type(
        one.low
    ) is type(low)


def test_choices_keep_their_types_and_their_quoting():
    one = Dimension(parse("path='a b','c,d'"))
    assert one.texts == {"a b": "'a b'", "c,d": "'c,d'"}
    assert one.text("c,d") == "path='c,d'" and one.distribution.choices == ("a b", "c,d")
    assert Dimension(parse("bias=true,false")).text(False) == "bias=False"


def test_a_proposal_that_is_no_run_is_told_as_failed_and_the_search_goes_on(here, sweep):  # noqa: F811
    """Between the ends lie widths that n_head doesn't divide."""
    for more in ("name=i", "name=j hydra/launcher=basic"):
        assert (
            sweep(
                "-m hydra/sweeper=search model=gpt_nano data=sentence val_fraction=0.2 device=cpu max_steps=1 "
                f"n_head=4 n_embd=interval(8,16) hydra.sweeper.n_trials=6 hydra.sweeper.pruner=none {more}"
            )
            == 0
        )
        found = {
            trial.params["n_embd"] % 4 == 0: trial.state.name for trial in study(more[5]).trials
        }
        assert found == {True: "COMPLETE", False: "FAIL"} and len(study(more[5]).trials) == 6


def test_a_study_keeps_its_kind_of_choice(here, sweep, capsys):  # noqa: F811
    line = LINE + "max_steps=1 name=c hydra.sweeper.n_trials=1 "
    assert sweep(line + "lr=0.1,1") == 0
    for other in ("lr=0.1,1,10", "lr=interval(0.1,1)"):
        refused(
            capsys,
            lambda other=other: cli.main((line + other).split()),
            [other, "another kind", "name="],
        )
    assert len(study("c").trials) == 1


def test_a_study_keeps_its_text_and_what_is_not_searched(here, sweep, capsys):  # noqa: F811
    """Losses of another text or model are no values of one objective; a text may be moved."""
    (here / "a.txt").write_text("one cat and two dogs " * 20)
    (here / "b.txt").write_text("two cats and one dog " * 20)
    line = "lr=tag(log,interval(1e-2,1)) max_steps=2 name=s hydra.sweeper.n_trials="
    own = LINE.replace("data=sentence", "data=file path=a.txt") + line
    assert sweep(own + "1") == 0
    for change in ("batch_size=3", "seed=1", "path=b.txt", "data=tales"):
        typed = own.replace("data=file path=a.txt ", "") if "data=" in change else own
        capsys.readouterr()
        assert sweep(f"{typed}2 {change}") == 2
        said = capsys.readouterr().err
        assert "the study s was started with" in said and said.count("error: ") == 1
    (here / "a.txt").rename(here / "c.txt")
    assert sweep(own.replace("a.txt", "c.txt") + "2") == 0
    assert "the study has 1 trial; n_trials=2 is for all" in capsys.readouterr().out
    assert len(study("s").trials) == 2


def test_a_key_may_be_searched_for_a_while(here, sweep, capsys):  # noqa: F811
    """What was searched, is searched anew, or was left out is said, and what was never searched is
    kept.
    """
    line = LINE + "max_steps=1 name=k lr=interval(1e-2,1) hydra.sweeper.n_trials="
    assert sweep(line + "1 batch_size=4,8") == 0
    said = capsys.readouterr().out
    assert "searched" not in said
    for n, value in enumerate((7, 5), start=2):
        assert sweep(f"{line}{n} batch_size={value}") == 0
        said = capsys.readouterr().out
        assert f"batch_size={value} in all further trials; earlier ones have searched it" in said
    assert sweep(f"{line}4 batch_size=4,8") == 0
    assert "batch_size" not in capsys.readouterr().out.split("n_trials=4 is for all")[0]
    assert sweep(f"{line}5 batch_size=4,8 block_size=4,6") == 0
    assert "block_size is searched from now on; in earlier trials it was" in capsys.readouterr().out
    other = line.replace("interval(1e-2,1)", "interval(1,2)")
    for n, told in ((6, True), (7, False)):
        assert sweep(f"{other}{n} batch_size=4,8") == 0
        words = "lr is searched in 1 to 2 from now on; earlier trials searched in 0.01 to 1"
        assert (words in capsys.readouterr().out) == told
    assert sweep(f"{line}8 batch_size=4,8 max_steps=2") == 2
    assert "was started with max_steps=1" in capsys.readouterr().err
    runs = load_runs("outputs/sweeps/k")
    assert len(runs) == 7 and {7, 5} < {*runs["batch_size"]}


def test_what_a_search_has_cut_a_grid_finishes(here, sweep):  # noqa: F811
    line = LINE + "max_steps=30 eval_interval=10 batch_size=2 name=g "
    assert sweep(line + "lr=5,6 hydra.sweeper.n_trials=5 hydra.sweeper.sampler=random") == 0
    assert (
        sweep(
            line + "lr=0.0001,0.0002 hydra.sweeper.n_trials=6".replace("lr=0.0001,0.0002", "lr=5,6")
        )
        == 0
    )
    grid = line.replace("hydra/sweeper=search ", "") + "lr=5,6"
    assert sweep(grid) == 0
    assert set(load_runs("outputs/sweeps/g")["status"]) == {"finished"}


def test_each_trial_has_a_sampler_of_its_own(some_config):
    from lmlab.config.keys import SearchConfig

    settings = SearchConfig(9, "val/loss", "minimize", "random", "none", None, 8, 3)
    space = {"lr": optuna.distributions.FloatDistribution(0, 1)}

    def proposed(number, seed=3):
        own = optuna.create_study(sampler=sampler(replace(settings, seed=seed), number))
        return own.ask(space).params["lr"]

    assert proposed(4) == proposed(4) and len({proposed(4), proposed(5), proposed(4, seed=2)}) == 3


def test_a_metric_is_one_registration(here, sweep, capsys, monkeypatch):  # noqa: F811
    """It reaches history, metrics.json, leaderboard, page and end table, and can be an objective."""
    line = LINE + "max_steps=4 eval_interval=2 lr=1,9 name=m hydra/launcher=basic "
    line += "hydra.sweeper.n_trials=3 hydra.sweeper.pruner=none "
    monkeypatch.setattr(evaluations, "EVALUATIONS", [*evaluations.EVALUATIONS])
    typed = "hydra.sweeper.objective=val/accuracy"
    refused(capsys, lambda: cli.main((line + typed).split()), [typed, "val/loss, best/val/loss"])
    with mock.patch.dict(NUMBERS):

        @evaluations.evaluation(numbers={"val/accuracy": replace(METRIC, better="higher")})
        def accuracy(subject):
            tokens = subject.text.val
            guesses = subject.model.table.weight.argmax(dim=1).numpy()[tokens[:-1]]
            return {"val/accuracy": float((guesses == tokens[1:]).mean())}

        assert sweep(line + typed) == 0
        runs = load_runs("outputs/sweeps/m")
    for trial in study("m").trials:
        run = here / "outputs/sweeps/m" / trial.user_attrs["folder"]
        assert trial.value == metrics(run)["val/accuracy"] == history(run, "val/accuracy")[4]
        assert metrics(run)["best/val/accuracy"] == trial.value > 0
    board = pd.read_csv("outputs/sweeps/m/leaderboard.csv")
    expected = runs.groupby("lr")["val/accuracy"].mean()
    np.testing.assert_allclose(board.set_index("lr")["val/accuracy"], expected[board["lr"]])
    first = f"{board['val/accuracy'][0]:.4f}"
    for page in ("leaderboard.md", "report.html"):
        text = (here / "outputs/sweeps/m" / page).read_text()
        assert "val/accuracy" in text and first in text
    best = runs.sort_values("val/loss")["path"].iloc[0]
    end_table = (here / best / "train.log").read_text().splitlines()
    assert any(re.fullmatch(rf"val/accuracy +{first}( .*)?", line) for line in end_table)


@pytest.mark.parametrize("value", [{}, {"val/mine": math.nan}, {"val/mine": "much"}])
def test_a_search_that_found_no_number_says_so(here, sweep, capsys, monkeypatch, value):  # noqa: F811
    monkeypatch.setattr(evaluations, "EVALUATIONS", [*evaluations.EVALUATIONS])
    line = LINE + "max_steps=1 lr=1,9 name=m hydra/launcher=basic hydra.sweeper.n_trials=2 "
    with mock.patch.dict(NUMBERS):
        evaluations.evaluation(numbers={"val/mine": METRIC})(lambda subject: value)
        for _ in range(2):  # also where all trials were there already
            capsys.readouterr()
            assert sweep(line + "hydra.sweeper.objective=val/mine") == 1
            said = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
            assert said == [
                "error: hydra.sweeper.objective=val/mine: was a number in none of the 2 trials, so "
                "the search has found nothing"
            ]
    assert set(load_runs("outputs/sweeps/m")["status"]) == {"finished"}
    assert states("m") == ["FAIL", "FAIL"]


def test_only_an_objective_that_falls_with_the_val_loss_is_pruned():
    assert [name for name, number in NUMBERS.items() if number.can_prune] == [
        "val/loss",
        "best/val/loss",
        "val/bits_per_byte",
    ]


def test_no_other_number_is_an_objective(capsys):
    typed = "hydra.sweeper.objective=grad_norm"
    allowed = "val/loss, best/val/loss, val/bits_per_byte, train/loss, tokens_per_second"
    refused(capsys, lambda: cli.main([*LINE.split(), "lr=1,2", typed]), [typed, allowed])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is empty; needs the URL of a database, or null"),
        *((url, "is a database in memory, which ends with the command") for url in IN_MEMORY),
    ],
)
def test_a_study_needs_a_place_that_lasts(here, capsys, url, words):
    typed = f"hydra.sweeper.storage={url}"
    line = [*LINE.split(), "lr=interval(1,2)", f"hydra.sweeper.storage='{url}'" if url else typed]
    refused(capsys, lambda: cli.main(line), [f"{typed}: {words}"])
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    "damage",
    ["update trials set state='FOO'", "update study_user_attributes set value_json='{'"],
)
def test_a_damaged_study_is_one_line_and_its_cells_are_kept(here, sweep, capsys, damage):  # noqa: F811
    line = LINE + "max_steps=2 eval_interval=2 lr=interval(1,2) name=x hydra.sweeper.n_trials="
    assert sweep(line + "1") == 0
    with closing(sqlite3.connect("outputs/sweeps/x/study.db")) as database, database:
        database.execute(damage)
    refused(capsys, lambda: cli.main((line + "2").split()), ["hydra.sweeper.storage=sqlite:///"])
    assert set(load_runs("outputs/sweeps/x")["status"]) == {"finished"}


def test_a_run_goes_on_if_its_study_cannot_be_asked(capsys, monkeypatch):
    """Another process may hold the database for minutes; the run is not the worse for it."""

    class Lost:
        def report(self, *_):
            raise ConnectionError("the database is locked")

    monkeypatch.setattr("lmlab.sweeps.study.open_study", lambda about: None)
    monkeypatch.setattr("optuna.trial.Trial", lambda study, number: Lost())
    watch = watch_of('{"pruner": "median", "objective": "val/loss", "trial": 1}')
    assert watch(10, {"val/loss": 1.0}) is True
    assert "warning: the study cannot tell whether to prune" in capsys.readouterr().err


def test_trials_that_failed_are_tried_again_by_the_same_command(here, sweep, capfd):  # noqa: F811
    """As the cells of a grid are. The second time the trials fail no more."""
    line = LINE + "max_steps=1000 eval_interval=500 lr=tag(log,interval(1e-2,10)) name=a "
    line += "hydra.sweeper.n_trials=3 hydra.sweeper.pruner=none"
    assert sweep(line + " hydra.launcher.time_limit=0.0001") == 1  # minutes: too few for any cell
    before = study("a").trials
    assert [trial.user_attrs["status"] for trial in before] == ["failed"] * 3
    capfd.readouterr()
    assert sweep(line) == 0
    assert "trials that failed and are tried again: 3" in capfd.readouterr().out
    again = study("a").trials[3:]
    assert [trial.params for trial in again] == [trial.params for trial in before]
    assert [trial.state.name for trial in again] == ["COMPLETE"] * 3
    assert sweep(line) == 0 and len(study("a").trials) == 6  # and then no more
    assert sweep(line.replace("n_trials=3", "n_trials=4")) == 0 and len(study("a").trials) == 7


def test_failed_trials_that_are_not_among_what_is_typed_now_stay_failed(here, sweep, capfd):  # noqa: F811
    line = LINE + "max_steps=2000 eval_interval=2000 name=a hydra.sweeper.pruner=none "
    late = "hydra.launcher.time_limit=0.00001"
    assert sweep(f"{line} lr=interval(1,2) hydra.sweeper.n_trials=2 {late}") == 1
    capfd.readouterr()
    assert sweep(f"{line} lr=interval(3,4) hydra.sweeper.n_trials=3") == 1  # two have failed
    said = capfd.readouterr()
    assert "failed and are not tried again: 2, whose values are none of those" in said.out
    assert "out of range" not in said.err
    assert [3 <= trial.params["lr"] <= 4 for trial in study("a").trials] == [False, False, True]


@pytest.mark.parametrize(
    "first, then", [("", "batch_size=3,4"), ("batch_size=3,4", "batch_size=3")]
)
def test_the_best_is_told_with_its_own_values_whatever_was_searched_in_its_time(
    here,
    sweep,  # noqa: F811
    capfd,
    first,
    then,
):
    line = LINE + "max_steps=4 eval_interval=2 name=a hydra.sweeper.objective=tokens_per_second "
    line += "hydra/launcher=basic lr=0.1,1 "
    assert sweep(f"{line} {first} hydra.sweeper.n_trials=2") == 0
    capfd.readouterr()
    assert sweep(f"{line} {then} hydra.sweeper.n_trials=3") == 0
    (best,) = re.findall(r"best tokens_per_second: .*, of (.*); the table", capfd.readouterr().out)
    told = {key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", best)}
    fastest = max(study("a").trials, key=lambda trial: trial.value)
    made = config(here / "outputs/sweeps/a" / fastest.user_attrs["folder"])
    searched = {*fastest.params} | {"batch_size"} if "," in then else {*fastest.params}
    assert told == {key: made[key] for key in searched}


def test_values_that_are_proposed_twice_are_said_to_be(here, sweep, capfd):  # noqa: F811
    line = LINE + "max_steps=4 eval_interval=2 lr=0.1,0.2 name=t hydra.sweeper.n_trials=5"
    line += " hydra.launcher.n_jobs=1"
    assert sweep(line) == 0
    out = capfd.readouterr().out
    assert out.count("finished with an equal cell") == 3 and "another process" not in out


def test_a_dry_run_of_a_search_says_what_all_trials_take(here, sweep, capfd):  # noqa: F811
    sizes = {}
    for trials in (3, 300):
        line = "max_steps=40 eval_interval=20 lr=interval(1e-2,1) seed=0,1 name=y dry_run=true"
        assert sweep(f"{LINE}{line} hydra.sweeper.n_trials={trials}") == 0
        said = " ".join(capfd.readouterr().out.split())
        assert f"{trials} trials between these ends" in said
        (number, unit) = re.search(r"all trials take from .* and ([\d.]+) (\w*)B", said).groups()
        sizes[trials] = float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert sizes[300] == pytest.approx(100 * sizes[3], rel=0.01)
    assert not (here / "outputs/sweeps/y/study.db").exists()


def test_the_comment_of_the_objective_names_all_that_the_lab_has():
    text = (ROOT / "conf/hydra/sweeper/search.yaml").read_text()
    comment = re.search(r"^objective: null +# (.*?);", text, re.M)[1]
    built_in = [name for name in objectives() if name not in OWN_EVALUATIONS]
    assert comment.split(" | ") == built_in
