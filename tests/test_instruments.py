"""The instruments: each against a closed form, or a model that was planted so that it is known."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import lmlab
from lmlab.catalogue import INSTRUMENTS, NGramConfig
from lmlab.commands import evaluate
from lmlab.commands import train as cli
from lmlab.data.batches import Batches
from lmlab.data.documents import Documents
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference import noise_scale as noise
from lmlab.inference.by_position import by_position, losses_by_position
from lmlab.inference.calibration import calibration
from lmlab.inference.loss import log_probs
from lmlab.inference.minimal_pairs import RULES, minimal_pairs, pairs_of
from lmlab.inference.noise_scale import estimates, noise_scale
from lmlab.inference.novelty import copies, longest_matches, novelty
from lmlab.inference.specimen import Specimen
from lmlab.models.ngram import NGram
from tests.conftest import NANO, config, content, history, metrics, refused, weights

ON = " ".join(f"{name}=true" for name in INSTRUMENTS)


class Config:
    block_size = 8


class Planted(lmlab.LanguageModel):
    """Its log-probabilities (B, T, V) are a function of the ids (B, T)."""

    gives_log_probs = True

    def __init__(self, function):
        super().__init__(Config())
        self.function = function

    def forward(self, idx):
        return self.function(idx)


def specimen(model, tokens, tokenizer, block_size=8, **others):
    tokens = np.asarray(tokens, np.uint8)
    values = {
        "documents": None,
        "precision": "32-true",
        "align": "epoch",
        "seed": 0,
        "train": tokens,
        "train_documents": None,
    } | others
    return Specimen(
        model=model, tokens=tokens, tokenizer=tokenizer, block_size=block_size, **values
    )


# Loss by position


def falling(idx):
    """What comes is "a" with probability 1 - 1 / (t + 2) at place t of the window, 0 the first."""
    rest = 1 / (torch.arange(idx.shape[1]) + 2.0)
    return torch.stack((1 - rest, rest), -1).log().expand(*idx.shape, 2)


def test_the_loss_at_each_place_is_that_of_the_planted_model():
    found = by_position(specimen(Planted(falling), [0] * 100, CharTokenizer("ab"), 20))
    wanted = [-math.log(1 - 1 / (t + 2)) for t in range(20)]
    rows = [row.split() for row in found["loss_by_position"].splitlines()]
    assert [int(place) for place, _ in rows] == [*range(1, 21)]
    assert [float(loss) for _, loss in rows] == pytest.approx(wanted, abs=2e-6)
    assert found["val/loss_first"] == pytest.approx(math.log(2))
    assert found["val/loss_last"] == pytest.approx(sum(wanted[18:]) / 2)
    assert found["val/context_gain"] == pytest.approx(sum(wanted[2:4]) / 2 - sum(wanted[18:]) / 2)


def test_in_documents_a_place_counts_from_their_beginning_and_unscored_tokens_do_not_count():
    scored = np.array([True, True, False, True, True, True, True, True, True])
    documents = Documents(np.array([0, 3]), scored)
    one = specimen(
        Planted(falling), [0] * 9, CharTokenizer("ab"), 4, documents=documents, align="document"
    )
    places, losses = losses_by_position(one)
    assert places.tolist() == [1, 2, 3, 4]  # windows of 3, 4 and 1 tokens
    assert losses.tolist() == pytest.approx([-math.log(1 - 1 / (t + 2)) for t in range(4)])


def test_the_mean_over_the_places_is_the_loss_of_the_text():
    tokens = np.random.default_rng(0).integers(2, size=83)
    one = specimen(Planted(falling), tokens, CharTokenizer("ab"), 20)
    _, losses = losses_by_position(one)
    sizes = np.bincount((np.arange(82)) % 20)
    loss = -log_probs(one.model, one.tokens, 20).double().mean().item()
    assert losses @ sizes / 82 == pytest.approx(loss)


def test_a_model_that_counts_also_knows_only_what_stands_before_in_the_window():
    text = np.random.default_rng(0).integers(3, size=3001).astype(np.uint8)
    text[2::3] = (text[:-1:3] + text[1::3]) % 3  # two tokens tell the third
    model = NGram(NGramConfig(4), 3)
    model.count(text[:2400])
    ids = torch.from_numpy(text[2400:].astype(np.int64))
    scores = model(ids[:-1].view(-1, 3)).gather(-1, ids[1:].view(-1, 3, 1))
    _, losses = losses_by_position(specimen(model, text[2400:], CharTokenizer("abc"), 3))
    assert losses.tolist() == pytest.approx((-scores[..., 0].double().mean(0)).tolist(), abs=1e-6)


# Calibration


def constant(*probs):
    """A model that always gives these probabilities."""
    return Planted(lambda idx: torch.tensor(probs).log().expand(*idx.shape, len(probs)))


@pytest.mark.parametrize("says, gap", [(0.75, 0.0), (0.9, 0.15), (0.6, -0.15)])
def test_the_error_is_the_gap_between_what_a_model_says_and_how_often_it_is_right(says, gap):
    tokens = [1, *[0, 0, 0, 1] * 50]  # "a" in three of four
    found = calibration(specimen(constant(says, 1 - says), tokens, CharTokenizer("ab")))
    assert found["val/calibration_error"] == pytest.approx(abs(gap), abs=1e-6)
    assert found["val/overconfidence"] == pytest.approx(gap, abs=1e-6)
    assert found["reliability"] == f"{says:.6f} 0.750000 200"


def test_errors_of_different_bins_do_not_cancel():
    """After "a" it says 0.9 and is always right, after "b" it says 0.8 and is right in half."""

    def says(idx):
        after_a = torch.tensor([0.1, 0.9]).log()
        after_b = torch.tensor([0.8, 0.2]).log()
        return torch.where((idx == 0)[..., None], after_a, after_b)

    tokens = [1, 0, 1] * 50 + [1]  # after "b" comes "a" once of two
    found = calibration(specimen(Planted(says), tokens, CharTokenizer("ab")))
    shares = 50 / 150, 100 / 150
    assert found["val/calibration_error"] == pytest.approx(shares[0] * 0.1 + shares[1] * 0.3)
    assert found["val/overconfidence"] == pytest.approx(-shares[0] * 0.1 + shares[1] * 0.3)


def test_only_scored_predictions_count_and_documents_change_no_number_of_them():
    scored = np.array([True, False, True] * 30)
    documents = Documents(np.array([0, 45]), scored)
    tokens = [0, 1, 0] * 30
    for align in ("epoch", "document"):
        one = specimen(
            constant(0.7, 0.3), tokens, CharTokenizer("ab"), documents=documents, align=align
        )
        assert calibration(one)["val/calibration_error"] == pytest.approx(0.3)


# Novelty


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_matches_are_those_found_by_trying(seed, monkeypatch):
    random = np.random.default_rng(seed)
    piece, text = random.integers(3, size=40), random.integers(4, size=300)
    text[100:130] = piece[5:35]  # a planted copy
    monkeypatch.setattr("lmlab.inference.novelty.AT_ONCE", 64)
    letters = "".join(chr(97 + code) for code in text)
    wanted = []
    for i in range(40):
        run = "".join(chr(97 + code) for code in piece[i:])
        wanted.append(max(n for n in range(len(run) + 1) if run[:n] in letters))
    found = longest_matches(piece.astype(np.uint32), text.astype(np.uint32))
    assert found.tolist() == wanted and max(wanted) >= 30


def test_the_numbers_of_copies_are_those_of_their_definition():
    found = copies(np.array([3, 25, 24, 23, 22, 21, 20, 19, *range(18, 0, -1)]), "sample")
    assert found["sample/longest_copy"] == 25
    assert found["sample/copied"] == pytest.approx(6 / 7)  # of 26 - 19 places
    assert found["sample/mean_copy"] == pytest.approx((3 + 25 * 26 / 2) / 26)


def test_a_model_that_recites_is_told_from_the_validation_text():
    """The likeliest after each letter is the next one of the training text, with all certainty."""
    alphabet = "\nabcdefghijklmnopqrstuvwxyz"
    tokenizer = CharTokenizer(alphabet)
    train = tokenizer.encode(alphabet * 30)
    val = tokenizer.encode(alphabet[::-1] * 30)

    def recites(idx):
        return torch.full((*idx.shape, 27), -1e9).scatter(-1, ((idx + 1) % 27)[..., None], 0.0)

    found = novelty(specimen(Planted(recites), val, tokenizer, train=train))
    assert found["sample/longest_copy"] == 400 and found["sample/copied"] == 1
    assert found["val/longest_copy"] == 1 and found["val/copied"] == 0


# Minimal pairs

STORY = (
    "It began. Then she took the kite and ran. The dog was big! They gave it to him. "
    '"Can you sit with us?" he asked. They are here. We see them. He did not come. So it ended. Yes.'
)
PAIRS = [
    ("order", "Then she took kite the and ran."),
    ("case", "Then her took the kite and ran."),
    ("form", "Then she take the kite and ran."),
    ("agreement", "The dog are big!"),
    ("case", "Them gave it to him."),
    ("case", '"Can you sit with we?"'),
    ("agreement", "They was here."),
    ("case", "Them are here."),
    ("case", "Us see them."),
    ("form", "He did not came."),
]


def test_the_rules_make_one_mistake_in_a_sentence_and_keep_its_length():
    pairs = list(pairs_of(STORY))
    assert [(rule, mistaken) for rule, _, mistaken in pairs] == PAIRS
    assert all(len(sentence) == len(mistaken) for _, sentence, mistaken in pairs)


def test_who_has_read_the_sentences_gets_all_pairs_and_who_guesses_half():
    tokenizer = CharTokenizer("".join(sorted({*"\nU", *STORY})))
    tokens = tokenizer.encode(STORY)
    knows = NGram(NGramConfig(12), tokenizer.vocab_size)
    knows.count(np.concatenate([tokenizer.encode(f"\n{line}") for line in STORY.split(". ")]))
    found = minimal_pairs(specimen(knows, tokens, tokenizer, 11))
    assert found["val/minimal_pairs"] == 1
    V = tokenizer.vocab_size
    uniform = Planted(lambda idx: torch.full((*idx.shape, V), -math.log(V)))
    found = minimal_pairs(specimen(uniform, tokens, tokenizer, 5))
    assert found == {f"val/pairs_{rule}": 0.5 for rule in RULES} | {"val/minimal_pairs": 0.5}


def test_a_model_that_knows_one_rule_gets_that_one():
    """It never lets the "e" of "are" or "was" follow where the other one belongs."""
    tokenizer = CharTokenizer("".join(sorted({*"\nU", *STORY})))
    V = tokenizer.vocab_size
    wrong = [tokenizer.encode(text) for text in ("dog are", "They was")]

    def knows(idx):
        scores = torch.full((*idx.shape, V), -math.log(V))
        for ending in wrong:
            *before, last = ending.tolist()
            for t in range(len(before) - 1, idx.shape[1]):
                is_there = (idx[:, t + 1 - len(before) : t + 1] == torch.tensor(before)).all(1)
                scores[is_there, t, last] = -50.0
        return scores

    found = minimal_pairs(specimen(Planted(knows), tokenizer.encode(STORY), tokenizer, 100))
    assert found["val/pairs_agreement"] == 1
    assert {found[f"val/pairs_{rule}"] for rule in ("order", "case", "form")} == {0.5}


# Noise scale


def test_the_estimates_are_unbiased():
    """Their means over all draws of three batches of one are |G|² and tr(Σ), exactly."""
    gradients = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, -2.0]])
    found = []
    for draws in itertools.product(gradients, repeat=3):
        small = np.mean([draw @ draw for draw in draws])
        big = np.mean(draws, 0) @ np.mean(draws, 0)
        found.append(estimates(small, big, 1, 3))
    signal, variance = np.mean(found, 0)
    mean = gradients.mean(0)
    assert signal == pytest.approx(mean @ mean)
    assert variance == pytest.approx(((gradients - mean) ** 2).sum(1).mean())


class OneScore(lmlab.LanguageModel):
    """Two tokens; the score of the second is one weight, so a gradient is p less its share."""

    def __init__(self):
        super().__init__(Config())
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, idx):
        scores = torch.stack((torch.zeros(()), self.weight))
        return nn.functional.dropout(scores, 0.0).expand(*idx.shape, 2)


def test_the_noise_scale_is_that_of_gradients_known_in_closed_form():
    tokens = (np.random.default_rng(0).random(5000) < 0.2).astype(np.uint8)
    model = OneScore().train()
    model.weight.grad = torch.tensor(7.0)
    state = torch.get_rng_state()
    found = noise_scale(specimen(model, tokens, CharTokenizer("ab"), 4))
    assert model.weight.grad == 7 and model.training and torch.get_rng_state().equal(state)
    p = 1 / (1 + math.exp(-0.3))
    batches = Batches(tokens, noise.SMALL, 4, noise.OWN_SEED)
    shares = np.array([batches[t][1].double().mean().item() for t in range(noise.BATCHES)])
    small, big = ((p - shares) ** 2).mean(), (p - shares.mean()) ** 2
    # Appendix A.1 of McCandlish et al., written out
    B, b = noise.SMALL * noise.BATCHES, noise.SMALL
    signal = (B * big - b * small) / (B - b)
    variance = (small - big) / (1 / b - 1 / B)
    assert found["train/gradient_squared"] == pytest.approx(signal, rel=1e-4)
    assert found["train/gradient_variance"] == pytest.approx(variance, rel=1e-4)
    assert found["train/noise_scale"] == pytest.approx(variance / signal, rel=1e-4)
    # and what the tokens were drawn with: four independent ones of variance 0.16 in a sequence
    assert signal == pytest.approx((p - 0.2) ** 2, rel=0.1)
    assert variance == pytest.approx(0.16 / 4, rel=0.5)


def test_a_gradient_that_is_all_noise_has_an_infinite_scale():
    tokens = np.array([0, 1] * 500, np.uint8)
    model = OneScore()
    model.weight.data.zero_()
    found = noise_scale(specimen(model, tokens, CharTokenizer("ab"), 4))
    assert found["train/gradient_squared"] <= 0 and found["train/noise_scale"] == math.inf


# As keys of a run, and of scripts/evaluate.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory, short_texts):
    """A run with all instruments, and the same without."""
    from tests.conftest import working_in

    with working_in(tmp_path_factory.mktemp("instruments")) as folder:
        for name, keys in (("all", ON), ("none", "")):
            cli.main(f"{NANO} dropout=0.1 val_fraction=0.2 {keys} name={name}".split())
            shutil.move(next((folder / f"outputs/{name}").iterdir()), folder / name)
        yield folder


def test_a_run_with_all_of_them_is_the_same_run_to_the_bit(runs):
    one, two = runs / "all", runs / "none"
    for name in ("train/loss", "val/loss", "grad_norm", "sample"):
        assert history(one, name) == history(two, name)
    for checkpoint in ("last", "best"):
        other = weights(two, checkpoint)
        assert all(weight.equal(other[key]) for key, weight in weights(one, checkpoint).items())
    states = [
        torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True)["lmlab"]
        for name in ("all", "none")
    ]
    assert states[0]["random_state"]["torch"].equal(states[1]["random_state"]["torch"])


NAMES = ["val/loss_first", "val/context_gain", "val/calibration_error", "val/minimal_pairs"]
NAMES += ["sample/copied", "val/longest_copy", "train/gradient_squared", "train/noise_scale"]


@pytest.mark.parametrize("name", NAMES)
def test_their_numbers_stand_where_numbers_stand(runs, name):
    assert [*history(runs / "all", name)] == [0, 2, 4]
    assert name in metrics(runs / "all") and name not in metrics(runs / "none")
    events = b"".join(path.read_bytes() for path in (runs / "all").glob("events*"))
    assert name.encode() in events


def test_every_place_of_the_context_and_every_bin_is_in_the_history(runs):
    curve = history(runs / "all", "loss_by_position")[4].splitlines()
    assert len(curve) == config(runs / "all")["block_size"]
    assert float(curve[0].split()[1]) == pytest.approx(
        metrics(runs / "all")["val/loss_first"], abs=1e-6
    )
    assert history(runs / "all", "reliability")[4]


def test_they_are_no_part_of_a_cell_and_a_resumed_run_may_switch_them(runs, here):
    shutil.copytree(runs / "none", here / "run")
    cli.main(["resume=run", "max_steps=6", "calibration=true"])
    assert [*history(here / "run", "val/calibration_error")] == [6]


def test_a_sweep_says_which_keys_come_too_late_for_cells_that_are_done(here, capsys):
    line = (
        "-m model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu max_steps=4 name=s "
    )
    cli.main([*line.split(), "seed=0,1", "log_interval=2"])
    for late, said in (
        ("log_interval=2", []),
        ("out=outputs data=sentence", []),
        (
            "log_interval=2 calibration=true",
            ["calibration=True: without effect on 2 of those done"],
        ),
        (
            "log_interval=4 gradient_norms=true",
            [
                "gradient_norms=True: without effect on 2 of those done",
                "log_interval=4: without effect on 2 of those done",
            ],
        ),
    ):
        capsys.readouterr()
        cli.main([*line.split(), "seed=0,1", *late.split()])
        shown = capsys.readouterr().out.splitlines()
        assert [text for text in shown if "without effect" in text] == [
            f"{text}, which are not run again" for text in said
        ]


def test_a_sweep_says_which_keys_make_no_cells_and_runs_the_first_value(here, capsys):
    line = (
        "-m model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu max_steps=4 name=s "
        "seed=0,1 calibration=true,false"
    )
    said = "calibration: makes no cells of its own; 2 with several values of it run once, with the first"
    cli.main([*line.split(), "dry_run=true"])
    shown = capsys.readouterr().out
    assert said in shown and "calibration=True" in shown and "calibration=False" not in shown
    cli.main(line.split())
    assert said in capsys.readouterr().out.splitlines()
    cells = [*(here / "outputs/sweeps/s").glob("*/metrics.json")]
    assert len(cells) == 2
    assert all("val/calibration_error" in metrics(path.parent) for path in cells)


def test_afterwards_they_find_what_they_found_in_the_run(runs, capsys, short_texts):
    before = content(runs / "none")
    evaluate.main([f"run={runs / 'none'}", *ON.split()])
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    of_run = metrics(runs / "all")
    for name in NAMES:
        if of_run[name] is not None:
            assert float(said[name]) == pytest.approx(of_run[name], abs=1e-5), name
    (line,) = (runs / "none/evaluations.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert noted["loss_by_position"] == history(runs / "all", "loss_by_position")[4]
    (runs / "none/evaluations.jsonl").unlink()
    assert content(runs / "none") == before


def test_on_another_text_they_judge_by_that_text(runs, capsys, here, short_texts):
    (here / "my.txt").write_text("The hen sat on a nest. " * 30)
    words = "calibration=true novelty=true by_position=true"
    evaluate.main([f"run={runs / 'none'}", "data=file", "path=my.txt", *words.split()])
    said = capsys.readouterr().out
    for name in ("text/calibration_error", "text/copied", "sample/copied", "text/context_gain"):
        assert f"{name} " in said


REFUSED = {
    "minimal_pairs=true data=sentence val_fraction=0.2": ["minimal_pairs=true", "data=tales"],
    "calibration=true data=sentence": ["calibration=true", "val_fraction is 0"],
    "by_position=true block_size=1": ["by_position=true", "at least 2"],
    "by_position=true model=ngram order=2": ["by_position=true", "at least 2"],
    "noise_scale=true model=ngram": ["noise_scale=true", "by counting"],
    "novelty=yes": ["novelty=yes", "true or false"],
    "patience=2 data=sentence val_fraction=0": ["patience=2", "val_fraction is 0"],
    "-m hydra/sweeper=search lr=1e-3,2e-3 hydra.sweeper.objective=val/context_gain": [
        "objective=val/context_gain",
        "by_position=true",
    ],
}


def test_in_a_short_text_there_is_no_share_of_long_copies():
    numbers = copies(np.array([17, 3, 2]), "text")
    assert numbers == {"text/longest_copy": 17, "text/mean_copy": pytest.approx(22 / 3)}


@pytest.mark.parametrize("keys", REFUSED)
def test_what_an_instrument_cannot_examine_is_refused_before_the_run(here, capsys, keys):
    line = keys if "ngram" in keys else f"model=gpt_nano max_steps=1 {keys}"
    refused(capsys, lambda: cli.main(line.split()), REFUSED[keys])
    assert not (here / "outputs").exists()


def refused_of(arguments, words):
    with pytest.raises(UserError, match=words):
        evaluate.main(arguments)


def test_what_cannot_be_examined_afterwards_is_refused(runs, here, short_texts):
    run = runs / "none"
    (here / "my.txt").write_text("The hen sat on a nest. " * 30)
    other = ["data=file", "path=my.txt", "minimal_pairs=true"]
    refused_of([f"run={run}", *other], "minimal_pairs=true: .* data=tales, not for data=file")
    refused_of([f"run={run},{runs / 'all'}", "calibration=true"], "calibration=true: .* one model")
    cli.main(["model=ngram", "order=3", "name=counted"])
    ngram = next((here / "outputs/counted").iterdir())
    refused_of([f"run={ngram}", "noise_scale=true"], "noise_scale=true: model=ngram .* counting")


def test_a_counted_model_is_examined_by_all_that_need_no_gradient(here, short_texts):
    keys = ON.replace("noise_scale=true", "")
    cli.main(f"model=ngram order=4 {keys} name=counted".split())
    found = metrics(next((here / "outputs/counted").iterdir()))
    assert found["val/context_gain"] > 0
    assert {"val/calibration_error", "sample/copied", "val/minimal_pairs"} <= found.keys()


def test_each_instrument_has_a_key_that_is_off():
    from lmlab.commands.evaluate import Options
    from lmlab.config.keys import RunConfig, switched_on

    for keys in (RunConfig, Options):
        defaults = {field.name: field.default for field in dataclasses.fields(keys)}
        assert {defaults[name] for name in INSTRUMENTS} == {False}
    assert switched_on(Options(novelty=True)) == ("novelty",)
