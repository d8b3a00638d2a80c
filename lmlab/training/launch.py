"""Starts the ranks of a run with torchrun's elastic agent, waits for them, and says how they ended.

The agent starts each rank as a process of its own, `python -m lmlab.training.launch`, and ends the
others if one of them fails. What they are to do, and what has become of them, stands in files of a
temporary folder.
"""

import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lmlab import plugins, ranks
from lmlab.catalogue import DeviceConfig
from lmlab.config import conf_files
from lmlab.data.splits import LONGEST, shortened
from lmlab.errors import OwnCodeError, UserError, memory_errors, reason_of
from lmlab.register import unlisted
from lmlab.runs.code import share_library
from lmlab.terminal import StopSignals, lasting_output
from lmlab.training import distributed

STOPPING = "stopping as soon as all is saved; once more stops at once"  # after the first signal
POLL = 0.1  # seconds between two looks at the ranks
GRACE = 10  # seconds in which a rank ends after another has failed, or its starter was killed
TASK = "task"  # the file of what the ranks are to do
RUN = "run"  # that of the folder of a new run


class RankFailed(UserError):
    """A rank was killed or hangs, which is no fault of the run itself."""


@dataclass
class Notice:
    """Which folder the run of the ranks has; None as long as it has none."""

    folder: Path | None = None


@dataclass(frozen=True)
class Note:
    """What a rank has left behind: its result, the status with which it was to exit, or an error."""

    result: Any = None
    exit_status: int | None = None
    error: UserError | None = None
    trace: str = ""
    """The traceback of an error that no user can put right."""

    is_lost: bool = False
    """Whether it has only noticed that another rank has ended, or does not answer."""

    hung: bool = False
    """Whether another rank does not answer."""


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

    The folder that a new run gets is noted in `notice`, also if a rank fails.

    Raises UserError for a model or another part that a program has registered itself, which those
    processes do not have. Raises the function's UserError, UserError if a rank fails, and
    SystemExit(128 + n) after signal n.
    """
    for own in unlisted():
        raise UserError(
            f"devices={device.devices}: {own.kind} {own.name} is registered in this process alone "
            f"({own.place}), and the others do not have it; write it in a file and name that with plugin="
        )
    with tempfile.TemporaryDirectory(prefix="lmlab-") as name:
        folder = Path(name)
        content = pickle.dumps((function, arguments))
        task = plugins.active_sources(), conf_files.ADDED, LONGEST.get(), content
        (folder / TASK).write_bytes(pickle.dumps(task))
        try:
            return Crew(folder, device.processes).run()
        finally:
            if notice is not None and (folder / RUN).exists():
                notice.folder = Path(os.fsdecode((folder / RUN).read_bytes()))


class Crew:
    """The ranks that this process has started. Their files are in `folder`."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.failures: dict[int, int] = {}  # the exit status of each rank that failed
        self.fault: BaseException | None = None  # of the agent itself

    def run(self) -> Any:
        """Runs all ranks to their end, and returns the result of rank 0."""
        stop = StopSignals(STOPPING, self.stop_at_once)
        with stop, Relay(self.folder) as relay:
            agent = threading.Thread(target=self.call_agent, daemon=True)
            agent.start()
            is_told = False
            failed_at = None
            while agent.is_alive():
                agent.join(POLL)
                relay.pass_on()
                if stop.came and not is_told and self.all_listen():
                    is_told = True
                    self.send(stop.number or signal.SIGTERM)
                if failed_at is None and self.has_failed():
                    failed_at = time.monotonic()
                if failed_at is not None and time.monotonic() - failed_at > GRACE:
                    self.send(signal.SIGKILL)
        leader = self.note_of(0)
        if leader and not self.failures and self.fault is None:
            if leader.exit_status is not None:
                raise SystemExit(leader.exit_status)
            return leader.result
        if stop.number is not None:  # it came before a rank could listen
            raise SystemExit(128 + stop.number)
        raise self.why()

    def call_agent(self) -> None:
        """Lets torchrun's agent start the ranks, and waits for them. It runs in a thread.

        In the main thread it would take the signals over, and pass each on a second time.
        """
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        mute_agent()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.size,
            run_id=self.folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=POLL,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "logs")),
        )
        share_library()
        os.environ.setdefault(*ranks.QUIET)
        command = ("-P", "-m", "lmlab.training.launch", str(self.folder), str(os.getpid()))
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            self.failures = {rank: found.exitcode for rank, found in error.failures.items()}
        except BaseException as error:
            self.fault = error

    def note_of(self, rank: int) -> Note | None:
        """Returns what a rank has left behind, or None if it has left nothing."""
        try:
            note: Note = pickle.loads((self.folder / f"note-{rank}").read_bytes())
        except FileNotFoundError:
            return None
        return note

    def has_failed(self) -> bool:
        """Returns whether a rank has noted that it failed."""
        notes = [self.note_of(rank) for rank in range(self.size)]
        return any(note and (note.error or note.is_lost) for note in notes)

    def all_listen(self) -> bool:
        """Returns whether each rank has begun to listen to signals, and noted its process."""
        return len([*self.folder.glob("pid-*")]) == self.size

    def send(self, number: int) -> None:
        """Sends a signal to each rank that has noted its process."""
        for path in self.folder.glob("pid-*"):
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), number)

    def stop_at_once(self, number: int) -> None:
        """Ends all ranks after a second signal."""
        self.send(signal.SIGKILL)
        raise SystemExit(128 + number)

    def why(self) -> UserError:
        """Returns which rank has failed first, and why, after it has shown its traceback."""
        notes = {rank: self.note_of(rank) for rank in range(self.size)}
        for rank, note in notes.items():
            if note and note.error and not note.is_lost:
                print(note.trace, end="", file=sys.stderr)
                return self.named(rank, note.error)
        if self.fault is not None:
            return UserError(f"the processes of the run cannot be started: {reason_of(self.fault)}")
        is_hung = any(note and note.hung for note in notes.values())
        silent = {rank: end for rank, end in self.failures.items() if notes[rank] is None}
        # The agent itself ends those that are left with SIGTERM.
        for rank in sorted(silent, key=lambda rank: silent[rank] == -signal.SIGTERM):
            return RankFailed(f"rank {rank} of {self.size} {self.end_of(silent[rank], is_hung)}")
        return RankFailed("the processes of the run have lost contact with each other")

    def end_of(self, status: int, is_hung: bool) -> str:
        """Returns how a rank has ended that has left no note, in words."""
        if is_hung:
            minutes = ranks.HANG.total_seconds() / 60
            return f"did not answer for {minutes:g} minutes, and was ended"
        if status >= 0:
            return f"ended with exit status {status}"
        name = signal.Signals(-status).name
        memory = "; the system does so if memory runs out" if name == "SIGKILL" else ""
        return f"was killed by {name}{memory}"

    def named(self, rank: int, error: UserError) -> UserError:
        """Returns the error of a rank. That of the first needs no name: it is that of the run."""
        if rank == 0:
            return error
        why = f"rank {rank} of {self.size}: {error}"
        return (
            OwnCodeError(why, error.frames) if isinstance(error, OwnCodeError) else UserError(why)
        )


class Relay:
    """Passes on what the ranks print, where a program has put others in the place of its streams.

    In the folder of the ranks there is a named pipe for each such stream, by the number of its file.
    Ranks that find none print as they are.
    """

    def __init__(self, folder: Path) -> None:
        self.pipes: dict[int, int] = {}  # of the number of a stream's file: its pipe's reading end
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            if not is_file(stream, number):
                os.mkfifo(folder / f"stream-{number}")
                flags = os.O_RDONLY | os.O_NONBLOCK
                self.pipes[number] = os.open(folder / f"stream-{number}", flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pass_on()
        for pipe in self.pipes.values():
            os.close(pipe)

    def pass_on(self) -> None:
        """Prints what has come since the last call."""
        for number, pipe in self.pipes.items():
            stream = sys.stdout if number == 1 else sys.stderr
            with suppress(BlockingIOError):
                while content := os.read(pipe, 2**16):
                    print(content.decode(errors="replace"), end="", file=stream, flush=True)


def is_file(stream: Any, number: int) -> bool:
    """Returns whether a stream writes to the file of this process that has this number."""
    try:
        return bool(stream.fileno() == number)
    except (AttributeError, OSError, ValueError):
        return False


def mute_agent() -> None:
    """Mutes the agent, whose pages of report about a failure come beside the lab's own line."""
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def work(folder: Path, starter: int) -> None:
    """Does what a rank has to do: rank 0 calls the function of the task, the others follow it.

    `starter` is the number of the process that has started it.
    """
    own = ranks.place()
    assert own is not None  # the agent has said so in the environment
    own = replace(own, starter="lmlab")
    end_with(starter, folder)
    for number in (1, 2):
        pipe = folder / f"stream-{number}"
        if pipe.exists():
            os.dup2(os.open(pipe, os.O_WRONLY), number)
    sources, folders, longest, content = pickle.loads((folder / TASK).read_bytes())
    conf_files.add_folders(folders)
    note = Note()
    try:
        with (
            lasting_output(),
            plugins.active(sources),
            plugins.own_errors(),
            memory_errors(),
            ranks.joined(own) as here,
        ):
            note_process(folder, own.rank)
            with shortened(longest), distributed.noting_folder(folder / RUN):
                note = Note(result=lead_or_follow(here, content))
    except SystemExit as stop:
        note = Note(exit_status=stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        note = note_of_error(error)
    if os.getppid() == starter:
        leave(folder / f"note-{own.rank}", note)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if note.error is not None or note.is_lost:
        os._exit(1)  # the end of torch's threads would wait for the other ranks


def note_process(folder: Path, rank: int) -> None:
    """Writes the number of this process where its starter looks for it, whole or not at all."""
    unfinished = folder / f"unfinished-{rank}"
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(folder / f"pid-{rank}")


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


def leave(path: Path, note: Note) -> None:
    """Writes a note, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(pickle.dumps(note))
    unfinished.rename(path)


def end_with(starter: int, folder: Path) -> None:
    """Watches the process that has started this one. If it is killed, this one saves and ends.

    Then nobody else removes the folder of the ranks.
    """

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.getppid() != starter:  # it was killed while this one imported
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signal.SIGTERM)
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    from lmlab.training.launch import work as work_of_module

    work_of_module(Path(sys.argv[1]), int(sys.argv[2]))
