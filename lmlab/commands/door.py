"""Runs a command: turns its errors into one line, and handles Ctrl-C and closed pipes."""

import atexit
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TYPE_CHECKING, Literal

from lmlab.catalogue import CATALOGUE
from lmlab.environment import libraries
from lmlab.errors import UserError, one_line_errors
from lmlab.signals import ending_in_order, ignore_signals
from lmlab.terminal import LastingStream, open_streams
from lmlab.threads import end_at_once, leave_to_threads, status_of

if TYPE_CHECKING:  # a type checker knows no Literal that is computed
    Device = str
else:
    Device = Literal[*CATALOGUE["device"]]

INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


def run_command(main: Callable[[list[str]], object]) -> None:
    """Runs a command with the arguments of the process. Its errors become one line on stderr.

    A character that the terminal cannot show is replaced. Without stdout or stderr, or if their
    reader (such as `head`) goes away, the rest of the output is dropped.
    """
    open_streams()
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a caller may have put another object there
            stream.reconfigure(errors="replace")
    try:
        with ending_in_order(), libraries(), one_line_errors():
            check_working_folder()
            main(sys.argv[1:])
    except KeyboardInterrupt:
        end_at_once(INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as stop:
        end_at_once(status_of(stop))
        raise
    except BrokenPipeError:
        pass
    finally:
        LastingStream(sys.stdout).flush()
        leave_to_threads()
        atexit.register(ignore_signals)  # what is registered last is called first


def check_working_folder() -> None:
    """Raises UserError if the working folder was deleted: even torch cannot be imported there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder was deleted; change to one that exists") from None
