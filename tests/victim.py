"""train.py in a process of its own, for tests that do something to it. Imports little: every such
process does.
"""

import os
import resource
import signal
import sys
import time

from lmlab import files
from lmlab.commands import train as cli
from lmlab.training import experiment
from lmlab.training.recorder import Recorder, StopSignal
from lmlab.training.step import LanguageModule


def child(folder, arguments, point):
    """train.py in a process of its own, which ends itself at the n-th call of a function, if it is
    told to.
    """
    os.chdir(folder)
    out = os.open("out.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.stdout, sys.stderr, sys.argv = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1), ["pytest"]
    if point and point.startswith("limit"):  # no file may grow larger, as if the disk were full
        pipe = os.open("pipe", os.O_WRONLY)
        os.dup2(pipe, 1), os.dup2(pipe, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(point.split()[1]),) * 2)
    elif point and point.startswith(
        "wait"
    ):  # "wait 7 1": the seventh batch lasts until there was one signal
        batches, signals = map(int, point.split()[1:])
        seen, told, step, on_signal = [], [], LanguageModule.training_step, StopSignal.receive

        def training_step(self, batch, batch_idx):
            print("batch")
            seen.append(batch_idx)
            while len(seen) == batches and len(told) < signals:
                time.sleep(0.01)
            return step(self, batch, batch_idx)

        def note(self, number, frame):
            told.append(number)
            on_signal(self, number, frame)

        LanguageModule.training_step, StopSignal.receive = training_step, note
    elif point:
        name, calls = point.replace("write ", "write_pieces ").split()
        place = {
            "training_step": LanguageModule,
            "evaluate": Recorder,
            "write_pieces": files,
            "replace": os,
            "save_checkpoint": experiment.SealedCheckpointIO,
        }[name]
        original, left = getattr(place, name), [int(calls)]

        def deadly(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                if name == "write_pieces":  # half of it is there
                    args[0].write_bytes(args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(place, name, deadly)
    cli.main(arguments.split())
