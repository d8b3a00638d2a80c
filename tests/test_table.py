"""The leaderboard: means, errors and tests against references, from run directories alone."""

import json
import math
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmlab.commands import evaluate, plot
from lmlab.commands import train as cli
from lmlab.config.keys import LEFT_OUT, markers_of
from lmlab.errors import UserError, one_line_errors
from lmlab.inference import loss
from lmlab.markers import CountsBeside
from lmlab.numbers import COLUMNS, REFERENCES
from lmlab.sweeps import load_runs, report, scaling, table, words
from lmlab.sweeps.curves import Curves
from lmlab.sweeps.labels import common_parts, without
from lmlab.sweeps.table import SIZES, SOURCES, TEXTS
from tests.conftest import NANO, ROOT, config, history, metrics, refused, script, working_in


def frame(losses, **columns):
    """Runs with these losses, a group a row, a seed a column; None is a run that diverged."""
    rows = [
        {
            "lr": 10.0**-group,
            "seed": seed,
            "reason": "",
            "status": "diverged" if loss is None else "finished",
            "val/loss": 9.0 if loss is None else loss,
            "train/loss": 1.0,
            "group": str(group),
            "label": f"lr={group},seed={seed}",
            "n_params": 10,
            "tokens": 20,
            "path": "",
            "started": (group, seed),
            "model": "gpt",
            "data": "tales",
            "tokenizer": "char",
            "device": "cpu",
            "optimizer": "sgd",
            "max_steps": 1,
            **{key: values[group] for key, values in columns.items()},
        }
        for group, row in enumerate(losses)
        for seed, loss in enumerate(row)
    ]
    first = ["lr", "model", "data", "device", "optimizer", "max_steps", *columns, "seed", "reason"]
    return pd.DataFrame(rows)[[*first, *(key for key in rows[0] if key not in first)]]


def test_rows_are_ranked_by_their_mean_with_the_standard_error_over_seeds():
    board = table.leaderboard(frame([[2.0, 2.2, 2.4], [1.0, 1.5, 1.1], [3.0, None, 3.2]]))
    assert board["group"].tolist() == ["1", "0", "2"]
    np.testing.assert_allclose(board["val/loss"], [1.2, 2.2, 3.1])
    np.testing.assert_allclose(
        board["se"], [stats.sem([1.0, 1.5, 1.1]), stats.sem([2.0, 2.2, 2.4]), 0.1]
    )
    assert board["n"].tolist() == [3, 3, 2] and board["seeds"].tolist() == ["0,1,2", "0,1,2", "0,2"]
    assert board["not_finished"].tolist() == ["", "", "1 diverged"]


def test_a_run_that_cannot_be_read_is_named_in_every_file(here, capsys):
    runs = "model=bigram data=sentence val_fraction=0.2 lr=0.1,0.2 max_steps=2 eval_interval=2"
    cli.main(["-m", *f"{NANO} {runs} seed=0,1 name=s".split()])
    (damaged,) = Path("outputs/sweeps/s").glob("lr=0.1,*seed=0*")
    (damaged / "metrics.json").write_text("{")
    script("compare").main(["outputs/sweeps/s", "out=elsewhere", "table=t.tex"])
    assert "board.py runs=outputs/sweeps/s\n" in capsys.readouterr().out
    for path in ("elsewhere/report.html", "elsewhere/leaderboard.md", "t.tex"):
        assert "Left out: outputs/sweeps/s/lr=0.1" in Path(path).read_text().replace("\\", "")


def test_excerpts_that_decide_when_a_run_ends_make_cells_of_their_own(here, train):
    usual = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["eval_tokens"]
    assert usual == markers_of(CountsBeside)["eval_tokens"].usual
    line = f"-m {NANO} model=bigram data=tales val_fraction=0.01 max_steps=2 seed=0 "
    assert len(train(line + "eval_tokens=8,null name=one")) == 1
    line += "eval_interval=1 patience=1"
    assert len(train(f"{line} eval_tokens=8,null name=two")) == 2
    board = pd.read_csv("outputs/sweeps/two/leaderboard.csv")
    assert {*map(str, board["eval_tokens"])} == {"8.0", "nan"}
    train(line.replace("-m ", "").replace("patience=1", "eval_tokens=8 name=three"))
    train(line.replace("-m ", "").replace(" patience=1", "").replace("seed=0", "seed=1 name=three"))
    board = table.leaderboard(load_runs("outputs"))
    (row,) = [row for row in table.records(board) if row["seeds"] == "0,1"]
    assert {*row["eval_tokens"].split(", ")} >= {"8", str(usual)}  # a row has no value of some


@pytest.mark.parametrize(
    "value, text",
    [(1.5, "1.5000"), (-1e-9, "0.0000"), (-3e30, "-3.0000e+30"), (np.nan, ""), (np.inf, "inf")],
)
def test_a_huge_number_is_as_short_as_any(value, text):
    assert words.decimal(value) == text


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("aaa", "The loss of the best of 3 is partly luck"),
        ("aab", "The loss of the best of a text is partly luck"),
        ("abc", None),
    ],
)
def test_the_best_is_called_lucky_where_it_was_chosen(texts, words):
    """Not where each text has one row alone."""
    runs = frame([[1.0, 2.0], [1.5, 2.5], [3.0, 4.0]], data_sha256=texts, code="xxx")
    said = report.footnote(runs, table.leaderboard(runs))
    assert ("partly luck" in said) == (words is not None) and (words or "") in said


def test_losses_of_different_tokens_are_doubted_where_no_run_was_validated():
    runs = frame([[None], [None]], tokenizer=["char", "bpe"], status=["finished"] * 2).assign(
        **{
            "val/loss": np.nan,
            "data_sha256": "a",
            "val_fraction": 0.0,
            "code": "a",
            "warnings": None,
        }
    )
    (doubt,) = report.doubts(runs, table.objective(runs))
    assert "The tokenizers differ, and train/loss is that of a token" in doubt
    runs.loc[0, "val/loss"] = 2.0
    same = runs.assign(tokenizer="char")
    (doubt,) = report.doubts(same, table.objective(same))
    assert doubt.startswith("1 of 2 finished runs have no val/loss: ")


def test_what_diverged_never_counts_as_a_success():
    board = table.leaderboard(frame([[None, None], [5.0, 6.0], [None, 5.2]]))
    assert board["group"].tolist() == ["2", "1", "0"]
    assert np.isnan(board["val/loss"][2]) and board["n"].tolist() == [1, 2, 0]
    assert board["like_best"].tolist() == [True, None, None]


def test_the_paired_test_is_scipys_over_common_seeds_with_holms_correction():
    random = np.random.default_rng(0)
    base = random.normal(size=6)
    losses = [list(base + shift + random.normal(size=6) * 0.1) for shift in (0.0, 0.02, 0.3, 5.0)]
    losses[2][1] = losses[3][0] = None
    board = table.leaderboard(frame(losses)).set_index("group")
    best = board.index[0]
    raw = {}
    for group in board.index[1:]:
        pairs = [
            (a, b)
            for a, b in zip(losses[int(group)], losses[int(best)], strict=True)
            if a is not None
        ]
        raw[group] = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
    ordered = sorted(raw, key=raw.get)
    corrected = {
        group: max(
            min(1, raw[g] * (len(raw) - i))
            for i, g in enumerate(ordered[: ordered.index(group) + 1])
        )
        for group in raw
    }
    for group, p in corrected.items():
        assert board["p"][group] == pytest.approx(p)
        assert board["like_best"][group] == (p >= 0.05)
    assert {True, False} == set(board["like_best"])


def test_of_several_runs_of_a_seed_the_one_started_last_counts_and_this_is_said(sweep, here):
    both = pd.concat([frame([[1.0, 2.0]]), frame([[1.5]])], ignore_index=True)
    both["started"] = [(7, 0), (7, 0), (6, 0)]
    assert table.leaderboard(both)["val/loss"].tolist() == [1.5]  # of 1.0 and 2.0
    both["started"] = [(7, 0), (7, 0), (8, 0)]
    assert table.leaderboard(both)["val/loss"].tolist() == [1.75]  # of 1.5 and 2.0
    first = next(sweep.glob("seed=0,lr=1,*"))
    again = here / "again/run"
    shutil.copytree(first, again)
    (events,) = again.glob("events.out.tfevents.*")
    events.rename(again / "events.out.tfevents.9999999999.vm.1.0")
    (again / "metrics.json").write_text(json.dumps(metrics(first) | {"val/loss": 9.0}))
    found = load_runs(sweep, here / "again")
    board = table.leaderboard(found)
    assert (board["lr"][0], board["n"].tolist()) == (2, [3, 3, 0])
    assert "started last counts, though their losses differ; left out: 1." in (
        report.footnote(found, board)
    )
    found = load_runs(sweep)
    assert "started last" not in report.footnote(found, table.leaderboard(found))


def test_equal_losses_cannot_be_told_apart_and_a_constant_difference_can():
    board = table.leaderboard(frame([[1.0, 2.0], [1.0, 2.0], [1.5, 2.5]]))
    assert board["p"].tolist()[1:] == [1.0, 0.0] and board["like_best"].tolist() == [
        True,
        True,
        False,
    ]


def test_columns_are_what_varies_but_for_what_follows_from_it():
    varying = frame([[1.0], [2.0]], min_lr=[0.1, 0.01], grad_clip=[1.0, 0.5], dropout=[0.1, 0.1])
    assert table.varied(varying) == ["lr", "grad_clip"]
    free = frame([[1.0], [2.0]], min_lr=[0.1, 0.02])
    assert table.varied(free) == ["lr", "min_lr"]


def test_rows_of_equal_keys_that_read_other_files_are_told_apart_by_a_hash():
    hashes = {"data_sha256": ["a" * 64, "b" * 64], "tokenizer_sha256": ["c" * 64, "d" * 64]}
    for name, values in hashes.items():
        runs = frame([[1.0], [2.0]], tokenizer=["file"] * 2).assign(lr=0.1)
        assert table.varied(runs) == []
        runs[name] = [values[int(group)] for group in runs["group"]]
        assert table.varied(runs) == [name]
        assert [*table.leaderboard(runs)[name]] == [value[:8] for value in values]
    runs["path"] = runs["vocab_size"] = [300, 400]  # which tells of the tokens
    runs = runs[["vocab_size", *(key for key in runs if key != "vocab_size")]]
    assert table.varied(runs.assign(tokenizer="bpe", label="vocab_size=1")) == ["vocab_size"]


def test_tokens_of_another_file_or_learned_from_another_part_are_other_tokens(here):
    """Whatever the keys say: their losses are those of other tokens."""
    line = "-m model=bigram data=file path=t.txt block_size=8 max_steps=3 device=cpu seed=0,1 "
    (here / "t.txt").write_text("".join(f"the {n} cats and a dog. " for n in range(400)))
    made = [train_bpe(here, size) for size in (260, 280)]
    for path in made:
        shutil.copy(path, "tok.json")
        cli.main(f"{line} tokenizer=file tokenizer_path=tok.json name=files".split())
    cli.main(f"{line} tokenizer=bpe vocab_size=270 holdout_fraction=0,0.4 name=parts".split())
    for name in ("files", "parts"):
        runs = load_runs(f"outputs/sweeps/{name}")
        assert runs["tokenizer_sha256"].nunique() == 2
        assert table.objective(runs) == table.BITS and table.differ_in_tokens(runs)
        board = table.leaderboard(runs)
        assert len(board) == 2 and table.objective(board) == table.BITS
        assert "bits per byte are compared" in report.footnote(runs, board)
        kinds = {plot.tokenizer_of(metrics(Path(path))) for path in runs["path"]}
        assert len(kinds) == 2
        with pytest.raises(UserError, match="different tokenizers"):
            scaling.check_alike(runs)


def train_bpe(folder, size):
    """The tokenizer.json of a run with so many tokens."""
    cli.main(
        f"model=bigram data=file path=t.txt block_size=8 max_steps=1 tokenizer=bpe vocab_size={size} "
        f"device=cpu name=bpe{size}".split()
    )
    return next(folder.glob(f"outputs/bpe{size}/*/tokenizer.json"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A finished sweep, its two best rows near each other, with one that diverged and a test split."""
    with working_in(tmp_path_factory.mktemp("table")) as folder:
        line = (
            "-m model=bigram data=sentence val_fraction=0.2 test_fraction=0.2 block_size=8 device=cpu max_steps=20 "
            "eval_interval=5 log_interval=5 grad_clip=0 warmup_steps=0 optimizer=sgd schedule=constant name=s "
        )
        cli.main((line + "seed=0,1,2 lr=1,2,1e39").split())
    return folder / "outputs/sweeps/s"


def test_load_runs_has_a_row_a_run_with_configuration_and_metrics(sweep):
    found = load_runs(sweep)
    assert len(found) == 9 and set(found["status"]) == {"finished", "diverged"}
    for _, run in found.iterrows():
        numbers = json.loads((sweep.parent / run["path"] / "metrics.json").read_text())
        for key in ("val/loss", "train_seconds", "tokens", "flops", "cell", "group", "status"):
            assert run[key] == numbers[key] or numbers[key] is None or run[key] != run[key], key
        assert run["optimizer"] == "sgd" and run["lr"] in (1, 2, 1e39)
    with pytest.raises(UserError, match="no run there"):
        load_runs(sweep / ".sweep" / "locks")


def test_no_key_of_somebodys_own_can_have_the_name_of_a_column(sweep):
    """Or the tables would show the one in the place of the other."""
    runs = load_runs(sweep)
    own = {*runs.columns, *table.leaderboard(runs, 1.0).columns}
    keys: set[str] = set()
    for path in runs["path"]:
        own |= {*metrics(Path(path))}
        keys |= {*config(Path(path))}
    assert {name for name in own - keys - {"path"} if "/" not in name} <= COLUMNS
    assert {*SIZES, *TEXTS, *SOURCES, LEFT_OUT} - keys <= COLUMNS | {"reference/order"}
    assert not COLUMNS & keys


def test_reading_many_runs_says_so_after_a_second(sweep, monkeypatch, capfd):
    called = []

    @contextmanager
    def at_once(say):
        called.append(say)
        say()
        yield

    monkeypatch.setattr(table, "after_a_second", at_once)
    load_runs(sweep)
    assert not called  # of nine runs
    monkeypatch.setattr(table, "MANY", 9)
    load_runs(sweep)
    assert capfd.readouterr().err == "reading 9 runs …\n"


def test_rows_hold_plain_values():
    of_numpy = pd.Series([np.float64(2.5), "a", None], dtype=object)
    frame = pd.DataFrame({"n": [1, 2, 3], "x": [0.5, math.nan, 1.0], "y": of_numpy})
    rows = table.records(frame.assign(b=[True, False, True]))
    assert rows[0] == {"n": 1, "x": 0.5, "y": 2.5, "b": True}
    assert [type(value) for value in rows[0].values()] == [int, float, float, bool]
    assert rows[2]["y"] is None and table.records(frame.iloc[:0]) == []


def test_the_winner_alone_is_measured_on_text_that_chose_nothing(sweep):
    board = table.leaderboard(load_runs(sweep))
    assert board["test/loss"].notna().tolist() == [True, False, False]
    found = load_runs(sweep)
    winner = {sweep.parent / path for path in found["path"][found["group"] == board["group"][0]]}
    noted = {
        path.parent: json.loads(path.read_text()) for path in sweep.glob("*/evaluations.jsonl")
    }
    assert {path.name for path in noted} == {path.name for path in winner} and len(noted) == 3
    assert {(line["text"], line["checkpoint"]) for line in noted.values()} == {("test", "last")}
    assert board["test/loss"][0] == pytest.approx(
        np.mean([line["test/loss"] for line in noted.values()])
    )


def test_compare_writes_the_same_table_as_csv_markdown_and_page(sweep, capsys, tmp_path):
    compare = script("compare")
    compare.main([str(sweep), f"out={tmp_path}"])
    shown = capsys.readouterr().out
    board = table.leaderboard(load_runs(sweep))
    read = pd.read_csv(tmp_path / "leaderboard.csv", dtype={"group": str, "not_finished": str})
    np.testing.assert_allclose(read["val/loss"], board["val/loss"])
    markdown = (tmp_path / "leaderboard.md").read_text()
    for text in (shown, markdown):
        assert (
            f"{board['val/loss'][0]:.4f}" in text and "Holm" in text and text.count("diverged") >= 4
        )
    assert markdown == (sweep / "leaderboard.md").read_text()


def test_of_several_folders_none_loses_its_own_page(sweep, tmp_path):
    for name in "ab":
        shutil.copytree(sweep, tmp_path / name)
    before = (tmp_path / "a/report.html").read_bytes()
    script("compare").main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert (tmp_path / "a/report.html").read_bytes() == before and "a, b" in (
        tmp_path / "report.html"
    ).read_text()


@pytest.mark.parametrize("name", ["leaderboard.csv", "leaderboard.md", "report.html"])
def test_a_file_of_somebody_else_is_not_replaced(sweep, here, capsys, name):
    """What the lab wrote is, also of an earlier version; and what lies in a sweep's own folder."""
    for folder in "ab":
        shutil.copytree(sweep, here / folder)
    old = ROOT / "tests/old_runs/sweeps/search" / name
    (here / name).write_text(old.read_text() if old.exists() else (sweep / name).read_text())
    script("compare").main(["a", "b"])
    (here / name).write_text("<h1>group, n, se: mine</h1>\n")
    words = [f"{name}: is there and was not written by lmlab", "out= names another folder"]
    (here / "b/metrics.json").write_text("damaged")  # which is not even read
    refused(capsys, one_line_errors()(lambda: script("compare").main(["a", "b"])), words)
    assert "mine" in (here / name).read_text() and capsys.readouterr().out == ""
    (here / "a" / name).write_text("mine")
    script("compare").main(["a"])
    assert (here / "a" / name).read_text() != "mine"


def test_the_page_is_self_contained_and_its_data_is_the_tables(sweep):
    page = (sweep / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # the name of SVG
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    board = table.leaderboard(load_runs(sweep))
    assert [row["loss"] for row in data["rows"]] == [
        pytest.approx(loss, rel=1e-5) if loss == loss else None for loss in board["val/loss"]
    ]
    assert data["rows"][0]["curves"]["val/loss"]["step"] == [0, 5, 10, 15, 20]
    assert [mark["step"] for mark in data["rows"][2]["curves"]["marks"]] == [5, 5, 5]
    best = load_runs(sweep)[
        lambda runs: (runs["group"] == board["group"][0]) & (runs["seed"] == 0)
    ]["path"].iloc[0]
    samples = data["rows"][0]["samples"]
    assert samples["seed"] == 0
    assert [(line["step"], line["loss"], line["text"]) for line in samples["lines"]] == [
        (step, pytest.approx(history(Path(best), "val/loss")[step], rel=1e-5), text)
        for step, text in history(Path(best), "sample").items()
    ]
    numbers = metrics(Path(best))
    assert [loss for _, loss in data["references"]] == pytest.approx(
        [numbers[f"reference/{key}"] for key in ("ngram", "bigram", "unigram", "uniform")], rel=1e-5
    )
    assert str(numbers["reference/order"]) in data["references"][0][0]
    assert data["keys"] == ["lr"] and {one[1] for one in data["unfinished"]} == {"diverged"}


def test_runs_on_different_texts_have_no_reference_in_common(sweep):
    found = load_runs(sweep)
    assert report.references(found)
    found.loc[found["status"] == "finished", "reference/bigram"] = range(
        (found["status"] == "finished").sum()
    )
    assert (
        report.references(found) == report.references(found.drop(columns="reference/order")) == []
    )


def test_runs_without_samples_have_a_page_without_them(sweep, here):
    shutil.copytree(sweep, here / "s")
    for name in (here / "s").glob("*/history.jsonl"):
        lines = [json.loads(line) for line in name.read_text().splitlines()]
        name.write_text(
            "".join(
                json.dumps({k: v for k, v in line.items() if k != "sample"}) + "\n"
                for line in lines
            )
        )
    found = load_runs(here / "s")
    data = report.page_data(found, table.leaderboard(found), "s", Curves())
    assert [row["samples"] for row in data["rows"]] == [None] * 3


def test_text_from_outside_cannot_become_code(sweep, here, tmp_path, monkeypatch):
    shutil.copytree(sweep, here / "s")
    for name in (here / "s").glob("*/history.jsonl"):
        name.write_text(
            re.sub(
                '"sample": "', '"sample": "</script><img src=x onerror=alert(1)>', name.read_text()
            )
        )
    found = load_runs(here / "s")
    found["label"] = "</script><script>alert(1)</script>"
    report.write(found, tmp_path, "<img src=x onerror=alert(1)>")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 2 and "<img" not in page


def test_no_text_of_a_run_can_steer_a_terminal(sweep, here, capsys):
    shutil.copytree(sweep, here / "s")
    steering = "\x1b]0;title\x07\x1b[2J\x9b31m"
    for path in (here / "s").glob("*/metrics.json"):
        texts = {
            name: value + steering
            for name, value in json.loads(path.read_text()).items()
            if isinstance(value, str) and "sha256" not in name and name != "status"
        }
        texts |= {"warnings": f"odd {steering}", "reason": steering}
        path.write_text(json.dumps(metrics(path.parent) | texts))
    script("compare").main(["s"])
    written = [(here / "s" / name).read_text() for name in ("leaderboard.md", "report.html")]
    for text in ("".join(capsys.readouterr()), *written):
        assert "31m" in text and not {"\x1b", "\x07", "\x9b"} & {*text}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a folder"),
        (["nowhere"], "nowhere: no run there"),
        (["ou=x"], "did you mean out?"),
    ],
)
def test_compare_names_what_is_wrong(here, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        script("compare").main(arguments)
    stderr = capsys.readouterr().err
    assert stop.value.code == 2 and stderr.count("\n") == 1 and words in stderr


def test_keys_that_only_later_runs_have_are_columns_too(here, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    line = "-m data=sentence val_fraction=0.2 device=cpu max_steps=1 name=later "
    cli.main((line + "model=bigram").split())
    cli.main((line + "model=gpt_nano n_layer=1,2").split())
    found = load_runs("outputs/sweeps/later")
    assert table.varied(found) == ["model", "n_layer"]
    assert sorted(table.leaderboard(found)["n_layer"].dropna()) == [1, 2]


def test_what_cannot_be_read_is_left_out_and_told(sweep, here, capsys):
    shutil.copytree(sweep, here / "s")
    damaged = next((here / "s").glob("seed=0,lr=1,*"))
    (damaged / "config.yaml").write_text("lr: 5\n")
    odd = next((here / "s").glob("seed=1,lr=1,*"))
    (odd / "metrics.json").write_text(
        (odd / "metrics.json").read_text().replace('"step": 20', '"step": "20"')
    )
    lost = next((here / "s").glob("seed=2,lr=1,*"))
    (lost / "config.yaml").unlink()
    found = load_runs(here / "s")
    assert len(found) == 6 and len(found.attrs["faults"]) == 3
    report.show(found)
    shown = capsys.readouterr().out
    assert (
        shown.count("left out") == 3
        and "config.yaml" in shown
        and "step=20 has the wrong type" in shown
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", None),
        ("status", "odd"),
        ("status", 5),
        ("n_params", -5),
        ("tokens", math.nan),
        ("val/loss", "low"),
        ("label", []),
    ],
)
def test_a_run_with_an_odd_record_is_left_out_and_told(sweep, here, capsys, name, value):
    shutil.copytree(sweep, here / "s")
    record = next((here / "s").glob("seed=0,lr=1,*")) / "metrics.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {name: value}))
    for tell in (
        lambda: report.show(load_runs(here / "s")),
        lambda: script("ladder").main(["sweep=s", "out=ladder.png"]),
    ):
        tell()
        shown = " ".join(capsys.readouterr().out.split())
        why = f"{name}={value}" if is_flat(value) else "needs one flat JSON object"
        assert "eft out" in shown and f"metrics.json: {why}" in shown


def is_flat(value):
    return value != [] and value == value


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data_sha256", ["a", "b"]),
        ("val_fraction", [0.1, 0.3]),
        ("test_fraction", [0, 0.2]),
        ("separator", [None, "\n"]),
        ("score_after", [None, "."]),
    ],
)
def test_losses_of_different_validation_texts_are_doubted_by_all_that_compare_them(key, values):
    columns = {name: [same, same] for name, same in (("data_sha256", "a"), ("val_fraction", 0.1))}
    runs = frame([[2.0, 2.1], [1.0, 1.1]], **columns | {key: values}).assign(code="")
    said = f"Not all were validated on the same text, so their losses cannot be compared: the runs differ in {key}."
    assert table.other_texts(runs) == [said]
    assert said in report.doubts(runs, "val/loss")
    assert table.other_texts(runs[runs["group"] == "0"]) == []


def test_each_validation_text_has_a_ranking_of_its_own():
    losses = [[2.0, 2.1], [1.0, 1.1], [1.9, 2.1], [1.2, 1.4], [], []]
    texts = ["a", "b", "a", "b", "a", "b"]
    runs = frame([one or [None] for one in losses], data_sha256=texts).assign(code="")
    board = table.leaderboard(runs)
    assert [*board["group"]] == ["1", "3", "2", "0", "5", "4"]
    assert [*table.are_best(board)] == [True, False, True, False, False, False]
    alone = {
        text: table.leaderboard(runs[runs["data_sha256"] == text].reset_index(drop=True))
        for text in "ab"
    }
    for row in board.to_dict("records"):
        its = alone[texts[int(row["group"])]].set_index("group").loc[row["group"]]
        for name in ("difference", "difference_low", "difference_high"):
            assert row[name] == pytest.approx(its[name], nan_ok=True)
    shown = report.columns(board, ["data_sha256"])
    assert [*shown[""]] == ["1", "2", "1", "2", "–", "–"]
    assert [*shown["to the best"][::2]] == ["best", "best", ""]


def test_runs_of_other_versions_or_machines_are_said_to_be():
    columns = {"data_sha256": ["a", "a"], "val_fraction": [0.1, 0.1]}
    runs = frame([[2.0], [1.0]], **columns).assign(code="", warnings=None)
    runs = runs.assign(torch="2.13.0", machine="a")
    assert "Different" not in " ".join(report.doubts(runs, "val/loss"))
    runs.loc[0, "torch"] = "2.12.0"
    assert "Different versions of torch made these runs: 2.12.0; 2.13.0." in report.doubts(
        runs, "val/loss"
    )
    runs.loc[1, "machine"] = "b"
    assert "Different machines made these runs: a; b." in report.doubts(runs, "val/loss")


def test_a_number_that_some_seeds_lack_is_said_to_be_of_the_others():
    runs = frame([[2.0, 2.1], [1.0, 1.1]]).assign(**{"val/calibration_error": 0.5})
    assert table.partly_measured(runs, "val/loss") == []
    lacking = (runs["group"] == "1") & (runs["seed"] == 0)
    runs["val/calibration_error"] = runs["val/calibration_error"].mask(lacking)
    (said,) = table.partly_measured(runs, "val/loss")
    assert said.startswith("Not all seeds of a row have val/calibration_error")
    runs["val/calibration_error"] = runs["val/calibration_error"].mask(runs["group"] == "1")
    assert table.partly_measured(runs, "val/loss") == []


def test_runs_that_ended_before_their_time_are_said(here, capsys):
    line = "-m model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu max_steps=40 "
    cli.main((line + "eval_interval=2 lr=100 patience=1 seed=0,1 name=p").split())
    steps = sorted(load_runs("outputs/sweeps/p")["step"])
    assert steps[-1] < 40
    shown = " ".join(capsys.readouterr().out.split())
    where = f"at step {steps[0]}" if steps[0] == steps[1] else f"at steps {steps[0]} to {steps[1]}"
    assert "2 of 2 finished runs ended before max_steps, as max_minutes, patience" in shown
    assert f"callback asked: {where}." in shown


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "finished", "diverged"])
def test_runs_that_ended_before_they_noted_a_step_have_a_page(sweep, here, capsys, status):
    """As after a kill, or for lack of memory: only what is known before the first step is noted."""
    shutil.copytree(sweep, "runs")
    for noted in Path("runs").rglob("metrics.json"):
        known = json.loads(noted.read_text())
        numbers = {"step", "tokens", "flops", "train_seconds", "tokens_per_second"}
        left = {key: known[key] for key in known if "/" not in key and key not in numbers}
        noted.write_text(json.dumps(left | {"status": status}))
    script("compare").main(["runs"])
    assert Path("runs/report.html").exists()
    assert set(load_runs("runs")["step"]) == {0}


@pytest.mark.parametrize(
    ("folder", "how"), [("s", "the sweep's command or resume="), ("r", "resume=")]
)
def test_what_continues_a_stopped_run_is_said(sweep, here, folder, how):
    """Its step is that of its last evaluation; after a kill the checkpoint is an earlier one."""
    cell = next(path for path in sweep.iterdir() if (path / "metrics.json").exists())
    shutil.copytree(cell, here / folder / cell.name)
    if folder == "s":
        shutil.copytree(sweep / ".sweep", here / "s/.sweep")
    record = here / folder / cell.name / "metrics.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "running", "step": 3}))
    ((_, status, why),) = table.unfinished(load_runs(here / folder))
    assert status == "interrupted"
    assert why == f"stopped after step 3; {how} continues it from its last checkpoint"
    shutil.rmtree(record.parent / "checkpoints")
    ((_, _, why),) = table.unfinished(load_runs(here / folder))
    assert why == "stopped before its first checkpoint; the same command begins it anew"


def test_a_record_does_not_change_what_the_configuration_says(sweep, here):
    shutil.copytree(sweep, here / "s")
    record = next((here / "s").glob("seed=0,lr=1,*")) / "metrics.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": "x", "lr": 7}))
    found = load_runs(here / "s")
    assert len(found) == 9 and {*found["seed"]} == {0, 1, 2} and 7 not in {*found["lr"]}


def test_what_does_not_count_for_a_chart_is_said(sweep, here, capsys):
    shutil.copytree(sweep, here / "s")
    for seed, status in ((0, "interrupted"), (1, "failed"), (2, "failed")):
        record = next((here / "s").glob(f"seed={seed},lr=1,*")) / "metrics.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"status": status}))
    script("ladder").main(["sweep=s", "out=ladder.png"])
    assert (
        "6 of 9 runs are not finished and are left out: 3 diverged, 2 failed, 1 interrupted."
        in (capsys.readouterr().out)
    )


def test_a_torn_line_of_evaluations_loses_itself_alone(here):
    loss.keep_evaluation(here, {"checkpoint": "last", "text": "test"}, {"test/loss": 1.5})
    with open(here / "evaluations.jsonl", "a") as file:
        file.write('{"checkpoint": "last", "te')
    assert table.tested(here, {}) == {"test/loss": 1.5}
    loss.keep_evaluation(here, {"checkpoint": "last", "text": "test"}, {"test/loss": 1.25})
    assert table.tested(here, {}) == {"test/loss": 1.25}


def test_the_loss_of_a_mixture_is_not_that_of_its_first_run(here):
    note = {"checkpoint": "last", "text": "test"}
    loss.keep_evaluation(here, note, {"test/loss": 1.5})
    loss.keep_evaluation(
        here, note | {"weight of a": "0.5", "weight of b": "0.5"}, {"test/loss": 0.5}
    )
    assert table.tested(here, {}) == {"test/loss": 1.5}


def test_a_loss_on_test_text_is_that_of_the_weights_that_the_run_ended_with(here, train):
    """One of before the run was resumed is none, also if it does not say its step."""
    line = NANO.replace("max_steps=4", "max_steps=2") + "data=sentence val_fraction=0.2 "
    run = train(line + "test_fraction=0.2 block_size=8")
    evaluate.main([f"run={run}", "split=test"])
    (before,) = table.load_runs(run)["test/loss"]
    (noted,) = table.evaluations_of(run)
    assert noted["step"] == 2 and noted["test/loss"] == before
    unsaid = json.dumps({key: value for key, value in noted.items() if key != "step"})
    (run / "evaluations.jsonl").write_text(unsaid + "\n")
    assert [*table.load_runs(run)["test/loss"]] == [before]  # of version 0.1
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(json.dumps(noted) + "\n")
    cli.main([f"resume={run}", "max_steps=4"])
    assert "test/loss" not in table.load_runs(run)
    evaluate.main([f"run={run}", "split=test"])
    (after,) = table.load_runs(run)["test/loss"]
    assert after not in (before, None)


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=2, max_size=5))
def test_a_label_without_what_all_have_in_common_still_tells_it_from_others(parts):
    labels = [",".join(f"{key}=1" for key in sorted(keys)) for keys in parts]
    common = common_parts(labels)
    for label, keys in zip(labels, parts, strict=True):
        rest = without(label, common).split(",")
        varying = [f"{key}=1" for key in sorted(keys) if any(key not in other for other in parts)]
        assert rest == (varying or label.split(","))


def test_a_single_label_has_nothing_in_common_with_others():
    assert common_parts(["a=1,b=2"]) == common_parts([]) == set()
    assert without("a=1,b=2", set()) == "a=1,b=2"


def test_every_reference_of_a_run_is_in_the_table_of_references(sweep):
    run = next(sweep.glob("seed=0,lr=2*"))
    noted = {name for name in metrics(run) if name.startswith("reference/")}
    assert noted == {*REFERENCES, "reference/order"}
    losses = [metrics(run)[name] for name in REFERENCES]
    assert losses == sorted(losses)  # the best first


def test_a_sweep_over_texts_says_which_row_is_which(here, capsys):
    for name, text in (("a.txt", "hello world " * 40), ("b.txt", "a cat and a dog " * 40)):
        (here / name).write_text(text)
    command = (
        "model=bigram data=file path=a.txt,b.txt block_size=8 device=cpu max_steps=2 name=texts"
    )
    cli.main(["-m", *command.split()])
    board = (here / "outputs/sweeps/texts/leaderboard.md").read_text()
    assert "| data |" in board and "file a.txt" in board and "file b.txt" in board
    assert "file a.txt" in capsys.readouterr().out
