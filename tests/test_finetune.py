"""Runs that come from runs: fine-tuned from one's weights, and replayed."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

from lmlab.commands import train as cli
from lmlab.data.splits import Splits
from lmlab.inference import loss
from lmlab.runs import checkpoints
from lmlab.sweeps import report
from lmlab.sweeps import table as tables
from lmlab.training.step import LanguageModule
from tests.conftest import NANO, config, history, metrics, refused


@pytest.fixture
def source(train, here):
    """A run on one text, and another text with two characters that the first one lacks."""
    (here / "old.txt").write_text("the cat sat on the mat, the dog ran. " * 20)
    (here / "new.txt").write_text("a hat, a rat; that is the end. " * 20)
    return train(NANO + "data=file path=old.txt name=old val_fraction=0.2 max_steps=8")


def said(capsys, line):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


NEW = (
    "data=file path=new.txt threads=1 device=cpu precision=32-true batch_size=4 max_steps=4 eval_interval=2 "
    "log_interval=1 "
)


def test_it_starts_from_the_best_weights_with_the_old_vocabulary(source, train, here):
    (here / "new.txt").write_text("a hat, a mat, at the end. " * 20)
    run = train(f"init_from={source} {NEW}")
    assert (run / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    values, old = config(run), config(source)
    assert (values["model"], values["n_embd"], values["block_size"]) == (
        "gpt_nano",
        old["n_embd"],
        old["block_size"],
    )
    assert values["init_from"] == str(source)
    start, tuned = checkpoints.load(source, "best"), checkpoints.load(run)
    data = Splits.of_run(tuned.config, tuned.tokenizer)
    for key, tokens in (
        ("val/loss", data.val),
        ("val/loss_source", Splits.of_run(start.config, start.tokenizer).val),
    ):
        answers = loss.log_probs(start.model, tokens, 32)
        assert (
            history(run, key)[0]
            == loss.loss_metrics(answers, tokens, start.tokenizer, "val")["val/loss"]
        )
    assert history(run, "val/loss_source")[0] == pytest.approx(metrics(source)["best/val/loss"])
    assert sorted(history(run, "val/loss_source")) == [0, 2, 4]
    assert history(run, "val/loss")[4] < history(run, "val/loss")[0]


def test_unknown_characters_are_counted_and_named_or_left_out(source, train, here, capsys):
    line = f"init_from={source} {NEW}"
    error = said(capsys, line)
    assert (
        "40 characters outside the vocabulary: ';' (20), 'i' (20)" in error
        and "unknown=drop" in error
    )
    run = train(line + "unknown=drop")
    said_of_them = "40 characters that the vocabulary lacks were left out: ';', 'i'"
    assert said_of_them in capsys.readouterr().err
    assert metrics(run)["left_out"] == 40
    table = tables.load_runs(source, run)
    assert "left_out" in " ".join(tables.other_texts(table.assign(data_sha256="")))
    assert "1 of 2 runs warned: 40 characters that" in " ".join(report.doubts(table, "val/loss"))
    kept = "".join(char for char in (here / "new.txt").read_text() if char not in "i;")
    data = Splits.of_run(checkpoints.load(run).config, checkpoints.load(run).tokenizer)
    assert "".join(data.tokenizer.decode(part) for part in (data.train, data.val)) == kept
    (here / "new.txt").write_text("日本" * 100)
    assert "none of its characters" in said(capsys, line + "unknown=drop")
    assert len(list((here / "outputs").glob("*/*"))) == 2


def test_before_the_first_evaluation_the_trained_weights_are_the_last(train, here, capfd):
    """The best of a run that was stopped there are those of step 0."""
    run = train(NANO + "max_steps=3 eval_interval=3")
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    unevaluated = train(
        NANO + "max_steps=3 eval_interval=3 name=u lr=100 grad_clip=0 warmup_steps=0"
    )
    first = torch.load(unevaluated / "checkpoints/best.ckpt", weights_only=True)
    assert (content["global_step"], first["global_step"]) == (3, 0)
    capfd.readouterr()
    assert checkpoints.load(run).checkpoint == "best" and capfd.readouterr().err == ""
    loaded = checkpoints.load(unevaluated)
    assert (
        "best.ckpt is of step 0, before any training; last.ckpt is used" in capfd.readouterr().err
    )
    asked = checkpoints.load(unevaluated, "last")
    assert loaded.checkpoint == "last" and same_weights(loaded.model, asked.model)
    capfd.readouterr()
    untrained = checkpoints.load(unevaluated, "best")
    said_of_it = capfd.readouterr().err
    assert (
        said_of_it == f"warning: {unevaluated}: its best.ckpt is of step 0, before any training\n"
    )
    noted = metrics(unevaluated) | {"status": "diverged", "step": 3}
    (unevaluated / "metrics.json").write_text(json.dumps(noted))
    for checkpoint, words in (("best", "0, before any training"), ("last", "3")):
        checkpoints.load(unevaluated, checkpoint)
        assert capfd.readouterr().err == (
            f"warning: {unevaluated}: the run diverged at step 3; its {checkpoint}.ckpt is of step {words}\n"
        )
    assert untrained.checkpoint == "best" and not same_weights(loaded.model, untrained.model)
    tuned = train(
        f"init_from={unevaluated} threads=1 device=cpu batch_size=4 max_steps=1 eval_interval=1 lr=1e-30 weight_decay=0"
    )
    assert same_weights(checkpoints.load(tuned, "last").model, asked.model)
    capfd.readouterr()
    checkpoints.load(tuned)  # its step 0 is of weights that were trained
    assert capfd.readouterr().err == ""


def same_weights(one, other):
    weights = other.state_dict()
    return all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())


def test_examples_need_all_their_characters(train, here, capsys):
    line = "model=gpt_nano block_size=64 threads=1 device=cpu max_steps=1 n_examples=100 "
    run = train(line + "data=induction eval_interval=1")
    needs = said(capsys, f"{line} data=addition init_from={run}")
    assert f"init_from={run}: needs a run whose vocabulary has them" in needs
    assert "unknown=drop: leaves characters out of examples" in (
        said(capsys, f"{line} data=addition init_from={run} unknown=drop")
    )


def test_other_shapes_are_refused(source, capsys):
    other = {
        "n_layer=5": "n_layer=2",
        "model=bigram": "model=gpt_nano",
        "block_size=9": "block_size=32",
        "init=unit": "init=small",  # which has no effect on weights that are there
    }
    for asked, there in other.items():
        error = said(capsys, f"init_from={source} {NEW} {asked}")
        assert asked in error and there in error
    assert "init_from=nowhere" in said(capsys, "init_from=nowhere")
    assert "unknown=drop" in said(capsys, "unknown=drop")


def test_a_fine_tuned_run_resumes_without_its_source(source, train, here):
    """Its folder has all that it needs, but for the texts."""
    line = f"init_from={source} {NEW} unknown=drop dropout=0.1 "
    whole, part = (
        train(line + "max_steps=8 decay_steps=8"),
        train(line + "max_steps=4 decay_steps=8"),
    )
    source.rename(here / "elsewhere")
    cli.main([f"resume={part}", "max_steps=8"])
    for key in ("val/loss", "val/loss_source", "train/loss"):
        assert history(part, key) == history(whole, key)
    one, two = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, part)
    )
    assert all(weight.equal(two[key]) for key, weight in one.items())


def test_where_the_old_text_is_gone_that_is_said(source, train, here, capsys):
    (here / "old.txt").unlink()
    run = train(f"init_from={source} {NEW} unknown=drop")
    assert "val/loss_source is not tracked: path=old.txt" in capsys.readouterr().err
    assert not history(run, "val/loss_source")


@pytest.mark.parametrize("val_fraction", [0, 0.2])
def test_the_old_loss_needs_no_validation_part_of_the_new_text(source, train, val_fraction):
    run = train(f"init_from={source} {NEW} unknown=drop val_fraction={val_fraction}")
    losses = history(run, "val/loss_source")
    assert [*losses] == [0, 2, 4]
    assert losses[0] == pytest.approx(metrics(source)["best/val/loss"])
    assert bool(history(run, "val/loss")) == bool(val_fraction)


def test_where_the_old_run_had_no_validation_part_that_is_said(train, here, capsys):
    old = train(NANO + "data=sentence name=old val_fraction=0 block_size=8")
    capsys.readouterr()
    new = train(NANO + f"data=sentence init_from={old} name=new")
    assert "val/loss_source is not tracked: that run has no" in capsys.readouterr().err
    assert not history(new, "val/loss_source")


def test_an_excerpt_of_the_old_text_is_told_from_the_whole(source, train, capsys):
    """The new text is too short for an excerpt. At the end of a run both losses are of the whole."""
    line = f"init_from={source} {NEW} unknown=drop val_fraction=0.05 eval_tokens=64"
    run = train(line)
    assert [*history(run, "val/tokens_source")] == [0, 2]
    assert metrics(run)["val/tokens_source"] is None and not history(run, "val/tokens")
    cli.main([f"resume={run}", "max_steps=6"])
    assert [*history(run, "val/tokens_source")] == [0, 2]
    longer = train(f"{line} max_steps=6")
    assert [*history(longer, "val/tokens_source")] == [0, 2, 4]
    capsys.readouterr()
    cli.main([f"replay={run}"])
    assert "are the same to the bit; 1 more cannot be compared" in capsys.readouterr().out
    path = run / "history.jsonl"  # as it was made before there were such marks
    path.write_text(path.read_text().replace("val/tokens_source", "other"))
    with pytest.raises(SystemExit, match="1"):
        cli.main([f"replay={run}"])
    assert "at step 4: val/loss_source was" in capsys.readouterr().out


def test_a_replay_from_weights_that_have_changed_is_refused(source, train, capsys):
    run = train(f"init_from={source} {NEW} unknown=drop")
    cli.main([f"replay={run}"])
    assert "are the same to the bit" in capsys.readouterr().out
    cli.main([f"resume={source}", "max_steps=30"])
    refused(
        capsys,
        lambda: cli.main([f"replay={run}"]),
        [f"init_from={source}: its weights are not those", metrics(run)["init_sha256"][:12]],
    )


def test_replay_says_whether_the_losses_are_the_same(train, here, capsys):
    run = train(NANO + "dropout=0.2 max_minutes=5")
    cli.main([f"replay={run}"])
    assert "all 7 losses, up to step 4, are the same to the bit" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    lines = [
        line | {"train/loss": line["train/loss"] + 1e-9}
        if "train/loss" in line and line["step"] == 3
        else line
        for line in lines
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as stop:
        cli.main([f"replay={run}"])
    assert stop.value.code == 1
    assert "the first difference is at step 3: train/loss" in capsys.readouterr().out
    assert "max_steps=9" in said(capsys, f"replay={run} max_steps=9")


def test_what_may_change_on_the_way_is_no_difference_to_replay(train, capsys):
    run = train(NANO + "log_interval=2")
    cli.main(f"resume={run} max_steps=6 log_interval=3".split())
    capsys.readouterr()
    cli.main([f"replay={run}"])
    assert "are the same to the bit; 2 more cannot be compared" in capsys.readouterr().out


def test_every_cell_of_a_sweep_starts_from_the_same_run_and_can_be_resumed(train, here, capsys):
    source = train(NANO)
    cells = train(
        "-m init_from=outputs seed=1,2 max_steps=2 eval_interval=2 threads=1 device=cpu name=s "
    )
    assert [config(cell)["init_from"] for cell in cells] == [str(source.relative_to(here))] * 2
    resume = f"resume={cells[0].relative_to(here)}"
    refused(
        capsys,
        lambda: cli.main([resume, "max_steps=3"]),
        ["max_steps=3", "max_steps=2", "repeat the sweep"],
    )
    (cells[0] / "metrics.json").write_text(
        json.dumps(metrics(cells[0]) | {"status": "interrupted"})
    )
    cli.main([resume])
    assert metrics(cells[0])["step"] == 2 and metrics(cells[0])["status"] == "finished"
    assert (
        metrics(cells[0])["command"].startswith("python train.py -m")
        and "resume=" in metrics(cells[0])["resumed/command"]
    )


def test_a_run_is_not_made_shorter_than_it_is(train, here, capsys, monkeypatch):
    """The last numbers of a finished run are those of its last step."""
    run = train(NANO + "max_steps=3")
    for line in ("max_steps=3", "max_minutes=1e-6"):
        cli.main([f"resume={run}", line])
        assert "finished already" in capsys.readouterr().out
    assert "max_steps=2: the run has already made 3 steps" in said(
        capsys, f"resume={run} max_steps=2"
    )
    step = LanguageModule.training_step
    monkeypatch.setattr(
        LanguageModule,
        "training_step",
        lambda self, batch, t: (
            os.kill(os.getpid(), signal.SIGINT) if t == 4 else None,
            step(self, batch, t),
        )[1],
    )
    with pytest.raises(SystemExit) as stop:
        cli.main((NANO + "max_steps=9 eval_interval=9 name=y").split())
    (run,) = (here / "outputs/y").iterdir()
    assert (
        stop.value.code == 130
        and metrics(run)["step"] == 5
        and history(run, "val/loss").keys() == {0}
    )
    assert "max_steps=5: the run has already made 5 steps" in said(
        capsys, f"resume={run} max_steps=5"
    )
    cli.main(f"resume={run} max_steps=6".split())
    assert history(run, "val/loss").keys() == {0, 6}


def test_a_run_says_what_produced_it(train):
    run = train(NANO + "seed=3")
    facts = metrics(run)
    assert facts["command"] == f"python train.py {NANO}seed=3"
    assert facts["seed"] == facts["config/seed"] == 3 and facts["config/threads"] == 1
    assert facts["config/precision"] == "32-true" and facts["torch"] == torch.__version__
    assert len(facts["data_sha256"]) == 64 and "cores" in facts["machine"]
    assert {f"config/{key}" for key in config(run)} <= set(facts)
    assert {"python", "numpy", "hydra_core", "tensorboard", "git_commit", "git_dirty"} <= set(facts)


def test_what_extends_a_run_changes_nothing_before(train, here, capsys):
    """A run that is extended keeps its schedule's horizon, and its points are those of the longer
    run.
    """
    line = NANO + "decay_steps=6 log_interval=3 max_steps="
    whole, part = train(line + "9"), train(line + "4")
    cli.main(f"resume={part} max_steps=9 eval_interval=4".split())
    longer, own = history(part, "train/loss"), history(whole, "train/loss")
    assert {step: longer[step] for step in (3, 6, 9)} == {step: own[step] for step in (3, 6, 9)}
    assert config(part)["max_steps"] == 9 and config(part)["decay_steps"] == 6
    assert metrics(part)["config/max_steps"] == 9
    capsys.readouterr()
    before = (part / "history.jsonl").read_bytes()
    cli.main([f"resume={part}"])
    assert "finished already, at step 9; max_steps=18 would" in capsys.readouterr().out
    cli.main([f"resume={part}", "eval_interval=2", "log_interval=4"])
    assert "; log_interval=4, eval_interval=2: without effect here" in capsys.readouterr().out
    for line, advice in (
        ("max_steps=12 max_minutes=1e-9", r"max_steps=12 max_minutes=\S+ would"),
        ("max_minutes=1e-9", r"max_steps=18 max_minutes=\S+ would"),
    ):
        cli.main([f"resume={part}", *line.split()])
        shown = capsys.readouterr().out
        assert re.search(
            f"at step 9; {advice} continue it; max_minutes=1e-09: without effect", shown
        )
    assert (part / "history.jsonl").read_bytes() == before
    for line in (
        "max_steps=5",
        "lr=1",
        "n_layer=1",
        "seed=4",
        "optimizer=sgd",
        "+lr=1",
        "~lr",
        "lr=1,2",
        "-m",
    ):
        assert line.split("=")[0].strip("+~") in said(capsys, f"resume={part} {line}")
    assert "init_from" in said(capsys, f"resume={part} n_layer=1")
    for line in (f"init_from={part}", f"replay={part}"):
        assert "not allowed with resume=" in said(capsys, f"resume={part} {line}")
    assert "outputs" in said(capsys, f"resume={here}")


def test_a_replay_whose_first_weights_are_gone_names_their_key(train, here, capsys):
    first = train(f"{NANO} data=sentence val_fraction=0.2 block_size=8 name=first")
    second = train(
        f"{NANO} data=sentence val_fraction=0.2 block_size=8 init_from={first} name=second"
    )
    shutil.rmtree(first)
    refused(capsys, lambda: cli.main([f"replay={second}"]), [f"init_from={first}: no trained run"])


@pytest.mark.parametrize("several", ["{0},{1}", "choice({0},{1})", "null,{1}"])
def test_one_run_gives_the_first_weights_also_in_a_sweep(source, here, capsys, several):
    other = shutil.copytree(source, here / "other")
    typed = several.format(source, other)
    for line in (f"-m init_from={typed} {NEW}", f"init_from={typed} {NEW}", f"resume={typed}"):
        refused(capsys, lambda line=line: cli.main(line.split()), [f"{typed}: takes one run, also"])
    refused(capsys, lambda: cli.main(["lr=1,2"]), ["a key other than", " init_from "])


def test_the_folder_of_a_run_may_have_commas_in_its_name(source, here, train):
    (here / "new.txt").write_text("a hat, a mat, at the end. " * 20)
    source.rename(here / "lr=1,seed=2")
    run = train(f"init_from={here}/lr=1,seed=2 {NEW}")
    assert config(run)["init_from"].endswith("lr=1,seed=2")


@pytest.mark.parametrize(
    ("of_source", "typed", "masks"),
    [
        ("", "dropout=0.1", "fast"),
        ("", "dropout=0.1 dropout_masks=torch", "torch"),
        ("", "", "torch"),
        ("dropout=0.1 dropout_masks=torch", "dropout=0.2", "torch"),
        ("dropout=0.1", "dropout=0", "torch"),
    ],
)
def test_a_key_that_follows_another_follows_what_is_typed_now(here, train, of_source, typed, masks):
    """Unless the run that gives the weights was given a value of its own."""
    line = f"{NANO} model=gpt_nano max_steps=1"
    parent = train(f"{line} {of_source} name=parent")
    child = train(f"{NANO} max_steps=1 init_from={parent} {typed} name=child")
    assert config(child)["dropout_masks"] == masks
