"""Shows runs in TensorBoard, while they train and afterwards.

  python scripts/board.py runs="outputs/gpt outputs/sweeps/depth"

runs  folders of runs, with spaces between them; it shows all runs in them and below (outputs)
port  the port at which the browser finds it; null is the first free one from 6006 on (null)
open  whether to open the browser (false)

A run's name is what differs from the others: n_layer=2 seed=0, or for a single run its folder and
its time. New runs come by themselves. Pinned on top are the losses and the speed, with no
smoothing; HParams shows what was varied, and the losses. Ctrl-C ends it. The names are those of a
temporary folder of links; plain TensorBoard on the folder of the runs works, too.
"""

from __future__ import annotations

import base64
import json
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from lmlab.commands.options import parse_script
from lmlab.commands.plot import folders_of
from lmlab.errors import UserError, reason_of
from lmlab.markers import PathText
from lmlab.registry import importing
from lmlab.terminal import tell

RELOAD = 5  # seconds after which TensorBoard looks for new points
REFRESH = 12  # seconds after which new runs are linked: TensorBoard has seen what went before
TICKED = 40  # runs up to which its older tabs show all
EXPERIMENT_ID = "defaultExperimentId"  # what TensorBoard calls the one folder that it shows

# What the bare address shows for a moment. TensorBoard's settings are what the browser keeps: those
# that nobody has set are set here, since curves lose their ends if outliers are ignored.
REDIRECT = """<!doctype html>
<meta charset="utf-8"><title>TensorBoard</title>
<script>
const kept = JSON.parse(localStorage.getItem("_tb_global_settings") || "{}");
const settings = {ignoreOutliers: false, timeSeriesSettingsPaneOpened: false, ...kept};
localStorage.setItem("_tb_global_settings", JSON.stringify(settings));
if (localStorage.getItem("_ignoreYOutliers") === null) localStorage.setItem("_ignoreYOutliers", "false");
location.replace(ADDRESS);
</script>
"""


@dataclass(frozen=True)
class Options:
    """The options of the command; --help explains them."""

    runs: PathText = "outputs"
    port: Annotated[int, "[1, 65536)"] | None = None
    open: bool = False


def main(argv: list[str]) -> None:
    """Shows TensorBoard until Ctrl-C. Raises UserError."""
    options = parse_script(Options, __doc__, argv)
    folders = folders_of(options.runs)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"runs={folder}: is no folder; needs folders of runs")
    check_port(options.port)
    with importing():
        from tensorboard import program

        from lmlab.commands.run_links import RunLinks

    with tempfile.TemporaryDirectory(prefix="lmlab-board-") as view:
        links = RunLinks(folders, Path(view))
        links.refresh()
        if not links.written:
            raise UserError(f"runs={options.runs}: no run there has events of TensorBoard yet")
        server = server_of(Path(view), options.port, lambda: sorted(links.written))
        url = server.get_url()
        n = len(links.written)
        print(f"{n} run{'s' * (n != 1)} in TensorBoard {program.version.VERSION}: {url}")
        if options.open:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt), every(REFRESH, links.refresh):
            print("Ctrl-C ends it", flush=True)
            server.serve_forever()


def check_port(port: int | None) -> None:
    """Raises UserError if the board cannot listen at the port."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the board's server does
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise UserError(
                f"port={port}: cannot be used ({error.strerror}); allowed is a free one, or null to "
                "find one"
            ) from None


@contextmanager
def every(seconds: float, work: Callable[[], object]) -> Iterator[None]:
    """A context in which a thread does some work again and again."""
    ended = threading.Event()

    def repeat() -> None:
        said = ""
        while not ended.wait(seconds):
            try:
                work()
            except OSError:  # a run may be moved meanwhile; the next time is soon
                continue
            except Exception as error:
                if reason_of(error) != said:
                    said = reason_of(error)
                    tell(f"warning: what is new is not shown: {said}")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def server_of(view: Path, port: int | None, names: Callable[[], Sequence[str]]) -> Any:
    """Returns TensorBoard's server of the folder `view`, which has begun to read.

    `names` gives the names of the runs at any time. Raises UserError if the port is not free.
    """
    from absl import logging
    from tensorboard import default, program
    from tensorboard.data import server_ingester

    logging.set_verbosity(logging.WARNING)

    class Server(program.WerkzeugServer):
        """TensorBoard's server, whose first page is the one that shows what matters."""

        def __init__(self, wsgi_app: Any, flags: Any) -> None:
            super().__init__(with_first_page(wsgi_app, names), flags)

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing of a connection that a browser, or the end of this program, has closed."""
            if not isinstance(sys.exc_info()[1], OSError | ValueError):
                super().handle_error(request, client_address)

    board = program.TensorBoard(
        plugins=default.get_plugins(), server_class=program.with_port_scanning(Server)
    )
    typed = [f"--logdir={view}", "--host=localhost", f"--reload_interval={RELOAD}"]
    if port is not None:
        typed.append(f"--port={port}")
    try:
        server_ingester.get_server_binary()
        typed.append("--load_fast=true")
    except server_ingester.NoDataServerError:
        typed.append("--load_fast=false")
    board.configure(argv=["board", *typed])
    # What TensorBoard's own launch() does, but in this thread, which is to hear Ctrl-C.
    board._fix_mime_types()
    try:
        return board._make_server()
    except program.TensorBoardServerException as error:
        raise UserError(f"port={port}: {error.msg}") from None


def with_first_page(app: Any, names: Callable[[], Sequence[str]]) -> Any:
    """Returns a web application that answers its bare address with `REDIRECT`."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/" and not environ.get("QUERY_STRING"):
            page = REDIRECT.replace("ADDRESS", json.dumps(first_page(names()))).encode()
            kind = ("Content-Type", "text/html; charset=utf-8")
            start_response("200 OK", [kind, ("Content-Length", str(len(page)))])
            return [page]
        answered: Iterable[bytes] = app(environ, start_response)
        return answered

    return answer


def first_page(names: Sequence[str]) -> str:
    """Returns the address of the page to begin with, of the runs with these names.

    Nothing is smoothed in any tab, the losses and the speed are pinned above all other cards, of a
    single run also its pictures, and all runs are ticked, however many.
    """
    from lmlab.runs.tags import PICTURED, PINNED

    pins: list[dict[str, Any]] = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    if len(names) == 1:
        run = f"{EXPERIMENT_ID}/{names[0]}"
        pins += [{"plugin": "images", "tag": tag, "runId": run, "sample": 0} for tag in PICTURED]
    page = f"/?smoothing=0&pinnedCards={quote(json.dumps(pins))}#timeseries&_smoothingWeight=0"
    if len(names) > TICKED:
        ticked = base64.b64encode(json.dumps(dict.fromkeys(names, True)).encode()).decode()
        page += f"&runSelectionState={quote(ticked, safe='')}"
    return page
