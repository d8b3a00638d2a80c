"""Files and their locks."""

import subprocess
import sys
import threading
import time

import pytest

from lmlab import files


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with files.lock(path):
        with pytest.raises(files.Locked), files.lock(path):
            pass
        with pytest.raises(files.Locked), files.lock(path, shared=True):
            pass
    shared = files.lock(path, shared=True)
    with shared, files.lock(path, shared=True), pytest.raises(files.Locked), files.lock(path):
        pass
    with files.lock(path):
        pass


def test_a_lock_waits_as_long_as_it_was_asked_to(tmp_path):
    path = tmp_path / "lock"
    held, over = threading.Event(), threading.Event()

    def hold():
        with files.lock(path):
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begun = time.monotonic()
    with pytest.raises(files.Locked), files.lock(path, wait=0.2):
        pass
    assert time.monotonic() - begun >= 0.2
    threading.Timer(0.2, over.set).start()
    with files.lock(path, wait=60):
        assert over.is_set()
    holder.join()


HOLD = """
import sys, time
from pathlib import Path
from lmlab import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_death_of_a_process_releases_its_lock(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(files.Locked), files.lock(path):
            pass
        other.kill()
    with files.lock(path):
        pass
