"""A part of a notebook's output that is drawn again and again, such as a progress bar."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, RenderableType

REDRAW = 0.5  # seconds between two drawings
WIDTH = 100  # characters
CODE = '<pre style="line-height:normal;font-family:monospace">{code}</pre>'


HIDDEN: ContextVar[bool] = ContextVar("hidden", default=False)


class Hiding(io.TextIOBase):
    """A stream that drops what the thread that made it writes, and threads begun since then.

    What other threads of the program write goes to `stream`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def write(self, text: str) -> int:
        """Writes the text if another thread calls this. Returns its length."""
        if self.stream is not None and threading.get_ident() in self.others:
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if another thread calls this."""
        if self.stream is not None and threading.get_ident() in self.others:
            self.stream.flush()


@contextmanager
def hidden() -> Iterator[None]:
    """A context in which nothing is drawn."""
    token = HIDDEN.set(True)
    try:
        yield
    finally:
        HIDDEN.reset(token)


@contextmanager
def silent() -> Iterator[None]:
    """A context in which nothing is drawn, and nothing that this thread prints is shown."""
    with hidden(), redirect_stdout(Hiding(sys.stdout)), redirect_stderr(Hiding(sys.stderr)):
        yield


def in_notebook() -> bool:
    """Returns whether this code runs in a notebook, such as Jupyter's, and may draw there."""
    if HIDDEN.get():
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class PlainConsole(Console):
    """A console of rich without marks in the text, whose reader may go away."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, force_jupyter=False, **options)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which `run_command` handles; rich alone would exit with 1."""
        raise BrokenPipeError


def plain_console(width_of_file: int | None = None, **options: Any) -> Console:
    """Returns a console of rich that writes plain text where there is no terminal.

    In a notebook rich alone would make HTML of each line, or write what steers a terminal.
    `width_of_file` are the characters of a line where there is neither.
    """
    if in_notebook():
        return PlainConsole(force_terminal=False, width=WIDTH, **options)
    console = PlainConsole(**options)
    if console.width < 1:  # COLUMNS=0, or a terminal that says so
        console = PlainConsole(width=WIDTH, **options)
    if width_of_file is not None and not console.is_terminal:
        console = PlainConsole(width=width_of_file, **options)
    return console


class Display:
    """A place in the output of a notebook's cell whose content can be replaced."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.drawn_at = 0.0

    def draw(self, content: RenderableType) -> None:
        """Shows what rich can print, unless something was drawn a moment ago."""
        if time.monotonic() - self.drawn_at >= REDRAW:
            self.drawn_at = time.monotonic()
            self.show(content)

    def show(self, content: RenderableType) -> None:
        """Shows what rich can print."""
        self.replace(as_html(content))

    def clear(self) -> None:
        """Shows nothing."""
        if self.handle is not None:
            self.replace("")

    def replace(self, page: str) -> None:
        """Shows HTML in the place of what was there."""
        from IPython.display import HTML, display

        if self.handle is None:
            self.handle = display(HTML(page), display_id=True)
        else:
            self.handle.update(HTML(page))


def as_html(content: RenderableType) -> str:
    """Returns what rich can print as HTML."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
    console.print(content)
    return console.export_html(inline_styles=True, code_format=CODE)
