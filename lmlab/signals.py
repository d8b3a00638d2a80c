"""Signals that ask a process to stop: who hears them, and what then becomes of the work."""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Self

from lmlab.terminal import EMPTIED, tell, write_to_terminal

PATIENCE = 1.0  # seconds in which Python has to handle a signal
TOGETHER = 1.0  # seconds within which signals are one request: `timeout` sends two, also to a group
MOMENT = 0.1  # seconds that Python may be faster than the thread that watches it

# By which a cluster says that a job's time is nearly over. Without a handler they kill. The last
# one comes again with each second of computing, so it does not insist.
NOTICES = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
LATEST: dict[int, Any] = {}  # the handler that the lab has set last, by signal
IN_ORDER: list[Any] = []  # the handlers of `ending_in_order`: this process is a command of the lab


class Interrupted(BaseException):
    """Raised by the first signal in the block of `StopSignals.interrupting`.

    It is no `Exception`, so that code which handles all errors does not catch it.
    """


def stopping_signals() -> list[signal.Signals]:
    """Returns the signals that ask a process to stop: Ctrl-C, SIGTERM, a terminal that closes, NOTICES.

    A signal that this process was started to ignore, as `nohup` does with SIGHUP, is not among
    them, nor a notice for which other code has a handler.
    """
    candidates = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    asking = [number for number in candidates if signal.getsignal(number) != signal.SIG_IGN]
    for number in NOTICES:
        if signal.getsignal(number) in (signal.SIG_DFL, LATEST.get(number, signal.SIG_DFL)):
            asking.append(number)
    return asking


def set_handler(number: int, handler: Any) -> Any:
    """Sets the lab's handler of a signal, or that from before; returns the one from before."""
    LATEST[number] = handler
    return signal.signal(number, handler)


class StopSignals:
    """Handles the `stopping_signals` while its `with` block runs.

    The first signal prints `message`, if it is not empty, and its number is remembered. A second
    signal, not `TOGETHER` with the first, calls `again` with its number; by default it raises
    SystemExit. Python handles a signal only between two of its own instructions; a thread does it in
    its place if one of them, such as a large product of matrices, takes longer than `PATIENCE`: after
    the second signal it ends the process.
    """

    def __init__(self, message: str, again: Callable[[int], None] | None = None) -> None:
        self.message = message
        self.again = again or stop_at_once
        self.number: int | None = None
        self.raises = False
        self.was_told = False
        self.n_received = 0
        self.received_at = -math.inf
        self.is_over = False
        self.restore = ExitStack()

    def __enter__(self) -> Self:
        for number, handler in self.listen().items():
            self.restore.callback(set_handler, number, handler)
        if is_main_thread():
            self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.restore.close()

    def listen(self) -> dict[int, Any]:
        """Takes the signals over, again if other code took them; returns the earlier handlers."""
        if not is_main_thread():  # only there Python allows it
            return {}
        return {number: set_handler(number, self.receive) for number in stopping_signals()}

    @property
    def came(self) -> bool:
        """Whether a signal came, to this process or to another one that has told it so."""
        return self.number is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remembers a signal, or calls `again` if it is not the first."""
        if is_no_more(number, self.received_at):
            return
        self.n_received += 1
        self.received_at = time.monotonic()
        self.number = number
        if self.n_received > 1:
            self.again(number)
            return
        self.announce()
        if self.raises:
            raise Interrupted

    def announce(self) -> None:
        """Prints the message, once, if there is any."""
        if not self.was_told and self.message:
            tell(f"\n{self.message}")
        self.was_told = True

    def watch(self) -> None:
        """Starts the thread for signals that Python does not handle in time."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.restore.callback(writer.close)  # the last of the three: it ends the thread
        self.restore.callback(signal.set_wakeup_fd, before)
        threading.Thread(target=self.attend, args=(reader,), daemon=True).start()

    def attend(self, reader: socket.socket) -> None:
        """Reads the number of each signal, which the system writes, until the writer is closed.

        Two signals at one moment count as one, as for Python, and so do those that come `TOGETHER`.
        """
        n_sent = 0
        sent_at = -math.inf
        with reader:
            while sent := reader.recv(1):
                if sent[0] not in stopping_signals() or is_no_more(sent[0], sent_at):
                    continue
                n_sent += 1
                sent_at = time.monotonic()
                came_at = sent_at - MOMENT
                time.sleep(PATIENCE)
                with suppress(BlockingIOError):
                    reader.recv(4096, socket.MSG_DONTWAIT)  # what has come meanwhile
                if self.is_over:
                    return
                if self.n_received >= n_sent or self.received_at >= came_at:
                    continue
                self.announce()
                if n_sent > 1:
                    tell("ended at once; what was saved before is whole")
                    os._exit(128 + sent[0])

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A context in which the first signal raises `Interrupted`, or one that came before."""
        try:
            self.raises = True
            if self.came:
                raise Interrupted
            yield
        finally:
            self.raises = False


def is_no_more(number: int, earlier: float) -> bool:
    """Returns whether a signal asks for no more than the one that came at the time `earlier`.

    Before the first one that time is minus infinity.
    """
    if time.monotonic() - earlier < TOGETHER:
        return True
    return number == signal.SIGXCPU and earlier > -math.inf


def is_main_thread() -> bool:
    """Returns whether this code runs in the main thread of its process."""
    return threading.current_thread() is threading.main_thread()


def ignore_signals() -> None:
    """Ignores what asks to stop, in a process that ends anyway; Python would show a traceback."""
    if is_main_thread():
        for number in stopping_signals():
            set_handler(number, signal.SIG_IGN)


def stop_at_once(number: int) -> None:
    """Raises SystemExit with the exit status of a process that the signal has ended."""
    raise SystemExit(128 + number)


@contextmanager
def answering(numbers: Iterable[signal.Signals], handler: Any) -> Iterator[None]:
    """A context in which signals have a handler; afterwards they have those from before."""
    before: dict[int, Any] = {}
    if is_main_thread():  # only there Python allows it
        before = {number: set_handler(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            set_handler(number, earlier)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """A context in which a signal that would kill this process is SystemExit, as Ctrl-C is its error.

    So temporary folders are removed, and the processes of a sweep ended. If a library that was
    interrupted raises another error in its place, the process ends as by the signal all the same. If
    Python must drop the error, as one from the end of an object, the signal comes again.
    """
    came: list[int] = []
    received_at = -math.inf
    show = sys.unraisablehook

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received_at
        if is_no_more(number, received_at):
            return
        received_at = time.monotonic()
        came.append(number)
        end(number)

    def end(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        stop_at_once(number)

    def insist(dropped: Any) -> None:
        nonlocal received_at
        if not came or not isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
            show(dropped)
            return
        received_at = -math.inf
        # to the main thread, whose call of the system it breaks off
        main = threading.main_thread().ident
        threading.Timer(MOMENT, signal.pthread_kill, [main, came[-1]]).start()

    free = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [number for number in stopping_signals() if signal.getsignal(number) in free]
    IN_ORDER.append(receive)
    sys.unraisablehook = insist
    try:
        with answering(numbers, receive):
            yield
    except Exception:
        if came:
            end(came[0])
        raise
    finally:
        sys.unraisablehook = show
        IN_ORDER.remove(receive)


@contextmanager
def after_stops(do: Callable[[], object]) -> Iterator[None]:
    """A context that calls `do` whenever the process was stopped, as by Ctrl-Z, and goes on."""
    is_free = signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    with answering([signal.SIGCONT] if is_free else [], lambda *_: do()):
        yield


@contextmanager
def signals_held(numbers: Iterable[signal.Signals] | None = None) -> Iterator[None]:
    """A context that no `stopping_signals`, or none of `numbers`, break off; they are handled at its end.

    It is for short calls of libraries, which may raise other errors, or go on, if they are interrupted.
    """
    came: list[int] = []
    asking = stopping_signals() if numbers is None else numbers
    try:
        with answering(asking, lambda one, _: came.append(one)):
            yield
    finally:
        for one in came:
            signal.raise_signal(one)


@contextmanager
def unbroken() -> Iterator[None]:
    """A context for imports, which no signal breaks off with an error.

    A library of which half was imported cannot be imported again, and torch drops the errors of what
    it imports. A command of the lab ends at once: it has nothing to lose yet. In somebody's own program
    the signals are handled at the end.
    """
    handlers = {number: signal.getsignal(number) for number in stopping_signals()}
    ours = [number for number, handler in handlers.items() if handler in IN_ORDER]
    others = [n for n, handler in handlers.items() if callable(handler) and n not in ours]
    with answering(ours, leave), signals_held(others):
        yield


def leave(number: int, frame: FrameType | None) -> None:
    """Ends the process, with the exit status of one that the signal has ended."""
    with suppress(Exception):  # such as of a stream that is being written
        sys.stdout.flush()
    if os.isatty(2):
        write_to_terminal(EMPTIED)
    os._exit(128 + number)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A context in which `stopping_signals` end the process at once, as if it had no handler.

    It is for calls of libraries that wait, hear no signal, and have nothing to lose.
    """
    with answering(stopping_signals(), signal.SIG_DFL):
        yield


@contextmanager
def saving_before_requeue() -> Iterator[None]:
    """A context in which the signal of a cluster, that a job's time is over, lets a run save first.

    submitit has set a handler, which requeues the job and ends the process at once. It is called when
    the run has ended, or at once if no run could hear the signal.
    """
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    handlers: dict[int, Any] = {}
    if is_main_thread():  # only there Python allows it
        handlers = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        listening = signal.getsignal(signal.SIGTERM)
        if getattr(listening, "__func__", None) is StopSignals.receive:
            came.append(number)
            signal.raise_signal(signal.SIGTERM)
        else:
            requeue(number, frame)

    def requeue(number: int, frame: FrameType | None = None) -> None:
        handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    except SystemExit:
        if came:
            requeue(came[0])
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
