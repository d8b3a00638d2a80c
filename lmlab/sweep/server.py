"""Where a sweep's processes come from: a server that has imported torch and is forked for each of
them.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.context import BaseContext
from typing import Any

from lmlab.sweep import worker


@cache
def server() -> BaseContext:
    """The server, begun at the first call: it imports for some seconds while the caller goes on.
    macOS's libraries forbid a fork, so there every process imports for itself.
    """
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # threads that it had started would be missing in its children
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmlab.sweep.warm"])
    multiprocessing.forkserver.ensure_running()
    return context


def ask(name: str, *arguments: Any) -> Any:
    """What lmlab.sweep.plan's function `name` returns, in a process of its own. Raises the
    UserError that it raises.
    """
    ours, theirs = server().Pipe(duplex=False)
    process = server().Process(target=worker.answer, args=(theirs, name, *arguments))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"{name}: its process ended with exit status {process.exitcode}"
        ) from None
    finally:
        ours.close()
    process.join()
    process.close()
    if isinstance(result, Exception):
        raise result
    return result


def answer(launcher: str) -> Callable[..., Any]:
    """`ask`; or the same in this process, where the launcher runs its cells in it too, or is about
    to wait for long.
    """
    if launcher == "local":
        return ask
    from lmlab.sweep import plan

    return lambda name, *arguments: getattr(plan, name)(*arguments)
