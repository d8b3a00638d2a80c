from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.catalogue import GPTConfig, ModernConfig
from lmlab.models.base import build_model

T, V = 12, 7
GPT = GPTConfig(block_size=T, n_layer=2, n_head=2, n_embd=24, dropout=0.0, bias=True)
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
BASES = st.sampled_from([{}, {"parametrization": "mup", "base_n_embd": 8}])
KINDS = st.one_of(
    st.builds(
        lambda base, **keys: replace(GPT, **base, **keys),
        BASES,
        bias=st.booleans(),
        gelu=st.sampled_from(["exact", "tanh"]),
    ),
    st.builds(
        lambda base, **keys: replace(MODERN, **base, **keys),
        BASES,
        positions=st.sampled_from(["rotary", "learned"]),
        norm=st.sampled_from(["rms", "layer"]),
        activation=st.sampled_from(["relu2", "gelu"]),
        qk_norm=st.booleans(),
        tied=st.booleans(),
        embedding_norm=st.booleans(),
    ),
)


def test_a_head_may_be_far_louder_than_another():
    torch.manual_seed(0)
    model, idx = build_model(GPT, V).eval(), torch.randint(V, (1, T))
    with torch.no_grad():
        model.blocks[0].attention.qkv.bias[[*range(12), *range(24, 36)]] = (
            9.0  # queries and keys of one
        )
        wanted, caches = model(idx)[0], model.caches()
        model(idx[:, :1], caches)
        decoder = model.decoder()
        decoder.follow(caches)
        for token, row in zip(idx[0, 1:].tolist(), wanted[1:].numpy(), strict=True):
            assert decoder(token) == pytest.approx(row, rel=1e-4, abs=1e-4)


@settings(deadline=None)
@given(KINDS, st.integers(1, T - 2))
def test_its_logits_are_the_models(config, read):
    """After torch has read `read` tokens; and torch can take over again."""
    torch.manual_seed(0)
    model = build_model(config, V).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=0.1, std=0.5)
    idx = torch.randint(V, (1, T))
    with torch.inference_mode():
        wanted, caches = model(idx)[0], model.caches()
        model(idx[:, :read], caches)
        decoder = model.decoder()
        decoder.follow(caches)
        found = [decoder(int(token)) for token in idx[0, read : T - 1]]
        torch.testing.assert_close(
            model(idx[:, -1:], caches)[0, 0], wanted[-1], rtol=1e-4, atol=1e-4
        )
    for logits, row in zip(found, wanted[read:-1].numpy(), strict=True):
        assert logits.dtype == np.float32 and logits == pytest.approx(row, rel=1e-4, abs=1e-4)
    assert all(cache.length == T for cache in caches)
