"""Output: messages never raise, and a reader that is gone ends nothing."""

import io
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmlab.errors import printable
from lmlab.notebook import plain_console
from lmlab.terminal import LastingStream, after_a_second, lasting_output, showing, tell


@pytest.fixture
def broken():
    """A text stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", 1) as stream:
        yield stream


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


@pytest.mark.parametrize("columns", ["0", "00"])
def test_a_terminal_without_columns_gets_its_lines(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    written = io.StringIO()
    plain_console(file=written, soft_wrap=True).print("saved in outputs/a")
    assert written.getvalue() == "saved in outputs/a\n"


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
