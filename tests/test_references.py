import itertools
import json
import math
import random
from collections import Counter

import pytest

from lmlab import files
from lmlab.catalogue import CorpusConfig
from lmlab.data.splits import Splits
from lmlab.inference.references import ORDERS, references
from lmlab.training import summary
from tests.conftest import metrics
from tests.test_ngram import kneser_ney

TEXT = " ".join(
    random.Random(0).choices(["the", "a", "cat", "rat", "mat", "sat", "on", "and", "ate"], k=150)
)


def test_a_text_of_one_character_has_losses_of_zero_and_not_of_minus_zero(train, here):
    (here / "my.txt").write_text("a" * 300)
    run = train("model=bigram data=file path=my.txt block_size=8 max_steps=1 threads=1")
    found = metrics(run)
    for name in ("reference/unigram", "reference/bigram", "reference/ngram", "val/loss"):
        assert math.copysign(1, found[name]) == 1 and found[name] == pytest.approx(0, abs=1e-6)


def test_they_are_what_counting_by_hand_gives(train, here, capsys, monkeypatch):
    monkeypatch.setattr("lmlab.inference.references.ORDERS", ORDERS)  # all of them; see conftest.py
    (here / "my.txt").write_text(TEXT)
    run = train(
        "model=bigram data=file path=my.txt block_size=8 val_fraction=0.2 max_steps=1 threads=1"
    )
    found, n = metrics(run), int(len(TEXT) * 0.8 + 1e-6)
    past, rest, V = TEXT[:n], TEXT[n:], len(set(TEXT))
    pairs, firsts = Counter(itertools.pairwise(past)), Counter(past[:-1])
    assert found["reference/uniform"] == pytest.approx(math.log(V))
    assert found["reference/bigram"] == pytest.approx(
        -sum(math.log((pairs[a, b] + 1) / (firsts[a] + V)) for a, b in itertools.pairwise(rest))
        / (len(rest) - 1)
    )
    losses = {}
    for order in range(1, found["reference/order"] + 2):
        prob = kneser_ney(past, order, V)
        losses[order] = -sum(
            math.log(prob(tuple(rest[max(0, i + 1 - order) : i]), rest[i]))
            for i in range(1, len(rest))
        ) / (len(rest) - 1)
    assert found["reference/unigram"] == pytest.approx(losses[1], rel=1e-5)
    assert found["reference/ngram"] == pytest.approx(losses[found["reference/order"]], rel=1e-5)
    assert (
        losses[found["reference/order"] + 1]
        >= losses[found["reference/order"]]
        == min(losses.values())
    )
    said = capsys.readouterr().out
    assert (
        f"{found['reference/order']} characters at a time {found['reference/ngram']:.3f}, pairs "
        in said
    )


@pytest.mark.parametrize(
    "line",
    ["data=copy val_fraction=0", "data=file path=my.txt score_after=| separator=; val_fraction=0"],
)
def test_there_are_none_where_nothing_counts(train, here, capsys, line):
    (here / "my.txt").write_text("ab|cd;" * 90)
    train(f"model=bigram block_size=64 max_steps=1 threads=1 device=cpu {line}")
    assert "no losses of counting" not in capsys.readouterr().err


def test_they_are_worked_out_once(some_config, monkeypatch):
    data = Splits.of_run(some_config)
    found = references(data)
    monkeypatch.setattr("lmlab.inference.references.by_counting", None)
    assert references(data) == found and found["reference/ngram"] < found["reference/bigram"]


def test_other_code_works_them_out_anew(some_config, monkeypatch):
    data = Splits.of_run(some_config)
    found = references(data)
    monkeypatch.setattr("lmlab.own_code.sha256_of", lambda *_: "other")
    monkeypatch.setattr("lmlab.inference.references.by_counting", lambda *_: {"other": 7.0})
    assert references(data) == {"other": 7.0} != found


GOOD = {f"reference/{name}": 1.0 for name in ("uniform", "unigram", "bigram", "ngram")}
GOOD |= {"reference/order": 2}
FOREIGN = {
    "empty": {},
    "a number": 5,
    "a list": [],
    "nan": GOOD | {"reference/ngram": math.nan},
    "infinite": GOOD | {"reference/ngram": math.inf},
    "a status": GOOD | {"status": "failed"},
    "words": GOOD | {"reference/order": "three"},
    "true": GOOD | {"reference/uniform": True},
    "half": GOOD | {"reference/order": 2.0},
    "huge": GOOD | {"reference/order": 10**30},
    "missing": {key: GOOD[key] for key in list(GOOD)[1:]},
}


@pytest.mark.parametrize("name", [*FOREIGN, "deep", "a digit", "no seal"])
def test_what_the_lab_did_not_count_is_counted_anew(tmp_path, monkeypatch, name):
    """Else it would stand among the numbers of a run; a seal alone tells nothing."""
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    data = Splits("sentence", CorpusConfig(0.2, 0.0, 0.0))
    right = references(data)
    (path,) = tmp_path.glob("references/*.json")
    content = path.read_bytes()
    if name == "a digit":
        path.write_bytes(content.replace(b"1", b"2", 1))
    elif name == "no seal":
        files.seal(path).unlink()
    elif name == "deep":
        files.write_sealed(path, b"[" * 4000)
    else:
        files.write_sealed(path, json.dumps(FOREIGN[name]).encode())
    assert references(data) == right
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_used_costs_a_warning(tmp_path, monkeypatch, capsys):
    data = Splits("sentence", CorpusConfig(0.2, 0.0, 0.0))
    right = references(data)
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path))
    (tmp_path / "references").touch()
    assert references(data) == right
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize("held_out", [0, 0.1])
def test_that_the_part_held_out_is_counted_too_is_said(held_out):
    final = {"reference/unigram": 2.5, "config/holdout_fraction": held_out}
    line = summary.compared(final, "character")
    assert "2.500" in line and ("held out was counted, too" in line) == bool(held_out)
