import pytest
import torch

from lmlab.catalogue import MuonConfig
from lmlab.models.base import build_model
from lmlab.training import muon
from lmlab.training.muon import Muon, orthogonalized
from lmlab.training.optimizers import build_optimizer
from tests.test_models import CONFIGS, some_ids

CONFIG = MuonConfig(
    lr=0.02, adam_lr=0.02, momentum=0.9, ns_steps=5, beta1=0.9, beta2=0.99, weight_decay=0.1
)
SHAPES = ((6, 8), (8, 6), (6, 8), (32, 8))


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.setitem(muon.HALF, "cpu", torch.bfloat16)


def gradients(step):
    random = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=random) for shape in SHAPES]


def test_muon_equals_torchs_own_in_the_same_precision(bfloat16):
    ours, theirs = ([torch.nn.Parameter(weight) for weight in gradients(0)] for _ in range(2))
    group = {"params": ours, "hidden": True, "weight_decay": 0.1}
    own = Muon([group], lr=0.02, betas=(0.9, 0.99), momentum=0.9, ns_steps=4, half=True)
    reference = torch.optim.Muon(
        theirs,
        lr=0.02,
        weight_decay=0.1,
        momentum=0.9,
        nesterov=True,
        ns_steps=4,
        adjust_lr_fn="match_rms_adamw",
    )
    for step in range(1, 6):
        for weights, optimizer in ((ours, own), (theirs, reference)):
            for weight, gradient in zip(weights, gradients(step), strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                a, b, rtol=0, atol=5e-4 * step
            )  # an update has entries of about 4e-3


def test_float32_is_the_same_but_finer():
    """One step on one matrix against its closed form: a b c of the singular values, again and
    again.
    """
    (matrix,) = (gradient.double() for gradient in gradients(3)[3:])
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    wanted = u @ s.diag() @ vh
    torch.testing.assert_close(orthogonalized(matrix[None], 5)[0], wanted)
    weight = torch.nn.Parameter(torch.zeros(32, 8))
    weight.grad = matrix.float()
    Muon(
        [{"params": [weight], "hidden": True, "weight_decay": 0.0}], 0.1, (0.9, 0.99), 0.9, 5
    ).step()
    torch.testing.assert_close(
        weight.detach(), (-0.1 * 0.2 * 32**0.5 * wanted).float(), rtol=1e-4, atol=1e-6
    )


def test_singular_values_come_close_to_one():
    s = torch.linalg.svdvals(orthogonalized(torch.stack(gradients(4)[:3:2]), 5))
    assert s.gt(0.6).all() and s.lt(1.3).all()


@pytest.mark.parametrize("name", ["gpt", "modern"])
def test_all_but_hidden_matrices_are_left_to_adamw(name):
    """Their step is that of torch's AdamW, at `adam_lr`; a hidden matrix moves by a matrix of equal
    singular values.
    """
    torch.manual_seed(0)
    ours, theirs = build_model(CONFIGS[name], 11), build_model(CONFIGS[name], 11)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    before = {key: weight.detach().clone() for key, weight in ours.named_parameters()}
    config = MuonConfig(**vars(CONFIG) | {"adam_lr": 0.005, "weight_decay": 0.0})
    own = build_optimizer(ours, config)
    for group in own.param_groups:
        group["lr"] = 0.02 * group["lr_scale"]
    adamw = torch.optim.AdamW(theirs.parameters(), lr=0.005, betas=(0.9, 0.99), weight_decay=0.0)
    for model, optimizer in ((ours, own), (theirs, adamw)):
        torch.manual_seed(1)
        (model(some_ids(2, 16)) * torch.randn(2, 16, 11)).sum().backward()
        optimizer.step()
    reference = dict(theirs.named_parameters())
    for key, weight in ours.named_parameters():
        if weight.dim() >= 2 and key.startswith("blocks"):
            size = torch.linalg.svdvals(weight.detach() - before[key]) / (
                0.02 * 0.2 * max(weight.shape[-2:]) ** 0.5
            )
            assert 0.6 < size.max() < 1.3, key
        else:
            torch.testing.assert_close(weight, reference[key])
    hidden = [weight for group in own.param_groups if group["hidden"] for weight in group["params"]]
    assert len(hidden) == 4 * CONFIGS[name].n_layer and all(
        "momentum_buffer" in own.state[w] for w in hidden
    )


def test_decay_pulls_on_all_matrices():
    model = build_model(CONFIGS["gpt-bias"], 7)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    build_optimizer(model, CONFIG).step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            weight.detach(), before[name] * (1 - 0.02 * 0.1 * (weight.dim() >= 2))
        )
