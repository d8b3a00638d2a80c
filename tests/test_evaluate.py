import math

import numpy as np
import pytest
import torch

from lmlab.catalogue import GPTConfig
from lmlab.data.tokenizers import CharTokenizer
from lmlab.inference import loss
from lmlab.models.base import build_model

V, T = 9, 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(
        GPTConfig(block_size=T, n_layer=2, n_head=2, n_embd=16, dropout=0.5, bias=True), V
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.train()


def tokens_of(length):
    return np.random.default_rng(0).integers(V, size=length).astype(np.uint8)


@pytest.mark.parametrize("length", [2, T, T + 1, T + 2, 5 * T + 1, 5 * T + 4])
def test_each_token_but_the_first_is_predicted_once_from_its_window(model, length):
    tokens = tokens_of(length)
    answers = loss.log_probs(model, tokens, T)
    model.eval()
    wanted = []
    for i in range(1, length):  # one at a time, from the start of its window
        start = (i - 1) // T * T
        logits = model(torch.from_numpy(tokens[None, start:i].astype(np.int64)))[0, -1]
        wanted.append(logits.log_softmax(-1)[tokens[i]].item())
    assert answers.dtype == torch.float32 and answers.device.type == "cpu"
    assert answers.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 8, 100, 10_000])
def test_the_same_for_every_batch_size(model, monkeypatch, at_once):
    tokens = tokens_of(1000)
    wanted = loss.log_probs(model, tokens, T)
    monkeypatch.setattr(loss, "TOKENS_AT_ONCE", at_once)
    torch.testing.assert_close(loss.log_probs(model, tokens, T), wanted, rtol=0, atol=2e-6)


def test_evaluation_leaves_random_state_and_mode_alone(model):
    state = torch.get_rng_state()
    first, second = (loss.log_probs(model, tokens_of(100), T) for _ in range(2))
    assert first.equal(second)  # dropout is off
    assert model.training
    assert torch.get_rng_state().equal(state)


def test_loss_perplexity_and_bits_per_byte():
    tokenizer = CharTokenizer("aé日")  # 1, 2 and 3 bytes
    tokens = tokenizer.encode("aaé日")
    numbers = loss.loss_metrics(
        torch.log(torch.tensor([0.5, 0.25, 0.125])), tokens, tokenizer, "val"
    )
    assert numbers["val/loss"] == pytest.approx(2 * math.log(2))
    assert numbers["val/perplexity"] == pytest.approx(4)
    assert numbers["val/bits_per_byte"] == pytest.approx((1 + 2 + 3) / (1 + 2 + 3))
