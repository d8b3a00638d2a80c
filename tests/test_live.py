"""The page of a sweep while it runs, and of a thousand cells."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest

from lmlab.commands import train as cli
from lmlab.sweeps import curves, live, load_runs, report, table, view
from lmlab.sweeps.cells import Sweep
from lmlab.sweeps.curves import POINTS, Curves, curve
from tests.conftest import working_in

LINE = (
    "-m model=bigram data=sentence val_fraction=0.2 block_size=8 device=cpu max_steps=4 eval_interval=2 "
    "warmup_steps=0 optimizer=sgd schedule=constant hydra/launcher=basic name=s lr=1,2"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a sweep of two cells."""
    with working_in(tmp_path_factory.mktemp("live")) as folder:
        cli.main(LINE.split())
    return folder / "outputs/sweeps/s"


@pytest.fixture
def sweep(finished, here):
    """A copy of it in the current folder, and the page that its command would keep new."""
    folder = here / "outputs/sweeps/s"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    hashes = [path.name.rpartition("-")[2] for path in sorted(folder.glob("lr=*"))]
    cells = {n: SimpleNamespace(hash=name) for n, name in enumerate([*hashes, "not begun"])}
    asked = SimpleNamespace(sweeper="basic")
    return live.LivePage(SimpleNamespace(sweep=Sweep("s", "…"), asked=asked, cells=cells))


def data_of(page):
    """The data in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])


def note(folder, **values):
    """Changes the metrics.json of a cell."""
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_page_of_a_running_sweep_says_how_far_it_is(sweep):
    _, second = sorted(sweep.sweep.folder.glob("lr=*"))
    note(second, status="running", step=2)  # which no process trains any more
    sweep.renew()
    data = data_of(sweep.sweep.folder / "report.html")
    assert data["progress"] == {
        "done": 1,
        "running": 0,
        "failed": 0,
        "waiting": 2,
        "stopped": False,
    }
    assert len(data["rows"]) == 2 and data["made_at"] > 1e9
    note(second, status="failed", reason="for a test")
    sweep.renew()
    progress = data_of(sweep.sweep.folder / "report.html")["progress"]
    assert (progress["failed"], progress["waiting"]) == (1, 1)
    sweep.survey.asked.sweeper = "search"  # whose cells nobody knows
    sweep.renew(stopped=True)
    progress = data_of(sweep.sweep.folder / "report.html")["progress"]
    assert progress["waiting"] is None and progress["stopped"]


def test_the_page_is_written_when_a_cell_has_changed_and_not_else(sweep):
    page = sweep.sweep.folder / "report.html"
    sweep.renew()
    written = page.stat().st_mtime_ns
    sweep.renew()
    assert page.stat().st_mtime_ns == written
    note(next(sweep.sweep.folder.glob("lr=*")), step=3)
    sweep.renew()
    assert page.stat().st_mtime_ns > written


def test_what_has_ended_is_read_once(sweep, monkeypatch):
    read = []
    monkeypatch.setattr(
        table, "load_run", lambda path, load=table.load_run: read.append(path) or load(path)
    )
    monkeypatch.setattr(
        curves,
        "read_history",
        lambda path, load=curves.read_history: read.append(path) or load(path),
    )
    sweep.renew()
    assert len(read) == 6  # of two cells: the row, the curves, the samples
    changed = next(sweep.sweep.folder.glob("lr=*"))
    note(changed, notes="of a test")
    sweep.renew()
    assert [path.name for path in read[6:]] == [changed.name]


def test_a_page_that_cannot_be_written_stops_no_sweep(sweep):
    (sweep.sweep.folder / "report.html").mkdir()
    with sweep:
        sweep.renew()
    assert (sweep.sweep.folder / "report.html").is_dir()


def test_a_sweep_that_ends_leaves_a_page_that_does_not_run(finished):
    assert data_of(finished / "report.html")["progress"] is None


def test_a_stopped_sweep_leaves_a_page_that_says_so(sweep):
    with pytest.raises(KeyboardInterrupt), sweep:
        raise KeyboardInterrupt
    assert data_of(sweep.sweep.folder / "report.html")["progress"]["stopped"]


def test_a_page_of_many_rows_has_few_points_a_curve_and_each_key_once(finished):
    runs = load_runs(finished)
    read = Curves()
    data = report.page_data(runs, table.leaderboard(runs), "s", read)
    assert read.limit == POINTS
    assert data["config"]["model"] == "bigram" and "seed" not in data["config"]
    assert [row["config"] for row in data["rows"]] == [{"lr": "2"}, {"lr": "1"}]
    assert curve([[{"step": n, "x": 1.0} for n in range(500)]], "x", 30)["step"][-1] == 499
    many = runs.loc[runs.index.repeat(1000)].assign(group=[str(n) for n in range(2000)])
    read.of = lambda *_: {}
    page = report.page(many, table.leaderboard(many), "s", read)
    assert read.limit == report.FEW_POINTS and len(page) < 1_000_000


def test_a_row_is_named_by_the_keys_that_its_model_uses():
    row = {
        "group": "g",
        "model": "ngram",
        "max_steps": 60,
        "n_embd": math.nan,
        "order": 3,
        "loss": 1.0,
    }
    run = {"model": "ngram", "seed": 0, "status": "finished", "loss": 1.0}
    drawn = report.page_row(row, [], [run], ["model", "max_steps", "n_embd", "order"], "loss")
    assert drawn["name"] == "model=ngram, order=3" and drawn["values"]["max_steps"] is None
    assert drawn["id"] == "g" and drawn["runs"] == [[0, "finished", 1.0]]


def test_a_cell_has_no_progress_before_its_first_point(monkeypatch):
    """A model without steps never has one: it learns in one, by counting."""
    cell = SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(max_steps=1500)))
    monkeypatch.setattr(view, "last_point", lambda cell: {})
    assert view.progress_columns(cell) == ("", "", "")
    point = {"step": 1000, "train/loss": 2.0, "train_seconds": 10.0}
    monkeypatch.setattr(view, "last_point", lambda cell: point)
    assert view.progress_columns(cell) == ("1,000 / 1,500", "2.0000", "5 s")
