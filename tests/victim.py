"""train.py in a process of its own, for tests that stop it. It imports little, since each does."""

import os
import resource
import signal
import sys
import time
from functools import partial
from multiprocessing import forkserver

from lmlab import files
from lmlab.commands import train as cli
from lmlab.inference import evaluations
from lmlab.signals import StopSignals
from lmlab.training import experiment
from lmlab.training.recorder import Recorder
from lmlab.training.step import LanguageModule


def child(folder, arguments, point):
    """Runs train.py in this process and in `folder`; `point` says what happens to it, if anything.

    "limit 100": no file may grow beyond so many bytes. "wait 7 1": the seventh batch lasts until
    one signal has come. "evaluation 2": the second evaluation, or counting at the end, takes a
    minute. "evaluate 3": the process kills itself at the third call of a function. "pipe":
    it writes into the pipe of this name.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # the server that forked this ignores them
        signal.signal(number, signal.default_int_handler)
    os.chdir(folder)
    redirect(os.open("out.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND))
    sys.stdout = os.fdopen(1, "w", 1)
    sys.stderr = os.fdopen(2, "w", 1)
    sys.argv = ["pytest"]
    share_server()
    if point:
        name, *numbers = point.split()
        special = {
            "limit": limit_files,
            "wait": wait_for_signals,
            "evaluation": evaluate_slowly,
            "pipe": write_into_pipe,
        }
        what = special.get(name, partial(die_at, name))
        what(*map(int, numbers))
    cli.main(arguments.split())


def share_server():
    """Lets the cells of a sweep be forked from the server that this process was forked from.

    It has imported everything; one of its own would import it again.
    """
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None


def redirect(descriptor):
    """Sends stdout and stderr to an open file."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def limit_files(size):
    """Lets no file grow beyond `size` bytes, as if the disk were full; a pipe takes the output."""
    write_into_pipe()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def write_into_pipe():
    redirect(os.open("pipe", os.O_WRONLY))


def evaluate_slowly(number):
    """Lets one of the evaluations, or the counting after them, take a minute."""

    def slowed(function):
        def slow(*args):
            seen.append(function)
            if len(seen) == number:
                print("slow")
                time.sleep(60)
            return function(*args)

        return slow

    seen = []
    evaluations.EVALUATIONS.insert(0, slowed(lambda subject: {}))
    experiment.references = slowed(experiment.references)


def wait_for_signals(batches, signals):
    """Prints each batch, and lets one of them last until so many signals have come.

    Signals together count as one, whether Python has called the handler once for them or twice.
    """
    step = LanguageModule.training_step
    receive = StopSignals.receive
    seen = []
    stops = []  # the objects that have received a signal

    def has_waited():
        return len(seen) != batches or (stops and stops[-1].n_received >= signals)

    def training_step(self, batch, batch_idx):
        print("batch")
        seen.append(batch_idx)
        while not has_waited():
            time.sleep(0.01)
        return step(self, batch, batch_idx)

    def note(self, number, frame):
        stops.append(self)
        receive(self, number, frame)

    LanguageModule.training_step = training_step
    StopSignals.receive = note


def die_at(name, calls):
    """Kills this process at the n-th call of a function."""
    name = name.replace("write", "write_pieces")
    owner = {
        "training_step": LanguageModule,
        "evaluate": Recorder,
        "write_pieces": files,
        "replace": os,
        "save_checkpoint": experiment.SealedCheckpointIO,
    }[name]
    original = getattr(owner, name)
    made = []

    def deadly(*args, **kwargs):
        made.append(name)
        if len(made) == calls:
            if name == "write_pieces":  # half of it is there
                args[0].write_bytes(args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)
