"""The generated texts, solved by programs that know nothing of how they were drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.catalogue import AdditionConfig, BigramConfig, CopyConfig, InductionConfig, RecallConfig
from lmlab.commands import evaluate
from lmlab.commands import train as cli
from lmlab.data import tasks
from lmlab.data.documents import Documents
from lmlab.errors import UserError
from lmlab.inference.answers import answer_numbers
from lmlab.models.base import LanguageModel
from lmlab.runs.folder import read_config
from lmlab.training.preparation import Prepared
from tests.conftest import history, metrics, refused, script, weights

PARTS = {"val_fraction": 0.2, "test_fraction": 0.0, "holdout_fraction": 0.0}
TASK = "n_examples=60 block_size=24 val_fraction=0.2 warmup_steps=1 batch_size=4 eval_interval=2 "
TASK += "log_interval=1 threads=1 device=cpu precision=32-true model=gpt_nano "


def solved_by_recall(known):
    """The capital that stood after the same letter first."""
    return known[known.index(known[-1]) + 1]


def solved_by_induction(known):
    """What followed the same letter before."""
    return known[known.rindex(known[-1], 0, -1) + 1]


def solved_by_copying(known):
    letters, _, copied = known.partition("|")
    return letters[len(copied)]


def solved_by_adding(known):
    question, _, digits = known.partition("=")
    total = sum(map(int, question.split("+")))
    return str(total)[::-1].ljust(99, "0")[len(digits)]


@st.composite
def configs(draw):
    """Any task, with its solver."""
    shared = PARTS | {"n_examples": draw(st.integers(10, 40)), "data_seed": draw(st.integers(0, 9))}
    length = draw(st.integers(8, 40))
    which = draw(st.sampled_from("rica"))
    if which == "a":
        digits = draw(st.integers(1, 9))
        return AdditionConfig(**shared, n_digits=digits), solved_by_adding
    shared["example_length"] = length
    if which == "r":
        pairs = draw(st.integers(1, (length - 1) // 4))
        symbols = draw(st.integers(2 * pairs, 300))
        return RecallConfig(**shared, n_pairs=pairs, n_symbols=symbols), solved_by_recall
    if which == "i":
        symbols = draw(st.integers(length // 2, 300))
        return InductionConfig(**shared, n_symbols=symbols), solved_by_induction
    return CopyConfig(**shared, n_symbols=draw(st.integers(2, 300))), solved_by_copying


@given(configs())
@settings(max_examples=60)
def test_every_answer_is_the_one_that_a_solver_finds(case):
    config, solver = case
    config.check()
    text = "".join(tasks.examples(config))
    mask = config.scored(np.array([ord(letter) for letter in text], np.uint32))
    lines = text.splitlines()
    assert len(lines) == config.n_examples
    assert {len(line) for line in lines} == {config.line_length - 1}
    for line, scored in zip(lines, mask.reshape(len(lines), -1), strict=True):
        places = np.flatnonzero(scored)
        assert len(places) and [solver(line[:place]) for place in places] == [
            line[n] for n in places
        ]
        if type(config) is RecallConfig:  # each pair is asked for once, and nothing else
            asked = sorted(line[place - 1] for place in places)
            assert asked == sorted(line[0 : 2 * config.n_pairs : 2])


def test_example_t_depends_on_the_seed_and_t_alone():
    def lines(n, seed=0):
        config = CopyConfig(**PARTS, n_examples=n, data_seed=seed, n_symbols=9, example_length=12)
        return "".join(tasks.examples(config)).splitlines()

    assert lines(20) == lines(3000)[:20] and lines(2000) == lines(3000)[:2000]
    assert lines(20) != lines(20, seed=1)
    assert len({*lines(3000)}) > 2500


def test_batches_hold_whole_examples_and_only_their_answers(train):
    run = train(f"data=recall n_pairs=3 example_length=24 {TASK} max_steps=1")
    prepared = Prepared(read_config(run))
    idx, targets = prepared.batches[0]
    decode = prepared.text.tokenizer.decode
    for row, answers in zip(idx.tolist(), targets.tolist(), strict=True):
        line = decode(row)
        assert line.endswith("\n") and line.count("\n") == 1
        for place in np.flatnonzero(np.array(answers) != -100):
            assert decode([answers[place]]) == solved_by_recall(line[: place + 1])
        assert sum(answer != -100 for answer in answers) == 3


@pytest.mark.parametrize("data", ["recall n_pairs=3 example_length=24", "addition n_digits=2"])
def test_a_run_goes_on_to_the_bit(train, data):
    whole = train(f"data={data} {TASK} max_steps=4 name=whole")
    part = train(f"data={data} {TASK} max_steps=2 decay_steps=4 name=part")
    cli.main([f"resume={part}", "max_steps=4"])
    for key in ("val/loss", "val/answer_accuracy"):
        assert history(part, key) == history(whole, key)
        assert metrics(part)[key] == history(whole, key)[4]
    assert all(torch.equal(x, weights(part)[name]) for name, x in weights(whole).items())


class Oracle(LanguageModel):
    """Knows what a table says of a token: the likeliest next one, with a probability."""

    def __init__(self, table, sure):
        super().__init__(BigramConfig(block_size=8))
        self.table, self.sure = torch.tensor(table), sure
        self.anything = torch.nn.Parameter(torch.zeros(1))  # so that it has a device

    def forward(self, idx):
        n = len(self.table)
        rest = (1 - self.sure) / (n - 1)
        probabilities = torch.full((*idx.shape, n), rest)
        return probabilities.scatter(2, self.table[idx][..., None], self.sure).log()


def test_accuracy_and_loss_are_those_of_a_model_that_is_known():
    #                   0  1  2  3  4  5  6  7
    tokens = np.array([[1, 2, 3, 1, 2, 1, 3, 0], [2, 1, 2, 1, 3, 3, 2, 0]])
    scored = np.array([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 0, 0]]).astype(bool)
    documents = Documents(np.array([0, 8]), scored.flatten())
    model = Oracle([0, 2, 1, 3], 0.7)  # after 1 comes 2, after 2 comes 1, after 3 comes 3
    numbers = answer_numbers(
        model, np.append(tokens, 0), 8, "32-true", documents_with_end(documents)
    )
    right, wrong = -np.log(0.7), -np.log(0.1)
    assert numbers["val/answer_accuracy"] == 5 / 5 and numbers["val/whole_answers"] == 2 / 2
    # places 2 to 3: two answers; 4 to 7: three. All are right.
    assert numbers["loss_by_place/2"] == pytest.approx(right, rel=1e-6)
    # what was asked stood last: three back, three back, not yet, two back, not yet
    assert {n for n in numbers if n.startswith("accuracy_by_distance")} == {
        "accuracy_by_distance/2"
    }
    model = Oracle([0, 3, 1, 3], 0.7)  # after 1 it now expects 3
    numbers = answer_numbers(
        model, np.append(tokens, 0), 8, "32-true", documents_with_end(documents)
    )
    assert numbers["val/answer_accuracy"] == 3 / 5 and numbers["val/whole_answers"] == 0 / 2
    assert numbers["accuracy_by_place/2"] == 1 / 2 and numbers["accuracy_by_place/4"] == 2 / 3
    assert numbers["loss_by_place/4"] == pytest.approx((2 * right + wrong) / 3, rel=1e-6)
    assert numbers["accuracy_by_distance/2"] == 2 / 3
    model = Oracle([0, 2, 1, 2], 0.7)  # after 3 it expects 2: the last answer is wrong
    numbers = answer_numbers(
        model, np.append(tokens, 0), 8, "32-true", documents_with_end(documents)
    )
    assert numbers["val/answer_accuracy"] == 4 / 5 and numbers["val/whole_answers"] == 1 / 2


def test_a_place_is_that_in_a_document_which_is_longer_than_a_window():
    """Of two documents of 20 tokens the places 9 to 19 are scored; windows have 8."""
    scored = np.tile(np.arange(20) >= 9, 2)
    documents = Documents(np.array([0, 20]), scored)
    numbers = answer_numbers(Oracle([1, 0], 0.7), np.tile([0, 1], 20), 8, "32-true", documents)
    # place 16 to 19: of the alternating tokens all are right
    assert {n for n in numbers if "by_place" in n} == {
        *("accuracy_by_place/8", "accuracy_by_place/16"),
        *("loss_by_place/8", "loss_by_place/16"),
    }
    assert numbers["accuracy_by_place/16"] == 1.0


def documents_with_end(documents):
    return Documents(documents.starts, np.append(documents.scored, False))


def test_evaluation_afterwards_has_the_same_answers_and_the_runs_own_examples(train, here, capsys):
    run = train(
        "model=bigram block_size=32 data=addition n_digits=2 n_examples=200 val_fraction=0.2 max_steps=2 "
        "threads=1 device=cpu"
    )
    (here / "sums.txt").write_text("12+34=640\n11+22=330\n")
    for typed in ("", "data=addition", "data=file path=sums.txt"):
        evaluate.main([f"run={run}", *typed.split()])
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    own, other, file = map(json.loads, lines)
    for name in ("val/answer_accuracy", "val/whole_answers"):
        assert own[name] == metrics(run)[name]
    assert other["text/answer_accuracy"] == pytest.approx(own["val/answer_accuracy"], abs=0.1)
    said = capsys.readouterr().err
    assert "addition: 2,000 characters" in said  # 200 examples of two digits
    assert "sums.txt: all its characters are scored" in said and "text/answer_accuracy" not in file


def test_an_ngram_is_at_chance(train):
    run = train("model=ngram order=3 data=recall n_examples=3000 val_fraction=0.3")
    assert metrics(run)["val/answer_accuracy"] < 0.02  # one of 128


@pytest.mark.parametrize(
    "line, words",
    [
        ("data=recall block_size=32", ["block_size=32", "data=recall", "64"]),
        ("data=recall n_pairs=16 block_size=64", ["n_pairs=16", "example_length=64", "65"]),
        ("data=recall n_pairs=9 n_symbols=16 block_size=64", ["n_pairs=9", "n_symbols=16", "8"]),
        ("data=induction n_symbols=20 block_size=64", ["n_symbols=20", "31"]),
        ("data=copy score_after=x block_size=64", ["score_after=x", "data=copy"]),
        ("data=copy separator=x block_size=64", ["separator=x", "data=copy"]),
        ("data=copy tokenizer=byte block_size=64", ["tokenizer=byte", "data=copy", "char"]),
        ("data=addition n_digits=10", ["n_digits=10", "[1, 9]"]),
        ("data=tales n_pairs=3", ["n_pairs"]),
    ],
)
def test_what_no_task_can_be_is_refused(train, capsys, line, words):
    refused(capsys, lambda: train(line), words)


OWN = """
import lmlab


class Config(lmlab.CorpusConfig):
    document_end = {end!r}

    def scored(self, codes):
        return (codes == ord("é")){wrong}


@lmlab.register.corpus("own", Config)
def own(config):
    yield "axé\\n" * 200
"""


def test_a_text_of_ones_own_says_what_is_scored_whatever_the_tokens(train, capsys):
    """A byte counts if its character does."""
    Path("own.py").write_text(OWN.format(end="\n", wrong=""))
    run = train("plugin=own.py data=own model=ngram order=3 tokenizer=byte val_fraction=0.5")
    assert metrics(run)["val/answer_accuracy"] == 1.0
    assert metrics(run)["val/bits_per_byte"] < 0.1  # of the two bytes of each answer alone
    Path("own.py").write_text(OWN.format(end="\n", wrong=" * 1"))
    refused(capsys, lambda: train("plugin=own.py data=own model=ngram"), ["scored", "bool"])
    Path("own.py").write_text(OWN.format(end=None, wrong=""))
    refused(capsys, lambda: train("plugin=own.py data=own model=ngram"), ["data=own", "separator"])


def test_the_figure_of_recall_is_drawn_from_what_the_runs_noted(here, capsys, monkeypatch):
    line = "-m data=recall n_symbols=16 n_examples=80 example_length=16 block_size=16 val_fraction=0.3 "
    line += (
        "max_steps=3 warmup_steps=1 batch_size=4 device=cpu precision=32-true seed=0,1 name=recall "
    )
    cli.main([*line.split(), "n_pairs=2,3", "model=bigram,mlp"])
    cli.main([*line.split(), "n_pairs=2", "model=gpt_nano", "n_layer=1,2"])
    command = script("recall")
    drawn = []
    monkeypatch.setattr(command, "save_picture", lambda figure, _: drawn.append(figure))
    capsys.readouterr()
    command.main(["pairs=2"])
    by_pairs, by_distance = drawn[0].axes
    names = [bar.get_label() for bar in by_pairs.containers]
    assert sorted(names) == ["bigram", "gpt_nano, 1 layer", "gpt_nano, 2 layers", "mlp"]
    runs = {
        path.parent: metrics(path.parent) for path in here.glob("outputs/*/recall/*/metrics.json")
    }
    said = capsys.readouterr().out
    lines = zip(names, by_pairs.containers, by_distance.containers, strict=True)
    for name, pairs, distances in lines:
        model, _, layers = name.partition(", ")
        mine = [
            run
            for run, noted in sorted(runs.items(), key=lambda one: one[1]["seed"])
            if (noted["config/model"], noted["config/n_pairs"]) == (model, 2)
            and str(noted.get("config/n_layer", "")) == layers[:1]
        ]
        shares = [runs[run]["val/answer_accuracy"] for run in mine]
        assert len(mine) == 2 and pairs[0].get_ydata()[0] == pytest.approx(np.mean(shares))
        assert f"| 2 | {shares[0]:.2%}, {shares[1]:.2%} | 0, 1 |" in said
        for distance, share in zip(*distances[0].get_data(), strict=True):
            ends = [
                [*history(run, f"accuracy_by_distance/{distance}").values()][-1] for run in mine
            ]
            assert share == pytest.approx(np.mean(ends))


def test_what_the_figure_of_recall_cannot_show_is_refused(here):
    line = (
        "data=recall n_symbols=16 n_examples=80 example_length=16 block_size=16 val_fraction=0.3 "
    )
    line += "model=bigram n_pairs=2 device=cpu precision=32-true max_steps=1 warmup_steps=1 "
    cli.main(f"{line} name=one".split())
    cli.main(
        ["data=sentence", "model=bigram", "block_size=8", "max_steps=1", "name=other", "device=cpu"]
    )
    command = script("recall")
    for words, arguments in (
        ("pairs=4: the finished runs have 2", ["sweep=outputs/one"]),
        ("has no run of data=recall", ["sweep=outputs/other"]),
    ):
        with pytest.raises(UserError, match=words):
            command.main(arguments)
    cli.main(f"{line} name=one batch_size=2".split())
    with pytest.raises(UserError, match="kind=bigram n_pairs=2 differ in batch_size; needs runs"):
        command.main(["sweep=outputs/one", "pairs=2"])
    assert not (here / "recall.png").exists()
