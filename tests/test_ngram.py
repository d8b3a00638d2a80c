import json
import math
import os
import signal
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab import files
from lmlab.catalogue import NGramConfig
from lmlab.commands import train as cli
from lmlab.inference import loss
from lmlab.models.ngram import NGram
from lmlab.runs import checkpoints
from tests.conftest import config, history, metrics, refused

V = 5
TEXTS = st.lists(st.integers(0, V - 1), min_size=2, max_size=120)


def counted(text, order, vocab_size=V):
    model = NGram(NGramConfig(order), vocab_size)
    model.count(np.array(text, dtype=np.uint8))
    return model


def kneser_ney(text, order, vocab_size=V):
    """Chen and Goodman's formulas as they stand, one probability at a time: a function of the
    context and the token.
    """
    tables = [Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))]
    for _ in range(order - 1):
        tables.insert(
            0, Counter(gram[1:] for gram in tables[0])
        )  # how many different tokens stood before it
    discounts, followers = [], []
    for table in tables:
        n = [0, *(max(sum(count == k for count in table.values()), 1) for k in (1, 2, 3, 4))]
        Y = n[1] / (n[1] + 2 * n[2])
        discounts.append(
            [0] + [min(max(k - (k + 1) * Y * n[k + 1] / n[k], Y), k) for k in (1, 2, 3)]
        )
        rows = defaultdict(dict)
        for gram, count in table.items():
            rows[gram[:-1]][gram[-1]] = count
        followers.append(rows)

    def prob(context, token):
        row = followers[len(context)].get(context)
        lower = prob(context[1:], token) if context else 1 / vocab_size
        if not row:
            return lower
        D, total = discounts[len(context)], sum(row.values())
        count = row.get(token, 0)
        rest = sum(D[min(c, 3)] for c in row.values())
        return (count - D[min(count, 3)] + rest * lower) / total

    return prob


@given(TEXTS, st.integers(1, 5), st.lists(st.integers(0, V - 1), min_size=1, max_size=8))
def test_it_equals_a_slow_direct_computation(text, order, idx):
    order = min(order, len(text))
    probs, prob = counted(text, order)(torch.tensor([idx]))[0].exp(), kneser_ney(text, order)
    for t in range(len(idx)):
        context = tuple(idx[max(0, t + 2 - order) : t + 1]) if order > 1 else ()
        assert probs[t].tolist() == pytest.approx(
            [prob(context, token) for token in range(V)], rel=1e-5
        )


@given(TEXTS, st.integers(1, 12), st.lists(st.integers(0, V - 1), min_size=1, max_size=30))
def test_probabilities_sum_to_one_after_any_context(text, order, idx):
    sums = counted(text, order)(torch.tensor([idx, idx[::-1]])).double().exp().sum(-1)
    assert sums.flatten().tolist() == pytest.approx([1] * 2 * len(idx), abs=1e-6)


@given(
    TEXTS,
    st.integers(1, 6),
    st.lists(st.lists(st.integers(0, V - 1), min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_without_the_table_the_numbers_are_the_same_to_the_bit(text, order, rows, n):
    model = counted(text, order)
    idx, targets = torch.tensor(rows)[:, :4], torch.tensor(rows)[:, -n:]
    table = model(idx)[:, -n:]
    assert model.log_probs_of(idx, targets).equal(table.gather(2, targets[..., None])[..., 0])


def test_ids_of_any_type_of_number_are_the_same_tokens():
    """Where nothing was before a token, an unsigned -1 would be one: 255, in another context."""
    draw = np.random.default_rng(0)
    model = counted(draw.integers(0, 60, 20_000), 4, vocab_size=60)
    idx = torch.from_numpy(draw.integers(0, 60, (500, 4)))
    narrow = idx.to(torch.uint8)
    assert model(narrow).equal(model(idx))
    assert model.log_probs_of(narrow, narrow).equal(model.log_probs_of(idx, idx))
    reference = -model(idx[:1])[0, :3].gather(1, idx[0, 1:, None]).mean()
    measured = -loss.log_probs(model, idx[0].numpy().astype(np.uint8), 8).mean()
    assert measured.item() == pytest.approx(reference.item(), rel=1e-6)


def test_evaluation_needs_no_number_for_each_token_of_the_vocabulary():
    model = counted([0, 1, 2, 3] * 9, 3, vocab_size=2**40)
    found = loss.log_probs(model, np.array([0, 1, 2, 3] * 3, np.uint8), 3)
    assert found.shape == (11,) and found[3:].exp().min() > 0.5


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_evaluation_gives_it_its_full_context(monkeypatch, at_once):
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", at_once)
    tokens = np.random.default_rng(0).integers(V, size=50).astype(np.uint8)
    model = counted(np.tile(tokens, 2), 4)
    wanted = [
        model(torch.from_numpy(tokens[None, :i].astype(np.int64)))[0, -1, tokens[i]].item()
        for i in range(1, 50)
    ]
    assert loss.log_probs(model, tokens, 3).tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_run_of_it_has_no_steps_and_all_else(train, capsys):
    run = train("model=ngram order=4 name=n")
    numbers, loaded = metrics(run), checkpoints.load(run)
    assert (numbers["status"], numbers["step"], numbers["tokens"], numbers["flops"]) == (
        "finished",
        0,
        259_488,
        0,
    )
    assert numbers["n_params"] == loaded.model.n_params() > 10_000
    assert history(run, "val/loss") == {0: numbers["val/loss"]}
    assert numbers["val/loss"] == numbers["best/val/loss"] < 1.6
    said = capsys.readouterr().out
    assert "by counting" in said and "parameters" not in said and "best, step" not in said
    cli.main([f"resume={run}"])
    assert "finished already\n" in capsys.readouterr().out
    cli.main([f"replay={run}"])
    assert "the same to the bit" in capsys.readouterr().out


def test_after_a_stop_at_the_very_end_nothing_is_counted_twice(train, capsys):
    run = train("model=ngram order=3 data=sentence val_fraction=0.2 name=n")
    before, numbers = (run / "history.jsonl").read_bytes(), metrics(run)
    (run / "metrics.json").write_text(json.dumps(numbers | {"status": "interrupted"}))
    said = capsys.readouterr().out
    cli.main([f"resume={run}"])
    assert (run / "history.jsonl").read_bytes() == before and metrics(run)["status"] == "finished"
    assert (
        capsys.readouterr().out.split("by counting")[-1].split("saved in")[0] in said
    )  # with the same sample


def test_stopped_while_it_counts_it_begins_anew(train, here, monkeypatch):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(NGram, "count", stop)
        train("model=ngram order=3 data=sentence val_fraction=0.2 name=n")
    run = next((here / "outputs/n").iterdir())
    assert stopped.value.code == 130 and metrics(run)["status"] == "interrupted"
    cli.main([f"resume={run}"])
    assert metrics(run)["status"] == "finished" and metrics(run)["n_params"] > 0


def test_a_text_without_a_training_part_is_refused(here, capsys):
    (here / "two.txt").write_text("ab")
    with pytest.raises(SystemExit):
        cli.main(["model=ngram", "data=file", "path=two.txt", "val_fraction=0.99"])
    assert "val_fraction=0.99" in capsys.readouterr().err and not (here / "outputs").exists()


@pytest.mark.parametrize(
    "typed",
    ["max_steps=10", "lr=1", "optimizer=sgd", "eval_interval=5", "device=cuda", "device=mps"],
)
def test_keys_of_steps_are_refused(here, capsys, typed):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["model=ngram", typed])
    said = capsys.readouterr().err
    assert (
        stopped.value.code == 2 and said.startswith(f"error: {typed}: ") and "by counting" in said
    )
    assert not list(here.iterdir())


def test_the_device_that_counts_may_be_named_and_no_other(train, capsys):
    """It is true of every n-gram, so it is accepted wherever it is typed, and noted."""
    line = "model=ngram order=2 data=sentence name=n "
    run = train(line + "device=cpu")
    assert config(run)["device"] == "cpu"
    cli.main([f"resume={run}", "device=cpu"])
    cli.main([*line.split(), "device=auto", "fast_dev_run=true"])
    words = ["device=cuda: ", "which the CPU does; allowed are auto, cpu"]
    refused(capsys, lambda: cli.main([f"resume={run}", "device=cuda"]), words)
    refused(capsys, lambda: cli.main(["-m", *line.split(), "seed=0,1", "device=cuda"]), words)


def test_a_named_device_leaves_the_cells_of_ngrams_as_they_are(train):
    line = "-m model=ngram order=2,3 data=sentence hydra/launcher=basic "
    alone, named = (
        [run.name for run in train(line + more)] for more in ("name=a", "name=b device=cpu")
    )
    assert alone == named


def test_a_sweep_of_orders_and_its_plan(train, capsys):
    cli.main(["-m", "model=ngram", "order=1,3", "data=sentence", "dry_run=true"])
    assert "2 configurations, 2 cells" in capsys.readouterr().out
    short, long = train("-m model=ngram order=1,3 data=sentence val_fraction=0.2")
    assert metrics(short)["val/loss"] > metrics(long)["val/loss"]
    assert metrics(long)["val/loss"] < math.log(9)


def test_a_foreign_text_in_a_checkpoint_is_refused(train, capsys):
    run = train("model=ngram order=2 data=sentence name=n")
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for text in (
        torch.tensor([0, 9], dtype=torch.int32),
        torch.tensor([-1], dtype=torch.int32),
        torch.zeros(3),
    ):
        checkpoint["state_dict"]["model.text"] = text
        torch.save(checkpoint, path)
        files.write_sealed(path, path.read_bytes())
        with pytest.raises(checkpoints.UserError, match="its weights do not fit"):
            checkpoints.load(run, "last")


def test_keys_of_steps_that_a_sweep_shares_leave_an_ngram_as_it_is(train):
    """Such a key is refused only where no model of the command has steps."""
    line = "-m data=sentence threads=1 "
    [alone] = train(line + "model=ngram name=alone")
    together = train(line + "model=ngram,bigram device=cpu max_steps=2 lr=0.1,0.2 name=together")
    assert len(together) == 3  # the n-gram does not depend on lr
    [ngram] = [run for run in together if "model=ngram" in run.name]
    assert ngram.name.split("-")[-1] == alone.name.split("-")[-1]
    assert "lr=" not in ngram.name and "device=" not in ngram.name
    board = (ngram.parent / "leaderboard.csv").read_text().splitlines()
    assert "max_steps" not in board[0] and "lr" in board[0].split(",")
