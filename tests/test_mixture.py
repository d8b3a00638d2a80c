import json
import re
import shutil

import pytest
import torch

from lmlab.commands import train as cli
from lmlab.errors import one_line_errors
from lmlab.inference import mixture
from tests.conftest import metrics, script, working_in

SMALL = "holdout_fraction=0.1 threads=1 precision=32-true "


def test_a_mixture_is_the_weighted_mean_of_probabilities():
    probs = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    wanted = (probs.double() * weights[:, None]).sum(0).log()
    torch.testing.assert_close(mixture.mix(probs.log(), weights), wanted, rtol=0, atol=1e-6)


def test_no_other_weights_make_the_text_likelier():
    answers = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)).pow(3).log()
    weights = mixture.fit(answers)
    assert weights.sum().item() == pytest.approx(1) and (weights > 0).all()
    best = mixture.mix(answers, weights).mean()
    for i in range(3):
        for j in range(3):
            moved = weights.clone()
            moved[i] += 1e-3
            moved[j] -= 1e-3
            assert mixture.mix(answers, moved).mean() <= best + 1e-9


def test_of_two_with_one_always_better_the_other_gets_nothing():
    answers = torch.tensor([[0.5] * 30, [0.1] * 30]).log()
    assert mixture.fit(answers).tolist() == pytest.approx([1, 0], abs=1e-6)


@pytest.fixture(scope="module")
def members(short_texts, tmp_path_factory):
    """Two runs."""
    with working_in(tmp_path_factory.mktemp("members")) as folder:
        cli.main(f"model=ngram order=4 name=a {SMALL.replace('precision=32-true', '')}".split())
        cli.main(f"model=bigram lr=0.1 max_steps=40 name=b {SMALL}".split())
    return [next((folder / "outputs" / name).iterdir()) for name in "ab"]


def evaluated(*arguments):
    with one_line_errors():
        script("evaluate").main([*arguments])


def test_runs_are_mixed_and_it_is_noted(members, capsys):
    capsys.readouterr()
    evaluated(f"run={members[0]},{members[1]}")
    said = capsys.readouterr().out
    first, second = (float(line.split()[0]) for line in said.splitlines()[:2])
    line = json.loads((members[0] / "evaluations.jsonl").read_text().splitlines()[-1])
    assert first + second == pytest.approx(1, abs=0.002)
    one, other = (metrics(run)["val/loss"] for run in members)
    assert (
        line["val/loss"] <= first * one + second * other + 2e-3
    )  # by concavity; weights are shown to three places
    assert float(line[f"weight of {members[1]}"]) == pytest.approx(second, abs=1e-3)
    evaluated(f"run={members[0]},{members[0]}")  # with itself it is itself
    line = json.loads((members[0] / "evaluations.jsonl").read_text().splitlines()[-1])
    assert line["val/loss"] == pytest.approx(metrics(members[0])["val/loss"], abs=1e-6)


def test_a_text_that_was_moved_is_named_for_a_mixture_too(here, train):
    (here / "a.txt").write_text("one cat and two dogs\n" * 40)
    line = "data=file path=a.txt model=ngram holdout_fraction=0.1 threads=1 name="
    runs = [train(f"{line}x order=2"), train(f"{line}y order=3")]
    evaluated(f"run={runs[0]},{runs[1]}")
    (here / "a.txt").rename("b.txt")
    evaluated(f"run={runs[0]},{runs[1]}", "path=b.txt")
    one, other = map(json.loads, (runs[0] / "evaluations.jsonl").read_text().splitlines())
    assert one == other


def test_folders_may_have_commas_in_their_names_and_none_is_left_out(members, here, capsys):
    named = [
        shutil.copytree(run, here / name)
        for run, name in zip(members, ("a,b=1", "a,b=2"), strict=True)
    ]
    evaluated(
        f"run={named[0]},{named[1]}", "data=tales"
    )  # another text, which none need have been kept from
    assert "text/loss" in capsys.readouterr().out
    for text in (f"{named[0]},", f"{named[0]},,{named[1]}", f"{named[0]},nowhere"):
        with pytest.raises(SystemExit) as stopped:
            evaluated(f"run={text}")
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and f"run={text}: " in said
    assert "there is no folder nowhere" in said


def test_the_checkpoint_of_each_member_is_named(members, here, capsys):
    named = [shutil.copytree(run, here / name) for run, name in zip(members, "ab", strict=True)]
    (named[1] / "checkpoints/last.ckpt").unlink()
    evaluated("run=a,b")
    assert "last.ckpt, best.ckpt" in capsys.readouterr().err
    line = json.loads((named[0] / "evaluations.jsonl").read_text().splitlines()[-1])
    assert line["checkpoint"] == "last, best"


def test_a_run_from_other_weights_may_have_read_anything(members, train, capsys):
    tuned = train(f"init_from={members[1]} max_steps=1 name=t {SMALL}")
    with pytest.raises(SystemExit):
        evaluated(f"run={members[0]},{tuned}")
    assert "started from the weights of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "split", "said"),
    [
        ("model=bigram max_steps=1 name=c threads=1", "val", "holdout_fraction=0"),
        ("model=bigram max_steps=1 name=c threads=1 holdout_fraction=0.05", "val", "another text"),
        (
            "model=bigram max_steps=1 name=c threads=1 holdout_fraction=0.1 data=shakespeare",
            "val",
            "another text",
        ),
        (
            "model=bigram max_steps=1 name=c threads=1 holdout_fraction=0.1",
            "holdout",
            "split=holdout",
        ),
        (
            "model=bigram max_steps=1 name=c threads=1 holdout_fraction=0.1",
            "test",
            "split=test: has fewer than two characters; allowed are val\n",
        ),
    ],
)
def test_what_can_not_be_mixed_is_refused(members, train, capsys, other, split, said):
    run = train(other)
    with pytest.raises(SystemExit) as stopped:
        evaluated(f"run={members[0]},{run}", f"split={split}")
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_the_three_minutes_end_in_the_mixture_of_their_two_runs(here, capsys):
    """Of the seed that was given; and no mixture is worse than the mean of its models' losses."""
    three = script("shakespeare_3min")
    small = (
        "n_layer=1 n_head=2 n_embd=16 block_size=16 batch_size=2 max_steps=3 hold_steps=0 threads=1"
    )
    three.MEMBERS["shakespeare_3min"] += small.split()
    three.main(["seed=3"])
    lines = re.findall(r"^([\d.]+) of a model of val/loss ([\d.]+)", capsys.readouterr().out, re.M)
    shown = [(float(weight), float(loss)) for weight, loss in lines]
    runs = [next((here / "outputs" / name).iterdir()) for name in three.MEMBERS]
    assert [metrics(run)["config/seed"] for run in runs] == [3, 3]
    assert [loss for _, loss in shown] == pytest.approx(
        [metrics(run)["val/loss"] for run in runs], abs=1e-5
    )
    kept = json.loads((runs[0] / "evaluations.jsonl").read_text())
    assert sum(weight for weight, _ in shown) == pytest.approx(1, abs=2e-3)
    assert kept["val/loss"] <= sum(weight * loss for weight, loss in shown) + 2e-3
