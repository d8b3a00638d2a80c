"""Claims: differences with their intervals, planned comparisons, the figure and tables of a paper."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lmlab.commands import compare
from lmlab.commands.error_bars import error_bars
from lmlab.errors import UserError
from lmlab.sweeps import claims, latex, planned, report, table
from tests.conftest import script
from tests.test_table import frame

SEEDS = range(3)


def by_seed(values):
    return dict(enumerate(values))


def grid(effects, **columns):
    """Runs of three seeds in which each row has a loss of its own, and all the luck of a seed.

    `effects` are the losses of the configurations, `columns` their keys. None is one that diverged.
    """
    random = np.random.default_rng(7)
    luck = random.normal(size=3) * 0.03
    losses = []
    for effect in effects:
        own = [None] * 3 if effect is None else list(effect + luck + random.normal(size=3) * 0.002)
        losses.append(own)
    new = {key: values for key, values in columns.items() if key not in ("lr", "optimizer")}
    runs = frame(losses, **new)
    for key in {*columns} - {*new}:
        runs[key] = [columns[key][int(group)] for group in runs["group"]]
    runs["label"] = [",".join(f"{key}={runs[key][i]}" for key in columns) for i in range(len(runs))]
    runs["data_sha256"] = "a"
    runs["val_fraction"] = 0.1
    runs["code"] = "c"
    runs.attrs["faults"] = []
    return runs


# Two optimizers, two widths, three rates. muon is better by 0.1 at each width; its best rate at the
# width of 64 is the largest that was tried, but for one that diverged; adamw's is the smallest.
GRID = {
    "optimizer": ["adamw"] * 6 + ["muon"] * 7,
    "n_embd": [32] * 3 + [64] * 3 + [32] * 3 + [64] * 4,
    "lr": [0.001, 0.01, 0.1] * 3 + [0.001, 0.01, 0.1, 1.0],
}
EFFECTS = [2.3, 2.5, 2.6, 2.2, 2.1, 2.4, 2.3, 2.2, 2.5, 2.3, 2.2, 2.0, None]


@pytest.fixture
def runs():
    return grid(EFFECTS, **GRID)


def test_a_difference_is_that_of_scipys_paired_test_with_its_interval():
    random = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = random.normal(size=(2, n))
        one = claims.difference(by_seed(a), by_seed(b))
        known = stats.ttest_rel(a, b)
        assert (one.mean, one.p) == pytest.approx(((a - b).mean(), known.pvalue))
        assert (one.low, one.high) == pytest.approx(tuple(known.confidence_interval(0.95)))
        assert (one.n, one.how) == (n, "paired")


def test_seeds_that_only_one_has_are_no_pairs():
    a, b = {0: 1.0, 1: 1.3, 2: 1.1, 9: 50.0}, {0: 0.5, 1: 0.7, 2: 0.9, 8: -50.0}
    known = stats.ttest_rel([1.0, 1.3, 1.1], [0.5, 0.7, 0.9])
    assert claims.difference(a, b).p == pytest.approx(known.pvalue)


def test_without_common_seeds_it_is_welchs_test():
    a, b = {0: 1.0, 1: 1.3, 2: 1.1}, {3: 0.5, 4: 0.7, 5: 0.9, 6: 0.2}
    one = claims.difference(a, b)
    known = stats.ttest_ind([*a.values()], [*b.values()], equal_var=False)
    assert (one.p, one.how) == (pytest.approx(known.pvalue), "Welch")
    assert (one.low, one.high) == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_one_seed_has_a_difference_and_no_interval():
    one = claims.difference({0: 2.0}, {0: 1.5, 1: 1.5})
    assert (one.mean, one.how, one.has_interval, one.seeds_needed) == (0.5, "one seed", False, None)
    assert claims.difference({}, {0: 1.0}) is None


def test_equal_differences_are_certain():
    one = claims.difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
    assert (one.low, one.high, one.p, one.seeds_needed) == (0.5, 0.5, 0.0, 2)
    assert claims.difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1


def test_a_record_is_scipys_one_sample_test():
    losses = [1.47, 1.465, 1.468]
    one = claims.from_number(by_seed(losses), 1.4697)
    known = stats.ttest_1samp(losses, 1.4697)
    assert one.p == pytest.approx(known.pvalue)
    low, high = known.confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((low - 1.4697, high - 1.4697))


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_seeds_needed_are_those_of_the_tables(effect, seeds):
    """Cohen (1988) and every power calculator have these for a paired t-test, 80 % at 5 %."""
    assert claims.seeds_needed(effect, 1.0) == claims.seeds_needed(-effect * 3, 3.0) == seeds
    assert claims.power(effect, seeds - 1) < 0.8 <= claims.power(effect, seeds)


def test_the_power_is_that_of_the_noncentral_t():
    for effect, n in ((0.5, 3), (1.0, 5), (2.0, 4)):
        critical, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
        known = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        assert claims.power(effect, n) == pytest.approx(known, abs=1e-4)
    assert claims.seeds_needed(0.01, 1.0) is None and claims.seeds_needed(0.0, 1.0) is None
    assert claims.seeds_needed(1e9, 1.0) == 2


def test_the_leaderboard_says_the_difference_to_the_best(runs):
    board = table.leaderboard(runs, record=2.05)
    losses = {group: rows["val/loss"].to_numpy() for group, rows in runs.groupby("group")}
    best = losses[board["group"][0]]
    for row in table.records(board)[1:-1]:
        known = stats.ttest_rel(losses[row["group"]], best)
        assert row["difference"] == pytest.approx((losses[row["group"]] - best).mean())
        ends = row["difference_low"], row["difference_high"]
        assert ends == pytest.approx(tuple(known.confidence_interval(0.95)))
        assert row["record_difference"] == pytest.approx(losses[row["group"]].mean() - 2.05)
    np.testing.assert_allclose(board["ci95"][:12], board["se"][:12] * stats.t.ppf(0.975, 2))
    assert np.isnan(board["difference"].to_numpy()[[0, -1]]).all()


def test_planned_comparisons_take_each_level_at_its_best_and_correct_among_themselves(runs):
    plan = planned.comparisons(runs, "optimizer", "n_embd", "lr")
    keys = ["n_embd", "optimizer", "lr"]
    assert plan[keys].to_numpy().tolist() == [
        [32, "muon", 0.01],
        [32, "adamw", 0.001],
        [64, "muon", 0.1],
        [64, "adamw", 0.01],
    ]
    losses = {
        tuple(key): rows["val/loss"].to_numpy()
        for key, rows in runs.groupby(["n_embd", "optimizer", "lr"])
    }
    raw = [
        stats.ttest_rel(losses[width, "adamw", rate], losses[width, "muon", other]).pvalue
        for width, rate, other in ((32, 0.001, 0.01), (64, 0.01, 0.1))
    ]
    low, high = sorted(raw)
    expected = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}  # Holm, of two tests
    assert plan["p"][[1, 3]].tolist() == pytest.approx([expected[p] for p in raw])
    assert plan["p"][[0, 2]].isna().all()
    assert plan["difference"][[1, 3]].tolist() == pytest.approx([0.1, 0.1], abs=0.01)


def test_losses_on_different_texts_are_not_tested_against_each_other():
    runs = grid([2.0, 2.1, 2.2, 2.3], n_layer=[1, 2, 3, 4])
    runs["data_sha256"] = ["ab"[n_layer % 2] for n_layer in runs["n_layer"]]
    plan = planned.comparisons(runs, "n_layer")
    assert plan["n_layer"].tolist() == [1, 2, 3, 4]
    assert plan["p"].isna().tolist() == [True, True, False, False]
    assert plan["difference"].tolist()[2:] == pytest.approx([0.2, 0.2], abs=0.01)
    board = table.leaderboard(runs).sort_values("n_layer")
    assert board["difference"].tolist()[2:] == pytest.approx([0.2, 0.2], abs=0.01)


@pytest.mark.parametrize("one_row", [True, False])
def test_the_difference_to_a_record_is_explained_wherever_it_is_shown(one_row):
    """Also where it is the only one, as of a single row."""
    runs = grid([2.0] if one_row else [2.0, 2.1], n_layer=[1] if one_row else [1, 2])
    board = table.leaderboard(runs, record=1.9)
    notes = [report.footnote(runs, board)]
    if not one_row:
        plan = planned.comparisons(runs, "n_layer", record=1.9)
        notes.append(planned.footnote_of(plan, "val/loss", None))
    for note in notes:
        assert "To the record: the mean less that number" in note
        assert ("over the seeds that both have" in note) == (not one_row)
    if not one_row:  # one test of two rows against each other, two against the number
        assert "paired t-test, 5 % after Holm's correction for this comparison alone" in note
        assert "one-sample t-test, 5 % after Holm's correction for these 2 comparisons" in note
    assert "To the record" not in report.footnote(runs, table.leaderboard(runs))


def test_a_key_that_the_column_data_is_made_of_is_not_said_to_be_equal(runs):
    runs["path"] = ["a.txt" if n_embd == 32 else "b.txt" for n_embd in runs["n_embd"]]
    runs["data"] = runs["path"]
    for name in ("path", "data_sha256"):
        with pytest.raises(UserError, match=f"vary={name}: {name} has no column; that of data"):
            planned.comparisons(runs, name)


def test_runs_of_which_none_says_its_code_are_said_so(runs):
    board = table.leaderboard(runs)
    assert "which code" not in report.footnote(runs, board)
    runs["code"] = "unknown"
    assert "They do not say which code of the lab made them" in report.footnote(runs, board)


def test_a_best_value_at_the_edge_is_told_and_one_beside_what_diverged_is_not(runs):
    plan = planned.comparisons(runs, "optimizer", "n_embd", "lr")
    assert plan["edge"].tolist() == ["", "the best lr=0.001 is the smallest of 3 tried", "", ""]
    footnote = planned.footnote_of(plan, "val/loss", "lr")
    assert f"the best of up to {runs['lr'].nunique()} in lr" in footnote  # with what diverged
    one = planned.comparisons(runs[runs["lr"] == 0.01].assign(x=1), "optimizer", "n_embd")
    assert "the best of" not in planned.footnote_of(one, "val/loss", "lr")
    short = runs[runs["lr"] < 1.0]
    edges = planned.comparisons(short, "optimizer", "n_embd", "lr")["edge"].tolist()
    assert edges[2] == "the best lr=0.1 is the largest of 3 tried"
    assert planned.warnings_of(plan) == [
        "n_embd=32 optimizer=adamw lr=0.001: the best lr=0.001 is the smallest of 3 tried; try "
        "values beyond it"
    ]


def test_keys_that_no_option_names_are_told_where_they_differ_among_what_is_compared(runs):
    """As where each width was trained in its own way: the difference may be of the way."""
    wide = runs["n_embd"] == runs["n_embd"].max()
    mixed = runs.assign(activation=np.where(wide, "gelu", "relu2"))
    columns = [*runs.columns]
    mixed = mixed[["activation", *columns]]
    plan = planned.comparisons(mixed, "n_embd", "optimizer", "lr")
    (line, *_) = planned.warnings_of(plan)
    assert line.startswith("what is compared differs in activation as well, which no option names")
    alike = planned.comparisons(mixed, "optimizer", "n_embd", "lr")
    assert not any("as well" in line for line in planned.warnings_of(alike))
    named = planned.comparisons(mixed, "n_embd,activation", "optimizer", "lr")
    assert not any("as well" in line for line in planned.warnings_of(named))


def test_words_have_no_edge():
    runs = grid([2.0, 2.1, 2.3, 2.2], optimizer=["sgd", "adamw"] * 2, n_layer=[1, 1, 2, 2])
    assert planned.comparisons(runs, "n_layer", best="optimizer")["edge"].tolist() == ["", ""]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"vary": "optimizer"}, ["vary=optimizer: several", "they differ in", "lr", "best="]),
        ({"vary": "optimiser", "best": "lr"}, ["vary=optimiser", "did you mean optimizer"]),
        ({"vary": "dropout"}, ["do not differ in dropout", "lr, optimizer, n_embd"]),
        ({"vary": "eval_tokens"}, ["differ in eval_tokens alone", "lr, optimizer, n_embd"]),
        ({"vary": "lr", "within": "lr"}, ["within=lr", "vary="]),
        ({"vary": "lr,lr"}, ["vary=lr,lr", "twice"]),
        ({"vary": ""}, ["vary="]),
    ],
)
def test_a_comparison_that_would_choose_by_itself_is_refused(runs, asked, words):
    with pytest.raises(UserError) as error:
        planned.comparisons(runs, **asked)
    assert all(word in str(error.value) for word in words), error.value


def test_the_terminal_says_it_in_a_hundred_columns(runs, capsys, monkeypatch):
    monkeypatch.setattr(report, "WIDTH", 100)
    report.show(runs)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if re.match(r" *\d+ ", line)]
    assert len(rows) == 12 and " best" in rows[0]
    assert all(re.search(r"\+0\.\d+ \[0\.\d+, 0\.\d+\] \*", row) for row in rows[1:])
    report.show_planned(
        runs, planned.comparisons(runs, "optimizer", "n_embd", "lr"), "lr", "val/loss"
    )
    said = capsys.readouterr()
    words = " ".join(said.out.split())
    assert "these 2 comparisons alone" in words and "which flatters it" in words
    assert said.err.startswith("warning: n_embd=32 optimizer=adamw lr=0.001: the best lr=0.001")


def test_a_narrow_terminal_leaves_columns_out_and_says_so(runs, capsys, monkeypatch):
    runs["best/val/loss"] = runs["val/loss"]
    runs["train_seconds"] = 1.0
    for width, left_out in ((100, "seconds, parameters."), (200, "")):
        monkeypatch.setattr(report, "WIDTH", width)
        report.show(runs)
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= width
        assert ("Not shown" in said) == bool(left_out) and left_out in " ".join(said.split())


@pytest.mark.parametrize("width", [160, 70, 50])
@pytest.mark.parametrize("worst", [2.6, 2.1e27])
def test_no_key_and_no_star_is_cut_whatever_the_width_and_the_losses(
    capsys, monkeypatch, width, worst
):
    runs = grid([2.0, 2.1, worst], lr=[0.5, 0.25, 0.125])
    monkeypatch.setattr(report, "WIDTH", width)
    report.show(runs, record=1.9)
    said = capsys.readouterr().out
    head, _, _ = said.partition("val/loss at the end")
    assert max(map(len, said.splitlines())) <= width and "…" not in said
    assert {"0.5", "0.25", "0.125"} <= {*head.split()}
    assert head.split().count("*") == 5  # two to the best, three to the record
    rows = table.records(table.leaderboard(runs, 1.9))
    cells = [latex.mean_of(row, "val/loss") + latex.difference_of(row) for row in rows]
    assert max(map(len, re.findall(r"\d+", head + "".join(cells)))) <= 4  # digits in a row


def test_on_a_very_narrow_terminal_one_column_has_all_keys_and_the_page_is_named(
    runs, capsys, monkeypatch
):
    monkeypatch.setattr(report, "WIDTH", 60)
    report.show(runs)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 60
    assert "report.html has a column for each key." in " ".join(said.split())
    assert " which" in said
    texts = pd.DataFrame({"": ["1"], "lr": ["0.1"], "n_layer": [""], "n": ["2"]})
    (row,) = table.records(report.with_keys_together(texts, ["lr", "n_layer"]))
    assert row == {"": "1", "which": "lr=0.1", "n": "2"}


def test_seeds_that_are_not_shared_are_told():
    runs = grid([2.0, 2.1], n_layer=[1, 2])
    runs.loc[runs["n_layer"] == 2, "seed"] += 5
    board = table.leaderboard(runs)
    assert board["test"].tolist() == ["", "Welch"]
    assert "Welch's interval, without pairs" in report.footnote(runs, board)
    assert report.columns(board, ["n_layer"])["to the best"][1].endswith(" w *")


def test_a_table_for_latex_is_plain_and_its_names_are_escaped(runs):
    plan = planned.comparisons(runs, "optimizer", "n_embd", "lr", record=2.0)
    text = latex.tabular(plan, planned.keys_of(plan), "val/loss", ["Two\nlines."])
    assert "\n% Two lines.\n\\begin" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5 and len({line.count("&") for line in lines}) == 1
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert len(columns) == lines[0].count("&") + 1 and text.count("\\hline") == 3
    assert r"n\_embd" in lines[0] and "n_embd" not in text
    assert text.count("$") % 2 == 0 and not re.search(r"(?<!\\)_", text)
    half = plan["ci95"][1]
    assert rf"${plan['val/loss'][1]:.3f} \pm {half:.3f}$" in lines[2]
    signs = latex.escaped(r"a_b&c%d$e#f{g}h~i^j\k<l>m|")
    assert signs.count("\\") == 13 and latex.escaped("müon 1.0") == "müon 1.0"


def points_of(figure):
    """The points of each line of a figure, by its label: x, y, and half of the error bar."""
    (axes,) = figure.axes
    found = {}
    for bars in axes.containers:
        line, _, (segments,) = bars
        heights = [(end[1][1] - end[0][1]) / 2 for end in segments.get_segments()]
        found[bars.get_label()] = list(zip(*line.get_data(), heights, strict=True))
    return axes, found


def test_the_figure_draws_the_means_with_their_intervals(runs):
    figure, warnings = error_bars(runs, "n_embd", "optimizer", "lr")
    plan = planned.comparisons(runs, "optimizer", "n_embd", "lr")
    axes, found = points_of(figure)
    for name in ("adamw", "muon"):
        rows = plan[plan["optimizer"] == name]
        expected = rows[["n_embd", "val/loss", "ci95"]].to_numpy()
        np.testing.assert_allclose(found[name], expected)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (
        "n_embd",
        "val/loss",
        "linear",
    )
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "optimizer" and len(warnings) == 1


def test_the_figure_is_logarithmic_over_a_wide_range_and_names_words():
    runs = grid([2.0, 2.1, 2.2], lr=[0.01, 0.1, 1.0])
    figure, _ = error_bars(runs, "lr")
    axes, found = points_of(figure)
    assert axes.get_xscale() == "log" and not figure.legends and len(found) == 1
    runs = grid([2.0, 2.1], optimizer=["sgd", "adamw"])
    axes, _ = points_of(error_bars(runs, "optimizer")[0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["adamw", "sgd"]


@pytest.fixture
def folder(here, monkeypatch, runs):
    """A folder whose runs are those of `runs`."""
    (here / "s").mkdir()
    monkeypatch.setattr("lmlab.sweeps.load_runs", lambda *_, **__: runs, raising=False)
    monkeypatch.setattr("lmlab.sweeps.report.write", lambda *_: None)
    return here


def test_the_command_writes_figures_and_tables_that_others_read(folder, capsys):
    line = "s vary=optimizer within=n_embd best=lr table=a.csv figure=a.pdf x=n_embd hue=optimizer"
    compare.main(line.split())
    said = capsys.readouterr()
    assert said.err.count("warning") == 1 and "a.csv" in said.out and "a.pdf" in said.out
    compare.main(
        ["s", "best=lr", "figure=b.svg", "x=n_embd", "hue=optimizer", "table=b.tex", "record=2.1"]
    )
    assert "to the record" in capsys.readouterr().out.replace("\n", " ")
    compare.main(["s", "best=lr", "figure=c.png", "x=n_embd", "hue=optimizer"])
    pdf = Path("a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Subtype /Type3" not in pdf and b"CreationDate" not in pdf
    assert b"/FontFile2" in pdf  # a TrueType font is in the file
    assert "<svg" in Path("b.svg").read_text() and Path("c.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [row["optimizer"] for row in rows] == ["muon", "adamw"] * 2
    assert len(rows[1]["difference"]) > 12 and "tabular" in Path("b.tex").read_text()
    before = Path("a.pdf").read_bytes()
    compare.main(line.split())
    assert Path("a.pdf").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("within=n_embd", "within=n_embd: needs vary="),
        ("best=lr", "best=lr: needs vary= or figure="),
        ("x=n_embd", "x=n_embd: needs figure="),
        ("hue=n_embd", "hue=n_embd: needs figure="),
        ("figure=a.pdf", "figure=a.pdf: needs x="),
        ("figure=a.jpg x=lr", "figure=a.jpg: needs the name of a picture, such as figure.pdf"),
        ("table=a.txt", "table=a.txt: needs the name of a table; its ending is one of .csv, .tex"),
        ("record=much", "record=much: needs a number"),
        ("record=inf", "record=inf: out of range"),
        ("figure=a.pdf x=optimizer,lr", "x=optimizer,lr: needs one key"),
        ("figure=a.pdf x=n_embd", "x=n_embd: several configurations have n_embd=64"),
    ],
)
def test_an_option_without_effect_is_refused(folder, options, words):
    before = {*folder.iterdir()}
    with pytest.raises(UserError, match=re.escape(words)):
        compare.main(["s", *options.split()])
    assert {*folder.iterdir()} == before


def test_the_help_of_compare_names_every_option(capsys):
    with pytest.raises(SystemExit):
        script("compare").main(["--help"])
    page = capsys.readouterr().out
    assert all(f"\n{name} " in page for name in compare.Options.__dataclass_fields__)
