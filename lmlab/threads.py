"""Other threads of this process: a call that takes long, a line after a second, and who waits for whom."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from lmlab.signals import set_handler
from lmlab.terminal import LastingStream, tell

LEFT_BEHIND: list[threading.Event] = []  # the ends of calls for which nobody waits any more


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
