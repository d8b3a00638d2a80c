import math

import pytest
import torch
import torch.nn.functional as F

from lmlab.config import BigramConfig, GPTConfig
from lmlab.models import build_model
from lmlab.models.gpt import CausalSelfAttention

V, T = 11, 16
CONFIGS = {
    "bigram": BigramConfig(block_size=T),
    "gpt": GPTConfig(block_size=T, n_layer=2, n_head=4, n_embd=32, dropout=0.0, bias=False),
    "gpt-bias": GPTConfig(block_size=T, n_layer=3, n_head=2, n_embd=24, dropout=0.1, bias=True),
}

@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return build_model(CONFIGS[request.param], V).eval()

def some_ids(*shape):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))

def loss_of(model, idx, targets):
    return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())

@pytest.mark.parametrize("shape", [(1, 1), (3, T), (2, 5)])
def test_logits_have_a_score_for_every_next_token(model, shape):
    assert model(some_ids(*shape)).shape == (*shape, V)

def test_the_first_loss_is_that_of_knowing_nothing(model):
    loss = loss_of(model, some_ids(32, T), some_ids(32, T).flip(0)).item()
    assert loss == pytest.approx(math.log(V), abs=1e-6 if hasattr(model, "table") else 0.05)

def test_no_token_sees_a_later_one(model):
    for weight in model.parameters():  # away from the start, where a bigram's answers are all alike
        torch.nn.init.normal_(weight)
    idx = some_ids(2, T)
    before = model(idx)
    for t in range(T - 1):
        changed = idx.clone()
        changed[:, t + 1] = (changed[:, t + 1] + 1) % V
        after = model(changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1], before[:, t + 1])

def test_more_tokens_than_block_size_are_an_error():
    with pytest.raises(IndexError):
        build_model(CONFIGS["gpt"], V)(some_ids(1, T + 1))

def test_attention_equals_an_explicit_softmax():
    torch.manual_seed(0)
    attention, x = CausalSelfAttention(CONFIGS["gpt-bias"]).eval(), torch.randn(2, T, 24)
    q, k, v = attention.qkv(x).split(24, dim=-1)
    answers = torch.zeros(2, T, 24)
    for b in range(2):
        for head in (slice(0, 12), slice(12, 24)):
            for t in range(T):
                scores = torch.stack([q[b, t, head] @ k[b, s, head] for s in range(t + 1)]) / math.sqrt(12)
                weights = scores.exp() / scores.exp().sum()
                answers[b, t, head] = sum(weights[s] * v[b, s, head] for s in range(t + 1))
    torch.testing.assert_close(attention(x), attention.proj(answers), rtol=1e-5, atol=1e-6)

def test_a_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model, (idx, targets) = build_model(CONFIGS["gpt"], V), some_ids(2, 4, T)
    idx[:, 0] = torch.arange(4)  # no two begin alike, or their second tokens could only be guessed
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = loss_of(model, idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05

def test_gpt_equals_an_independent_implementation():
    """The same weights in PyTorch's own transformer, between embeddings and a head of its own."""
    torch.manual_seed(0)
    ours = build_model(CONFIGS["gpt-bias"], V).eval()
    for weight in ours.parameters():  # biases and gains too shall matter
        torch.nn.init.normal_(weight, std=0.3)
    layer = torch.nn.TransformerEncoderLayer(24, 2, 4 * 24, activation="gelu", batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 3, norm=torch.nn.LayerNorm(24), enable_nested_tensor=False).eval()
    names = {"blocks": "layers", "attention": "self_attn", "qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias",
             "norm_1": "norm1", "norm_2": "norm2", "mlp.widen": "linear1", "mlp.proj": "linear2", "proj": "out_proj"}
    state = ours.state_dict()
    tokens, positions = state.pop("token_embedding.weight"), state.pop("position_embedding.weight")
    head = state.pop("head.weight")
    for old, new in names.items():
        state = {key if "_proj_" in key or new in key else key.replace(old, new): w for key, w in state.items()}
    theirs.load_state_dict(state)
    idx = some_ids(3, T)
    mask = torch.full((T, T), float("-inf")).triu(1)
    torch.testing.assert_close(ours(idx), theirs(tokens[idx] + positions, mask=mask) @ head.T, rtol=1e-4, atol=1e-4)

def test_gpt_starts_as_gpt_2_does():
    torch.manual_seed(0)
    config = GPTConfig(block_size=64, n_layer=8, n_head=4, n_embd=256, dropout=0.0, bias=True)
    for name, weight in build_model(config, 100).named_parameters():
        if weight.dim() == 2:
            wanted = 0.02 / math.sqrt(16) if "proj" in name else 0.02
            assert weight.std().item() == pytest.approx(wanted, rel=0.05), name
        else:
            assert weight.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name
