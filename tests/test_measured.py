"""A number that stands beside a checkpoint is that of its weights, or it isn't there."""

import json

import pytest

import lmlab
from lmlab.commands.export import card
from lmlab.inference import explain
from lmlab.runs import checkpoints
from lmlab.runs.measured import numbers_of
from tests.conftest import NANO, metrics


def as_stopped(run):
    """Makes a run one that was stopped after its last evaluation but one, and some steps more."""
    lines = (run / "history.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    last = values[-1]["step"]
    kept = [
        line
        for line, value in zip(lines, values, strict=True)
        if value["step"] < last or "val/loss" not in value
    ]
    (run / "history.jsonl").write_text("\n".join([*kept, ""]))
    noted = metrics(run) | {"status": "interrupted"}
    (run / "metrics.json").write_text(json.dumps(noted))


@pytest.mark.parametrize("model", ["gpt_nano", "ngram"])
def test_they_are_what_an_evaluation_measures(train, model):
    steps = NANO if model != "ngram" else "model=ngram device=cpu "
    run = train(steps + "data=sentence val_fraction=0.2")
    for checkpoint in ("best", "last"):
        loaded = checkpoints.load(run, checkpoint)
        measured = lmlab.load_run(run).evaluate(checkpoint=checkpoint)
        assert numbers_of(loaded)["val/loss"] == pytest.approx(measured["val/loss"], abs=1e-6)


def test_of_a_run_that_was_stopped_between_two_evaluations_there_are_none(train):
    run = train(NANO + "data=sentence val_fraction=0.2")
    as_stopped(run)
    loaded = checkpoints.load(run, "last")
    assert loaded.step == 4 and not numbers_of(loaded)
    assert explain.about(loaded, 1.0)["val/loss"] == "not measured at step 4"
    text = card(loaded, "gpt2")
    assert "| val/loss" not in text and "| step | 4 |" in text


def test_those_of_an_excerpt_say_so(train):
    run = train(NANO + "data=sentence val_fraction=0.2 eval_interval=2")
    line = {"step": 4, "val/loss": 1.5, "val/tokens": 4000}
    as_stopped(run)
    with open(run / "history.jsonl", "a") as history:
        history.write(json.dumps(line) + "\n")
    loaded = checkpoints.load(run, "last")
    assert explain.about(loaded, 1.0)["val/loss"] == "1.5000 nats (of 4,000 tokens)"
    assert "| val/loss | 1.5 (of 4,000 tokens) |" in card(loaded, "gpt2")
