"""The page that explains a text: its numbers are the model's, and nothing in it can become code."""

import base64
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmlab.catalogue import GPTConfig
from lmlab.commands import train as cli
from lmlab.data.splits import Splits
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError, one_line_errors
from lmlab.inference import attention_maps, explain, loss, pictures
from lmlab.models import attention, gpt, modern
from lmlab.models.base import LanguageModel, build_model
from lmlab.runs import checkpoints
from tests.conftest import NANO, SMALL_RUN, refused, script, working_in
from tests.test_models import CONFIGS, T, V, some_ids

TRANSFORMERS = ["gpt", "gpt-bias", "modern", "modern-taken-back"]


def shaken(name):
    """A model whose weights are all far from their start, so that nothing is about alike."""
    torch.manual_seed(0)
    model = build_model(CONFIGS[name], V).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_maps_are_what_attend_multiplies_values_by(name, monkeypatch):
    model, idx, calls = shaken(name), some_ids(T), []

    def noted(q, k, v, dropout=0.0, width_ratio=1.0):
        calls.append((v, y := attention.attend(q, k, v, dropout, width_ratio)))
        return y

    for part in (gpt, modern):
        monkeypatch.setattr(part, "attend", noted)
    maps, config = attention_maps.attention_maps(model, idx), CONFIGS[name]
    assert maps.shape == (config.n_layer, config.n_head, T, T) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert maps.triu(1).eq(0).all() and maps.ge(0).all()
    assert len(calls) == config.n_layer
    for weights, (v, y) in zip(maps, calls, strict=True):
        torch.testing.assert_close(weights @ v[0], y[0], rtol=1e-4, atol=1e-5)


def test_attention_maps_change_nothing_and_there_are_none_of_a_bigram():
    model = build_model(CONFIGS["gpt-bias"], V).train()
    before = torch.get_rng_state()
    attention_maps.attention_maps(model, some_ids(T))
    assert model.training and torch.get_rng_state().equal(before)
    assert attention_maps.attention_maps(build_model(CONFIGS["bigram"], V), some_ids(T)) is None


def test_the_picture_has_a_square_a_head_black_where_all_of_the_attention_is():
    maps = torch.eye(4).expand(2, 3, 4, 4)
    picture = pictures.attention_picture(maps, ["a", " b", "\n", "é"])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    side = 4 * pictures.LARGEST
    wanted = 255 * (1 - np.kron(np.eye(4), np.ones((pictures.LARGEST,) * 2)))
    dark = (picture == 0).all(-1)
    found = []
    for y, x in itertools.product(*(range(n - side + 1) for n in dark.shape)):
        corners = dark[y, x] and dark[y + side - 1, x + side - 1]
        if corners and (picture[y : y + side, x : x + side] == wanted[..., None]).all():
            found.append((y, x))
    assert len(found) == 2 * 3 and len({y for y, _ in found}) == 2


def test_the_words_of_a_picture_fit_in_it_and_labels_show_what_is_invisible():
    assert pictures.label_of(" a\n\t") == "␣a↵⇥" and len(pictures.label_of("x" * 99)) == 12
    font = pictures.font(20)
    lines = pictures.wrapped("Row: the token that looks.", font, 120)
    assert " ".join(lines) == "Row: the token that looks." and len(lines) > 1
    assert all(font.getlength(line) <= 120 for line in lines)


def test_log_probabilities_of_another_shape_are_refused_in_an_evaluation():
    """At the start a model is asked for those of one batch only."""
    model = build_model(CONFIGS["bigram"], V)
    model.log_probs_of = lambda idx, targets: torch.zeros(3)
    with pytest.raises(UserError, match=r"log_probs_of returns \(3,\); needs \(\d+, \d+\)"):
        loss.log_probs(model, np.zeros(99, np.uint8), T)


def test_log_probabilities_of_ones_own_are_asked_for_with_ids_as_scores_are():
    """Texts of few tokens are arrays of single bytes, which no embedding takes."""
    model = build_model(CONFIGS["bigram"], V)
    tokens = np.arange(99, dtype=np.uint8) % V
    plain = loss.log_probs(model, tokens, T)

    def log_probs_of(idx, targets):
        return model(idx).log_softmax(2).gather(2, targets[:, :, None])[:, :, 0]

    model.log_probs_of = log_probs_of
    assert torch.allclose(loss.log_probs(model, tokens, T), plain)


def test_titles_stand_beside_each_other_and_above_the_labels():
    """Also above squares that are smaller than a title."""
    picture = pictures.attention_picture(torch.zeros(1, 3, 1, 1), ["g"])
    title = pictures.width_in(pictures.font(10))("layer 1, head 1")
    assert picture.shape[1] >= 3 * title
    has_ink = (picture < 255).any((1, 2))
    ends = np.flatnonzero(np.diff(has_ink, prepend=False, append=False))
    heights = ends[1::2] - ends[::2]  # of the lines of words, the titles, the labels, the squares
    assert heights[-3] < 15 < heights[-2] < pictures.LARGEST < heights[-1]


def test_the_picture_of_changes_has_a_dot_for_each_matrix_where_its_ratio_is():
    ratios = {"a": 1e-6, "b": 1e-3, "c": 1.0, "d": float("nan")}
    picture = pictures.changes_picture(ratios)
    dark = (picture == 0).all(-1)  # a dot is 13 pixels wide, no stroke of a letter is as thick
    squares = np.lib.stride_tricks.sliding_window_view(dark, (7, 7)).all((-2, -1))
    rows, places = np.nonzero(squares)
    lines = rows // 26  # pixels of a line
    first, second, third = (places[lines == line].mean() for line in np.unique(lines))
    assert second - first == third - second > 100
    many = pictures.changes_picture({f"m{n}": 10.0**-n for n in range(200)})
    assert many.shape[0] < 2 * pictures.MATRICES * 26


@pytest.mark.parametrize("size", [1.0, 3e38])
def test_components_of_vectors_of_any_size_are_the_same(size):
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * size
    _, shares = explain.principal_components(vectors.double())
    expected = np.cov(vectors.double().numpy() / size, rowvar=False)
    values = np.sort(np.linalg.eigvalsh(expected))[::-1]
    np.testing.assert_allclose(shares, values[:2] / values.sum(), rtol=1e-6)


def test_a_model_is_drawn_by_what_it_has_not_by_its_type():
    class Drawn(LanguageModel):
        """Attention of its own with a mask that is added, as ALiBi's, and a picture of its own."""

        def forward(self, idx):
            x = F.one_hot(idx, V).float()[:, None]  # (B, 1, T, V)
            mask = torch.full((idx.shape[1],) * 2, -math.inf).triu(1) - 0.5
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)[:, 0]

        def picture(self, idx, names):
            return np.zeros((2, len(names), 3), np.uint8)

    def drawn(model, with_attention=True):
        return dict(pictures.pictures_of(model, some_ids(T), "abcdefghijk", with_attention))

    assert drawn(build_model(CONFIGS["bigram"], V)).keys() == {"bigram"}
    assert drawn(build_model(CONFIGS["lstm"], V)) == {}
    assert drawn(shaken("gpt")).keys() == {"attention"}
    found = drawn(Drawn(CONFIGS["bigram"]))
    assert found["picture"].shape == (2, V, 3) and found.keys() == {"picture", "attention"}
    assert drawn(Drawn(CONFIGS["bigram"]), with_attention=False).keys() == {"picture"}
    maps = attention_maps.attention_maps(Drawn(CONFIGS["bigram"]), some_ids(T))
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 1, T))
    assert maps.triu(1).eq(0).all()


@pytest.mark.parametrize("tokens", [1, 3, T])
def test_queries_of_some_last_tokens_are_recorded_too(tokens):
    """What a model with a cache asks for."""
    q, k, v = (torch.randn(2, 4, n, 8) for n in (tokens, T, T))
    with attention_maps.Recording() as all_of_them:
        y = attention.attend(q, k, v)
    with attention_maps.Recording(last=True) as last:
        attention.attend(q, k, v)
    torch.testing.assert_close(all_of_them.layers[0] @ v, y)
    torch.testing.assert_close(last.layers[0], all_of_them.layers[0][:, :, -1:])


@pytest.mark.parametrize("name", [*TRANSFORMERS, "bigram"])
@pytest.mark.parametrize("length", [2, T, T + 1, T + 2, 3 * T])
def test_every_token_is_predicted_from_all_that_the_model_can_see(name, length):
    model, ids = shaken(name), some_ids(length).numpy()
    answers, found = explain.read(model, ids, T)
    assert answers.shape == (length - 1, V)
    for t in range(1, length):
        window = torch.from_numpy(ids[max(0, t - T) : t])
        torch.testing.assert_close(
            answers[t - 1], model(window[None])[0, -1].log_softmax(-1), rtol=1e-4, atol=1e-4
        )
        if name != "bigram":
            maps = attention_maps.attention_maps(model, window)
            torch.testing.assert_close(found[t - 1], maps[:, :, -1], rtol=1e-3, atol=1e-4)
    assert len(found) == (0 if name == "bigram" else length - 1)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A mini-GPT and a bigram of some steps, and what their pages say of one text."""
    with working_in(tmp_path_factory.mktemp("explain")) as folder:
        cli.main((NANO + "max_steps=20 eval_interval=10").split())
        cli.main((SMALL_RUN + " name=bigram").split())
    return {name: checkpoints.load(folder / "outputs" / name) for name in ("gpt_nano", "bigram")}


def test_the_numbers_of_the_page_are_the_models(nano, tmp_path):
    run, text = (
        nano["gpt_nano"],
        "The cat sat on the mat, and then it slept. The dog was not there.",
    )
    head = explain.write(run, text, tmp_path / "x.html")
    data, ids = page_data((tmp_path / "x.html").read_text()), run.tokenizer.encode(text)
    assert [token["text"] for token in data["tokens"]] == list(text) and data["tokens"][0] == {
        "text": "T"
    }
    answers, maps = explain.read(run.model, ids, 32)
    own = answers[range(len(ids) - 1), ids[1:].tolist()]
    assert [t["bits"] for t in data["tokens"][1:]] == pytest.approx(
        (-own / math.log(2)).tolist(), abs=6e-4
    )
    assert float(head["mean surprisal here"].split()[0]) == pytest.approx(
        -own.mean().item() / math.log(2), abs=6e-4
    )
    assert head["checkpoint"] == "best" and "gpt_nano" in head["model"]
    for token, answer, i in zip(data["tokens"][1:], answers, ids[1:].tolist(), strict=True):
        order = answer.argsort(descending=True).tolist()
        assert token["rank"] == order.index(i) + 1 and token["p"] == pytest.approx(
            answer[i].exp().item(), rel=1e-3
        )
        assert [char for char, _ in token["top"]] == [run.tokenizer.chars[j] for j in order[:5]]
    content = np.frombuffer(base64.b64decode(data["attention"]["bytes"]), np.uint8)
    sizes, kinds = (
        data["attention"]["sizes"],
        data["attention"]["layers"] * data["attention"]["heads"],
    )
    assert sizes == [min(t, 32) for t in range(1, len(text))]
    for piece, weights in zip(np.split(content, np.cumsum(sizes)[:-1] * kinds), maps, strict=True):
        np.testing.assert_allclose((piece / 255) ** 2, weights.flatten(), atol=0.005)
    places = torch.tensor(data["embedding"]["points"])
    assert (
        places.mean(0).abs().max() < 1
        and len(data["embedding"]["chars"]) == len(places) == run.tokenizer.vocab_size
    )
    assert data["table"] is None


def test_within_one_window_the_surprisals_add_up_to_what_evaluation_says(nano):
    run = nano["gpt_nano"]
    ids = run.tokenizer.encode("The cat sat on the mat.")
    answers, _ = explain.read(run.model, ids, 32)
    expected = loss.log_probs(run.model, ids, 32)
    torch.testing.assert_close(
        answers[range(len(ids) - 1), ids[1:].tolist()], expected, rtol=0, atol=1e-5
    )


def test_the_bigrams_table_stands_beside_the_counts_of_its_own_text(nano, monkeypatch):
    run = nano["bigram"]
    data = explain.page_data(run, None)
    train = Splits.of_run(run.config).train
    counts = np.zeros((run.tokenizer.vocab_size,) * 2, int)
    for now, following in itertools.pairwise(train.tolist()):
        counts[now, following] += 1
    assert (
        data["table"]["chars"] == list(run.tokenizer.chars)
        and (data["table"]["counts"] == counts).all()
    )
    monkeypatch.setattr(explain, "COUNTED_AT_ONCE", 3)
    some = np.arange(len(counts))[::2]  # the others are left out
    counted = explain.count_pairs(train, some, len(counts))
    assert (counted == counts[np.ix_(some, some)]).all()
    packed = base64.b64decode(data["table"]["probs"])
    probs = np.frombuffer(packed, "<u2").reshape(counts.shape) / 65535
    np.testing.assert_allclose(probs**2, run.model.table.weight.detach().softmax(-1), atol=2e-5)
    assert data["attention"] is None and data["embedding"] is None


def test_counts_that_cannot_be_had_are_said_and_the_rest_is_shown(nano, monkeypatch):
    monkeypatch.setattr(loss, "text_sha256", lambda *_: "0" * 64)
    data = explain.page_data(nano["bigram"], nano["bigram"].tokenizer.chars)
    assert data["table"]["counts"] is None and "not the one" in data["table"]["why"]
    with pytest.raises(UserError, match="none was given"):
        explain.page_data(nano["bigram"], None)


def test_a_model_of_no_kind_we_know_has_a_page_too(nano):
    class Recurrent(LanguageModel):
        def __init__(self):
            super().__init__(nano["gpt_nano"].config.model)
            self.cell, self.head = torch.nn.LSTM(60, 16, batch_first=True), torch.nn.Linear(16, 60)

        def forward(self, idx):
            return self.head(self.cell(F.one_hot(idx, 60).float())[0])

    run = nano["gpt_nano"]
    data = explain.page_data(replace(run, model=Recurrent().eval()), "The cat.")
    assert (data["attention"], data["table"], data["embedding"]) == (None, None, None)
    assert all(token["bits"] > 0 for token in data["tokens"][1:])


def test_principal_components_are_those_of_the_covariance():
    weight = torch.randn(20, 6, dtype=torch.float64) * torch.arange(1, 7)
    points, shares = explain.principal_components(weight)
    values = torch.linalg.eigvalsh(weight.T.cov()).flip(0)
    torch.testing.assert_close(points.T.cov(), values[:2].diag(), atol=1e-8, rtol=1e-6)
    assert shares == pytest.approx((values[:2] / values.sum()).tolist())


def test_text_from_outside_cannot_become_code(nano, tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    run = nano["gpt_nano"]
    others = [char for char in run.tokenizer.chars if char not in evil]
    tokenizer = CharTokenizer(
        "".join(sorted({*evil, *others[: run.tokenizer.vocab_size - len({*evil})]}))
    )
    config = replace(run.config, run=replace(run.config.run, name=evil))
    explain.write(replace(run, config=config, tokenizer=tokenizer), evil, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert page.count("<script") == page.count("</script") == 3 and "<img" not in page
    data = page_data(page)
    assert "".join(token["text"] for token in data["tokens"]) == evil and data["title"].startswith(
        evil
    )


def test_the_page_needs_no_other_and_stays_small(tmp_path, nano):
    """That of 500 characters on the default model: 4 layers, 4 heads, 64 tokens of context."""
    run, text = nano["gpt_nano"], ("The cat sat on the mat, and then it slept. " * 12)[:500]
    config = GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False)
    larger = replace(
        run, config=replace(run.config, model=config), model=build_model(config, 60).eval()
    )
    explain.write(larger, text, tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert len(page) < 2_000_000
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # the name of SVG


def test_a_page_that_would_be_too_large_holds_the_attention_of_its_beginning(monkeypatch):
    monkeypatch.setattr(explain, "ATTENTION", 50)
    kept = explain.packed([torch.full((2, 2, size), 1 / size) for size in (1, 2, 3, 4, 4, 4)])
    assert kept["sizes"] == [1, 2, 3, 4] and len(base64.b64decode(kept["bytes"])) == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["text=a"], ["text=a:", "2 to 2,000"]),
        (["text=" + "a" * 2001], ["2,001 characters", "2 to 2,000"]),
        (["text=日本"], ["text=日本", "'日' (1)"]),
        (["run=nowhere"], ["no trained run"]),
        (["txt=a"], ["did you mean text?"]),
        (["out=."], ["out=.: is a folder"]),
        (["out=page.png"], ["out=page.png", "explain.html"]),
    ],
)
def test_what_is_wrong_is_one_line(nano, monkeypatch, capsys, arguments, words):
    run, explainer = nano["gpt_nano"].path, script("explain")
    monkeypatch.chdir(run.parents[2])

    def command():
        with one_line_errors():
            explainer.main(arguments)

    refused(capsys, command, words)


def test_without_a_text_it_reads_the_beginning_of_the_runs_validation_text(
    nano, monkeypatch, tmp_path, capsys
):
    run = nano["gpt_nano"]
    monkeypatch.chdir(run.path.parents[2])
    script("explain").main(["run=outputs/gpt_nano", f"out={tmp_path / 'x.html'}"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "x.html")
    shown = "".join(
        token["text"] for token in page_data((tmp_path / "x.html").read_text())["tokens"]
    )
    assert shown == run.tokenizer.decode(Splits.of_run(run.config).val[:300])
