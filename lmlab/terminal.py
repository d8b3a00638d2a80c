"""What is written to a terminal, a pipe or a file: it cannot fail, also if nobody can read it."""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
UNWRITABLE = (OSError, ValueError, AttributeError)  # closed; None, or an object without flush
EMPTIED = "\r\x1b[K"  # goes to the beginning of the line, and empties it


def tell(text: str) -> None:
    """Writes a line to stderr. It never raises, and it may be called by a handler of signals."""
    write_to_terminal(f"{text}\n")


def write_to_terminal(text: str) -> None:
    """Writes `text` to stderr as it is. It never raises."""
    with suppress(OSError):  # the terminal, or the reader of the pipe, may be gone
        os.write(2, text.encode(errors="backslashreplace"))  # half a character has no bytes


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
            write_to_terminal(EMPTIED)


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
