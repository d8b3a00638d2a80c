"""Learning rates that carry over to other widths: parametrization=mup, its check and its figure."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lmlab.catalogue import AdamWConfig, MuonConfig
from lmlab.commands import coordinates
from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.models.base import build_model
from lmlab.training.coordinates import SCORES, Sizing
from lmlab.training.optimizers import build_optimizer, example_states, set_learning_rate
from tests.conftest import NANO, history, refused, script, weights
from tests.test_models import CONFIGS, V, some_ids

ADAMW = AdamWConfig(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.5)
MUON = MuonConfig(
    lr=0.01, adam_lr=0.004, momentum=0.9, ns_steps=5, beta1=0.9, beta2=0.99, weight_decay=0.5
)
TINY = "data=sentence val_fraction=0.2 block_size=8 n_layer=1 n_embd=16"
M = 4  # times wider than the base


def wide(name, **keys):
    """A model M times wider than the one whose rates it takes over."""
    config = CONFIGS[name]
    base = replace(config, parametrization="mup", base_n_embd=config.n_embd)
    return replace(base, n_embd=M * config.n_embd, **keys)


def test_at_the_base_width_both_parametrizations_are_the_same_run_to_the_bit(train):
    line = f"{NANO} {TINY} eval_interval=4"
    runs = [train(f"{line} {keys}") for keys in ("", "parametrization=mup base_n_embd=16")]
    for key in ("train/loss", "val/loss"):
        one, two = (history(run, key) for run in runs)
        assert one == two and len(one) > 1
    one, two = map(weights, runs)
    assert all(one[name].equal(two[name]) for name in one)
    saved = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs]
    groups = [checkpoint["optimizer_states"][0]["param_groups"] for checkpoint in saved]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("name", ["gpt-bias", "modern"])
@pytest.mark.parametrize("optimizer_config", [ADAMW, MUON])
def test_at_the_base_width_both_make_the_same_steps_to_the_bit(name, optimizer_config):
    standard = replace(CONFIGS[name], dropout=0.0)
    mup = replace(standard, parametrization="mup", base_n_embd=standard.n_embd)
    found = []
    for config in (standard, mup):
        torch.manual_seed(0)
        model = build_model(config, V)
        optimizer = build_optimizer(model, optimizer_config)
        for _ in range(3):
            model(some_ids(2, config.block_size)).square().sum().backward()
            set_learning_rate(optimizer, optimizer_config.lr)
            optimizer.step()
            optimizer.zero_grad()
        found.append([*model.parameters()])
    assert all(one.equal(two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["gpt-bias", "modern", "modern-taken-back"])
def test_a_wider_model_begins_with_the_sizes_of_the_base(name):
    """Each hidden matrix has numbers that are smaller by the root of m; all others are as there."""
    torch.manual_seed(0)
    keys = {"zero_init": False} if "modern" in name else {}
    keys["block_size"] = 99
    config = wide(name, n_layer=1, **keys)
    base = replace(config, n_embd=config.base_n_embd)
    larger, smaller = (build_model(c, 999) for c in (config, base))
    hidden = {id(weight) for weight in larger.hidden_matrices()}
    assert len(hidden) == 4
    before = dict(smaller.named_parameters())
    for key, weight in larger.named_parameters():
        if weight.dim() >= 2:
            ratio = float((before[key].std() / weight.std()).detach())
            assert ratio == pytest.approx(M**0.5 if id(weight) in hidden else 1, rel=0.1), key
        else:
            assert weight.unique().equal(before[key].unique())


@pytest.mark.parametrize("name", ["gpt-bias", "modern-taken-back"])
@torch.no_grad()
def test_scores_go_by_the_head_size_and_logits_by_the_width(name):
    """A standard model with the same weights has such logits if its queries are smaller."""
    config = wide(name)
    standard = replace(config, parametrization="standard", base_n_embd=None)
    ours, theirs = (build_model(c, V).eval() for c in (config, standard))
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    for key, weight in theirs.named_parameters():
        if "qkv" in key:
            (weight[0] if weight.dim() == 3 else weight[: config.n_embd]).div_(M**0.5)
    idx = some_ids(2, config.block_size)
    torch.testing.assert_close(ours(idx), theirs(idx) / M, rtol=1e-4, atol=1e-4)


def stepped(config, optimizer_config, gradients):
    """The weights of a new model before and after a step, by name, and which are hidden."""
    model = build_model(config, V)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
        weight.grad = gradients(weight)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, optimizer_config)
    set_learning_rate(optimizer, optimizer_config.lr)
    optimizer.step()
    hidden = {id(weight) for weight in model.hidden_matrices()}
    for name, weight in model.named_parameters():
        yield before[name], weight.detach(), id(weight) in hidden


@pytest.mark.parametrize("name", ["gpt-bias", "modern"])
def test_adamw_moves_hidden_matrices_by_a_rate_divided_by_the_width(name):
    """Its first step is the rate, in the direction of the gradient's sign."""
    config = replace(ADAMW, weight_decay=0.0)
    for before, after, is_hidden in stepped(wide(name), config, torch.randn_like):
        moved = (after - before).abs()
        rate = 0.01 / M if is_hidden else 0.01
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt", "modern"])
def test_muon_moves_hidden_matrices_as_far_as_at_the_base_width(name):
    """As singular values say; in the standard it is further, by the root of m."""
    config = replace(MUON, weight_decay=0.0)
    for before, after, is_hidden in stepped(wide(name), config, torch.randn_like):
        if is_hidden:
            base = max(before.shape[-2:]) / M
            size = torch.linalg.svdvals(after - before) / (0.01 * 0.2 * base**0.5)
            assert 0.6 < size.median() < 1.3
        else:
            assert (after - before).abs().mean() == pytest.approx(0.004, rel=1e-2)


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_decay_is_that_of_the_base(config):
    rates = {False: getattr(config, "adam_lr", config.lr), True: config.lr}
    for before, after, is_hidden in stepped(wide("gpt-bias"), config, torch.zeros_like):
        decay = rates[is_hidden] * 0.5 * (before.dim() >= 2)
        torch.testing.assert_close(after, before * (1 - decay))


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_the_state_of_the_optimizer_is_known_before_it_is_there(config):
    model = build_model(wide("gpt-bias"), V)
    examples = example_states(model, config)
    optimizer = build_optimizer(model, config)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = optimizer.state_dict()["state"]
    assert len(states) == len(examples)
    for number, state in states.items():
        assert {name: getattr(value, "shape", None) for name, value in state.items()} == {
            name: getattr(value, "shape", None) for name, value in examples[number].items()
        }


def test_a_wider_run_is_resumed_to_the_bit(train):
    line = f"{NANO} {TINY} parametrization=mup base_n_embd=8 optimizer=muon decay_steps=4"
    whole = train(f"{line} name=whole")
    halves = train(f"{line} name=halves max_steps=2")
    cli.main([f"resume={halves}", "max_steps=4"])
    one, two = weights(whole), weights(halves)
    assert all(one[name].equal(two[name]) for name in one)
    assert history(whole, "train/loss") == history(halves, "train/loss")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("parametrization=mup", ["parametrization=mup", "needs base_n_embd=…"]),
        ("base_n_embd=16", ["base_n_embd=16", "parametrization=mup"]),
        (
            "parametrization=mup base_n_embd=5",
            ["base_n_embd=5 n_head=2: base_n_embd must be a multiple of n_head"],
        ),
        (
            "parametrization=mup base_n_embd=6 model=modern n_head=2",
            ["base_n_embd=6 n_head=2: base_n_embd must be a multiple of twice n_head"],
        ),
        (
            "parametrization=mup base_n_embd=16 optimizer=sgd",
            ["optimizer=sgd", "parametrization=mup", "adamw, muon"],
        ),
        ("parametrization=mu", ["parametrization=mu:", "standard, mup"]),
        ("parametrization=mup model=lstm", ["parametrization=mup", "model=lstm"]),
    ],
)
def test_what_would_have_no_effect_is_refused(here, capsys, line, words):
    model = [] if "model=" in line else ["model=gpt_nano"]
    refused(capsys, lambda: cli.main([*model, *line.split()]), words)
    assert not (here / "outputs").exists()


def test_the_size_of_an_activation_is_the_mean_of_its_absolute_values():
    """Of the scores, between tokens of which one sees the other."""
    torch.manual_seed(0)
    model = build_model(replace(CONFIGS["gpt"], n_layer=1), V)
    idx = some_ids(2, 5)
    with Sizing(model) as sizing, torch.no_grad():
        logits = model(idx)
    x = model.token_embedding(idx) + model.position_embedding.weight[:5]
    qkv = model.blocks[0].attention.qkv(model.blocks[0].norm_1(x))
    q, k, _ = (part.unflatten(2, (4, 8)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    scores = (q @ k.mT / math.sqrt(8))[:, :, torch.ones(5, 5).tril().bool()]
    wanted = {
        "token_embedding": model.token_embedding(idx),
        "blocks.attention.qkv": qkv,
        "blocks": model.blocks[0](x),
        "head": logits,
        SCORES: scores,
    }
    sizes = sizing.sizes()
    assert {name: sizes[name] for name in wanted} == pytest.approx(
        {name: activation.detach().abs().mean().item() for name, activation in wanted.items()}
    )
    model(idx)  # nothing is left in the model
    assert sizing.sizes() == sizes


SMALL = [
    *("data=sentence", "n_layer=1", "n_head=2", "block_size=8", "batch_size=4"),
    *("threads=1", "lr=2e-3"),
]


def test_activations_grow_with_the_width_in_the_standard_and_not_with_mup(here, capsys):
    script("coordinates").main([*SMALL, "widths=32,256", "steps=4", "seeds=0,1"])
    said = capsys.readouterr().out
    assert "parametrization=standard: activations grow with the width, up to" in said
    assert "parametrization=mup: no activation grows with the width, at most" in said
    assert (here / "coordinates.png").read_bytes().startswith(b"\x89PNG")


def test_the_sizes_are_the_same_where_blocks_are_computed_twice():
    typed = [*SMALL, "model=gpt"]
    plain, twice = (
        coordinates.measured("", [[coordinates.configured([*typed, own], 32, 0, None)]], 2)
        for own in ("recompute=false", "recompute=true")
    )
    for activation, sizes in plain.items():
        np.testing.assert_array_equal(sizes, twice[activation])


def test_of_a_training_that_diverged_nothing_is_said():
    table = {"head": np.array([[1.0, 2.0], [1.0, np.nan]]), "scores": np.ones((2, 2))}
    growth = coordinates.growth_of(table)
    assert growth == {"head": (np.inf, 1), "scores": (1.0, 0)}
    assert "the training diverged (head, after 1 steps)" in coordinates.verdict("mup", growth)
    coordinates.drawn({"standard": table, "mup": table}, [16, 32])


@pytest.mark.parametrize("keys", ["model=gpt optimizer=muon", "model=modern optimizer=muon"])
def test_so_do_those_of_other_models_and_optimizers(keys):
    typed = [*SMALL, *keys.split()]
    for base, least, most in ((None, 1.3, np.inf), (32, 0.0, 1.3)):
        rows = [[coordinates.configured(typed, width, 0, base)] for width in (32, 256)]
        growth = coordinates.growth_of(coordinates.measured("", rows, 4))
        assert least < max(factor for factor, _ in growth.values()) < most


def test_growth_is_that_of_the_step_in_which_it_is_most():
    table = {"head": np.array([[0.0, 1.0, 2.0], [0.0, 9.0, 9.0], [5.0, 3.0, 5.0]])}
    assert coordinates.growth_of(table) == {"head": (3.0, 1)}


def test_what_is_zero_in_all_steps_is_drawn_as_well():
    """As after one step with zero_init, where the head hides all that lies before it."""
    table = {"head": np.array([[0.0, 1.0], [0.0, 9.0]]), "attention": np.zeros((2, 2))}
    axes = coordinates.drawn({"standard": table, "mup": table}, [16, 32]).axes
    assert [each.get_yscale() for each in axes] == ["log", "linear"] * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("widths=32", ["widths=32: needs two widths"]),
        ("widths=a,b", ["widths=a,b: needs whole numbers"]),
        ("n_embd=32", ["n_embd=32", "widths="]),
        ("parametrization=mup", ["parametrization=mup", "both are checked"]),
        ("max_steps=5", ["max_steps=5: has no effect on this check", "batch_size"]),
        ("devices=2", ["devices=2: has no effect on this check", "but devices and nodes"]),
        ("model=bigram", ["model=bigram: has no parametrization=mup", "gpt, modern"]),
        ("optimizer=sgd", ["optimizer=sgd", "adamw, muon"]),
        ("out=x.txt", ["out=x.txt", ".png"]),
        ("widht=32,64", ["widht=32,64: has several values (did you mean widths?)"]),
        ("--lr=1e-2", ["--lr=1e-2: keys are written without dashes: lr=1e-2"]),
        ("--widths=32,64", ["keys are written without dashes: widths=32,64"]),
        ("--device", ["--device: needs key=value"]),
        ("widht=32", ["there is no key widht"]),
        ("widths=32,64,32", ["widths=32,64,32: 32 is there twice"]),
        ("n_head=3 widths=32,64", ["n_embd=32 n_head=3"]),
        ("n_layer=1,2", ["n_layer=1,2: has several values"]),
        ("model=gpt,modern", ["model=gpt,modern: has several values"]),
    ],
)
def test_what_the_check_has_no_use_for_is_refused(here, capsys, line, words):
    from lmlab.errors import one_line_errors

    def command():
        with one_line_errors():
            script("coordinates").main(line.split())

    refused(capsys, command, words)


def some_runs(best, rates, curvature=0.3):
    """Finished runs whose losses are parabolas, each seed with its own best rate."""
    rows = [
        {"seed": seed, "lr": lr, "loss": 2 + curvature * math.log(lr / rate) ** 2}
        for seed, rate in enumerate(best)
        for lr in rates
    ]
    return pd.DataFrame(rows)


def test_the_best_rate_is_that_of_the_parabola_and_its_interval_that_of_student():
    rates = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    found = script("transfer").best_of(some_runs([3e-3, 4e-3, 6e-3], rates))
    logs = np.log([3e-3, 4e-3, 6e-3])
    half = 4.302653 * logs.std(ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert found.lr == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx(
        (math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    )
    assert found.loss == pytest.approx(2)


@pytest.mark.parametrize(("far", "is_bent"), [(2.4, False), (75.0, True)])
def test_a_rate_with_a_far_larger_loss_beside_the_best_one_is_told(far, is_bent):
    """Its parabola would have its lowest point below all losses, even below zero."""
    runs = pd.DataFrame({"seed": 0, "lr": [1e-3, 1e-2, 1e-1], "loss": [2.3, 2.2, far]})
    found = script("transfer").best_of(runs)
    assert found.is_bent == is_bent and (found.loss < 0) == is_bent


@pytest.mark.parametrize("best", [1e-4, 1.1e-3, 0.1])
def test_a_rate_that_was_not_enclosed_is_none(best):
    assert script("transfer").best_of(some_runs([4e-3, best], [1e-3, 2e-3, 4e-3])) is None


def test_a_seed_of_which_rates_are_missing_is_left_out():
    runs = some_runs([3e-3, 3e-3], [1e-3, 2e-3, 4e-3, 8e-3])
    runs = runs[(runs["seed"] == 0) | (runs["lr"] == 1e-3)]
    found = script("transfer").best_of(script("transfer").run_through(runs))
    assert found.seeds == 1 and found.lr == pytest.approx(3e-3) and math.isnan(found.low)


def test_a_sweep_over_rates_is_drawn_and_told(here, capsys, monkeypatch):
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    tables = [
        some_runs([best, best, best], rates).assign(n_embd=width, parametrization=parametrization)
        for parametrization, width, best in (
            ("standard", 32, 3e-3),
            ("standard", 64, 1.5e-3),
            ("mup", 32, 2e-3),
            ("mup", 64, 9e-3),
        )
    ]
    table = pd.concat(tables).rename(columns={"loss": "val/loss"})
    table = table.assign(model="gpt", optimizer="adamw", status="finished", started=1.0)
    table["reason"] = ""
    table["group"] = table.groupby(["parametrization", "n_embd", "lr"]).ngroup()
    alike = table
    table = pd.concat([table, table.assign(started=0.0)])  # the same again, begun earlier
    diverged = {"lr": 1.6e-2, "val/loss": 0.5, "status": "diverged"}  # at its last step
    table = pd.concat([table, table.assign(**diverged)])
    monkeypatch.setattr("lmlab.sweeps.table.load_runs", lambda folder: table)
    monkeypatch.setattr("lmlab.sweeps.table.objective", lambda table: "val/loss")
    script("transfer").main(["sweep=x", "out=rates.png"])
    said = capsys.readouterr().out
    assert "| gpt | adamw | standard | 32 | 3.00e-03 | 3.00e-03 to 3.00e-03 | 2.000 | 3 |" in said
    assert "| gpt | adamw | standard | 64 | 1.50e-03 |" in said
    assert "the one that started last counts; left out: 48." in said
    assert "| gpt | adamw | mup | 64 | not enclosed by its rates" in said
    assert "gpt, adamw, standard: from n_embd=32 to 64 the best rate changes 0.50 times" in said
    assert "gpt, adamw, mup: fewer than two values of n_embd have a best rate" in said
    assert (here / "rates.png").exists()
    others = dict.fromkeys(("data", "tokenizer", "device"), "x")
    larger = alike.assign(batch_size=32, group=alike["group"] + 1000)
    table = pd.concat([alike.assign(batch_size=2), larger])
    table = table.assign(label="", max_steps=9, **others)
    columns = [name for name in table if name not in ("reason", "group", "label", "val/loss")]
    table = table[[*columns, "reason", "group", "label", "val/loss"]]
    with pytest.raises(UserError, match=r"n_embd=32 lr=0.001 differ in batch_size; needs runs"):
        script("transfer").main(["sweep=x", "out=again.png"])
    assert not (here / "again.png").exists()


def test_rates_are_compared_over_any_key_of_numbers(here, capsys, monkeypatch):
    rates = [1e-3, 2e-3, 4e-3, 8e-3]
    tables = [
        some_runs([best] * 3, rates).assign(
            n_layer=depth, group=[f"{depth} {lr}" for lr in rates] * 3
        )
        for depth, best in ((2, 2e-3), (16, 4e-3))
    ]
    same = {"n_embd": 64, "model": "gpt", "optimizer": "adamw", "parametrization": "standard"}
    same |= {"data": "x", "tokenizer": "char", "max_steps": 9, "status": "finished", "started": 1.0}
    table = pd.concat(tables).rename(columns={"loss": "val/loss"}).assign(**same, label="")
    keys = [
        name for name in table if name not in ("group", "label", "val/loss", "status", "started")
    ]
    table = table.assign(reason="")[[*keys, "reason", *(set(table) - set(keys))]]
    monkeypatch.setattr("lmlab.sweeps.table.load_runs", lambda folder: table)
    script("transfer").main(["sweep=x", "over=n_layer"])
    said = capsys.readouterr().out
    assert "| gpt | adamw | standard | 16 | 4.00e-03 |" in said
    assert "from n_layer=2 to 16 the best rate changes 2.00 times" in said
    few = table[(table["n_layer"] == 2) | (table["lr"] < 4e-3)]
    monkeypatch.setattr("lmlab.sweeps.table.load_runs", lambda folder: few)
    script("transfer").main(["sweep=x", "over=n_layer"])
    assert "| 16 | fewer than three finished rates |" in capsys.readouterr().out
    for key in ("lr", "seed", "model", "val/loss", "depth"):
        with pytest.raises(
            UserError, match=f"^over={key}: allowed are max_steps, n_embd, n_layer$"
        ):
            script("transfer").main(["sweep=x", f"over={key}"])
