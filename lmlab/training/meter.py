"""Measures a run while it trains: seconds, mean loss, tokens a second, progress bar."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lmlab.config.keys import RunConfig
from lmlab.notebook import Display, in_notebook
from lmlab.terminal import after_a_second
from lmlab.training.state import UNTRAINED
from lmlab.training.step import LanguageModule


class Meter:
    """Measures a run while it trains. The time of evaluations and checkpoints is not counted.

    `saved` holds step, train_seconds and train_loss of the checkpoint to resume from.
    """

    def __init__(
        self,
        run: RunConfig,
        block_size: int,
        flops_per_token: int,
        console: Console,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.tokens_per_step = run.batch_size * run.grad_accumulation * block_size
        self.flops_per_token = flops_per_token
        progress = saved or UNTRAINED
        self.step: int = progress["step"]
        self.train_seconds: float = progress["train_seconds"]
        self.train_loss: float = progress["train_loss"]
        self.running_since: float | None = None
        self.seen_at = 0.0  # when the time was asked for last, as after each step
        self.console = console
        self.has_said = False  # that an evaluation goes on; once is enough
        self.bar = Progress(
            console=console,
            refresh_per_second=1,
            disable=not console.is_terminal,
            speed_estimate_period=math.inf,  # the time left by the mean speed, since steps may be slow
            redirect_stderr=sys.stderr.isatty(),  # a file gets its own lines
        )
        self.task = self.bar.add_task("", total=run.max_steps, completed=self.step)
        self.display = Display() if in_notebook() else None

    def start(self) -> None:
        """Starts or continues the clock."""
        self.running_since = self.seen_at = time.perf_counter()

    def draw(self, **shown: Any) -> None:
        """Shows the progress: on the bar of a terminal, or in a notebook."""
        self.bar.update(self.task, **shown)
        if self.display:
            self.display.draw(self.bar.get_renderable())

    def stop_drawing(self) -> None:
        """Takes the bar away."""
        self.bar.stop()
        if self.display:
            self.display.clear()

    def stop(self) -> None:
        """Stops the clock."""
        self.train_seconds = self.seconds()
        self.running_since = None

    def seconds(self) -> float:
        """Returns the seconds of training so far."""
        if self.running_since is None:
            return self.train_seconds
        self.seen_at = time.perf_counter()
        return self.train_seconds + self.seen_at - self.running_since

    def leave_out_stop(self) -> None:
        """Leaves out how long the process was stopped, as by Ctrl-Z, and the step that this broke off."""
        if self.running_since is not None:
            stopped = time.perf_counter() - self.seen_at
            self.running_since += stopped
            self.seen_at += stopped

    @contextmanager
    def paused(self, module: LanguageModule) -> Iterator[None]:
        """A context in which the clock stands still. It first waits for the GPU's steps."""
        module.loss_sum.item()
        self.stop()
        yield
        self.start()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context that shows that the model is evaluated, if this takes longer than a second."""
        shown = self.bar.tasks[0].description
        with after_a_second(self.say_evaluating):
            yield
        self.draw(description=shown)

    def say_evaluating(self) -> None:
        """Shows that the model is evaluated: on the bar, or without a bar once in a line."""
        self.draw(description=f"step {self.step}  evaluating …")
        if self.bar.disable and not self.display and not self.has_said:
            self.has_said = True
            self.console.print(f"step {self.step:>5}  evaluating …")

    def point(self, module: LanguageModule, lr: float) -> tuple[dict[str, float], dict[str, float]]:
        """Returns a point of the training curves, and more values for history.jsonl.

        train/loss is the mean over the steps since the last multiple of `log_interval`. The
        method waits for the device.
        """
        steps = module.losses // self.run.grad_accumulation
        at_interval = self.step % self.run.log_interval == 0
        self.train_loss = module.take_loss(restart=at_interval)
        seconds = self.seconds()
        tokens_per_second = speed(self.step * self.tokens_per_step, seconds)
        description = (
            f"step {self.step}  loss {self.train_loss:.3f}  {tokens_per_second:,.0f} tokens/s"
        )
        self.draw(completed=self.step, description=description)
        numbers = {
            "train/loss": self.train_loss,
            "lr": lr,
            "grad_norm": float(module.grad_norm),
            "tokens_per_second": tokens_per_second,
        }
        return numbers, {"train_seconds": seconds, "steps": steps}

    def totals(self) -> dict[str, float]:
        """Returns the totals for metrics.json: steps, tokens, FLOPs, seconds, speed."""
        tokens = self.step * self.tokens_per_step
        seconds = self.seconds()
        return {
            "step": self.step,
            "train/loss": self.train_loss,
            "tokens": tokens,
            "flops": tokens * self.flops_per_token,
            "train_seconds": seconds,
            "tokens_per_second": speed(tokens, seconds),
        }


def speed(tokens: int, seconds: float) -> float:
    """Returns tokens a second, or nan if no time has passed."""
    return tokens / seconds if seconds else math.nan
