"""Forks processes from a server that has imported torch, so that none of them imports it again.

A process runs one cell of a sweep, or answers one question that needs torch. The local launcher's own
process never imports torch.
"""

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import connection, parent_process, util
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from lmlab import plugins, ranks
from lmlab.config import conf_files
from lmlab.errors import UserError
from lmlab.runs.code import share_library
from lmlab.terminal import open_streams, tell
from lmlab.threads import lasting_threads, status_of

GRACE = 15  # seconds that a process has to end its step and save, after it was asked to stop
LASTING = 60  # seconds that a plug-in's threads have after the work, such as to upload numbers
PRELOAD = ["lmlab.processes.preload"]  # what the server imports
PRELOAD_SEARCH = [*PRELOAD, "lmlab.sweeps.preload_search"]


@cache
def context() -> Any:
    """Returns the context that makes processes; starts the server if it is not running."""
    return start_server(PRELOAD)


def start_server(preload: list[str]) -> Any:
    """Starts the server with these modules if none is running; returns what makes processes.

    The server imports torch in the background, for some seconds. On macOS processes cannot be
    forked, so each process imports everything again. Raises UserError in a process that may have no
    children, and as `ranks.check_variables` does.
    """
    ranks.check_variables()
    if multiprocessing.current_process().daemon:
        raise UserError(
            "this is a daemonic process, such as a worker of multiprocessing.Pool, which may start no "
            "others; hydra/launcher=basic runs the cells of a sweep in it, and devices=1 needs no others"
        )
    share_library()
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    # Threads of OpenBLAS in the server would be missing in the processes forked from it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault(*ranks.QUIET)
    from multiprocessing import forkserver, resource_tracker

    open_streams()
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(preload)
    choose_short_folder()
    # Else the server would look for modules in the working folder first.
    safe_path = os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    resource_tracker.ensure_running()  # which the server would start, and which unblocks Ctrl-C
    with without_main(), blocked(signal.SIGINT, signal.SIGHUP):
        forkserver.ensure_running()
    os.environ["PYTHONSAFEPATH"] = safe_path
    atexit.register(end_server)
    return forking


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """A context in which signals wait, also in a process that starts in it, until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def forget_server() -> None:
    """Lets a process that a program has forked start a server of its own: this one is its parent's."""
    context.cache_clear()
    forkserver = sys.modules.get("multiprocessing.forkserver")
    if forkserver is None or forkserver._forkserver._forkserver_pid is None:
        return
    own = forkserver._forkserver
    os.close(own._forkserver_alive_fd)  # the server ends when nobody has it open
    own._forkserver_address = own._forkserver_alive_fd = own._forkserver_pid = None


os.register_at_fork(after_in_child=forget_server)


def end_server() -> None:
    """Ends the server at once, when this process ends.

    By itself it would first import all libraries, and keep a pipe open until then.
    """
    from multiprocessing import forkserver

    number = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # nothing tells it
    if number is not None:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)


@contextmanager
def without_main() -> Iterator[None]:
    """A context in which multiprocessing does not see the program that calls the lab.

    Otherwise each process would run that program once more: all of it, if it is a script that is
    not protected by `if __name__ == "__main__"`. The program may still choose how its own processes
    start, which multiprocessing would choose now.
    """
    main = sys.modules["__main__"]
    method = multiprocessing.get_start_method(allow_none=True)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        multiprocessing.set_start_method(method, force=True)


def choose_short_folder() -> None:
    """Lets multiprocessing keep its sockets in /tmp if TMPDIR is too long for the name of a socket.

    A name may have 104 characters on macOS and 108 on Linux, some forty of which it adds itself.
    """
    if len(tempfile.gettempdir()) > 60:
        before = tempfile.tempdir
        tempfile.tempdir = "/tmp"
        util.get_temp_dir()  # it is chosen once for the process
        tempfile.tempdir = before


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function` in a separate process and returns its result.

    Raises its UserError or OSError, and UserError if the process ends without a result.
    """
    receiver, sender = context().Pipe(duplex=False)
    process = start(send_result, (function, *arguments), sender)
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"the process that prepares the cells ended with exit status {process.exitcode}; code of "
            "a plug-in may have ended it, or the system, if memory ran out"
        ) from None
    finally:
        receiver.close()
    process.join(1)
    if process.is_alive():  # a thread of a plug-in goes on, of which nobody will hear
        process.kill()
        process.join()
    process.close()
    if isinstance(result, Exception):
        raise result
    return result


def start(
    target: Callable[..., None], arguments: tuple[Any, ...], *inherited: connection.Connection
) -> Any:
    """Starts a process that calls `target` with `inherited` and the arguments; returns it.

    The process activates the plug-ins of this one before it unpickles the arguments, which may be
    made of the plug-ins' classes. With `inherited` connections it ends when this process ends.
    Raises UserError as `fork` does.
    """
    content = pickle.dumps(arguments)
    everything = target, plugins.active_sources(), conf_files.ADDED, content, *inherited
    return fork(begin, everything, is_daemon=bool(inherited))


def fork(target: Callable[..., None], arguments: tuple[Any, ...], is_daemon: bool = False) -> Any:
    """Starts a process that calls `target` with the arguments; returns it.

    A daemon ends when this process ends, and can start no processes itself. Raises UserError if the
    server of processes has ended, for example for lack of memory.
    """
    process = context().Process(target=work, args=(target, arguments), daemon=is_daemon)
    try:
        with without_main():
            process.start()
    except (EOFError, ConnectionError):
        raise UserError(
            "no process can be started: the server that starts them has ended"
        ) from None
    return process


def work(target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Calls `target`, and ends the process soon after it, also if a plug-in's thread goes on.

    Python waits for such a thread, and whoever has started the process waits for the process.
    """
    status = 1
    try:
        target(*arguments)
        status = 0
    except SystemExit as stop:
        status = status_of(stop)
        raise
    finally:
        threading.Thread(target=end_after_grace, args=(status,), daemon=True).start()


def end_after_grace(status: int) -> None:
    """Ends the process with an exit status when its threads have had some time to end."""
    time.sleep(LASTING)
    tell(
        f"warning: {plugins.named_plugins()}the thread {lasting_threads()} still runs, and ends with its process"
    )
    os._exit(status)


def begin(
    target: Callable[..., None],
    sources: list[plugins.Source],
    folders: list[Path],
    content: bytes,
    *inherited: connection.Connection,
) -> None:
    """Calls `target` in the new process, with the plug-ins of the process that started it.

    `folders` is that of --config-dir, if there is one.
    """
    conf_files.add_folders(folders)
    with plugins.active(sources):
        target(*inherited, *pickle.loads(content))


def send_result(
    sender: connection.Connection, function: Callable[..., Any], *arguments: Any
) -> None:
    """Sends the result or the error of `function` to the caller's process, and ends."""
    leave_terminal()
    end_with_starter()
    try:
        with plugins.own_errors():
            result = function(*arguments)
    except (UserError, OSError) as error:
        result = error
    except Exception:
        result = RuntimeError(traceback.format_exc())
    sender.send(result)


UNKNOWN = 255  # what multiprocessing says of a process if the server that forked it has ended


def leave_terminal() -> None:
    """Makes Ctrl-C reach only the process that has started this one, which then asks it to stop."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def redirected(number: int, descriptor: int, encoding: str, errors: str) -> TextIO:
    """Sends what this process prints, file `number`, to an open file; returns the new stream."""
    os.dup2(descriptor, number)
    return os.fdopen(number, "w", 1, encoding=encoding, errors=errors, closefd=False)


def end_with_starter() -> None:
    """Watches the process that has started this one. If it is killed, this one saves and ends.

    It does so as on SIGTERM.
    """
    starter = parent_process()
    if starter is None:  # no other process of the lab has
        return

    def watch() -> None:
        connection.wait([starter.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
