"""Dropout drops the share that was asked for, and what is random comes back with torch's state."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmlab.config.overrides import resolved
from lmlab.models.attention import attend
from lmlab.models.dropout import SHARES, Dropout, draw_kept
from lmlab.sweeps.cells import identity
from tests.conftest import history
from tests.test_models import CONFIGS


def dropout(p, masks="fast"):
    return Dropout(replace(CONFIGS["mlp"], dropout=p, dropout_masks=masks))


def after(function, *arguments):
    """What a function returns with a given random state, and the random state after it."""
    torch.manual_seed(5)
    return function(*arguments), torch.get_rng_state()


@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([(0,), (7,), (3, 5), (2, 3, 4, 4)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_what_is_left_is_divided_by_its_share_and_the_same_state_gives_the_same(p, shape, dtype):
    x = torch.linspace(1, 2, math.prod(shape)).view(shape).to(dtype)
    y, state = after(dropout(p), x)
    again, state_again = after(dropout(p), x)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(y, again) and torch.equal(state, state_again)
    share = min(max(round(p * SHARES), 1), SHARES - 1) / SHARES if p else 0
    scale = torch.ones((), dtype=dtype).div_(1 - share)
    assert torch.equal(y, torch.where(y == 0, 0, x * scale))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for_each_by_its_own_chance(p):
    torch.manual_seed(0)
    dropped = ~draw_kept(torch.Size((1000, 1001)), round(p * SHARES))
    deviation = math.sqrt(p * (1 - p) / dropped.numel())
    assert abs(dropped.double().mean() - p) < 4 * deviation
    both = p * p
    for axis, step in ((0, 1), (1, 1), (1, 2), (1, 4)):  # four of them come from one draw
        pairs = dropped.unfold(axis, step + 1, 1)[..., [0, -1]].all(-1).double()
        assert abs(pairs.mean() - both) < 4 * math.sqrt(both * (1 - both) / pairs.numel())


@given(st.floats(0, 1, exclude_max=True))
def test_old_runs_have_torchs_own_masks(p):
    x = torch.linspace(1, 2, 40)
    theirs, their_state = after(F.dropout, x, p)
    ours, our_state = after(dropout(p, "torch"), x)
    assert torch.equal(theirs, ours)
    assert p == 0 or torch.equal(their_state, our_state)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_flow_where_something_was_kept(turned):
    x = torch.ones(40, 30, requires_grad=True)
    y = dropout(0.5)(x.T if turned else x)
    y.sum().backward()
    assert torch.equal(x.grad, (y.T if turned else y).detach())


def test_outside_of_training_nothing_is_dropped():
    x = torch.ones(5)
    assert dropout(0.5).eval()(x) is x


def test_attention_drops_weights_and_without_the_fast_masks_it_is_torchs_own_to_the_bit():
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    theirs, _ = after(
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.2)
    )
    ours, _ = after(attend, q, k, v, dropout(0.2, "torch"))
    assert torch.equal(ours, theirs)
    ones = torch.ones_like(v)  # each weight that is kept adds up
    gathered, _ = after(attend, q, k, ones, dropout(0.2))
    weights = torch.softmax(
        (q @ k.mT / math.sqrt(8)).masked_fill(~torch.ones(9, 9).tril().bool(), -math.inf), -1
    )
    kept, _ = after(dropout(0.2), weights)
    torch.testing.assert_close(gathered, kept @ ones)


def test_cells_without_dropout_keep_their_names_and_other_masks_are_other_cells():
    """tests/test_old_runs.py resumes a run of before the key to the end that it would have had."""

    def flat(*more):
        return resolved(("model=gpt_nano", "device=cpu", *more))[0].flat()

    plain = flat()
    before = {key: value for key, value in plain.items() if key != "dropout_masks"}
    assert plain["dropout_masks"] == "torch" and identity(plain, {}) == identity(before, {})
    fast = flat("dropout=0.1")
    assert fast["dropout_masks"] == "fast"
    assert identity(fast, {}) != identity(flat("dropout=0.1", "dropout_masks=torch"), {})


def test_a_run_without_dropout_has_the_same_losses_with_either(train):
    line = "model=gpt_nano threads=1 batch_size=4 max_steps=4 log_interval=1 device=cpu precision=32-true "
    fast, slow = (
        train(f"{line} data=sentence val_fraction=0.2 dropout_masks={way}")
        for way in ("fast", "torch")
    )
    assert history(fast, "train/loss") == history(slow, "train/loss")
