"""A disk that is full, or can't be written: one line, and what was saved goes on where there is
room again.
"""

import errno
import os
import resource
import shutil

import pytest
import torch

from lmlab.commands import train as cli
from lmlab.errors import UserError
from lmlab.inference import loss
from lmlab.runs import checkpoints
from tests.conftest import LAST, SMALL_RUN, refused


def test_a_full_disk_is_one_line_and_what_was_saved_is_intact(trained, here, capsys, monkeypatch):
    """The disk is full at the n-th write, and stays so; with room again the run goes on to the same
    end.
    """
    done, calls, room = 0, 0, 10**9

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    for limit in (1, 9, 18, 24, 28, 37, 44, 57, 63):
        calls, room = 0, limit
        refused(capsys, lambda: cli.main(SMALL_RUN.split()), ["No space left on device"])
        room = 10**9
        for run in (here / "outputs").rglob("x/*"):
            assert not list(run.rglob(".*"))
            for path in run.rglob("*.ckpt"):
                checkpoints.read(path)
            if (run / LAST).exists():
                said = (run / "train.log").read_text()
                assert (
                    "failed; to continue from the last checkpoint: python train.py resume=" in said
                )
            cli.main([f"resume={run}"])
            one, two = (
                torch.load(r / LAST, weights_only=True)["state_dict"]
                for r in (run, trained / "run")
            )
            assert all(weight.equal(two[key]) for key, weight in one.items())
            done += 1
        shutil.rmtree(here / "outputs", ignore_errors=True)
    assert done > 4


def test_a_folder_that_cannot_be_written_is_named(run, capsys, monkeypatch):
    monkeypatch.setattr(
        os,
        "replace",
        lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, os.strerror(errno.EROFS))),
    )
    refused(
        capsys,
        lambda: cli.main(["resume=run", "max_steps=30"]),
        ["config.yaml", "Read-only file system"],
    )


@pytest.mark.parametrize("lines", [0, 1])
def test_numbers_that_do_not_fit_leave_the_evaluations_as_they_were(run, lines):
    path = run / "evaluations.jsonl"
    for _ in range(lines):
        loss.keep_evaluation(run, {"text": "test"}, {"test/loss": 1.0})
    before = path.read_bytes() if lines else b""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(UserError, match=r"evaluations\.jsonl.*not kept"):
            loss.keep_evaluation(run, {"text": "test"}, {"test/loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.exists() == bool(lines)
    assert not lines or path.read_bytes() == before
