import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmlab.catalogue import (
    MODELS,
    OPTIMIZERS,
    BigramConfig,
    Choice,
    GPTConfig,
    LSTMConfig,
    MLPConfig,
    ModernConfig,
    NGramConfig,
    builder_of,
)
from lmlab.errors import UserError
from lmlab.models.attention import attend
from lmlab.models.base import LanguageModel, build_model, evaluating
from lmlab.models.gpt import CausalSelfAttention

V, T = 11, 16
MODERN = ModernConfig(
    block_size=T,
    n_layer=2,
    n_head=2,
    n_embd=24,
    dropout=0.0,
    positions="rotary",
    norm="rms",
    qk_norm=True,
    activation="relu2",
    zero_init=True,
    tied=False,
    embedding_norm=True,
)
CONFIGS = {
    "modern": MODERN,
    "modern-taken-back": replace(
        MODERN,
        positions="learned",
        norm="layer",
        qk_norm=False,
        activation="gelu",
        zero_init=False,
        tied=True,
        embedding_norm=False,
    ),
    "bigram": BigramConfig(block_size=T),
    "mlp": MLPConfig(block_size=T, context=5, n_embd=6, n_hidden=20, dropout=0.0),
    "lstm": LSTMConfig(block_size=T, n_layer=2, n_embd=12, dropout=0.1),
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


@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("name", ["gpt", "modern", "modern-taken-back"])
def test_more_tokens_than_block_size_are_an_error(name, tokens):
    with pytest.raises(IndexError):
        build_model(replace(CONFIGS[name], block_size=tokens), V)(some_ids(1, tokens + 1))


@pytest.mark.parametrize("name", ["lstm", "gpt", "gpt-bias", "modern", "modern-taken-back"])
def test_a_cache_changes_no_logit(name):
    """However the tokens are dealt out, one by one or several at once."""
    model = build_model(CONFIGS[name], V).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    idx = some_ids(3, T)
    wanted = model(idx)
    for sizes in ([1] * T, [T], [5, 1, 1, 6, 3]):
        caches = model.caches()
        pieces = [model(piece, caches) for piece in idx.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), wanted, rtol=1e-4, atol=1e-5)
        assert all(cache.length == T for cache in caches)


@pytest.mark.parametrize("queries", [1, 5, T])
def test_attention_in_bfloat16_is_attention(queries):
    """The CPU has a way of its own for it."""
    q, k, v = (
        torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)) for n in (queries, T, T)
    )
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attend(q, k, v), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["mlp", "lstm", "gpt", "gpt-bias", "modern"])
def test_flops_are_those_that_torch_counts(name):
    model = build_model(CONFIGS[name], V)
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # it knows no other on a CPU
        model(some_ids(3, T)).sum().backward()
    assert model.flops_per_token() * 3 * T == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_that_a_model_says_are_those_that_the_base_class_counts(name):
    """Also on the meta device, where a sweep's plan asks for them, and without a trace."""
    model = build_model(CONFIGS[name], V).train()
    state = torch.get_rng_state()
    assert LanguageModel.flops_per_token(model) == model.flops_per_token()
    assert model.training and torch.get_rng_state().equal(state)
    with torch.device("meta"):
        assert build_model(CONFIGS[name], V).flops_per_token() == model.flops_per_token()


class OwnAttention(LanguageModel):
    """What a newcomer may write: no kernel of torch's, and nothing overridden."""

    def __init__(self):
        super().__init__(CONFIGS["bigram"])
        self.token_embedding = torch.nn.Embedding(V, 8)
        self.qkv = torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(8, V)

    def forward(self, idx):
        q, k, v = self.qkv(self.token_embedding(idx)).chunk(3, dim=-1)
        later = torch.full((idx.shape[1], idx.shape[1]), -math.inf, device=idx.device).triu(1)
        return self.head((q @ k.mT / math.sqrt(8) + later).softmax(-1) @ v)


def test_a_model_with_attention_of_its_own_gets_its_flops_muon_and_checkpoints():
    model = OwnAttention()
    assert model.flops_per_token() == 6 * (8 * 24 + 8 * V) + 12 * T * 8
    assert [weight.shape for weight in model.hidden_matrices()] == [(24, 8)]
    assert model.accepts(model.state_dict()) and not model.accepts({})
    assert model.size() == f"{V * 8 + 8 * 24 + 24 + 8 * V + V:,} parameters"


@pytest.mark.parametrize("look", [torch.Tensor.item, torch.Tensor.numpy, torch.Tensor.tolist])
def test_a_model_whose_numbers_decide_what_is_computed_is_counted_with_them(look):
    class Decides(OwnAttention):
        def forward(self, idx):
            return super().forward(idx) if look(idx.sum()) >= 0 else None

    model = Decides()
    assert model(some_ids(2, T)).shape == (2, T, V)
    assert model.flops_per_token() == OwnAttention().flops_per_token()
    assert model.to("meta").flops_per_token() == 6 * (8 * 24 + 8 * V)


def test_a_mask_that_is_no_buffer_loses_no_flops():
    class Masked(OwnAttention):
        def __init__(self):
            super().__init__()
            self.mask = torch.zeros(T, T)  # stays on the CPU, so the meta device can't run it

        def forward(self, idx):
            q, k, v = self.qkv(self.token_embedding(idx)).chunk(3, dim=-1)
            return self.head((q @ k.mT / math.sqrt(8) + self.mask).softmax(-1) @ v)

    assert Masked().flops_per_token() == OwnAttention().flops_per_token()


def test_the_buffers_of_a_model_count_for_the_size_of_its_checkpoint():
    class Buffered(OwnAttention):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(10, 10))

    assert Buffered().largest_checkpoint() == OwnAttention().largest_checkpoint() + 16 * 400


class Renamed(OwnAttention):
    def __init__(self):
        super().__init__()
        self.lm_head = self.head
        del self.head

    def forward(self, idx):
        self.head = self.lm_head
        try:
            return super().forward(idx)
        finally:
            del self.head


class Nested(OwnAttention):
    """Its head has parts, and a matrix that is as wide as the vocabulary."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Sequential(
            torch.nn.Linear(8, V), torch.nn.ReLU(), torch.nn.Linear(V, V)
        )


class Bare(LanguageModel):
    """Its head is no module."""

    def __init__(self):
        super().__init__(CONFIGS["bigram"])
        self.token_embedding = torch.nn.Embedding(V, 8)
        self.weight = torch.nn.Parameter(torch.zeros(V, 8))

    def forward(self, idx):
        return self.token_embedding(idx) @ self.weight.T


def test_muon_knows_the_head_by_what_it_computes_and_not_by_its_name():
    shapes = [weight.shape for weight in Renamed().hidden_matrices()]
    assert shapes == [weight.shape for weight in OwnAttention().hidden_matrices()] == [(24, 8)]
    assert [weight.shape for weight in Nested().hidden_matrices()] == [(24, 8), (V, 8)]
    with pytest.raises(UserError, match="Bare has no module that returns the scores"):
        Bare().hidden_matrices()


@pytest.mark.parametrize("rows", [MODELS, OPTIMIZERS])
def test_a_class_of_keys_has_one_row_since_it_decides_what_is_built(rows):
    assert len({row.config for row in rows.values()}) == len(rows)
    twice = rows | {"another": Choice(GPTConfig, "a:b"), "one more": Choice(GPTConfig, "c:d")}
    with pytest.raises(ValueError, match=r"GPTConfig belongs to [23] rows"):
        builder_of(twice, CONFIGS["gpt"])


@pytest.mark.parametrize("length", [2, T, T + 1, 2 * T + 1, 5 * T + 3])
@pytest.mark.parametrize("name", ["gpt", "ngram"])
def test_windows_predict_every_token_but_the_first_once(name, length):
    ids = torch.arange(length)
    model = build_model(CONFIGS.get(name, NGramConfig(order=4)), V)
    predicted = []
    for idx, targets in model.windows(ids, T, 3 * T):
        assert torch.equal(idx[:, -targets.shape[1] :] + 1, targets)
        assert idx.shape[1] <= 4 * T and len(idx) == len(targets)
        predicted += targets.flatten().tolist()
    assert predicted == list(range(1, length))


@pytest.mark.parametrize("name", [*CONFIGS, "ngram"])
def test_a_model_accepts_its_own_weights_and_no_others(name):
    config = CONFIGS.get(name, NGramConfig(order=4))
    model = build_model(config, V)
    state = model.state_dict() | ({"text": some_ids(9).int()} if name == "ngram" else {})
    with torch.device("meta"):  # no memory is taken before it is known that they fit
        asked = build_model(config, V)
    assert asked.accepts(state)
    first, *_ = state
    for strange in (
        None,
        "text",
        state[first].double(),
        state[first][None],
        state[first].to_sparse(),
    ):
        assert not asked.accepts(state | {first: strange})
    assert not asked.accepts(state | {"another": state[first]}) and not asked.accepts({})


def test_without_a_forward_a_model_says_so():
    with pytest.raises(NotImplementedError, match="LanguageModel has no forward"):
        LanguageModel(CONFIGS["bigram"])(some_ids(1, T))


def test_the_lstm_equals_torchs_own():
    model = build_model(CONFIGS["lstm"], V).eval()
    torchs, (C, idx) = torch.nn.LSTM(12, 12, num_layers=2, batch_first=True), (12, some_ids(3, T))
    torch.nn.init.normal_(model.head.weight)

    def ordered(weight):  # torch has the fourth gate in the third place
        return torch.cat([weight[: 2 * C], weight[3 * C :], weight[2 * C : 3 * C]])

    for i, layer in enumerate(model.layers):
        own = {
            "weight_ih": layer.read.weight,
            "weight_hh": layer.recall.weight,
            "bias_ih": layer.read.bias,
            "bias_hh": torch.zeros(4 * C),
        }
        for name, weight in own.items():
            getattr(torchs, f"{name}_l{i}").data = ordered(weight.data)
    answers, _ = torchs(model.token_embedding(idx))
    torch.testing.assert_close(model(idx), model.head(answers), rtol=1e-5, atol=1e-6)


def test_the_mlp_equals_explicit_matrices():
    model, idx = build_model(CONFIGS["mlp"], V).eval(), some_ids(2, T)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    logits = model(idx)
    for b in range(2):
        for t in range(T):
            before = [None] * 4 + [*idx[b, : t + 1]]
            seen = [
                model.nothing if token is None else model.token_embedding.weight[token]
                for token in before[-5:]
            ]
            hidden = torch.tanh(model.hidden.weight @ torch.cat(seen) + model.hidden.bias)
            wanted = model.head.weight @ hidden + model.head.bias
            torch.testing.assert_close(logits[b, t], wanted, rtol=1e-4, atol=1e-4)


def test_attention_equals_an_explicit_softmax():
    torch.manual_seed(0)
    attention, x = CausalSelfAttention(CONFIGS["gpt-bias"]).eval(), torch.randn(2, T, 24)
    q, k, v = attention.qkv(x).split(24, dim=-1)
    answers = torch.zeros(2, T, 24)
    for b in range(2):
        for head in (slice(0, 12), slice(12, 24)):
            for t in range(T):
                scores = torch.stack(
                    [q[b, t, head] @ k[b, s, head] for s in range(t + 1)]
                ) / math.sqrt(12)
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
    layer = torch.nn.TransformerEncoderLayer(
        24, 2, 4 * 24, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(
        layer, 3, norm=torch.nn.LayerNorm(24), enable_nested_tensor=False
    ).eval()
    names = {
        "blocks": "layers",
        "attention": "self_attn",
        "qkv.weight": "in_proj_weight",
        "qkv.bias": "in_proj_bias",
        "norm_1": "norm1",
        "norm_2": "norm2",
        "mlp.widen": "linear1",
        "mlp.proj": "linear2",
        "proj": "out_proj",
    }
    state = ours.state_dict()
    tokens, positions = state.pop("token_embedding.weight"), state.pop("position_embedding.weight")
    head = state.pop("head.weight")
    for old, new in names.items():
        state = {
            key if "_proj_" in key or new in key else key.replace(old, new): w
            for key, w in state.items()
        }
    theirs.load_state_dict(state)
    idx = some_ids(3, T)
    mask = torch.full((T, T), float("-inf")).triu(1)
    torch.testing.assert_close(
        ours(idx), theirs(tokens[idx] + positions, mask=mask) @ head.T, rtol=1e-4, atol=1e-4
    )


def test_modern_equals_an_independent_implementation():
    """Explicit loops over heads and tokens, channels turned as complex numbers."""
    torch.manual_seed(0)
    model, idx = build_model(MODERN, V).eval(), some_ids(T)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    w, half = dict(model.named_parameters()), 6

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()

    turns = torch.polar(
        torch.ones(T, half), torch.arange(T)[:, None] / 1000 ** (torch.arange(half) / (half - 1))
    )
    x = norm(w["token_embedding.weight"][idx])
    for layer in range(2):
        name = f"blocks.{layer}."
        parts = [(norm(x) @ matrix.T).view(T, 2, 2 * half) for matrix in w[name + "attention.qkv"]]
        heads = []
        for head in range(2):
            q, k, v = (part[:, head] for part in parts)
            q, k = (torch.complex(*norm(each).split(half, dim=-1)) * turns for each in (q, k))
            rows = []
            for t in range(T):
                scores = (q[t] * k[: t + 1].conj()).real.sum(-1) / math.sqrt(2 * half)
                rows.append(scores.softmax(0) @ v[: t + 1])
            heads.append(torch.stack(rows))
        x = x + torch.cat(heads, dim=-1) @ w[name + "attention.proj.weight"].T
        x = (
            x
            + (norm(x) @ w[name + "mlp.widen.weight"].T).clamp(min=0) ** 2
            @ w[name + "mlp.proj.weight"].T
        )
    torch.testing.assert_close(
        model(idx[None])[0], norm(x) @ w["head.weight"].T, rtol=1e-4, atol=1e-4
    )


def test_modern_starts_as_no_layers_at_all():
    torch.manual_seed(0)
    model = build_model(MODERN, V).eval()
    assert model(some_ids(2, T)).eq(0).all()
    torch.nn.init.normal_(model.head.weight)
    x = model.token_embedding(some_ids(2, T))
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(model(some_ids(2, T)), x @ model.head.weight.T, rtol=1e-4, atol=1e-4)


def test_gpt_starts_as_gpt_2_does():
    torch.manual_seed(0)
    config = GPTConfig(block_size=64, n_layer=8, n_head=4, n_embd=256, dropout=0.0, bias=True)
    for name, weight in build_model(config, 100).named_parameters():
        if weight.dim() == 2:
            wanted = 0.02 / math.sqrt(16) if "proj" in name else 0.02
            assert weight.std().item() == pytest.approx(wanted, rel=0.05), name
        else:
            assert weight.eq(1 if "norm" in name and name.endswith("weight") else 0).all(), name


@pytest.mark.parametrize("name", ["gpt-bias", "modern"])
def test_recomputed_blocks_have_the_same_gradients_and_keep_far_less(name):
    """To the bit, dropout included; of a block its input alone is kept."""
    kept, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = replace(CONFIGS[name], n_layer=8, dropout=0.1, recompute=recompute)
        model = build_model(config, V).train()
        if name == "modern":  # else nothing flows through its blocks at first
            model = with_random_weights(model)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loss_of(model, some_ids(2, T), some_ids(2, T))
        loss.backward()
        kept.append(sum(sizes))
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(map(torch.equal, *gradients))
    assert kept[1] < kept[0] / 5


def with_random_weights(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1)
    return model


def test_angles_are_on_the_device_of_the_model_whatever_torch_remembers():
    """transformers leaves torch with a list of functions that lacks linspace."""
    from torch.utils._device import _device_constructors

    from lmlab.models.modern import rotary_angles

    functions = _device_constructors()
    functions.discard(torch.linspace)
    try:
        with torch.device("meta"):
            assert rotary_angles(8, 8).device.type == "meta"
    finally:
        functions.add(torch.linspace)
    assert rotary_angles(8, 8).device.type == "cpu"


def test_a_part_that_a_model_has_frozen_stays_so_after_it_was_evaluated():
    model = build_model(CONFIGS["gpt"], V)
    model.blocks[0].eval()
    modes = {part: part.training for part in model.modules()}
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    model.flops_per_token()
    assert {part: part.training for part in model.modules()} == modes
