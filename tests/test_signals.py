"""Signals: each way to be stopped is heard, handlers never raise, and what is ignored stays ignored."""

import ast
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from lmlab import registry, signals
from lmlab.config import composition
from lmlab.signals import Interrupted, StopSignals, saving_before_requeue, stopping_signals
from tests.conftest import ROOT, ready


@pytest.fixture(autouse=True)
def alone():
    """Waits for the threads that a test has started: the next one may replace what they call."""
    yield
    for thread in threading.enumerate():
        if thread.name.endswith("(attend)"):
            thread.join()


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
        stop.received_at -= signals.TOGETHER
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
        stop.received_at -= signals.TOGETHER
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), numbers[0])
            time.sleep(1)
    with pytest.raises((SystemExit, KeyboardInterrupt)), signals.ending_in_order():
        try:
            os.kill(os.getpid(), numbers[0])
            time.sleep(1)
        finally:
            os.kill(os.getpid(), numbers[1])  # it does not break off what is tidied up


def test_the_limit_of_time_to_compute_does_not_insist(capfd, monkeypatch):
    """The system repeats it each second, also while the run saves."""
    monkeypatch.setattr(signals, "TOGETHER", 0)
    with StopSignals("stopping") as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert stop.number == signal.SIGXCPU and capfd.readouterr().err == "\nstopping\n"
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    with pytest.raises(SystemExit), signals.ending_in_order():
        try:
            os.kill(os.getpid(), signal.SIGXCPU)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGXCPU)  # it does not break off what is tidied up
    assert signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL


def test_an_error_that_a_library_makes_of_such_a_notice_is_the_notice():
    with pytest.raises(SystemExit) as end, signals.ending_in_order():
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
        with signals.ending_in_order(), StopSignals("stopping") as stop, signals.signals_held():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert came == [signal.SIGUSR1] and not stop.came
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_innermost_context_of_the_lab_has_a_notice():
    with signals.ending_in_order(), StopSignals("") as stop:
        with signals.signals_held():
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


def test_a_long_instruction_of_the_machine_hears_too():
    """The first signal is answered, the second ends the process; Python itself handles neither."""
    program = (
        "import hashlib; from lmlab.signals import StopSignals\n"
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

    monkeypatch.setattr("lmlab.signals.time.sleep", sleep)
    monkeypatch.setattr("lmlab.signals.os._exit", end)
    monkeypatch.setattr("lmlab.signals.MOMENT", 0)
    monkeypatch.setattr("lmlab.signals.TOGETHER", 0)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_what_ends_a_program_also_if_a_library_raises_something_else(number):
    def interrupted():
        try:
            signal.raise_signal(number)
        finally:
            raise AttributeError("half built")

    before = signal.getsignal(number)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as found, signals.ending_in_order():
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


def test_only_these_files_set_handlers_or_write_to_a_terminal():
    """So the rules above hold for each handler and for each message of one."""
    allowed = {"environment.py", "signals.py", "terminal.py", "preload.py", "server.py"}
    for path in sorted((ROOT / "lmlab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name not in allowed:
                assert ast.unparse(node.func) not in ("signal.signal", "os.write"), path


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_that_python_must_drop_comes_again(number, capfd):
    """What is raised while an object ends reaches nobody, and Python would print a traceback."""

    class Ending:
        def __del__(self):
            signal.raise_signal(number)

    begun = time.monotonic()
    with pytest.raises((KeyboardInterrupt, SystemExit)), signals.ending_in_order():
        Ending()
        time.sleep(20)
    assert time.monotonic() - begun < 10  # it broke the sleep off
    assert capfd.readouterr().err == ""


STOPPED_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and self in sys.meta_path:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
"""


@pytest.mark.parametrize("module", ["hydra.core", "torch.nn", "numpy.version"])
def test_a_signal_during_the_imports_of_a_command_ends_it_at_once(module):
    """torch, which imports numpy if nobody has, would drop an error and go on."""
    program = STOPPED_AT.format(module=module) + (
        "import runpy; sys.argv = ['sample.py', 'run=none']\n"
        "runpy.run_path('scripts/sample.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("module", ["hydra.core", "torch.nn"])
def test_a_signal_during_the_imports_of_a_program_leaves_it_whole(tmp_path, module):
    """What was half imported could not be imported again."""
    program = STOPPED_AT.format(module=module) + (
        "import lmlab\n"
        "keys = dict(model='bigram', data='sentence', max_steps=1, threads=1, verbose=False)\n"
        "try:\n    lmlab.train(**keys)\n"
        "except KeyboardInterrupt:\n    print('stopped', lmlab.train(**keys).status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "stopped finished\n", done.stderr
