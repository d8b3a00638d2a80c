"""Starts the ranks of a run as processes of this machine, waits for them, and says how they ended.

The ranks are forked from the server of processes. Each has a pipe to its starter, through which it
tells that it listens to signals, which folder a new run has got, and what has become of it.
"""

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from lmlab import files, plugins, ranks
from lmlab.catalogue import DeviceConfig
from lmlab.config import conf_files
from lmlab.data.splits import LONGEST, shortened
from lmlab.errors import OwnCodeError, UserError, memory_errors, reason_of
from lmlab.processes import server
from lmlab.register import unlisted
from lmlab.signals import StopSignals
from lmlab.terminal import lasting_output
from lmlab.training import distributed

STOPPING = "stopping as soon as all is saved; once more stops at once"  # after the first signal
POLL = 0.1  # seconds after which the ranks are looked at, also if none has ended
GRACE = 10  # seconds in which a rank ends after another has failed
PATIENCE = 2  # seconds in which ranks that begin, begin to listen
HOST = "localhost"

# What a rank tells its starter, each with a value.
LISTENS = "listens"  # to signals: True
FOLDER = "folder"  # the path of a new run
NOTE = "note"  # what has become of the rank


class RankFailed(UserError):
    """A rank was killed or hangs, which is no fault of the run itself."""


@dataclass
class Notice:
    """What is known of the run of the ranks when they have ended, also if one has failed."""

    folder: Path | None = None
    """Its folder; None as long as it has none."""

    has_result: bool = False
    """Whether rank 0 has ended by itself, and so has noted in the folder how."""


@dataclass(frozen=True)
class Note:
    """What a rank leaves behind: its result, the status with which it was to exit, or an error."""

    result: Any = None
    exit_status: int | None = None
    error: UserError | None = None
    trace: str = ""
    """The traceback of an error that no user can put right."""

    is_lost: bool = False
    """Whether it has only noticed that another rank has ended, or does not answer."""

    hung: bool = False
    """Whether another rank does not answer."""

    @property
    def is_failure(self) -> bool:
        """Whether the rank could not do its work."""
        return self.error is not None or self.is_lost


@dataclass(frozen=True)
class Task:
    """What all ranks need to begin. `longest` is how many tokens of each part of a text they use."""

    sources: list[plugins.Source]
    folders: list[Path]
    """That of --config-dir, if there is one."""

    longest: int | None
    call: bytes
    """The function that rank 0 calls, and its arguments, which may be made of a plug-in's classes."""


@dataclass(frozen=True)
class Stream:
    """The file in which a rank writes what it prints to stdout or stderr, and how it writes text."""

    writer: Connection
    encoding: str
    errors: str

    def taken_over(self, number: int) -> TextIO:
        """Returns it in the place of the rank's own stdout, file 1, or stderr, file 2."""
        with self.writer:
            return server.redirected(number, self.writer.fileno(), self.encoding, self.errors)


@dataclass
class Rank:
    """A rank, as its starter sees it. `said` is what it has told, by LISTENS, FOLDER and NOTE."""

    process: Any
    pipe: Connection
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether its process is over."""
        return self.process.exitcode is not None

    @property
    def note(self) -> Note | None:
        """What it has left behind, or None if it has left nothing."""
        return self.said.get(NOTE)

    def hear(self) -> None:
        """Remembers what it has told since the last call."""
        with suppress(EOFError, OSError):  # it has ended
            while self.pipe.poll():
                key, value = self.pipe.recv()
                self.said[key] = value

    def send(self, number: int) -> None:
        """Sends it a signal, if it has not ended."""
        if not self.has_ended:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def is_needed(device: DeviceConfig) -> bool:
    """Returns whether several processes are asked for, and nothing has started them yet."""
    return device.processes > 1 and ranks.here().size == 1


def launch(
    device: DeviceConfig,
    function: Callable[..., Any],
    *arguments: Any,
    notice: Notice | None = None,
) -> Any:
    """Calls `function` in rank 0 of so many new processes, and returns what it returns.

    What is known of the run then is noted in `notice`.

    Raises UserError for a model or another part that a program has registered itself, which those
    processes do not have. Raises the function's UserError, UserError if a rank fails, and
    SystemExit(128 + n) after signal n.
    """
    for own in unlisted():
        raise UserError(
            f"devices={device.devices}: {own.kind} {own.name} is registered in this process alone "
            f"({own.place}), and the others do not have it; write it in a file and name that with plugin="
        )
    call = pickle.dumps((function, arguments))
    task = Task(plugins.active_sources(), conf_files.ADDED, LONGEST.get(), call)
    crew = Crew(device.processes)
    try:
        return crew.run(task)
    finally:
        if notice is not None:
            notice.folder = crew.folder or notice.folder
            notice.has_result = crew.has_result


class Crew:
    """The ranks that this process starts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranks: list[Rank] = []
        self.failed: list[int] = []  # in the order in which it was noticed

    def run(self, task: Task) -> Any:
        """Runs all ranks to their end, and returns the result of rank 0."""
        stop = StopSignals(STOPPING, self.stop_at_once)
        with stop, relays() as (stdout, stderr), self.ended():
            self.start(task, stdout.stream, stderr.stream)
            self.wait(stop, stdout, stderr)
        leader = self.ranks[0].note
        if leader and not self.failed:
            if leader.exit_status is not None:
                raise SystemExit(leader.exit_status)
            return leader.result
        if stop.number is not None:  # it came before a rank could listen
            raise SystemExit(128 + stop.number)
        raise self.why()

    def start(self, task: Task, *streams: Stream) -> None:
        """Starts all ranks, and the place where they find each other."""
        from torch.distributed import TCPStore

        try:
            self.store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        except RuntimeError as error:
            raise UserError(
                f"the processes of the run cannot find each other: {reason_of(error)}"
            ) from None
        for number in range(self.size):
            place = ranks.Place(number, self.size, number, "lmlab")
            variables = {**os.environ, **ranks.variables(place, HOST, self.store.port)}
            receiver, sender = connection.Pipe(duplex=False)
            self.ranks.append(
                Rank(server.fork(work, (place, variables, task, sender, *streams)), receiver)
            )
            sender.close()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """A context at whose end no rank is left, even if it ends with an error."""
        try:
            yield
        finally:
            self.send(signal.SIGKILL)
            for rank in self.ranks:
                rank.process.join()
                rank.pipe.close()

    def wait(self, stop: StopSignals, *relays: "Relay") -> None:
        """Waits for all ranks. Asks them to end after a signal, or if one of them has failed.

        Ranks that do not listen soon after a signal wait for each other, and have nothing to save.
        """
        is_told = False
        tell_at = float("inf")
        kill_at = float("inf")
        while running := [rank for rank in self.ranks if not rank.has_ended]:
            awaited = [rank.process.sentinel for rank in running]
            connection.wait([*awaited, *(relay.reader for relay in relays if relay.reader)], POLL)
            self.look()
            for relay in relays:
                relay.pass_on()
            if stop.came:
                tell_at = min(tell_at, time.monotonic() + PATIENCE)
            all_listen = all(LISTENS in rank.said for rank in self.ranks)
            if stop.came and not is_told and (all_listen or time.monotonic() > tell_at):
                is_told = True
                self.send(stop.number or signal.SIGTERM)
            if self.failed and kill_at == float("inf"):
                kill_at = time.monotonic() + GRACE
                self.send(signal.SIGTERM)
            if time.monotonic() > kill_at:
                self.send(signal.SIGKILL)
        self.look()

    def look(self) -> None:
        """Hears what the ranks have told, and remembers which of them have failed."""
        for number, rank in enumerate(self.ranks):
            has_ended = rank.has_ended  # asked first: else it could tell something in between
            rank.hear()
            has_failed = rank.note.is_failure if rank.note else has_ended
            if has_failed and number not in self.failed:
                self.failed.append(number)

    @property
    def folder(self) -> Path | None:
        """The folder that a new run has got, or None."""
        return self.ranks[0].said.get(FOLDER) if self.ranks else None

    @property
    def has_result(self) -> bool:
        """Whether rank 0 has ended by itself, not by a signal or since another rank was gone."""
        note = self.ranks[0].note if self.ranks else None
        return note is not None and not note.is_lost

    def send(self, number: int) -> None:
        """Sends a signal to all ranks that have not ended."""
        for rank in self.ranks:
            rank.send(number)

    def stop_at_once(self, number: int) -> None:
        """Ends all ranks after a second signal."""
        self.send(signal.SIGKILL)
        raise SystemExit(128 + number)

    def why(self) -> UserError:
        """Returns which rank has failed first, and why, after it has shown its traceback."""
        notes = [rank.note for rank in self.ranks]
        for number, note in enumerate(notes):
            if note and note.error:
                print(note.trace, end="", file=sys.stderr)
                return self.named(number, note.error)
        is_hung = any(note and note.hung for note in notes)
        for number in self.failed:
            if notes[number] is None:
                status = self.ranks[number].process.exitcode
                return RankFailed(f"rank {number} of {self.size} {end_of(status, is_hung)}")
        return RankFailed("the processes of the run have lost contact with each other")

    def named(self, number: int, error: UserError) -> UserError:
        """Returns the error of a rank. That of the first needs no name: it is that of the run."""
        if number == 0:
            return error
        why = f"rank {number} of {self.size}: {error}"
        return (
            OwnCodeError(why, error.frames) if isinstance(error, OwnCodeError) else UserError(why)
        )


def end_of(status: int, is_hung: bool) -> str:
    """Returns how a rank has ended that has left no note, in words."""
    if is_hung:
        minutes = ranks.HANG.total_seconds() / 60
        return f"did not answer for {minutes:g} minutes, and was ended"
    if status == server.UNKNOWN:
        return "was lost: the server that starts processes has ended"
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    why = ""
    if name == "SIGKILL":
        why = "; the system does so if memory runs out"
    if name == "SIGSEGV" and os.environ.get("TORCH_DISTRIBUTED_DEBUG") == "DETAIL":
        why = "; torch 2.13 does so by itself with TORCH_DISTRIBUTED_DEBUG=DETAIL"
    return f"was killed by {name}{why}"


class Relay:
    """Where the ranks write in the place of stdout, file 1 of this process, or stderr, file 2.

    They write into that file itself. If a program has put another stream in its place, they write
    into a pipe, and this process passes on what comes.
    """

    def __init__(self, number: int, shown: Any) -> None:
        self.shown = shown
        self.reader: Connection | None = None
        if is_file(shown, number):
            writer = Connection(os.dup(number), readable=False)
            self.stream = Stream(writer, shown.encoding, shown.errors)
        else:
            self.reader, writer = connection.Pipe(duplex=False)
            os.set_blocking(self.reader.fileno(), False)
            self.stream = Stream(writer, "utf-8", files.HALVES)

    def pass_on(self) -> None:
        """Prints what has come since the last call."""
        if self.reader is None:
            return
        with suppress(BlockingIOError):
            while content := os.read(self.reader.fileno(), 2**16):
                text = content.decode(errors="replace")
                print(text, end="", file=self.shown, flush=True)

    def close(self) -> None:
        """Closes both ends."""
        self.stream.writer.close()
        if self.reader is not None:
            self.reader.close()


@contextmanager
def relays() -> Iterator[tuple[Relay, Relay]]:
    """A context in which ranks can write where this process writes to stdout and stderr."""
    both = Relay(1, sys.stdout), Relay(2, sys.stderr)
    try:
        yield both
    finally:
        for relay in both:
            relay.pass_on()
            relay.close()


def is_file(stream: Any, number: int) -> bool:
    """Returns whether a stream writes to the file of this process that has this number."""
    try:
        os.fstat(number)
        return bool(stream.fileno() == number)
    except (AttributeError, OSError, ValueError):
        return False


def work(
    own: ranks.Place,
    variables: dict[str, str],
    task: Task,
    starter: Connection,
    stdout: Stream,
    stderr: Stream,
) -> None:
    """Does what a rank has to do: rank 0 calls the function of the task, the others follow it.

    `variables` are those of the environment. `starter` is the pipe to the process that has started
    this one; if that process is killed, this one saves and ends.
    """
    server.leave_terminal()
    server.end_with_starter()
    os.environ.clear()
    os.environ.update(variables)
    sys.stdout, sys.stderr = stdout.taken_over(1), stderr.taken_over(2)
    note = Note()
    try:
        conf_files.add_folders(task.folders)
        with (
            lasting_output(),
            plugins.active(task.sources),
            plugins.own_errors(),
            memory_errors(),
            ranks.joined(own) as here,
        ):
            tell(starter, LISTENS, True)
            with (
                shortened(task.longest),
                distributed.telling_folder(lambda path: tell(starter, FOLDER, path)),
            ):
                note = Note(result=lead_or_follow(here, task.call))
    except SystemExit as stop:
        note = Note(exit_status=stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        note = note_of_error(error)
    tell(starter, NOTE, note)
    if note.is_failure:
        os._exit(1)  # the end of torch's threads would wait for the other ranks


def tell(starter: Connection, key: str, value: Any) -> None:
    """Tells the process that has started this one something, if it still exists."""
    with suppress(OSError):
        starter.send((key, value))


def lead_or_follow(here: ranks.Ranks, content: bytes) -> Any:
    """Returns what the function of the task returns, in rank 0; the others return None."""
    if not here.leads:
        distributed.follow()
        return None
    function, arguments = pickle.loads(content)
    return function(*arguments)


def note_of_error(error: BaseException) -> Note:
    """Returns what a rank leaves behind after an error. If others have failed, that is no fault."""
    if ranks.is_lost(error):
        return Note(is_lost=True, hung=ranks.lost_contact(error).hangs)
    if isinstance(error, OwnCodeError):
        return Note(error=OwnCodeError(str(error), error.frames))
    if isinstance(error, UserError):
        return Note(error=UserError(str(error)))
    trace = "".join(traceback.format_exception(error))
    return Note(error=UserError(reason_of(error)), trace=trace)
