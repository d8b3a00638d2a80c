"""Files that are damaged, exchanged or made by a stranger: named in one line, nothing lost, nothing
executed.
"""

import errno
import io
import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmlab import files
from lmlab.commands import plot
from lmlab.commands import train as cli
from lmlab.config.keys import neutral_values
from lmlab.errors import UserError, one_line_errors
from lmlab.inference import loss
from lmlab.runs import checkpoints
from lmlab.runs import folder as runs
from lmlab.sweeps import table
from tests.conftest import (
    CHECKPOINTS,
    LAST,
    SMALL_RUN,
    content,
    metrics,
    refused,
    script,
    three_runs,
    weights,
)


def sample(run):
    with one_line_errors():
        script("sample").main([f"run={run}"])


def flip(path, byte=-1000, bit=3):
    damaged = bytearray(path.read_bytes())
    damaged[byte] ^= 1 << bit
    path.write_bytes(damaged)


def sealed(path, content):
    """What a stranger can do: any content, with its right checksum."""
    path.write_bytes(content)
    files.seal(path).write_text(files.sha256(content))


def change(path, **values):
    sealed(path, yaml.safe_dump(yaml.safe_load(path.read_text()) | values).encode())


class Payload:
    def __reduce__(self):
        return os.system, ("touch canary",)


def payload(run):
    buffer = io.BytesIO()
    torch.save({"lmlab": Payload(), "state_dict": {}}, buffer)
    return buffer.getvalue()


def packed(run):
    """The same checkpoint, compressed: from few bytes, many."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(run / LAST) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


def altered(run, **parts):
    checkpoint, buffer = torch.load(run / LAST, weights_only=True), io.BytesIO()
    torch.save(checkpoint | parts, buffer)
    return buffer.getvalue()


def giant(run):
    """A checkpoint of few bytes that claims to hold many weights."""
    config, checkpoint = runs.read_config(run), torch.load(run / LAST, weights_only=True)
    with torch.device("meta"):
        asked = checkpoints.build_model(config.model, 9).state_dict()
    weights = {
        f"model.{name}": torch.zeros(1).expand(weight.shape) for name, weight in asked.items()
    }
    return altered(run, state_dict=weights, lmlab=checkpoint["lmlab"] | {"config": config.flat()})


def exchange(run, name, trained):
    for end in ("", ".sha256"):
        shutil.copy(trained / "other" / f"{name}{end}", run / f"{name}{end}")


def each(damage):
    """Every checkpoint, since the previous one stands in for the last."""

    def damage_each(run, trained):
        for name in CHECKPOINTS:
            damage(run, name, trained)

    return damage_each


def grow(run, trained):
    """Makes each checkpoint larger than one of its model can be."""
    size = 2**24 + 16 * sum(weight.nbytes for weight in weights(trained / "run").values()) + 1
    for name in CHECKPOINTS:
        sealed(run / name, bytes(size))


DAMAGES = {
    "truncated": (
        each(lambda run, name, _: os.truncate(run / name, 500)),
        ["last.ckpt", "previous.ckpt: is damaged"],
    ),
    "empty": (each(lambda run, name, _: os.truncate(run / name, 0)), ["last.ckpt", "damaged"]),
    "bit flipped": (each(lambda run, name, _: flip(run / name)), ["last.ckpt", "damaged"]),
    "checksum flipped": (
        each(lambda run, name, _: flip(run / f"{name}.sha256", 3)),
        ["last.ckpt", "damaged"],
    ),
    "no checksum": (
        each(lambda run, name, _: (run / f"{name}.sha256").unlink()),
        ["last.ckpt.sha256"],
    ),
    "of another run": (
        each(lambda run, name, trained: exchange(run, name, trained)),
        ["last.ckpt", "seed=1 there"],
    ),
    "code": (
        each(lambda run, name, _: sealed(run / name, payload(run))),
        ["last.ckpt", "nothing was loaded"],
    ),
    "pickle": (
        each(lambda run, name, _: sealed(run / name, pickle.dumps(Payload()))),
        ["last.ckpt", "not a checkpoint"],
    ),
    "packed": (
        each(lambda run, name, _: sealed(run / name, packed(run))),
        ["last.ckpt", "compressed"],
    ),
    "of no lab": (
        each(lambda run, name, _: sealed(run / name, altered(run, lmlab=[]))),
        ["last.ckpt", "not a checkpoint"],
    ),
    "no weights": (
        each(lambda run, name, _: sealed(run / name, altered(run, state_dict={}))),
        ["last.ckpt", "its weights do not fit"],
    ),
    "few bytes, many weights": (
        each(
            lambda run, name, _: (
                change(
                    run / "config.yaml",
                    model="gpt",
                    n_layer=1,
                    n_head=1,
                    n_embd=2000,
                    dropout=0.0,
                    bias=False,
                ),
                sealed(run / name, giant(run)),
            )
        ),
        ["last.ckpt", "its weights do not fit"],
    ),
    "larger than its model": (
        grow,
        ["last.ckpt", "bytes; allowed are"],
    ),
    "weights that are not finite": (
        each(
            lambda run, name, _: sealed(
                run / name,
                altered(
                    run,
                    state_dict={k: torch.full_like(w, math.nan) for k, w in weights(run).items()},
                ),
            )
        ),
        ["last.ckpt", "not all of its weights are finite"],
    ),
    "wrong weights": (
        each(
            lambda run, name, _: sealed(
                run / name, altered(run, state_dict={"model.table.weight": torch.zeros(9, 8)})
            )
        ),
        ["last.ckpt", "weights"],
    ),
    "tokenizer flipped": (
        lambda run, _: flip(run / "tokenizer.json", 20),
        ["tokenizer.json", "damaged"],
    ),
    "tokenizer truncated": (
        lambda run, _: os.truncate(run / "tokenizer.json", 9),
        ["tokenizer.json", "damaged"],
    ),
    "tokenizer missing": (
        lambda run, _: (run / "tokenizer.json").unlink(),
        ["tokenizer.json", "cannot be read"],
    ),
    "tokenizer of another": (
        lambda run, _: sealed(run / "tokenizer.json", b'{"type": "char", "chars": ["a", "b"]}'),
        ["last.ckpt", "vocabulary"],
    ),
    "tokenizer not JSON": (
        lambda run, _: sealed(run / "tokenizer.json", b"import os"),
        ["tokenizer.json"],
    ),
    "tokenizer deep": (
        lambda run, _: sealed(run / "tokenizer.json", b"[" * 100_000),
        ["tokenizer.json"],
    ),
    "tokenizer unsorted": (
        lambda run, _: sealed(run / "tokenizer.json", b'{"type": "char", "chars": ["b", "a"]}'),
        ["tokenizer.json", "is no vocabulary"],
    ),
    "tokenizer large": (
        lambda run, _: sealed(run / "tokenizer.json", b" " * (runs.LIMITS["tokenizer.json"] + 1)),
        ["tokenizer.json", "bytes"],
    ),
    "config flipped": (lambda run, _: flip(run / "config.yaml", 7), ["config.yaml", "damaged"]),
    "config truncated": (
        lambda run, _: os.truncate(run / "config.yaml", 99),
        ["config.yaml", "damaged"],
    ),
    "config of another": (
        lambda run, trained: exchange(run, "config.yaml", trained),
        ["last.ckpt", "seed=0 there"],
    ),
    "config with code": (
        lambda run, _: sealed(
            run / "config.yaml", b"model: !!python/object/apply:os.system ['touch canary']"
        ),
        ["config.yaml", "line 1"],
    ),
    "config names code": (
        lambda run, _: change(run / "config.yaml", _target_="os.system"),
        ["config.yaml", "_target_"],
    ),
    "config interpolates": (
        lambda run, _: change(run / "config.yaml", name="${oc.env:HOME}"),
        ["config.yaml", "interpolation is not allowed"],
    ),
    "config escapes": (
        lambda run, _: change(run / "config.yaml", name="../../x"),
        ["config.yaml", "name=../../x"],
    ),
    "config explodes": (
        lambda run, _: sealed(
            run / "config.yaml",
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 9))
                for i in range(98, 112)
            ),
        ),
        ["config.yaml"],
    ),
    "config merges": (
        lambda run, _: sealed(
            run / "config.yaml",
            b"a: &a {x: 1}\n"
            + b"".join(
                b"%c: &%c {<<: [%s]}\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 9))
                for i in range(98, 112)
            ),
        ),
        ["config.yaml", "line 1"],
    ),
    "config deep": (
        lambda run, _: sealed(run / "config.yaml", b"a: " + b"[" * 20_000),
        ["config.yaml"],
    ),
    "config large": (
        lambda run, _: sealed(run / "config.yaml", b"#" * 2**17),
        ["config.yaml", "bytes"],
    ),
    "config of nothing": (lambda run, _: sealed(run / "config.yaml", b""), ["config.yaml"]),
    "config lacks a key": (
        lambda run, _: sealed(
            run / "config.yaml",
            b"\n".join(
                line
                for line in (run / "config.yaml").read_bytes().splitlines()
                if not line.startswith(b"seed")
            ),
        ),
        ["config.yaml", "seed"],
    ),
    "config with a date": (
        lambda run, _: change(run / "config.yaml", seed=__import__("datetime").date(2026, 1, 1)),
        ["config.yaml", "seed"],
    ),
    "config of a giant": (
        lambda run, _: change(
            run / "config.yaml",
            model="gpt",
            n_layer=10**9,
            n_head=1,
            n_embd=8,
            dropout=0.0,
            bias=False,
        ),
        ["config.yaml", "n_layer=1000000000"],
    ),
    "link": (
        lambda run, _: (
            (run / "history.jsonl").unlink(),
            (run / "history.jsonl").symlink_to("../precious"),
        ),
        ["history.jsonl", "is a link"],
    ),
    "folder link": (
        lambda run, _: (
            (run / "checkpoints").rename(run.parent / "away"),
            (run / "checkpoints").symlink_to("../away"),
        ),
        ["checkpoints", "is a link"],
    ),
    **{
        f"pipe as {name}": (
            lambda run, _, name=name: ((run / name).unlink(missing_ok=True), os.mkfifo(run / name)),
            [name, "plain file"],
        )
        for name in (
            "config.yaml",
            "config.yaml.sha256",
            "train.log",
            f"{LAST}.sha256",
            "events.out.tfevents.1",
        )
    },
}


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """Three runs over pairs of bytes."""
    line = f"{SMALL_RUN} tokenizer=bpe vocab_size=260"
    return three_runs(tmp_path_factory.mktemp("tokenized"), line)


@pytest.mark.parametrize("tokens", ["trained", "tokenized"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_hostile_file_is_named_and_nothing_is_lost(
    request, here, capsys, name, tokens
):
    trained = request.getfixturevalue(tokens)
    run = shutil.copytree(trained / "run", here / "run", symlinks=True)
    damage, words = DAMAGES[name]
    (here / "precious").write_text("precious")
    damage(run, trained)
    before = content(here)
    refused(capsys, lambda: cli.main([f"resume={run.name}", "max_steps=30"]), words)
    if not name.startswith("pipe"):
        words = [
            word.replace("last.ckpt", "best.ckpt").replace("previous.ckpt", "best.ckpt")
            for word in words
        ]
    refused(capsys, lambda: sample(run), words)
    refused(capsys, lambda: cli.main([f"init_from={run.name}", "max_steps=1"]), words)
    assert content(here) == before
    assert not list(here.rglob("canary"))


def test_sixty_flipped_bits_are_sixty_refusals(run):
    size = (run / LAST).stat().st_size
    for n in range(60):
        flip(run / LAST, byte=n * size // 60 + n % 7, bit=n % 8)
        with pytest.raises(UserError, match=r"last\.ckpt: is damaged"):
            checkpoints.read(run / LAST)
        flip(run / LAST, byte=n * size // 60 + n % 7, bit=n % 8)
    checkpoints.read(run / LAST)


@given(st.data())
def test_any_prefix_of_a_checkpoint_is_refused(trained, tmp_path_factory, data):
    """By its checksum; and if that is made to fit, by its form."""
    whole, path = (
        (trained / "run" / LAST).read_bytes(),
        tmp_path_factory.mktemp("prefix") / "last.ckpt",
    )
    prefix = whole[: data.draw(st.integers(0, len(whole) - 1))]
    path.write_bytes(prefix)
    files.seal(path).write_text(files.sha256(whole))
    with pytest.raises(UserError, match="damaged"):
        checkpoints.read(path)
    sealed(path, prefix)
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoints.read(path)


def test_a_last_checkpoint_that_cannot_be_read_now_is_left_as_it_is(run, here, capsys, monkeypatch):
    """It may be whole: a disk that does not answer, an account that may not read it."""
    before = content(here)
    whole = Path.read_bytes

    def read(path):
        if path.name == "last.ckpt":
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        refused(
            capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["last.ckpt: cannot be read"]
        )
    assert content(here) == before


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_a_checkpoint_that_memory_does_not_suffice_for_is_none_that_is_damaged(
    run, here, capsys, monkeypatch, fault
):
    before = content(here)

    def load(*_, **__):
        raise fault

    monkeypatch.setattr(torch, "load", load)
    refused(capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["out of memory"])
    for verb in ("evaluate", "sample"):

        def with_one_line(verb=verb):
            with one_line_errors():
                script(verb).main(["run=run"])

        refused(capsys, with_one_line, ["out of memory"])
    assert content(here) == before


def test_memory_that_runs_out_while_a_checkpoint_is_saved_is_named(here, capsys, monkeypatch):
    """torch then raises an error about its file, while it handles one of memory."""

    def save(*_, **__):
        try:
            raise MemoryError
        finally:
            raise RuntimeError("unexpected pos 1 vs 2")

    monkeypatch.setattr(torch, "save", save)
    refused(capsys, lambda: cli.main(SMALL_RUN.split()), ["out of memory", "batch_size"])
    (run,) = (here / "outputs/x").iterdir()
    assert metrics(run)["status"] == "failed" and "out of memory" in metrics(run)["reason"]


def test_a_best_checkpoint_is_recommended_only_where_there_is_one(run, capsys):
    for name in ("last", "previous"):
        flip(run / f"checkpoints/{name}.ckpt")
    refused(capsys, lambda: cli.main(["resume=run"]), ["best.ckpt: init_from=run"])
    (run / "checkpoints/best.ckpt").unlink()
    refused(capsys, lambda: cli.main(["resume=run"]), ["match previous.ckpt.sha256\n"])


@pytest.mark.parametrize(
    "damage", [flip, lambda path: os.truncate(path, 77), lambda path: path.unlink()]
)
def test_previous_stands_in_for_a_damaged_last(trained, run, capsys, damage):
    damage(run / LAST)
    cli.main(["resume=run", "max_steps=30"])
    said = capsys.readouterr().out
    assert (
        "last.ckpt: " in said
        and "continues from previous.ckpt" in said
        and "continues at step 15" in said
    )
    assert metrics(run)["val/loss"] == metrics(trained / "longer")["val/loss"]
    one, two = (
        torch.load(r / LAST, weights_only=True)["state_dict"] for r in (run, trained / "longer")
    )
    assert all(weight.equal(two[key]) for key, weight in one.items())


def folder_for(path):
    path.unlink()
    path.mkdir()


NOT_RESUMED = {
    "history shorter": (lambda run: os.truncate(run / "history.jsonl", 50), "shorter"),
    "history missing": (lambda run: (run / "history.jsonl").unlink(), "missing"),
    "folder for a checkpoint": (lambda run: folder_for(run / CHECKPOINTS[2]), "plain file"),
    "folder for a log": (lambda run: folder_for(run / "train.log"), "plain file"),
}


@pytest.mark.parametrize("name", NOT_RESUMED)
def test_a_run_that_cannot_be_resumed_stays_as_it_is(run, capsys, name):
    """Its configuration too, whatever was asked for."""
    damage, word = NOT_RESUMED[name]
    damage(run)
    before = content(run)
    line = ["resume=run", "max_steps=30", "log_interval=3"]
    refused(capsys, lambda: cli.main(line), ["run/", word])
    assert content(run) == before


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(run, capsys):
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    refused(capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["last.ckpt", "missing"])
    refused(capsys, lambda: sample(run), ["the run there has none of checkpoints/last.ckpt"])
    assert content(run) == before


@pytest.mark.parametrize(
    "wrong",
    [
        lambda state: state["state"][0].update(
            exp_avg=torch.zeros(1)
        ),  # the fused step would read beyond its end
        lambda state: state["state"][0].update(exp_avg=torch.zeros(1, 1).expand(9, 9)),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(9, 9, dtype=torch.float16)),
        lambda state: state["state"][0].update(step=torch.zeros(5)),
        lambda state: state["state"].update({7: {}, 8: {"exp_avg": torch.zeros(9, 9)}}),
        lambda state: state["param_groups"][0].update(weight_decay=0.5),
        lambda state: state.pop("state"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_named(run, capsys, wrong):
    checkpoint = torch.load(run / LAST, weights_only=True)
    wrong(checkpoint["optimizer_states"][0])
    sealed(run / LAST, altered(run, optimizer_states=checkpoint["optimizer_states"]))
    before = content(run)
    refused(capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["last.ckpt", "optimizer"])
    assert content(run) == before


def test_a_checkpoint_from_before_the_lab_made_the_steps_goes_on(run, trained):
    """Of 0.1, where Lightning made and counted them."""
    loops = torch.load(run / LAST, weights_only=True)["loops"]
    loop, none = loops["fit_loop"], {"ready": 0, "completed": 0}
    steps = loop["epoch_loop.manual_optimization.optim_step_progress"]
    loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"] = steps
    loop["epoch_loop.manual_optimization.optim_step_progress"] = {"total": none, "current": none}
    own = torch.load(run / LAST, weights_only=True)["lmlab"]
    for key in neutral_values():
        own["config"].pop(key, None)  # a key of other models
    lines = (run / "config.yaml").read_text().splitlines()
    sealed(
        run / "config.yaml",
        "\n".join(one for one in lines if one.split(":")[0] not in neutral_values()).encode(),
    )
    sealed(run / LAST, altered(run, loops=loops, lmlab=own))
    cli.main(["resume=run", "max_steps=30"])
    assert weights(run).keys() == weights(trained / "longer").keys()
    assert all(
        weight.equal(weights(trained / "longer")[name]) for name, weight in weights(run).items()
    )


@pytest.mark.parametrize("name", ["random_state", "loops", "optimizer_states"])
def test_a_state_that_cannot_be_restored_is_named(run, capsys, name):
    checkpoint = torch.load(run / LAST, weights_only=True)
    checkpoint["optimizer_states"][0]["state"][0].pop("exp_avg")  # noticed by the first step
    parts = {
        "random_state": {"lmlab": checkpoint["lmlab"] | {"random_state": {"python": 1}}},
        "loops": {"loops": {"fit_loop": {}}},
        "optimizer_states": {"optimizer_states": checkpoint["optimizer_states"]},
    }
    sealed(run / LAST, altered(run, **parts[name]))
    before = contents(run)
    refused(
        capsys,
        lambda: cli.main(["resume=run", "max_steps=30"]),
        ["last.ckpt", "cannot be restored"],
    )
    assert before.items() <= contents(run).items()  # with its seals: it was finished, and is


def contents(run):
    """The files of a run, without the log, which says what was tried."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("content", ["", "{}", None])
def test_weights_begin_a_run_also_if_their_runs_text_is_not_known(run, train, capsys, content):
    (run / "metrics.json").unlink()
    if content is not None:
        (run / "metrics.json").write_text(content)
    train("init_from=run data=sentence max_steps=1 name=next threads=1")
    (found,) = run.parent.glob("outputs/next/*")
    assert "metrics.json does not say which text that run has read" in capsys.readouterr().err
    assert metrics(found)["status"] == "finished" and "val/loss_source" not in metrics(found)


def test_a_run_that_does_not_say_what_its_text_was_gets_none(run, capsys):
    values = {key: value for key, value in metrics(run).items() if key != "data_sha256"}
    (run / "metrics.json").write_text(json.dumps(values))
    evaluate = script("evaluate")

    def with_one_line():
        with one_line_errors():
            evaluate.main(["run=run"])

    refused(capsys, with_one_line, ["metrics.json", "data_sha256"])
    refused(capsys, lambda: cli.main(["replay=run"]), ["metrics.json", "data_sha256"])


def test_metrics_that_are_none_are_named(run, capsys):
    for wrong in (b"[]", b'{"a": [1]}', b"{", b"[" * 10**5):
        (run / "metrics.json").write_bytes(wrong)
        refused(capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["metrics.json"])


def test_missing_events_are_named(run, capsys):
    for path in run.glob("events.*"):
        path.unlink()
    cli.main(["resume=run", "max_steps=25"])
    assert (
        capsys.readouterr().err.count("is missing; TensorBoard shows what comes from here on") == 1
    )
    assert metrics(run)["step"] == 25 and [*run.glob("events.*")]


def test_a_run_without_losses_is_not_trained_again(run, here, capsys):
    (run / "history.jsonl").write_text("")
    before = content(here)
    refused(capsys, lambda: cli.main(["replay=run"]), ["replay=run", "noted no losses"])
    assert content(here) == before


def test_changed_text_is_named(here, capsys):
    (here / "my.txt").write_text("The text of today. " * 20)
    cli.main([*SMALL_RUN.replace("data=sentence", "data=file path=my.txt").split(), "max_steps=6"])
    (run,) = (here / "outputs/x").iterdir()
    (here / "moved.txt").write_text((here / "my.txt").read_text())
    (here / "my.txt").write_text("The text of tomorrow. " * 20)
    before = content(run)
    for line in (f"resume={run} max_steps=9", f"replay={run}"):
        refused(capsys, lambda line=line: cli.main(line.split()), ["data=file", "not the one"])
    assert content(run) == before and len(list((here / "outputs/x").iterdir())) == 1
    cli.main(f"resume={run} max_steps=9 path=moved.txt".split())
    assert metrics(run)["step"] == 9


def test_an_unpicklable_canary_would_sing(here):
    """The payload of these tests does what it says, if somebody lets it."""
    pickle.loads(pickle.dumps(Payload()))
    assert (here / "canary").exists()


@pytest.mark.parametrize("content", [None, ""])
def test_a_curve_that_is_gone_is_named(trained, run, here, capsys, content):
    shutil.copytree(trained / "other", here / "other")
    (run / "history.jsonl").unlink()
    if content is not None:
        (run / "history.jsonl").write_text(content)
    capsys.readouterr()
    script("compare").main(["run", "other", "out=board"])
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "a curve is left out" in line]
    assert "run/history.jsonl: " in line


def test_what_the_pattern_of_a_shell_names_besides_runs_is_left_out(trained, here, capsys):
    for name in ("run", "other"):
        shutil.copytree(trained / name, here / "g" / name)
    script("compare").main(["g"])
    capsys.readouterr()
    script("compare").main(sorted(map(str, Path("g").iterdir())))
    shown, said = capsys.readouterr()
    assert "report        g/report.html" in shown
    names = ("leaderboard.csv", "leaderboard.md", "report.html")
    assert said.splitlines()[:3] == [
        f"left out: g/{name}: is a file, no folder of runs" for name in names
    ]
    with pytest.raises(UserError, match=r"leaderboard\.csv: no run there"):
        script("compare").main(["g/leaderboard.csv"])


RECORDS = {  # what somebody wrote into a record of a run, and what is said
    "a number beyond all floats": ("metrics.json", {"val/loss": 10**400}, "finite numbers"),
    "infinity": ("metrics.json", {"n_params": math.inf}, "finite numbers"),
    "no checksum of the text": ("metrics.json", {"data_sha256": None}, "has no data_sha256"),
    "a loss in words": ("history.jsonl", {"step": 1, "val/loss": "low"}, "line 1 was not written"),
    "a list in a curve": ("history.jsonl", {"step": 1, "train/loss": []}, "line 1 was not"),
    "a curve beyond all floats": ("history.jsonl", {"step": 1, "val/loss": 10**400}, "line 1 was"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_the_lab_did_not_write_is_named(trained, run, here, capsys, name):
    """Alone it is refused; among others only itself is left out, with a word."""
    file, values, reason = RECORDS[name]
    command, typed = ("plot", "runs=run")
    if file == "metrics.json":
        (run / file).write_text(json.dumps(metrics(run) | values))
        command, typed = ("compare", "run")
    else:
        (run / file).write_text(json.dumps(values) + "\n")
    with pytest.raises(UserError, match=f"run/{file}: .*{reason}"):
        script(command).main([typed])
    capsys.readouterr()
    shutil.copytree(trained / "other", here / "other")
    script("compare").main([".", "out=board"])
    shown = "".join(capsys.readouterr())
    assert f"run/{file}: " in shown and reason in shown
    (row,) = pd.read_csv(here / "board/leaderboard.csv", dtype=str).to_dict("records")
    assert row["seeds"] == ("1" if file == "metrics.json" else "0,1")


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
@pytest.mark.parametrize("tail", [b"", b"\xff"])
def test_a_line_of_evaluations_that_was_cut_is_no_loss_of_the_others(run, kept, tail):
    """A kill can cut the last line; the lines before it count, and the next one stands alone."""
    about = {"text": "test", "checkpoint": "last"}
    path = run / "evaluations.jsonl"
    loss.keep_evaluation(run, about, {"test/loss": 1.0})
    whole = path.read_bytes()
    loss.keep_evaluation(run, about, {"test/loss": 2.0})
    added = path.read_bytes()[len(whole) : -1]  # without its end
    path.write_bytes(whole + added[: kept if kept >= 0 else None] + tail)
    is_whole = kept == -1 and not tail
    assert table.tested(run, {}) == {"test/loss": 2.0 if is_whole else 1.0}
    loss.keep_evaluation(run, about, {"test/loss": 3.0})
    assert table.tested(run, {}) == {"test/loss": 3.0}
    assert path.read_bytes().endswith(whole.replace(b"1.0", b"3.0"))


def test_a_curve_that_hardly_falls_is_within_the_frame(run):
    history = [{"step": step, "val/loss": 3.5 + 1e-4 * (step < 10)} for step in range(0, 30, 10)]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    (axes,) = plot.curves([run]).axes
    assert axes.get_ylim() == (0, pytest.approx(1.05 * 3.5001))


def test_what_a_picture_of_curves_cannot_compare_or_show_is_said(trained, run, capsys):
    other = shutil.copytree(trained / "other", run.parent / "other", symlinks=True)
    plot.curves([run, other])
    assert capsys.readouterr().err == ""
    numbers = metrics(other) | {"data_sha256": "0" * 64}
    (other / "metrics.json").write_text(json.dumps(numbers))
    lines = (other / "history.jsonl").read_text().splitlines(keepends=True)
    first = [line for line in lines if '"train/loss"' in line][:1]
    (other / "history.jsonl").write_text("".join(first + [x for x in lines if '"val/loss"' in x]))
    (axes,) = plot.curves([run, other]).axes
    assert "the same text" in (said := capsys.readouterr().err) and "data_sha256" in said
    assert all(len(line.get_xdata()) > 1 or line.get_marker() != "None" for line in axes.lines)
    (other / "history.jsonl").write_text("".join(first))
    plot.curves([run, other])
    said, texts = capsys.readouterr().err.splitlines()
    assert said == f"warning: there is no curve of val/loss for {other}"
    assert "the same text" in texts and texts.endswith("data_sha256")  # train/loss is compared, too


def test_a_key_that_is_there_twice_is_named(run, capsys):
    text = (run / "config.yaml").read_text()
    files.write_sealed(run / "config.yaml", (text + "lr: 0.5\n").encode())
    refused(capsys, lambda: cli.main(["resume=run", "max_steps=30"]), ["lr", "twice"])


def test_a_run_without_a_loss_has_no_curve_and_any_label_can_be_drawn(run, capsys):
    numbers = metrics(run) | {"label": "half \ud800 \x1b"}
    (run / "metrics.json").write_text(json.dumps(numbers))
    plot.main(["runs=run", "out=c.png"])
    (run / "history.jsonl").write_text("")
    with pytest.raises(UserError, match=r"history.jsonl: has no loss"):
        plot.main(["runs=run", "out=d.png"])
