import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlab.catalogue import BigramConfig, GPTConfig, ModernConfig
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference.generate import (
    CachedReader,
    NumpyReader,
    PlainReader,
    draw,
    generate,
    next_token_probs,
    reader_for,
    stream,
)
from lmlab.models.base import build_model
from lmlab.models.gpt import GPT

T = 8
TOKENIZER = CharTokenizer.from_text("hello world\n")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(
        GPTConfig(block_size=T, n_layer=1, n_head=2, n_embd=16, dropout=0.5, bias=True), 9
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def modern():
    torch.manual_seed(0)
    model = build_model(
        ModernConfig(
            block_size=T,
            n_layer=2,
            n_head=2,
            n_embd=16,
            dropout=0.5,
            positions="rotary",
            norm="rms",
            qk_norm=True,
            activation="relu2",
            zero_init=True,
            tied=False,
            embedding_norm=True,
        ),
        9,
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.8)
    return model


def texts(model, prompt="he", length=40, samples=1, **options):
    pieces = list(stream(model, TOKENIZER, prompt, length, T, samples=samples, **options))
    return ["".join(parts) for parts in zip(*pieces, strict=True)]


@given(
    st.lists(st.integers(-5, 5), min_size=5, max_size=5, unique=True),
    st.floats(0.1, 3),
    st.integers(1, 6),
    st.floats(0.05, 1),
)
def test_filters_equal_their_definition(logits, temperature, k, p):
    probs = torch.tensor(logits).float().div(temperature).softmax(0).tolist()
    best_first = sorted(range(5), key=lambda i: -logits[i])
    kept = best_first[:k]
    total = sum(probs[i] for i in kept)
    nucleus, mass = [], 0.0
    for i in kept:
        if mass < p - 1e-6:
            nucleus.append(i)
        elif mass < p + 1e-6:
            return  # on the edge, where rounding decides
        mass += probs[i] / total
    total = sum(probs[i] for i in nucleus)
    wanted = [probs[i] / total if i in nucleus else 0.0 for i in range(5)]
    got = next_token_probs(np.array([logits], dtype=np.float32), temperature, k, p)[0]
    assert got.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("length", [3, T, T + 5])
@pytest.mark.parametrize("kind", ["gpt", "modern"])
@pytest.mark.parametrize("samples", [1, 2])  # numpy's way and torch's
def test_the_cache_changes_nothing(kind, length, samples, model, modern):
    """Against whole windows: all that was read, of which a quarter stays whenever there are more
    than T.
    """
    model = {"gpt": model, "modern": modern}[kind]
    wanted = idx = torch.randint(
        9, (samples, length), generator=torch.Generator().manual_seed(2)
    ).numpy()
    start, random = max(0, length - T), torch.Generator().manual_seed(1)
    model.eval()
    for _ in range(3 * T):
        start = wanted.shape[1] - T // 4 if wanted.shape[1] - start > T else start
        logits = model(torch.from_numpy(wanted[:, start:]))[:, -1].detach().numpy()
        wanted = np.concatenate(
            [wanted, draw(next_token_probs(logits, 2.0, None, None), random)[:, None]], axis=1
        )
    model.train()
    tokens = np.stack(list(generate(model, idx, 3 * T, T, temperature=2.0, seed=1)), axis=1)
    assert np.array_equal(tokens, wanted[:, length:]) and len(np.unique(tokens)) > 4
    assert model.training


def test_the_model_says_how_it_is_read(model):
    """A single text on a CPU is read in numpy; several, or a large model's, with caches."""
    bigram = build_model(BigramConfig(block_size=T), 9)
    assert type(reader_for(bigram, 1, T, "32-true")) is PlainReader
    assert type(reader_for(model, 1, T, "32-true")) is NumpyReader
    assert type(reader_for(model, 2, T, "32-true")) is CachedReader
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.models.decoder.LARGEST", 10)
        assert type(reader_for(model, 1, T, "32-true")) is CachedReader


def test_models_without_a_cache_are_asked_anew():
    bigram = build_model(BigramConfig(block_size=T), 9)
    torch.nn.init.normal_(bigram.table.weight)
    tokens = np.stack(
        list(generate(bigram, np.zeros((1, 1), dtype=np.int64), 20, T, temperature=0)), axis=1
    )
    chain = [0]
    for _ in range(20):
        chain.append(int(bigram.table.weight[chain[-1]].argmax()))
    assert tokens[0].tolist() == chain[1:]


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda row: sum(row) > 0.1),
    st.integers(0, 1000),
)
def test_what_has_no_probability_is_never_drawn(row, seed):
    probs = np.array([row], dtype=np.float32) / np.float32(sum(row))
    tokens = draw(probs.repeat(50, axis=0), torch.Generator().manual_seed(seed))
    assert tokens.shape == (50,) and (probs[0, tokens] > 0).all()


def test_the_seed_decides_the_text(model):
    state = torch.get_rng_state()
    assert texts(model, seed=5) == texts(model, seed=5) != texts(model, seed=6)
    assert torch.get_rng_state().equal(state)


def test_a_batch_draws_samples_of_its_own(model):
    several = texts(model, samples=3, seed=5)
    assert len(set(several)) == 3 and all(len(text) == 40 for text in several)


def test_draws_follow_the_probabilities(model):
    model.eval()
    wanted = model(torch.zeros(1, 1, dtype=torch.long))[0, -1].softmax(-1).tolist()
    (drawn,) = generate(model, np.zeros((20_000, 1), dtype=np.int64), 1, T, seed=0)
    assert (np.bincount(drawn, minlength=9) / 20_000).tolist() == pytest.approx(wanted, abs=0.015)


@pytest.mark.parametrize("stop", ["o", "ld", "llo", "ddd"])
def test_a_sample_ends_before_the_stop_string(model, stop):
    for free, stopped in zip(
        texts(model, samples=4), texts(model, samples=4, stop=stop), strict=True
    ):
        assert stopped == free.split(stop)[0]


def test_a_strange_character_in_the_prompt_is_named(model):
    with pytest.raises(UserError, match=r"prompt=he\?x: 2 .*'\?' \(1\), 'x' \(1\)"):
        texts(model, prompt="he?x")


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("size", [3e38, math.nan])
def test_weights_that_ran_away_still_give_tokens_and_it_is_said_once(
    modern, capsys, temperature, size
):
    broken = build_model(modern.config, 9)
    for weight in broken.parameters():
        weight.data = torch.randn(weight.shape) * size
    start = np.zeros((1, 1), dtype=np.int64)
    written = list(generate(broken, start, 20, T, temperature=temperature))
    assert np.stack(written).max() < 9
    assert capsys.readouterr().err.count("scores are no numbers") == 1
    list(generate(modern, start, 3, T))
    assert not capsys.readouterr().err


class Edited(GPT):
    """Its forward was changed; its twin in numpy was not."""

    def forward(self, idx, *caches):
        return 2 * super().forward(idx, *caches)


class Forgetful(GPT):
    """With caches it is another model."""

    def forward(self, idx, *caches):
        return super().forward(idx, *caches) + len(caches)


@pytest.mark.parametrize(("kind", "reader"), [(Edited, CachedReader), (Forgetful, PlainReader)])
def test_a_fast_reader_is_used_only_where_it_returns_the_models_own_logits(
    model, kind, reader, capsys
):
    assert type(reader_for(kind(model.config, 9), 1, T, "32-true")) is reader
    assert "does not return the logits of" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(1e-320, None, None), (1.0, None, 1e-300)])
def test_the_smallest_temperature_and_share_take_the_likeliest_token(options):
    logits = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]], np.float32)
    probs = next_token_probs(logits, *options)
    np.testing.assert_array_equal(probs, next_token_probs(logits, 0, None, None))
