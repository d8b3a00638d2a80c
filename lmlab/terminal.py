"""Talks with the person at the terminal: signals that ask to stop, output that cannot fail."""

import errno
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import copy_context
from types import FrameType
from typing import Any, Self

PATIENCE = 1.0  # seconds in which Python has to handle a signal
TOGETHER = 1.0  # seconds within which signals are one request: `timeout` sends two, also to a group
MOMENT = 0.1  # seconds that Python may be faster than the thread that watches it

# By which a cluster says that a job's time is nearly over. Without a handler they kill. The last
# one comes again with each second of computing, so it does not insist.
NOTICES = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
LATEST: dict[int, Any] = {}  # the handler that the lab has set last, by signal

READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
UNWRITABLE = (OSError, ValueError, AttributeError)  # closed; None, or an object without flush

LEFT_BEHIND: list[threading.Event] = []  # the ends of calls for which nobody waits any more


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


def tell(text: str) -> None:
    """Writes a line to stderr. It never raises, and it may be called by a handler of signals."""
    write_to_terminal(f"{text}\n")


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
    interrupted raises another error in its place, the process ends as by the signal all the same.
    """
    came: list[int] = []
    received_at = -math.inf

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

    free = (signal.SIG_DFL, signal.default_int_handler)
    numbers = [number for number in stopping_signals() if signal.getsignal(number) in free]
    with answering(numbers, receive):
        try:
            yield
        except Exception:
            if came:
                end(came[0])
            raise


@contextmanager
def after_stops(do: Callable[[], object]) -> Iterator[None]:
    """A context that calls `do` whenever the process was stopped, as by Ctrl-Z, and goes on."""
    is_free = signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    with answering([signal.SIGCONT] if is_free else [], lambda *_: do()):
        yield


@contextmanager
def signals_held() -> Iterator[None]:
    """A context that no `stopping_signals` break off; those that come are handled at its end.

    It is for short calls of libraries, which may raise other errors, or go on, if they are interrupted.
    """
    came: list[int] = []
    try:
        with answering(stopping_signals(), lambda one, _: came.append(one)):
            yield
    finally:
        for one in came:
            signal.raise_signal(one)


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


class LastingStream:
    """A text stream that goes on after its reader is gone; what is written then is dropped.

    If it cannot be written for another reason, such as a full disk, a line on stderr says so once.
    `stream` may be None or closed, as in a program without a terminal.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.gave_up = False
        self.fault: OSError | None = None  # other than that the reader is gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes `text` if anyone can read it."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            self.stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        except UNWRITABLE as error:
            self.give_up(error)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered if anyone can read it."""
        try:
            self.stream.flush()
        except UNWRITABLE as error:
            self.give_up(error)

    def isatty(self) -> bool:
        """Returns whether this is a terminal. An object that cannot tell is none."""
        try:
            return bool(self.stream.isatty())
        except UNWRITABLE:
            return False

    def give_up(self, error: Exception) -> None:
        """Sends this and all later output to nowhere, so that the end of Python does not fail."""
        if isinstance(error, OSError) and error.errno not in READER_GONE and not self.gave_up:
            self.fault = error
            tell(f"warning: output: {error.strerror}; what is written there is lost")
        self.gave_up = True
        with suppress(OSError, AttributeError, ValueError):  # not every stream has a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def open_streams() -> None:
    """Opens the null device in the place of stdin, stdout and stderr, as far as they are closed.

    Else the next file or socket of this process, or of one that it starts, would be in that place, and
    be written to, or closed, as a stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)  # the lowest free number: this one
            os.set_inheritable(number, True)


@contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """A context in which stdout and stderr may lose their reader, and the program goes on.

    A training's messages are in its train.log as well. The context is what stands for stdout.
    """
    output = LastingStream(sys.stdout)
    with redirect_stdout(output), redirect_stderr(LastingStream(sys.stderr)):
        yield output


@contextmanager
def after_a_second(say: Callable[[], object], seconds: float = 1) -> Iterator[None]:
    """A context that calls `say`, in another thread, if its block takes longer than `seconds`."""
    timer = threading.Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def showing(text: str) -> Iterator[None]:
    """A context that shows `text` on a terminal after a second, and takes it away at its end.

    It shows nothing if there is no terminal or no text.
    """
    shown: list[str] = []

    def show() -> None:
        shown.append(text)
        write_to_terminal(text)

    if not text or not os.isatty(2):
        yield
        return
    try:
        with after_a_second(show):
            yield
    finally:
        if shown:
            write_to_terminal("\r\x1b[K")  # the beginning of the line, which is then emptied


def write_to_terminal(text: str) -> None:
    """Writes `text` to stderr as it is. It never raises."""
    with suppress(OSError):  # the terminal, or the reader of the pipe, may be gone
        os.write(2, text.encode(errors="backslashreplace"))  # half a character has no bytes


def call_in_thread(function: Callable[..., None], *arguments: object) -> None:
    """Calls `function` in another thread, so that signals are handled during a long call of C code.

    Raises what the function raises. If a handler raises, the thread goes on until it is done or the
    process ends, for which `end_at_once` exists.
    """
    errors: list[BaseException] = []
    is_over = threading.Event()

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)
        finally:
            is_over.set()

    threading.Thread(target=copy_context().run, args=(call,), daemon=True).start()
    try:
        is_over.wait()
    except BaseException:
        LEFT_BEHIND.append(is_over)
        raise
    for error in errors:
        raise error


def lasting_threads() -> str:
    """Returns the names of the threads for which Python waits when it ends; they are somebody else's."""
    waited_for = [thread for thread in threading.enumerate() if not thread.daemon]
    names = [thread.name for thread in waited_for if thread is not threading.main_thread()]
    return " ".join(", ".join(names).split())


def status_of(stop: SystemExit) -> int:
    """Returns the exit status with which Python ends a process after this SystemExit."""
    if isinstance(stop.code, int):
        return stop.code
    return 0 if stop.code is None else 1


def leave_to_threads() -> None:
    """Prepares the end of a program of which other threads go on: Python waits for them.

    A line says so after a second, and Ctrl-C ends it without a traceback.
    """

    def say() -> None:
        time.sleep(1)
        names = lasting_threads()
        if names:
            tell(f"waits for the thread {names}, which a plug-in has started; Ctrl-C ends it")

    if lasting_threads():
        threading.Thread(target=say, daemon=True).start()
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            set_handler(signal.SIGINT, signal.SIG_DFL)


def end_at_once(status: int) -> None:
    """Ends the process with an exit status if one of its threads is left behind in C code.

    Python, when it ends, takes its own objects away from such a thread, which can crash. After a
    signal it does not wait for other threads, either.
    """
    is_asked = status > 128 and bool(lasting_threads())
    if all(is_over.is_set() for is_over in LEFT_BEHIND) and not is_asked:
        return
    for stream in (sys.stdout, sys.stderr):
        LastingStream(stream).flush()
    os._exit(status)
