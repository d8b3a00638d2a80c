"""Other threads: their errors arrive, and none holds up the end of a process."""

import os
import signal
import threading

import pytest

from lmlab import threads
from lmlab.threads import call_in_thread
from tests.conftest import ready


@pytest.mark.parametrize(
    ("number", "does", "status", "said"),
    [
        # at the end, while Python waits for the thread
        ("SIGINT", "pass", -2, b"waits for the thread long, which a plug-in has started"),
        ("SIGTERM", "pass", -15, b"waits for the thread long, which a plug-in has started"),
        # before the end
        ("SIGINT", "time.sleep(60)", 130, b""),
        ("SIGTERM", "time.sleep(60)", 143, b""),
    ],
)
def test_somebody_elses_thread_does_not_keep_a_signal_waiting(number, does, status, said):
    program = (
        "import sys, threading, time; from lmlab.commands.door import run_command\n"
        "def main(argv):\n"
        "    threading.Thread(target=time.sleep, args=(60,), name='long').start()\n"
        f"    print('ready', flush=True); {does}\n"
        "run_command(main)"
    )
    with ready(program) as process:
        if said:
            assert process.stderr.readline().startswith(said)
        process.send_signal(getattr(signal, number))
        assert process.wait(30) == status and process.stderr.read() == b""


@pytest.mark.parametrize("runs_on", [False, True])
def test_a_process_ends_at_once_if_a_thread_in_c_code_runs_on(monkeypatch, runs_on):
    """At its end Python would take its objects away from under it."""
    ended, done = [], threading.Event()
    monkeypatch.setattr(threads, "LEFT_BEHIND", [])
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.call_in_thread(done.wait)
    finally:
        signal.signal(signal.SIGALRM, before)
    (is_over,) = threads.LEFT_BEHIND
    if not runs_on:
        done.set()
        assert is_over.wait(10)
    threads.end_at_once(130)
    done.set()
    assert ended == [130] * runs_on


def test_an_error_in_a_thread_arrives():
    with pytest.raises(ZeroDivisionError):
        call_in_thread(lambda: 1 / 0)
