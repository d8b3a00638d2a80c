"""Errors that a user can correct: one line on stderr, exit status 2."""

import difflib
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from hydra.errors import HydraException

LONGEST = 2000  # characters of a line of error

REASON = 300  # characters of an error's text

# What a secret is called.
SECRETS = (
    "password|passwd|pwd|token|secret|api_?key|access_?key|authorization|signature|sig|credential"
)

EXTRAS = (
    "pandas",
    "scipy",
    "optuna",
    "matplotlib",
    "tokenizers",
    "safetensors",
)  # what training does without


class UserError(Exception):
    """An error that the user can correct. Its text names the key, the value and what is allowed.

    `key` is the key at fault, where it is known. The text can be printed anywhere, also if it names
    a file whose name is not UTF-8.
    """

    key = ""

    def __str__(self) -> str:
        return printable(super().__str__())

    def show(self) -> None:
        """Prints the line of error to stderr."""
        print(f"error: {printable(without_secrets(str(self)))}", file=sys.stderr)


@contextmanager
def about(key: str) -> Iterator[None]:
    """A context that notes in a UserError which key is at fault, unless the error says so itself."""
    try:
        yield
    except UserError as error:
        error.key = error.key or key
        raise


class OwnCodeError(UserError):
    """An error that a plug-in's own code raised, which is its cause.

    Its text names the plug-in and the place. `frames` are the lines of its traceback in that code.
    """

    def __init__(self, why: str, frames: str = "") -> None:
        super().__init__(why)
        self.frames = frames

    def show_frames(self) -> None:
        """Prints the plug-in's own part of the traceback to stderr."""
        print(printable(self.frames), end="", file=sys.stderr)

    def show(self) -> None:
        """Prints that part, and the line of error."""
        self.show_frames()
        super().show()


class Refusal(SystemExit):
    """The end of a command with exit status 2, after the line of error `why`.

    `cause` is the error of a plug-in that the line is about, if it is about one.
    """

    def __init__(self, why: str, cause: BaseException | None = None) -> None:
        super().__init__(2)
        self.why = why
        self.cause = cause


# Whether a program has called the lab, which gets errors as exceptions and not as lines.
CALLED: ContextVar[bool] = ContextVar("called", default=False)


@contextmanager
def as_exceptions() -> Iterator[None]:
    """A context in which no line of error is printed: a UserError with its text is raised."""
    token = CALLED.set(True)
    try:
        yield
    except Refusal as refusal:
        raise UserError(refusal.why) from refusal.cause
    finally:
        CALLED.reset(token)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a UserError into one line on stderr and exit status 2.

    It does the same for an error of the system, such as a full disk, if memory has run out, and if an
    optional package is not installed. Before the line about a plug-in's own code stand the frames of
    that code. With HYDRA_FULL_ERROR=1 the whole traceback is shown.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        refuse(f"{error.name} is not installed; install it with: pip install {error.name}")
    except (UserError, HydraException) as error:
        end_with_traceback(error)
        if isinstance(error, OwnCodeError) and not CALLED.get():
            error.show_frames()
        cause = error.__cause__ if isinstance(error, OwnCodeError) else None
        refuse(" ".join(str(error).split()), cause)
    except BrokenPipeError:  # the reader of the output is gone; `run_command` handles it
        raise
    except OSError as error:
        end_with_traceback(error)
        refuse(system_error(error, "output"))
    except (MemoryError, RuntimeError) as error:
        if str(error) == "can't start new thread":
            refuse(system_error(BlockingIOError(errno.EAGAIN, str(error)), "output"))
        if not is_out_of_memory(error):
            raise
        end_with_traceback(error)
        refuse(reason_of(error))


def end_with_traceback(error: Exception) -> None:
    """Ends a command with the whole traceback of an error, if HYDRA_FULL_ERROR=1 asks for it."""
    if os.environ.get("HYDRA_FULL_ERROR") != "1":
        return
    if CALLED.get():
        raise error
    print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    raise Refusal(str(error)) from None


def system_error(error: OSError, place: object) -> str:
    """Returns an error of the system with the name of its file; it lies at `place` if it has none."""
    if error.errno == errno.EAGAIN:
        return "no more processes or threads can be started; ulimit -u and ulimit -v show what is allowed"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "no more files can be opened; ulimit -n shows how many are allowed"
    name = place if error.filename is None else os.fsdecode(error.filename)
    return f"{name}: {error.strerror or error}"


def refuse(why: str, cause: BaseException | None = None) -> NoReturn:
    """Prints one line of error, unless a program has called the lab, and raises Refusal."""
    if len(why) > LONGEST:  # somebody has typed a whole file
        why = f"{why[: LONGEST // 2]} … {why[-LONGEST // 4 :]}"
    why = printable(without_secrets(why))
    if not CALLED.get():
        print(f"error: {why}", file=sys.stderr)
    raise Refusal(why, cause) from None


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns an error of memory that has run out into a UserError that says what needs less."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{reason_of(error)}; a smaller batch_size, block_size or model needs less"
        ) from None


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns " (did you mean …?)" with the most similar of `words`, or "" if none is similar."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    if not matches:
        return ""
    return f" (did you mean {matches[0]}?)"


def printable(text: str) -> str:
    """Returns a text that cannot control the terminal.

    Control characters other than newline and tab, those that change the direction of what follows,
    and halves of characters, become their escape sequences.
    """
    unprintable = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(unprintable, lambda match: repr(match[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """Returns a text in which stars stand for passwords and tokens.

    They are found in addresses such as a://user:word@b and a://word@b, also with one slash, as paths
    are shown, after names such as password= and --token, and in headers such as Bearer 1234.
    """
    text = re.sub(r"(:/{1,2}[^/\s:@]*:)\S*@", r"\1***@", text)
    text = re.sub(r"(\w:/{1,2})[^/\s:@*]+@", r"\1***@", text)
    name = rf"\b(?:[\w-]*[_-])?(?:{SECRETS})(?:[_-][\w-]*)?="
    text = re.sub(rf"(?i)({name}|--(?:{SECRETS}) )[^&\s'\"]*[^&\s'\":;,]", r"\1***", text)
    text = re.sub(r"(?i)(\bauthorization: *(?:\w+ +)?)[^\s'\"]*[^\s'\":;,]", r"\1***", text)
    bearer = r"(\bBearer +)(?=\S*\d)[^\s'\"]*[^\s'\":;,]"  # not "Bearer of news"
    return re.sub(bearer, r"\1***", text)


def text_of(error: BaseException) -> str:
    """Returns the text of an error, whose own code may fail at it."""
    try:
        return str(error)
    except Exception as other:
        return f"(its text cannot be read: {type(other).__name__})"


def reason_of(error: BaseException) -> str:
    """Returns the message of an error in one line."""
    text = without_secrets(" ".join(text_of(error).split()))
    text = re.sub(r"\[enforce fail[^]]*\] err == 0\. ", "", text)[:REASON]  # torch's line number
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if is_out_of_memory(error):
        return f"out of memory: {text}"
    return text


def shown(value: Any) -> str:
    """Returns a value of a JSON file as it stands there, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:  # it could just be read, but the stack has grown since
        text = "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:60]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether the error means that memory has run out. torch then raises a RuntimeError.

    It can say so only by the error during whose handling it was raised.
    """
    if isinstance(error.__context__, MemoryError) and not error.__suppress_context__:
        return True
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "maximum allowed",  # numpy's, of an array larger than any memory
    )
    text = " ".join(text_of(error).split()).lower()[:REASON]
    return isinstance(error, MemoryError) or any(word in text for word in words)
