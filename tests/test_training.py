"""Whole runs in this process: what is computed, and what is left behind."""

import errno
import io
import itertools
import math
import os
import re
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from lmlab import files, machine
from lmlab.commands import train as cli
from lmlab.config import overrides
from lmlab.data.batches import Batches
from lmlab.data.splits import Splits
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError
from lmlab.inference import evaluations, loss
from lmlab.runs import checkpoints
from lmlab.runs import folder as runs
from lmlab.training import experiment, optimizers, resumption
from lmlab.training.memory import memory_of_step
from lmlab.training.optimizers import learning_rate
from lmlab.training.step import LanguageModule
from tests.conftest import NANO, SMALL_RUN, config, history, metrics, weights

pytestmark = pytest.mark.usefixtures("short_texts")
BIGRAM = "model=bigram threads=1 device=cpu log_interval=1 "


def batches_of(text, config):
    """The batches that a run with this configuration is trained on."""
    run = config.run
    return Batches(text.train, run.batch_size, config.model.block_size, run.seed)


def test_same_seed_same_run_bit_for_bit(train):
    line = NANO + "dropout=0.2 grad_accumulation=2 "
    one, two, other = train(line), train(line), train(line + "seed=1")
    for name, weight in weights(one).items():
        assert weight.equal(weights(two)[name])
    assert history(one, "train/loss") == history(two, "train/loss") != history(other, "train/loss")
    assert history(one, "val/loss") == history(two, "val/loss")


def test_what_is_watched_changes_nothing(train):
    often, seldom = train(NANO), train(NANO + "eval_interval=4 log_interval=4")
    assert all(weight.equal(weights(seldom)[name]) for name, weight in weights(often).items())


def test_accumulated_batches_are_one_large_batch(train):
    """Batch t is cut in the same order whether 2 x 4 or 8 sequences are asked for."""
    two, one = train(NANO + "grad_accumulation=2"), train(NANO + "batch_size=8")
    assert history(two, "train/loss") == pytest.approx(history(one, "train/loss"), abs=1e-5)
    assert metrics(two)["tokens"] == metrics(one)["tokens"] == 4 * 8 * 32
    for name, weight in weights(two).items():
        torch.testing.assert_close(weight, weights(one)[name], rtol=0, atol=1e-4)


def test_a_run_equals_a_loop_written_out(train, some_config):
    run = train(NANO + "grad_clip=0.05 optimizer=sgd lr=0.5 schedule=constant warmup_steps=0")
    loaded = checkpoints.load(run)
    torch.manual_seed(0)
    model = checkpoints.build_model(loaded.config.model, 60)
    data = Splits.of_run(loaded.config)
    batches = batches_of(data, loaded.config)
    losses = {}
    for step in range(4):
        idx, targets = batches[step]
        loss = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        length = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= 0.5 * gradient * min(1, 0.05 / length)
        losses[step + 1] = loss.item()
    assert history(run, "train/loss") == pytest.approx(losses, abs=1e-5)
    assert history(run, "grad_norm")[4] == pytest.approx(length, rel=1e-4)


def test_the_trained_bigram_is_the_table_of_counts(train):
    run = train(
        "experiment=tiny_lm max_steps=3000 lr=10 log_interval=1000 eval_interval=3000 threads=1"
    )
    loaded = checkpoints.load(run)
    tokens = Splits.of_run(loaded.config).train
    counts = torch.zeros(9, 9)
    for now, following in itertools.pairwise(tokens):
        counts[now, following] += 1
    torch.testing.assert_close(
        loaded.model.table.weight.softmax(-1),
        counts / counts.sum(1, keepdim=True),
        rtol=0,
        atol=2e-3,
    )


def test_a_run_directory_holds_what_the_design_says(train):
    run = train(NANO + "name=mine seed=0")
    assert run.parent == run.parents[2] / "outputs" / "mine" and re.fullmatch(
        r"[\d-]{10}_[\d-]{8}", run.name
    )
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert len([name for name in found if name.startswith("events.out.tfevents.")]) == 1
    assert {name for name in found if "tfevents" not in name} == {
        "metrics.json",
        "history.jsonl",
        "train.log",
        *(
            f"{name}{end}"
            for name in (
                "config.yaml",
                "tokenizer.json",
                "checkpoints/last.ckpt",
                "checkpoints/best.ckpt",
                "checkpoints/previous.ckpt",
            )
            for end in ("", ".sha256")
        ),
    }
    values, numbers = config(run), metrics(run)
    assert (values["model"], values["seed"], values["precision"], values["device"]) == (
        "gpt_nano",
        0,
        "32-true",
        "cpu",
    )
    assert (values["decay_steps"], values["min_lr"]) == (4, values["lr"] / 10)
    assert numbers["status"] == "finished" and numbers["step"] == 4
    assert numbers["n_params"] == sum(
        weight.numel() for weight in checkpoints.load(run).model.parameters()
    )
    assert numbers["val/perplexity"] == pytest.approx(math.exp(numbers["val/loss"]))
    assert numbers["val/bits_per_byte"] == pytest.approx(numbers["val/loss"] / math.log(2))
    assert numbers["tokens_per_second"] == pytest.approx(4 * 4 * 32 / numbers["train_seconds"])
    assert sorted(history(run, "val/loss")) == [0, 2, 4] and sorted(history(run, "train/loss")) == [
        1,
        2,
        3,
        4,
    ]
    assert min(history(run, "val/loss").values()) == numbers["best/val/loss"]
    assert history(run, "val/loss")[numbers["best/step"]] == numbers["best/val/loss"]
    for name in ("last", "best"):
        digest = files.sha256((run / f"checkpoints/{name}.ckpt").read_bytes())
        assert (run / f"checkpoints/{name}.ckpt.sha256").read_text() == digest
    log = (run / "train.log").read_text()
    assert (
        str(run.name) in log
        and "scripts/sample.py" in log
        and "scripts/board.py runs=outputs" in log
    )


def test_best_is_where_validation_was_lowest(train):
    run = train(
        NANO + "max_steps=12 lr=20 optimizer=sgd schedule=constant warmup_steps=0"
    )  # overshoots
    losses, numbers = history(run, "val/loss"), metrics(run)
    assert numbers["best/val/loss"] == min(losses.values()) < numbers["val/loss"] == losses[12]
    for checkpoint, key in (("best", "best/val/loss"), ("last", "val/loss")):
        loaded = checkpoints.load(run, checkpoint)
        tokens = Splits.of_run(loaded.config).val
        answers = loss.log_probs(loaded.model, tokens, loaded.config.model.block_size)
        assert (
            loss.loss_metrics(answers, tokens, loaded.tokenizer, "val")["val/loss"] == numbers[key]
        )


def test_tensorboard_shows_it(train):
    run = train(BIGRAM + "max_steps=4 eval_interval=2")
    board = EventAccumulator(str(run)).Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) == {
        "train/loss",
        "val/loss",
        "best/val/loss",
        "val/perplexity",
        "val/bits_per_byte",
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_second",
    }
    assert set(tags["images"]) == {"view/bigram", "view/update_ratio"}
    assert len(board.Images("view/bigram")) == 3  # of update ratios there is none at step 0
    assert [e.step for e in board.Images("view/update_ratio")] == [2, 4]
    assert set(tags["tensors"]) == {
        "custom_scalars__config__",
        "setup/config/text_summary",
        "setup/provenance/text_summary",
        "sample/text_summary",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    assert {e.step: e.value for e in board.Scalars("val/loss")} == pytest.approx(
        history(run, "val/loss")
    )
    assert {e.step: e.value for e in board.Scalars("train/loss")} == pytest.approx(
        history(run, "train/loss")
    )


def test_tensorboard_says_what_produced_each_part_of_a_resumed_run(train, monkeypatch):
    """Files of one second are read in the order of numbers, as texts: after 9 comes no 10."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
    run = train(SMALL_RUN.replace("max_steps=20", "max_steps=10"))
    cli.main([f"resume={run}", "max_steps=20", "decay_steps=10"])
    board = EventAccumulator(str(run)).Reload()
    for name, first, then in (
        ("config", "|max_steps|10|", "|max_steps|20|"),
        (
            "provenance",
            metrics(run)["command"],
            f"|resumed/command|{metrics(run)['resumed/command']}|",
        ),
    ):
        events = board.Tensors(f"setup/{name}/text_summary")
        assert [event.step for event in events] == [0, 10]
        texts = [event.tensor_proto.string_val[0].decode() for event in events]
        assert first in texts[0] and then not in texts[0] and then in texts[1]


def test_samples_are_kept_as_they_were_printed(train, capsys):
    run = train(NANO)
    samples, printed = history(run, "sample"), capsys.readouterr().out
    assert sorted(samples) == sorted(history(run, "val/loss")) == [0, 2, 4]
    for step, sample in samples.items():
        assert len(sample) == evaluations.SAMPLED
        assert re.search(
            rf"^step +{step}  .*{re.escape(sample.replace(chr(10), '↵'))}$", printed, re.M
        )
    lines = (run / "history.jsonl").read_text().splitlines()
    assert all("val/loss" in line for line in lines if '"sample"' in line)  # one line an evaluation


def test_without_validation_text_samples_are_kept_too(train):
    run = train("experiment=tiny_lm max_steps=4 eval_interval=2 threads=1")
    assert sorted(history(run, "sample")) == [0, 2, 4]


def test_update_ratios_are_those_of_the_step_before_an_evaluation(train):
    """Of plain gradient descent: lr times the gradient's norm, over the norm of what the table
    became.
    """
    run = train("experiment=tiny_lm max_steps=7 eval_interval=3 grad_accumulation=2 threads=1")
    loaded, ratios = checkpoints.load(run), {}
    data = Splits.of_run(loaded.config)
    batches = batches_of(data, loaded.config)
    table = torch.zeros(9, 9, requires_grad=True)
    for step in range(1, 8):
        losses = [
            F.cross_entropy(table[idx].flatten(0, 1), targets.flatten())
            for idx, targets in (batches[2 * step - 2], batches[2 * step - 1])
        ]
        (gradient,) = torch.autograd.grad(sum(losses) / 2, table)
        change = learning_rate(step - 1, loaded.config.optimizer.lr, loaded.config.run) * gradient
        table = (table - change).detach().requires_grad_()
        ratios[step] = (change.norm() / table.norm()).item()
    shown = history(run, "update_ratio/table.weight")
    assert shown == pytest.approx({step: ratios[step] for step in (3, 6, 7)}, rel=1e-4)


def test_update_ratios_are_of_every_matrix_and_attention_is_shown_now_and_then(train):
    run = train(NANO + "max_steps=23 eval_interval=2 log_interval=10")
    board = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    matrices = {
        name for name, weight in checkpoints.load(run).model.named_parameters() if weight.dim() >= 2
    }
    evaluated = [*range(2, 23, 2), 23]
    for name in matrices:
        assert list(history(run, f"update_ratio/{name}")) == evaluated
    assert not any("ratio" in tag for tag in board.Tags()["scalars"])  # one picture, not many cards
    assert [e.step for e in board.Images("view/update_ratio")] == evaluated
    assert [e.step for e in board.Images("view/attention")] == [0, 6, 12, 18, 23]


def test_without_validation_text_best_is_last(train, capsys):
    run = train("experiment=tiny_lm max_steps=3 eval_interval=2 threads=1")
    assert not [key for key in metrics(run) if "val/" in key]
    assert not (run / "checkpoints/best.ckpt").exists()
    assert checkpoints.load(run).checkpoint == "last"
    assert "val" not in capsys.readouterr().out.split("step ", 1)[1]


def test_a_loss_that_is_not_finite_stops_the_run(here, capsys):
    line = "model=gpt_nano optimizer=sgd lr=1e30 warmup_steps=0 grad_clip=0 threads=1 device=cpu batch_size=4 "
    with pytest.raises(SystemExit) as stop:
        cli.main((line + "max_steps=100 log_interval=5 eval_interval=50").split())
    assert stop.value.code == 1
    (run,) = (here / "outputs/gpt_nano").iterdir()
    numbers = metrics(run)
    assert (
        numbers["status"] == "diverged" and numbers["step"] == 5 and numbers["train/loss"] is None
    )
    assert numbers["train_seconds"] > 0
    assert "diverged: at step 5" in capsys.readouterr().out
    assert all(
        torch.isfinite(weight).all() for weight in weights(run).values()
    )  # what is saved is from before


def test_weights_that_are_not_finite_are_not_saved(here):
    """The loss of the last step is still fine, the update after it isn't."""
    with pytest.raises(SystemExit):
        cli.main((BIGRAM + "optimizer=sgd lr=1e39 warmup_steps=0 grad_clip=0 max_steps=1").split())
    (run,) = (here / "outputs/bigram").iterdir()
    assert metrics(run)["status"] == "diverged"
    assert all(torch.isfinite(weight).all() for weight in weights(run).values())


@pytest.mark.parametrize("share", ["0", "0.1"])
def test_weights_that_are_finite_but_too_large_for_a_loss_are_not_saved(here, share):
    """With a validation part and without one."""
    with pytest.raises(SystemExit):
        cli.main(
            "model=gpt_nano optimizer=sgd lr=1e30 warmup_steps=0 grad_clip=0 threads=1 device=cpu "
            f"max_steps=1 val_fraction={share} data=sentence block_size=8".split()
        )
    (run,) = (here / "outputs/gpt_nano").iterdir()
    assert metrics(run)["status"] == "diverged" and not history(run, "val/loss").get(1)
    assert max(weight.abs().max() for weight in weights(run).values()) < 100


def test_the_time_in_which_a_run_is_stopped_by_ctrl_z_is_no_training(train, monkeypatch):
    """The system tells a process that it goes on; how long it was stopped is for the clock to find out."""
    step = LanguageModule.training_step

    def stopped(module, *batch):
        if module.trainer.global_step == 3:
            time.sleep(2)
            signal.raise_signal(signal.SIGCONT)
        return step(module, *batch)

    monkeypatch.setattr(LanguageModule, "training_step", stopped)
    before = signal.getsignal(signal.SIGCONT)
    numbers = metrics(train(BIGRAM + "max_steps=6 max_minutes=0.03"))  # 1.8 s
    assert numbers["step"] == 6 and numbers["train_seconds"] < 1
    assert signal.getsignal(signal.SIGCONT) == before


def test_max_minutes_ends_a_run_if_it_comes_first(train, capsys):
    run = train(BIGRAM + "max_steps=100000 max_minutes=0.02 eval_interval=100000 log_interval=100")
    numbers = metrics(run)
    assert numbers["status"] == "finished" and 0 < numbers["step"] < 100_000
    assert 1.2 <= numbers["train_seconds"] < 2.4
    said = f"max_minutes=0.02: over at step {numbers['step']} of 100000\n"
    assert said in capsys.readouterr().out and said in (run / "train.log").read_text()
    assert max(history(run, "val/loss")) == numbers["step"]


def test_the_memory_of_a_step_has_what_an_optimizer_keeps_and_grows_with_the_batch(here):
    def memory(optimizer, rows):
        line = f"model=bigram device=cpu precision=32-true {optimizer}"
        config, _ = overrides.resolved(tuple(line.split()))
        return memory_of_step(machine.resolve(config), V, rows)

    V, count = 60, 4  # tokens, and bytes of the number of the step
    kept = {"sgd momentum=0": 0, "sgd momentum=0.9": 4 * V**2, "adamw": 8 * V**2 + count}
    for rows in (1, 16):
        least = memory("optimizer=sgd momentum=0", rows)
        assert least > 2 * 4 * V**2  # weights and gradients
        for optimizer, size in kept.items():
            assert memory(f"optimizer={optimizer}", rows) == least + size
    by_rows = [memory("optimizer=adamw", rows) for rows in (8, 16, 24)]
    assert by_rows[2] - by_rows[1] == by_rows[1] - by_rows[0] > 0


@pytest.mark.parametrize(
    ("step", "max_minutes", "words"),
    [
        (400, None, "max_steps=800"),
        (400, 1, "max_steps=800"),
        (400, 0.02, "max_steps=800 max_minutes=0.06"),  # of which 0.03 are over
        (100, 0.02, "max_minutes=0.06"),
        (100, 0.03, "max_minutes=0.06"),
        (100, None, ""),  # it was ended by patience=, or another callback
    ],
)
def test_a_finished_run_names_all_that_lets_it_go_on(some_config, step, max_minutes, words):
    run = replace(some_config.run, max_steps=400, max_minutes=max_minutes)
    before = {"max_steps": 400, "max_minutes": max_minutes}
    saved = {"step": step, "train_seconds": 1.8, "config": before}
    assert resumption.what_continues(saved, run) == words.split()


def test_a_value_that_was_typed_is_named_if_the_run_does_not_go_on_without_it(some_config):
    saved = {"step": 400, "train_seconds": 1.8, "config": {"max_steps": 400, "max_minutes": 0.03}}
    for asked, words in (
        ({"max_steps": 500, "max_minutes": 0.02}, "max_steps=500 max_minutes=0.06"),
        ({"max_steps": 400, "max_minutes": 2.0}, "max_steps=800 max_minutes=2.0"),
        ({"max_steps": 400, "max_minutes": None}, "max_steps=800 max_minutes=null"),
    ):
        run = replace(some_config.run, **asked)
        assert resumption.what_continues(saved, run) == words.split()


def test_minutes_that_let_a_run_go_on_are_written_as_one_writes_them(some_config):
    run = replace(some_config.run, max_steps=400, max_minutes=60)
    before = {"max_steps": 400, "max_minutes": 60}
    saved = {"step": 100, "train_seconds": 3601.2, "config": before}
    assert resumption.what_continues(saved, run) == ["max_minutes=120"]


def test_a_folder_that_is_moved_while_the_run_goes_on_is_not_made_again(here, capsys, monkeypatch):
    def move(*_):
        (run,) = (here / "outputs/bigram").iterdir()
        run.rename(here / "moved")
        return {}

    monkeypatch.setattr(evaluations, "EVALUATIONS", [*evaluations.EVALUATIONS, move])
    with pytest.raises(SystemExit) as stopped:
        cli.main((BIGRAM + "max_steps=3").split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and f"\nerror: {here}/outputs/bigram/" in said
    assert not list((here / "outputs/bigram").iterdir())


def test_two_runs_of_one_second_get_folders_of_their_own(some_config, here):
    paths = [
        runs.RunDirectory.create(
            here / "x" / "now", some_config.as_saved(), CharTokenizer("ab"), {}
        )
        for _ in range(3)
    ]
    assert [path.path.name for path in paths] == ["now", "now-2", "now-3"]
    for path in paths:
        path.close()


def test_the_command_for_the_curves_names_the_run_also_of_a_copy(here, train, capsys):
    run = train(NANO + "out=first")
    shown = run.relative_to(here)
    assert f"curves        python scripts/board.py runs={shown}\n" in capsys.readouterr().out
    shutil.copytree(run, here / "else where/copy")
    cli.main(["resume=else where/copy", "max_steps=6"])
    assert "scripts/board.py runs='else where/copy'\n" in capsys.readouterr().out


def test_a_crash_leaves_its_status(here, monkeypatch):
    monkeypatch.setattr(experiment.Recorder, "on_train_batch_end", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(NANO.split())
    (run,) = (here / "outputs/gpt_nano").iterdir()
    assert metrics(run)["status"] == "failed"


def test_a_sweep_runs_every_cell_in_a_folder_named_after_it(train):
    cells = train(BIGRAM + "max_steps=1 seed=0,1 lr=0.1,0.2 -m hydra/launcher=basic")
    assert all(
        cell.parent.parent.name == "sweeps" and cell.parent.name == "seed-lr" for cell in cells
    )
    assert [(config(cell)["seed"], config(cell)["lr"]) for cell in cells] == [
        (0, 0.1),
        (0, 0.2),
        (1, 0.1),
        (1, 0.2),
    ]
    assert all("seed=0" in cell.name or "seed=1" in cell.name for cell in cells)
    (more,) = train("-m hydra/launcher=basic " + BIGRAM + "max_steps=1 seed=7 name=mine")
    assert more.parent.name == "mine"


def test_a_metric_is_one_registered_function(train, monkeypatch):
    """Its numbers, texts and pictures reach all places where those of the loss do."""
    monkeypatch.setattr(evaluations, "EVALUATIONS", [*evaluations.EVALUATIONS])
    coloured = np.random.default_rng(0).integers(0, 256, (8, 5, 3), np.uint8)
    grey = coloured[:, :, :1].repeat(3, axis=2)

    @evaluations.evaluation
    def accuracy(subject):
        guess = subject.model.table.weight[subject.text.val[0]].argmax().item()
        return {
            "val/guess": float(guess),
            "note": f"step {subject.step}",
            "square": coloured if subject.step else grey,
            "detail": evaluations.Detail(7.0),
        }

    run = train(BIGRAM + "max_steps=4 eval_interval=2")
    numbers = metrics(run)
    assert history(run, "note") == {0: "step 0", 2: "step 2", 4: "step 4"}
    assert history(run, "val/guess")[4] == numbers["val/guess"] == numbers["best/val/guess"]
    assert "detail" not in numbers and not history(run, "detail")
    board = EventAccumulator(str(run)).Reload()
    assert [e.value for e in board.Scalars("val/guess")] == [*history(run, "val/guess").values()]
    assert len(board.Scalars("detail")) == 3
    squares = board.Images("square")
    assert [(image.height, image.width) for image in squares] == [(8, 5)] * 3
    for image, wanted in zip(squares, (grey, coloured, coloured), strict=True):
        shown = Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
        np.testing.assert_array_equal(shown, wanted)
    assert "note/text_summary" in board.Tags()["tensors"]


def test_what_only_watches_does_no_harm(train, monkeypatch, capsys):
    """A sample, a picture, a metric of one's own, the losses of counting: each fails with a word."""
    monkeypatch.setattr(evaluations, "EVALUATIONS", [*evaluations.EVALUATIONS])

    @evaluations.evaluation
    def broken(subject):
        raise ValueError("no such thing")

    @evaluations.evaluation
    def strange(subject):
        return {"val/tensor": subject, "empty": np.zeros((0, 4, 3), np.uint8), "val/fine": 1.0}

    def fail(*arguments, **keywords):
        raise RuntimeError("cannot be had")

    wanted = train(BIGRAM + "max_steps=4 eval_interval=2 name=wanted")
    for name in (
        "lmlab.inference.evaluations.pictures_of",
        "lmlab.inference.generate.stream",
        "lmlab.training.experiment.references",
    ):
        monkeypatch.setattr(name, fail)
    capsys.readouterr()
    run = train(BIGRAM + "max_steps=4 eval_interval=2")
    shown, said = capsys.readouterr()
    assert "warning: " not in shown
    assert metrics(run)["status"] == "finished" and metrics(run)["val/fine"] == 1.0
    assert history(run, "val/loss") == history(wanted, "val/loss")
    for reason in (
        "warning: the evaluation broken failed and is left out: ValueError: no such thing",
        "warning: val/tensor: is no number, text or picture",
        "warning: empty: is no number, text or picture",
        "warning: the evaluation sample failed and is left out: RuntimeError: cannot be had",
        "warning: the evaluation pictures failed",
        "warning: no losses of counting to compare with: RuntimeError: cannot be had",
        "warning: no sample: RuntimeError: cannot be had",
    ):
        assert reason in said and reason in (run / "train.log").read_text()


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_a_run_goes_on_without_tensorboard(train, monkeypatch, capsys, method):
    """Its file cannot be written, from one moment or another; the run is the same without it."""
    wanted = train(BIGRAM + "max_steps=4 eval_interval=2 name=wanted")

    def fail(*arguments, **keywords):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(SummaryWriter, method, fail)
    capsys.readouterr()
    run = train(BIGRAM + "max_steps=4 eval_interval=2")
    reason = "warning: TensorBoard's curves end here, they cannot be written: OSError: [Errno 27]"
    assert capsys.readouterr().err.count(reason) == 1
    assert metrics(run)["status"] == "finished"
    for name in ("train/loss", "val/loss"):
        assert history(run, name) == history(wanted, name)
    assert "reference/ngram" in metrics(run)


def test_matrices_that_cannot_be_copied_are_not_compared(train, monkeypatch, capsys):
    def fail(model):
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(evaluations, "matrices", fail)
    run = train(BIGRAM + "max_steps=2 eval_interval=2")
    assert "no update_ratio of the next step: out of memory: " in capsys.readouterr().err
    assert metrics(run)["status"] == "finished" and 2 in history(run, "val/loss")


def test_a_scalar_in_the_state_of_an_optimizer_is_resumed(train, monkeypatch):
    """torch's NAdam keeps one number for each weight in addition to the step."""

    def nadam(weights, config, precision):
        return torch.optim.NAdam(weights.groups(config.weight_decay), lr=config.lr)

    monkeypatch.setattr(optimizers, "adamw", nadam)
    straight = train(NANO + "max_steps=6 decay_steps=6")
    stopped = train(NANO + "max_steps=3 decay_steps=6")
    cli.main([f"resume={stopped}", "max_steps=6"])
    state = torch.load(stopped / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert state[0]["state"][0]["mu_product"].shape == ()
    assert all(weight.equal(weights(stopped)[name]) for name, weight in weights(straight).items())


def test_what_torch_compile_cannot_do_is_told_in_one_line():
    from torch._dynamo.exc import BackendCompilerFailed

    from lmlab.training.step import compile_errors

    full = BackendCompilerFailed(print, OSError(28, "No space left on device"), None)
    refusal = pytest.raises(UserError, match=r"^compile=true: .*No space left on device")
    with refusal as raised, compile_errors():
        raise full
    assert "\n" not in str(raised.value) and "TORCHDYNAMO" not in str(raised.value)
    with pytest.raises(RuntimeError, match="another"), compile_errors():
        raise RuntimeError("another")


def test_lightnings_own_variables_change_no_run(train, monkeypatch, capfd):
    """Some people have them for other programs: arguments of a Trainer that the lab does not give."""
    expected = train(NANO)
    for name, value in (("MAX_TIME", "00:00:00:00"), ("MIN_STEPS", "99"), ("FAST_DEV_RUN", "yes")):
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    run = train(f"{NANO} name=other")
    assert history(run, "train/loss") == history(expected, "train/loss")
    named = "PL_TRAINER_FAST_DEV_RUN PL_TRAINER_MAX_TIME PL_TRAINER_MIN_STEPS: has no effect"
    assert capfd.readouterr().err.count(named) == 1
    assert os.environ["PL_TRAINER_MIN_STEPS"] == "99"
