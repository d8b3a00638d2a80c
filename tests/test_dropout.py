"""Dropout draws what torch's own function would draw, only faster."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmlab.models import dropout
from lmlab.models.attention import attend
from lmlab.models.dropout import AT_ONCE, drop


def after(function, *arguments):
    """What a function returns with a given random state, and the random state after it."""
    torch.manual_seed(5)
    return function(*arguments), torch.get_rng_state()


@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([(0,), (7,), (3, 5), (2, 3, 4, 4)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_it_is_torchs_own_to_the_bit(p, shape, dtype):
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape).to(dtype)
    theirs, their_state = after(F.dropout, x, p)
    ours, our_state = after(drop, x, p, True)
    assert torch.equal(theirs.nan_to_num(), ours.nan_to_num()) and ours.dtype == dtype
    if p > 0 and x.numel() > 0:
        assert torch.equal(their_state, our_state)


@pytest.mark.parametrize("alike", [True, False])
def test_also_where_there_is_more_than_is_drawn_at_once(monkeypatch, alike):
    """And on a machine where torch draws in another way, which is then left to it."""
    if not alike:
        monkeypatch.setattr(dropout, "draws_alike", lambda: False)
    x = torch.ones(AT_ONCE + 3)
    theirs, their_state = after(F.dropout, x, 0.25)
    ours, our_state = after(drop, x, 0.25, True)
    assert torch.equal(theirs, ours) and torch.equal(their_state, our_state)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_flow_where_something_was_kept(turned):
    x = torch.ones(40, 30, requires_grad=True)
    y = drop(x.T if turned else x, 0.5, True)
    y.sum().backward()
    assert torch.equal(x.grad, (y.T if turned else y).detach())


def test_outside_of_training_nothing_is_dropped():
    x = torch.ones(5)
    assert drop(x, 0.5, False) is x


def attended(function, **options):
    """What a function of attention returns with dropout, and the gradient of that."""
    x = torch.randn(2, 9, 3, 4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q, k, v = x.permute(2, 0, 3, 1, 4)
    torch.manual_seed(5)
    y = function(q, k, v, **options)
    y.sin().sum().backward()
    return y.detach(), x.grad


def test_attention_with_dropout_is_torchs_own_to_the_bit():
    ours = attended(attend, dropout=0.2)
    theirs = attended(F.scaled_dot_product_attention, is_causal=True, dropout_p=0.2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
