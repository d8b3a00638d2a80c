"""The picture of a run's loss and of what it wrote on the way."""

import json

import pytest

from lmlab.errors import UserError
from tests.conftest import history, script


@pytest.fixture
def texts(monkeypatch):
    """Draws a picture and returns the texts beside the curve, and what the curve's points are."""
    command = script("growth")

    def draw(*words):
        figures = []
        monkeypatch.setattr(
            command, "save_picture", lambda figure, out, dpi: figures.append(figure)
        )
        command.main([*words])
        curve, beside = figures[0].axes
        return [text.get_text() for text in beside.texts], curve.lines[-1].get_xydata().tolist()

    return draw


def test_each_evaluation_has_its_point_its_loss_and_what_was_written(run, texts):
    written, points = texts("run=run")
    losses, samples = history(run, "val/loss"), history(run, "sample")
    assert points == [[step, loss] for step, loss in losses.items()]
    assert written[::2] == [f"step {step}, val/loss {loss:.2f}" for step, loss in losses.items()]
    assert [line.replace(r"\$", "$") for line in written[1::2]] == [
        " ".join(sample.split()) for sample in samples.values()
    ]


def test_of_many_evaluations_some_are_shown_from_the_first_to_the_last(run, texts):
    written, points = texts("run=run", "rows=2")
    assert len(points) == 3 and [line.split(",")[0] for line in written[::2]] == [
        "step 0",
        "step 20",
    ]


def test_a_picture_is_written_and_a_run_without_evaluations_is_refused(run):
    command = script("growth")
    command.main(["run=run", "out=a.png"])
    assert (run.parent / "a.png").read_bytes().startswith(b"\x89PNG")
    lines = (run / "history.jsonl").read_text().splitlines()
    first = [line for line in lines if json.loads(line)["step"] == 0]
    (run / "history.jsonl").write_text("\n".join([*first, ""]))
    with pytest.raises(UserError, match="fewer than two evaluations"):
        command.main(["run=run"])


def test_characters_that_the_font_lacks_are_told_in_one_line(run, capsys):
    with open(run / "history.jsonl", "a", encoding="utf-8") as history_file:
        for step in (900, 901):
            line = {"step": step, "val/loss": 1.0, "sample": "天地玄黃 宇宙洪荒 🙂"}
            history_file.write(json.dumps(line) + "\n")
    script("growth").main(["run=run", "out=a.png"])
    said = capsys.readouterr().err
    assert said == (
        "warning: a.png: the font lacks some characters, such as "
        + said.partition("such as ")[2][:5]
        + "; boxes stand in their places\n"
    )


def test_an_evaluation_whose_loss_was_no_number_is_left_out(run, texts):
    """history.jsonl keeps such a number as null."""
    with open(run / "history.jsonl", "a", encoding="utf-8") as history_file:
        for line in ({"val/loss": None, "sample": "abc"}, {"val/loss": 1.0, "sample": None}):
            history_file.write(json.dumps({"step": 99} | line) + "\n")
    written, points = texts("run=run")
    assert len(points) == len(history(run, "sample")) - 1  # both have one step
    assert not any("step 99" in line for line in written)
