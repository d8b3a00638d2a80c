"""Before the end a long validation part is seen in excerpts, at the end as a whole."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab import files
from lmlab.catalogue import GPTConfig
from lmlab.commands import evaluate
from lmlab.commands import train as cli
from lmlab.data.documents import Documents, counting
from lmlab.data.splits import Splits
from lmlab.inference import loss
from lmlab.inference.excerpt import excerpt
from lmlab.models.base import build_model
from lmlab.runs import checkpoints
from tests.conftest import NANO, config, history, metrics, weights

V = 9
LINE = (
    "model=mlp context=2 block_size=4 n_embd=8 n_hidden=32 data=file val_fraction=0.5 name=x "
    "batch_size=8 threads=1 device=cpu precision=32-true eval_interval=10 checkpoint_interval=5 "
    "log_interval=5 max_steps=40 warmup_steps=0 "
)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A command that trains on letters without an order, so that the model soon recites."""
    path = tmp_path_factory.mktemp("texts") / "letters.txt"
    random = np.random.default_rng(0)
    path.write_text("".join(random.choice([*"aaaaaabbbbcdefgh"], size=400)))
    return f"{LINE} path={path} "


@st.composite
def texts(draw):
    """A text, the positions at which its documents begin, and which of its tokens are scored."""
    length = draw(st.integers(3, 400))
    inside = draw(st.sets(st.integers(1, length - 1), max_size=20))
    scored = draw(st.one_of(st.none(), st.just(np.arange(length) % 3 == 0)))
    return np.arange(length), Documents(np.array([0, *sorted(inside)]), scored)


@settings(max_examples=60, deadline=None)
@given(texts(), st.integers(1, 20), st.integers(1, 400), st.booleans())
def test_an_excerpt_is_whole_windows_of_the_text(text, block_size, n, is_aligned):
    """The tokens of these texts are their places."""
    tokens, documents = text
    taken = excerpt(tokens, block_size, n, documents, is_aligned)
    if len(tokens) - 1 <= n:
        assert taken is None
        return
    if taken is None:  # nothing in it is scored
        assert documents.scored is not None
        return
    places, pieces = taken
    assert np.array_equal(places[pieces.starts[0] :], places)
    assert not pieces.scored[pieces.starts].any()
    predicted = places[pieces.scored]
    assert len({*predicted}) == len(predicted)
    whole = {*range(0, len(tokens) - 1, block_size)}
    if is_aligned:
        whole = {*documents.window_starts(block_size, len(tokens) - 1)}
    for start, end in zip(pieces.starts, [*pieces.starts[1:], len(places)], strict=True):
        assert places[start] in whole
        assert np.all(np.diff(places[start:end]) == 1)
        assert places[end - 1] in whole or places[end - 1] == len(tokens) - 1
    if documents.scored is not None:
        assert documents.scored[predicted].all()


@pytest.mark.parametrize("is_aligned", [False, True])
def test_its_tokens_are_predicted_as_in_the_whole_text(is_aligned):
    torch.manual_seed(0)
    shape = GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=16, dropout=0.0, bias=True)
    model = build_model(shape, V)
    tokens = np.random.default_rng(0).integers(V, size=3_000).astype(np.uint8)
    documents = Documents(np.arange(0, 3_000, 21), None)
    whole = loss.log_probs(model, tokens, 8, documents=documents if is_aligned else None)
    piece, its = excerpt(tokens, 8, 500, documents, is_aligned)
    places, _ = excerpt(np.arange(3_000), 8, 500, documents, is_aligned)
    found = loss.log_probs(model, piece, 8, documents=its)
    assert abs(its.scored.sum() - 500) < 64
    torch.testing.assert_close(
        found[its.scored[1:].copy()], whole[places[its.scored.copy()] - 1], rtol=0, atol=1e-5
    )


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory, line):
    """A run that is evaluated on excerpts and gets worse at last, and the same without excerpts."""
    runs = []
    for eval_tokens in ("50", "null"):
        out = tmp_path_factory.mktemp("out")
        cli.main(f"{line} lr=0.03 out={out} eval_tokens={eval_tokens}".split())
        runs += (out / "x").iterdir()
    return runs


def test_the_training_and_the_loss_at_the_end_are_the_same(overfitted):
    part, whole = overfitted
    assert all(weight.equal(weights(whole)[name]) for name, weight in weights(part).items())
    assert history(part, "train/loss") == history(whole, "train/loss")
    losses, all_losses = history(part, "val/loss"), history(whole, "val/loss")
    assert [*losses] == [*all_losses] == [0, 10, 20, 30, 40]
    assert metrics(part)["val/loss"] == losses[40] == all_losses[40]
    assert losses[10] == pytest.approx(all_losses[10], abs=0.5) and losses[10] != all_losses[10]
    assert history(part, "val/tokens") == dict.fromkeys([0, 10, 20, 30], 64)
    assert metrics(part)["val/tokens"] is None
    assert history(whole, "val/tokens") == {}


def test_the_best_is_chosen_on_the_excerpt_and_its_loss_is_that_of_the_whole(overfitted, capsys):
    part, _ = overfitted
    losses = history(part, "val/loss") | history(part, "val/loss_excerpt")
    best = min(losses, key=losses.get)
    assert metrics(part)["best/step"] == best
    assert 0 < best < 40, "else this test says nothing"
    evaluate.main([f"run={part}", "checkpoint=best"])
    capsys.readouterr()
    noted = metrics(part)
    (line,) = map(json.loads, (part / "evaluations.jsonl").read_text().splitlines())
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert noted[f"best/val/{name}"] == pytest.approx(line[f"val/{name}"], rel=1e-6)
    assert noted["best/val/tokens"] is None


def test_a_replay_of_a_run_that_was_made_longer_compares_losses_on_the_same_tokens(
    line, train, capsys
):
    run = train(f"{line} max_steps=10 eval_tokens=50")
    cli.main([f"resume={run}", "max_steps=20"])
    capsys.readouterr()
    cli.main([f"replay={run}"])
    ends = history(run, "val/loss_excerpt")
    assert [*ends] == [10, 20] and ends[10] != history(run, "val/loss")[10]
    assert "are the same to the bit; 1 more cannot be compared" in capsys.readouterr().out
    path = run / "history.jsonl"
    path.write_text(path.read_text().replace(repr(ends[10]), repr(ends[10] + 1e-9)))
    with pytest.raises(SystemExit, match="1"):
        cli.main([f"replay={run}"])
    assert "at step 10: val/loss was" in capsys.readouterr().out


def test_patience_that_an_excerpt_ends_makes_one_step_more_and_sees_the_whole(line, train, capsys):
    line = f"{line} lr=1e-30 min_lr=0 weight_decay=0 max_steps=100"
    run = train(f"{line} patience=2 eval_tokens=50")
    assert (metrics(run)["status"], metrics(run)["step"]) == ("finished", 21)
    whole = train(f"{line} eval_tokens=null max_steps=10")
    assert metrics(run)["val/loss"] == pytest.approx(metrics(whole)["val/loss"])
    assert metrics(run)["val/tokens"] is None
    cli.main([f"resume={run}"])
    assert "finished already, at step 21" in capsys.readouterr().out


def test_a_run_of_before_is_evaluated_on_the_whole_part(line, train):
    run = train(f"{line} max_steps=10 eval_tokens=null")
    path = run / "config.yaml"
    text = path.read_text().replace("eval_tokens: null\n", "")
    assert text != path.read_text()
    files.write_sealed(path, text.encode())
    cli.main([f"resume={run}", "max_steps=20"])
    assert history(run, "val/tokens") == {}
    assert config(run)["eval_tokens"] is None


def test_a_short_part_is_seen_as_a_whole(line, train):
    run = train(f"{line} max_steps=10")
    assert config(run)["eval_tokens"] == 32768
    assert history(run, "val/tokens") == history(run, "val/loss_excerpt") == {}


@pytest.mark.parametrize("keys", ["", 'separator="." score_after=e'])
@pytest.mark.parametrize("asked", [1, 9, 100])
def test_the_line_at_the_start_says_the_number_that_the_history_notes(
    here, train, capsys, asked, keys
):
    """Windows are whole, so it is another one than was asked for."""
    line = "data=tales val_fraction=0.005 block_size=8 eval_interval=1 max_steps=2"
    path = train(f"{NANO} {line} {keys} eval_tokens={asked}")
    (noted,) = {*history(path, "val/tokens").values()}
    run = checkpoints.load(path)
    text = Splits.of_run(run.config, run.tokenizer)
    counts = counting(text.documents.get("val"))
    n = len(text.val) - 1 if counts is None else counts.sum()
    line = f"before the end on {noted:,.0f} tokens, at the end on all {n:,}\n"
    assert line in capsys.readouterr().out
