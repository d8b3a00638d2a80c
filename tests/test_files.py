"""Files and their locks."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmlab import files
from lmlab.errors import UserError
from tests.conftest import ROOT


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


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({}, "~/.cache/lmlab"),
        ({"XDG_CACHE_HOME": ""}, "~/.cache/lmlab"),
        ({"XDG_CACHE_HOME": "relative"}, "~/.cache/lmlab"),
        ({"XDG_CACHE_HOME": "/var/cache"}, "/var/cache/lmlab"),
        ({"LMLAB_CACHE": "", "XDG_CACHE_HOME": "/var/cache"}, "/var/cache/lmlab"),
        ({"LMLAB_CACHE": "~/here"}, "~/here"),
    ],
)
def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch, variables, folder):
    for name in ("LMLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert files.cache_dir() == Path(folder).expanduser()


def test_an_account_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("LMLAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(UserError, match="LMLAB_CACHE=: the account has no home"):
        files.cache_dir()


def test_built_in_text_has_the_same_bytes_on_every_system():
    kinds = dict.fromkeys(["lmlab/data/texts/tales.txt", "Makefile", ".ci/run"], "lf")
    command = ["git", "check-attr", "eol", "--", *kinds]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert dict(line.split(": eol: ") for line in said.splitlines()) == kinds


def test_a_file_system_without_locks_is_warned_about_once(tmp_path, monkeypatch, capsys):
    def no_locks(file, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    files.warn_without_locks.cache_clear()
    for _ in range(2):
        with files.lock(tmp_path / "lock"):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1
    files.warn_without_locks.cache_clear()


def test_a_lock_that_another_user_has_created_can_be_held(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()

    def read_only(path, mode="r", **options):
        if mode == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode, **options)

    monkeypatch.setattr(files, "open", read_only, raising=False)
    path = tmp_path / "lock"
    with files.lock(path), pytest.raises(files.Locked), files.lock(path):
        pass


def test_a_file_system_that_syncs_no_folders_is_fine(tmp_path, monkeypatch):
    sync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    files.write_sealed(tmp_path / "a", b"content")
    assert files.read_sealed(tmp_path / "a", 10) == b"content"


def test_a_file_system_that_cannot_sync_is_warned_about_once_and_a_fault_is_one(
    tmp_path, monkeypatch, capsys
):
    def fail_with(code):
        def fails(descriptor):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fails)

    files.warn_without_sync.cache_clear()
    for code in files.WITHOUT_SYNC:
        fail_with(code)
        files.write_sealed(tmp_path / "a", b"content %d" % code)
        assert files.read_sealed(tmp_path / "a", 20) == b"content %d" % code
    assert capsys.readouterr().err.count("does not say when a file is on disk") == 1
    files.warn_without_sync.cache_clear()
    for code in (errno.EIO, errno.ENOSPC):
        fail_with(code)
        with pytest.raises(UserError, match="cannot be written"):
            files.write_sealed(tmp_path / "a", b"other")
        assert files.read_sealed(tmp_path / "a", 20).startswith(b"content")


def test_what_a_killed_process_left_in_the_cache_goes_when_nobody_writes_there(tmp_path):
    path = tmp_path / "tokens/a.uint16"
    files.write_cached(path, b"one")
    left = files.temporary_name(path)

    def pieces():
        left.write_bytes(b"half")
        files.write_cached(path.with_name("b.uint16"), b"two")  # while another file is written
        assert left.exists()
        yield b"three"

    files.write_cached(path, pieces())
    assert left.exists()
    files.write_cached(path.with_name("c.uint16"), b"four")
    assert not left.exists() and files.read_sealed(path, 9) == b"three"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_name_that_is_taken_stays_what_it_is(tmp_path, monkeypatch, has_links):
    """Also on a disk that knows no second names for a file."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    files.place(tmp_path / "one", tmp_path / "new")
    with pytest.raises(FileExistsError):
        files.place(tmp_path / "two", tmp_path / "new")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"new": "one", "two": "two"}
