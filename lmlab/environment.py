"""Says in one line what to type if the lab's libraries are missing, or if Python is too old.

So it imports nothing but Python's own modules, and Python 3.9 can read it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OLDEST = (3, 11)  # the oldest Python that the lab runs on
LIBRARIES = (
    "hydra",
    "numpy",
    "omegaconf",
    "pytorch_lightning",
    "rich",
    "tensorboard",
    "torch",
    "yaml",
)
CHECKOUT = Path(__file__).parents[1]


@contextmanager
def imports() -> Iterator[None]:
    """A context for the imports of a program: without the libraries it ends with one line.

    Ctrl-C during the imports ends it at once and silently, since there is nothing to lose. An error in
    its place would be dropped by some libraries.
    """
    if sys.version_info[:2] < OLDEST:
        version = ".".join(map(str, sys.version_info[:2]))
        end(f"this is Python {version}, and the lab needs {OLDEST[0]}.{OLDEST[1]} or newer")
    is_main = threading.current_thread() is threading.main_thread()
    is_heard = is_main and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        with libraries():
            yield
    finally:
        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def libraries() -> Iterator[None]:
    """A context that ends the program with one line if one of LIBRARIES is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in LIBRARIES or not (CHECKOUT / "Makefile").exists():
            raise
        end(f"this Python has no library {name}")


def end(why: str) -> None:
    """Prints why the program cannot start and what to type, and ends it with exit status 2."""
    print(f"error: {why} ({sys.executable}); type: {cure()}", file=sys.stderr)
    raise SystemExit(2) from None


def cure() -> str:
    """Returns what to type: make an environment if there is none, and let the shell use it."""
    environment = CHECKOUT / ".venv"
    is_here = Path(os.path.abspath(".")) == CHECKOUT
    words = ["make", *([] if is_here else ["-C", str(CHECKOUT)])]
    activate = f". {'' if is_here else str(CHECKOUT) + '/'}.venv/bin/activate"
    if Path(sys.prefix) == environment:  # it is used already, but not whole
        return " ".join([*words, "clean", "install"])
    if (environment / "installed").exists():
        return activate
    if sys.version_info[:2] < OLDEST:
        words.append(f"PYTHON=python{OLDEST[0]}.{OLDEST[1]}")
    return " ".join([*words, "install", "&&", activate])
