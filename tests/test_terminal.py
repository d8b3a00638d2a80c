"""Signals and output: handlers and messages never raise, and what is ignored stays ignored."""

import ast
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmlab import registry, terminal
from lmlab.config import composition
from lmlab.errors import printable
from lmlab.notebook import plain_console
from lmlab.terminal import (
    Interrupted,
    LastingStream,
    StopSignals,
    after_a_second,
    call_in_thread,
    lasting_output,
    saving_before_requeue,
    showing,
    stopping_signals,
    tell,
)
from tests.conftest import ROOT


@pytest.fixture
def broken():
    """A text stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", 1) as stream:
        yield stream


ASKING = [
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),  # of a cluster
]


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_is_remembered_and_the_second_stops(number, capfd):
    before = signal.getsignal(number)
    with StopSignals("stopping") as stop:
        os.kill(os.getpid(), number)
        assert stop.number == number and capfd.readouterr().err == "\nstopping\n"
        stop.received_at -= terminal.TOGETHER
        with pytest.raises(SystemExit) as status:
            os.kill(os.getpid(), number)
            time.sleep(1)
    assert status.value.code == 128 + number and signal.getsignal(number) == before


@pytest.mark.parametrize("numbers", [("SIGINT", "SIGINT"), ("SIGTERM", "SIGHUP", "SIGTERM")])
def test_signals_that_come_together_are_one_request(numbers, capfd):
    """`timeout` sends two, a terminal that closes may send more."""
    numbers = [getattr(signal, name) for name in numbers]
    with StopSignals("stopping") as stop:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        assert stop.number == numbers[0] and capfd.readouterr().err == "\nstopping\n"
        stop.received_at -= terminal.TOGETHER
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), numbers[0])
            time.sleep(1)
    with pytest.raises((SystemExit, KeyboardInterrupt)), terminal.ending_in_order():
        try:
            os.kill(os.getpid(), numbers[0])
            time.sleep(1)
        finally:
            os.kill(os.getpid(), numbers[1])  # it does not break off what is tidied up


def test_the_limit_of_time_to_compute_does_not_insist(capfd, monkeypatch):
    """The system repeats it each second, also while the run saves."""
    monkeypatch.setattr(terminal, "TOGETHER", 0)
    with StopSignals("stopping") as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert stop.number == signal.SIGXCPU and capfd.readouterr().err == "\nstopping\n"
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    with pytest.raises(SystemExit), terminal.ending_in_order():
        try:
            os.kill(os.getpid(), signal.SIGXCPU)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGXCPU)  # it does not break off what is tidied up
    assert signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL


def test_an_error_that_a_library_makes_of_such_a_notice_is_the_notice():
    with pytest.raises(SystemExit) as end, terminal.ending_in_order():
        try:
            os.kill(os.getpid(), signal.SIGXCPU)
            time.sleep(1)
        except SystemExit:
            raise ValueError("broken off") from None
    assert end.value.code == 128 + signal.SIGXCPU


def test_a_notice_for_which_a_program_has_a_handler_stays_its_own():
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        with terminal.ending_in_order(), StopSignals("stopping") as stop, terminal.signals_held():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert came == [signal.SIGUSR1] and not stop.came
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_innermost_context_of_the_lab_has_a_notice():
    with terminal.ending_in_order(), StopSignals("") as stop:
        with terminal.signals_held():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert not stop.came
        assert stop.number == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stopping_signals()
        with StopSignals("stopping") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_raises_only_where_it_may(capfd):
    with StopSignals("stopping") as stop:
        with pytest.raises(Interrupted), stop.interrupting():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        with pytest.raises(Interrupted), stop.interrupting():
            raise AssertionError("the signal came before")


@contextmanager
def ready(program):
    """A process that runs a program, once it has said that it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_a_long_instruction_of_the_machine_hears_too():
    """The first signal is answered, the second ends the process; Python itself handles neither."""
    program = (
        "import hashlib; from lmlab.terminal import StopSignals\n"
        "with StopSignals('stopping'):\n"
        "    print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)"
    )
    with ready(program) as process:
        time.sleep(1)  # until the long instruction has begun
        for _ in range(2):  # as `timeout` does: they are one request
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert process.stderr.readline() == b"\n" and process.stderr.readline() == b"stopping\n"
        time.sleep(2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"ended at once; what was saved before is whole\n"


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


class Sent(io.BytesIO):
    """The numbers of signals, as the system writes them to a socket."""

    def recv(self, n, flags=0):
        return b"" if flags else self.read(n)  # later ones have not come yet


@pytest.mark.parametrize(
    ("handled", "ends"),  # how many signals Python has handled, a moment after each was sent
    [
        ([0, 0], True),
        ([1, 2], False),
        ([1, 1], True),
        ([0, 1], False),  # two at one moment, which Python handles as one
        ([0], False),
        ([1, "over"], False),  # the block has ended meanwhile
    ],
)
def test_the_second_signal_ends_the_process_if_python_does_not_hear(monkeypatch, handled, ends):
    stop = StopSignals("stopping")
    sent = Sent(bytes([signal.SIGTERM] * len(handled)))
    left = iter(handled)

    def sleep(seconds):
        n = next(left)
        stop.is_over = n == "over"
        if n != stop.n_received:
            stop.n_received, stop.received_at = n, time.monotonic()

    def end(status):
        raise SystemExit(status)

    monkeypatch.setattr("lmlab.terminal.time.sleep", sleep)
    monkeypatch.setattr("lmlab.terminal.os._exit", end)
    monkeypatch.setattr("lmlab.terminal.MOMENT", 0)
    monkeypatch.setattr("lmlab.terminal.TOGETHER", 0)
    with pytest.raises(SystemExit) if ends else nullcontext():
        stop.attend(sent)


def test_after_the_block_all_is_as_before():
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    with StopSignals("stopping"):
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
    for _ in range(100):
        if threading.active_count() == threads:
            return
        time.sleep(0.05)
    raise AssertionError("the thread goes on")


def test_output_without_a_reader_is_dropped(broken, monkeypatch):
    stream = LastingStream(broken)
    for _ in range(3):
        assert stream.write("line\n") == 5
        stream.flush()
    monkeypatch.setattr(sys, "stdout", broken)
    with lasting_output():
        print("line", flush=True)
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    with lasting_output():
        print("line")
    assert text.getvalue() == "line\n" and sys.stdout is text


def test_an_object_that_can_only_write_is_output(monkeypatch):
    class Writer:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", writer := Writer())
    with lasting_output():
        assert not sys.stdout.isatty()
        print("line")
    assert writer.text == "line\n"


@pytest.mark.parametrize("stream", [None, "closed", "no flush"])
def test_a_program_without_a_terminal_calls_the_lab(monkeypatch, stream):
    closed = io.StringIO()
    closed.close()
    odd = {None: None, "closed": closed, "no flush": SimpleNamespace(write=lambda text: 1)}[stream]
    monkeypatch.setattr(sys, "stdout", odd)
    monkeypatch.setattr(sys, "stderr", odd)
    with lasting_output():
        print("line", flush=True)
        Console().print("line")
    assert sys.stdout is odd


def test_what_the_stream_of_a_caller_cannot_show_is_replaced(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        print("naïve", "last", flush=True)
    assert stream.buffer.getvalue() == b"na?ve last\n"


def test_output_that_a_full_disk_refuses_is_told_once(capfd):
    with open("/dev/full", "w") as full:
        stream = LastingStream(full)
        for _ in range(3):
            stream.write("line\n")
            stream.flush()
    assert capfd.readouterr().err == (
        "warning: output: No space left on device; what is written there is lost\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_what_ends_a_program_also_if_a_library_raises_something_else(number):
    def interrupted():
        try:
            signal.raise_signal(number)
        finally:
            raise AttributeError("half built")

    before = signal.getsignal(number)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as found, terminal.ending_in_order():
        interrupted()
    assert getattr(found.value, "code", 128 + number) == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("ends", [True, False])
def test_a_signal_breaks_off_no_library_that_it_must_not(ends, monkeypatch):
    """Hydra turned it into an error without a text, or one of its own."""
    done = []
    real = composition.hydra.compose

    def compose(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        done.append(real(*arguments, **options))
        if ends:
            return done[0]
        raise ValueError("")

    monkeypatch.setattr(composition.hydra, "compose", compose)
    registry.forget()
    with pytest.raises(KeyboardInterrupt):
        composition.compose(("model=bigram",))
    assert len(done) == 1


@pytest.mark.parametrize("runs_on", [False, True])
def test_a_process_ends_at_once_if_a_thread_in_c_code_runs_on(monkeypatch, runs_on):
    """At its end Python would take its objects away from under it."""
    ended, done = [], threading.Event()
    monkeypatch.setattr(terminal, "LEFT_BEHIND", [])
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            terminal.call_in_thread(done.wait)
    finally:
        signal.signal(signal.SIGALRM, before)
    (is_over,) = terminal.LEFT_BEHIND
    if not runs_on:
        done.set()
        assert is_over.wait(10)
    terminal.end_at_once(130)
    done.set()
    assert ended == [130] * runs_on


def test_a_message_without_a_reader_does_not_raise(broken):
    stderr = os.dup(2)
    try:
        os.dup2(broken.fileno(), 2)
        tell("stopping")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def test_what_takes_long_says_so_and_what_does_not_is_silent():
    said = []
    with after_a_second(lambda: said.append("long")):
        time.sleep(1.2)
    with after_a_second(lambda: said.append("short")):
        pass
    time.sleep(1.1)
    assert said == ["long"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_shown_while_one_waits_is_taken_away(monkeypatch, capfd, is_terminal):
    monkeypatch.setattr(os, "isatty", lambda descriptor: is_terminal)
    with pytest.raises(ValueError), showing("importing …"):
        time.sleep(1.2)
        raise ValueError
    with showing("too short"):
        pass
    assert capfd.readouterr().err == ("importing …\r\x1b[K" if is_terminal else "")


def test_an_error_in_a_thread_arrives():
    with pytest.raises(ZeroDivisionError):
        call_in_thread(lambda: 1 / 0)


def test_only_this_file_and_the_processes_of_sweeps_set_handlers():
    """So the rules above hold for each handler and for each message of one."""
    allowed = {"terminal.py", "preload.py", "server.py"}
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name not in allowed:
                assert ast.unparse(node.func) not in ("signal.signal", "os.write"), path


def test_a_console_whose_reader_is_gone_says_so_and_does_not_exit():
    """As of compare.py | head: run_command then ends with status 0."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        plain_console(file=Gone()).print("a table")


def test_a_line_about_a_name_that_is_no_utf_8_is_told(capfd):
    tell("caf\udce9.txt")
    assert capfd.readouterr().err == "caf\\udce9.txt\n"


@pytest.mark.parametrize("is_training", [True, False])
def test_a_job_whose_time_is_over_saves_before_it_is_requeued(is_training, capfd):
    """The cluster's own handler is called when the run has ended, or at once if none is there."""
    order = []

    def requeue(number, frame):
        order.append("requeued")
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as end, saving_before_requeue():
            if is_training:
                with StopSignals("stopping") as stop:
                    signal.raise_signal(signal.SIGUSR2)
                    assert stop.came
                    order.append("saved")
                raise SystemExit(143)
            signal.raise_signal(signal.SIGUSR2)
        assert end.value.code == -1
        assert order == ["saved", "requeued"][not is_training :]
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_what_is_opened_next_is_never_taken_for_a_closed_stream():
    """Neither here nor in a process that is started: the null device is in its place."""
    code = (
        "import os, subprocess, sys; from lmlab.terminal import open_streams; open_streams(); "
        "opened = os.open('/dev/null', os.O_RDONLY); "
        "child = subprocess.run([sys.executable, '-c', 'import os; [os.fstat(n) for n in range(3)]']); "
        "os._exit(opened if child.returncode == 0 else 1)"
    )
    for closed in ("<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        line = f'exec "$0" -c "$1" {closed}'
        ended = subprocess.run(["sh", "-c", line, sys.executable, code], check=False)
        assert ended.returncode >= 3, closed


def test_what_changes_the_direction_of_a_line_is_escaped_and_letters_are_not():
    assert printable("a\u202eb\u2066c\x1b") == "a\\u202eb\\u2066c\\x1b"
    assert printable("سلام שלום ü日\n\t") == "سلام שלום ü日\n\t"
