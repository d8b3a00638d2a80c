"""What happens beside training: losses are noted, the model is evaluated and sampled, checkpoints
are kept.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, Trainer
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lmlab.config.check import Config
from lmlab.data.text import Splits
from lmlab.inference import generate, pictures
from lmlab.inference.loss import log_probs, loss_metrics
from lmlab.runs.board import write_hparams
from lmlab.runs.folder import RunDirectory
from lmlab.training import state
from lmlab.training.step import LanguageModule

PICTURES = 5  # of attention, after the one of step 0


PICTURED = 32  # tokens that they show


class Recorder(Callback):
    """Takes all that is measured to history.jsonl, metrics.json, TensorBoard and the terminal, and
    what the next step depends on to checkpoints. `saved` is what `on_save_checkpoint` put into the
    one to go on from, `source` the validation tokens of the run that the weights come from, `watch`
    says after an evaluation whether to go on.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        data: Splits,
        source: np.ndarray | None = None,
        saved: dict[str, Any] | None = None,
        watch: Callable[[int, float], bool] | None = None,
    ) -> None:
        self.run, self.data, self.config, self.source, self.saved = (
            run,
            data,
            config,
            source,
            saved,
        )
        self.watch = watch
        keys = self.config.run
        self.tokens_per_step = (
            keys.batch_size * keys.grad_accumulation * self.config.model.block_size
        )
        state = saved or {"step": 0, "train_seconds": 0.0, "train_loss": math.nan, "best": math.inf}
        self.step, self.train_seconds, self.train_loss, self.best = (
            state[key] for key in ("step", "train_seconds", "train_loss", "best")
        )
        self.started = self.last = self.diverged = self.pruned = False
        self.signal: int | None = None
        self.before: dict[str, Tensor] = {}  # weights before a step that is measured
        self.picture_interval = keys.eval_interval * max(
            1, -(-keys.max_steps // (keys.eval_interval * PICTURES))
        )
        self.clock: float | None = None
        self.board = SummaryWriter(run.path, purge_step=self.step + 1 if saved else 0)
        self.bar = Progress(
            console=run.console, refresh_per_second=1, disable=not run.console.is_terminal
        )
        self.task = self.bar.add_task("", total=keys.max_steps)

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:
        self.signal = signal.SIGTERM if trainer.received_sigterm else None
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Lightning takes them back at its end
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.on_signal)
        self.bar.start()
        self.saved_at = time.monotonic()
        if self.saved:
            if trainer.global_step != self.step:
                raise ValueError("its parts are of different steps")
            module.loss_sum.fill_(self.saved["loss_sum"])
            module.losses = self.saved["losses"]
            state.set_random_state(self.saved["random_state"])
        else:
            facts = {
                key: value
                for key, value in self.run.metrics.items()
                if "/" not in key and key != "status"
            }
            for name, values in (("config", self.config.flat()), ("provenance", facts)):
                rows = "".join(f"|{key}|{value}|\n" for key, value in values.items())
                self.board.add_text(name, f"|key|value|\n|-|-|\n{rows}", 0)
            self.evaluate(trainer, module)
            self.save(trainer, module)
        self.remember(module)
        self.clock = time.perf_counter()

    def on_signal(self, number: int, frame: object) -> None:
        """The first one lets the step end, the second doesn't wait."""
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
        os.write(
            2, b"\nstopping after this step; once more stops at once\n"
        )  # nothing that could be busy

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:
        if trainer.global_step == self.step:
            return  # one of several batches of a step
        self.started, self.step, keys = True, trainer.global_step, self.config.run
        late = keys.max_minutes is not None and self.seconds() >= 60 * keys.max_minutes
        self.last = late or self.step >= keys.max_steps
        minutes = (time.monotonic() - self.saved_at) / 60
        evaluating = self.last or self.step % keys.eval_interval == 0
        saving = (
            self.last
            or self.step % keys.checkpoint_interval == 0
            or minutes >= keys.checkpoint_minutes
        )
        if evaluating or self.step % keys.log_interval == 0:
            self.point(trainer, module)
        stopping = bool(self.signal)
        if evaluating or saving or stopping:
            module.loss_sum.item()  # what a GPU still has to do is training
            self.train_seconds, self.clock = self.seconds(), None
            if evaluating:
                self.evaluate(trainer, module)
            stopping = bool(
                self.signal
            )  # looked at once: a signal that comes while saving waits for the next step
            if saving or stopping:
                self.save(trainer, module)
            self.clock = time.perf_counter()
        self.remember(module)
        trainer.should_stop = late or self.diverged or self.pruned or stopping

    def seconds(self) -> float:
        """Seconds of training so far, evaluations and checkpoints left out."""
        return self.train_seconds + (time.perf_counter() - self.clock if self.clock else 0.0)

    def point(self, trainer: Trainer, module: LanguageModule) -> None:
        """A point of train/loss: the mean over the steps since the last multiple of `log_interval`."""
        steps = module.losses // self.config.run.grad_accumulation
        self.train_loss = module.take_loss(begin_anew=self.step % self.config.run.log_interval == 0)
        seconds = self.seconds()
        speed = self.step * self.tokens_per_step / seconds
        self.note(
            {
                "train/loss": self.train_loss,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "grad_norm": float(module.grad_norm),
                "tokens_per_second": speed,
            },
            train_seconds=seconds,
            steps=steps,
        )
        shown = f"step {self.step}  loss {self.train_loss:.3f}  {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=self.step, description=shown)
        self.diverged = not math.isfinite(self.train_loss)

    def remember(self, module: LanguageModule) -> None:
        """Keeps the matrices if the next step is one that an evaluation follows."""
        step, keys = self.step + 1, self.config.run
        if step % keys.eval_interval == 0 or step == keys.max_steps:
            self.before = {name: weight.clone() for name, weight in matrices(module.model)}

    def update_ratios(self, module: LanguageModule) -> dict[str, float]:
        """How much the last step changed each matrix: the norm of the change over the norm of what
        it became, so that what began at zero has one too. Empty after a step that nobody knew to be
        the last, by max_minutes.
        """
        before, self.before = self.before, {}
        ratios = {
            f"update_ratio/{name}": (weight - before[name]).norm() / weight.norm().clamp_min(1e-30)
            for name, weight in matrices(module.model)
            if name in before
        }
        numbers = (
            torch.stack([*ratios.values()]).tolist() if ratios else []
        )  # a GPU is waited for once
        return dict(zip(ratios, numbers, strict=True))

    def note(self, values: dict[str, float], **others: Any) -> None:
        self.run.record(step=self.step, **values, **others)
        for key, value in values.items():
            self.board.add_scalar(key, value, self.step)

    def sound(self, module: LanguageModule) -> bool:
        """False once the loss or a weight is not finite: then nothing is evaluated or saved any
        more.
        """
        self.diverged |= not all(torch.isfinite(weight).all() for weight in module.parameters())
        return not self.diverged

    def evaluate(self, trainer: Trainer, module: LanguageModule) -> None:
        """Validation, a sample, and best.ckpt if validation was never better."""
        if not self.sound(module):
            return
        values, tokens = {}, self.data.val
        if len(tokens):
            values = self.measure(module, tokens)
            if self.source is not None:
                values["val/loss_source"] = self.measure(module, self.source)["val/loss"]
        sample = self.sample(module, 60)
        self.note(values, sample=sample)
        self.board.add_text("sample", f"```\n{sample}\n```", self.step)
        for name, ratio in self.update_ratios(module).items():
            self.board.add_scalar(name, ratio, self.step)
        for name, picture in self.pictures(module):
            self.board.add_image(name, picture, self.step, dataformats="HWC")
        losses = {"train/loss": self.train_loss} | values if self.step else values
        if values.get("val/loss", math.inf) < self.best:
            self.best = values["val/loss"]
            trainer.save_checkpoint(self.run.path / "checkpoints/best.ckpt")
            values |= {f"best/{key}": value for key, value in values.items()} | {
                "best/step": self.step
            }
        if "val/loss" in values:
            self.board.add_scalar("best/val/loss", self.best, self.step)
        self.run.update(**self.totals(), **values)
        named = ("train/loss", "val/loss", "val/loss_source")
        shown = "".join(f"{key} {losses[key]:.4f}  " for key in named if key in losses)
        self.run.say(f"step {self.step:>5}  {shown}{sample.replace(chr(10), '↵')}")
        if self.watch and "val/loss" in values and not self.last:
            self.pruned = not self.watch(self.step, values["val/loss"])

    def pictures(self, module: LanguageModule) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the model's pictures; attention, which takes a while, now and then."""
        with_attention = self.last or self.step % self.picture_interval == 0
        tokens = self.data.val if len(self.data.val) else self.data.train
        tokens = tokens[: min(self.config.model.block_size, PICTURED)].astype(np.int64)
        idx = torch.from_numpy(tokens).to(module.device)
        yield from pictures.pictures_of(
            module.model, idx, self.data.tokenizer.names(), with_attention
        )

    def measure(self, module: LanguageModule, tokens: np.ndarray) -> dict[str, float]:
        answers = log_probs(
            module.model, tokens, self.config.model.block_size, self.config.device.precision
        )
        return loss_metrics(answers, tokens, self.data.tokenizer, "val")

    def sample(self, module: LanguageModule, length: int) -> str:
        pieces = generate.stream(
            module.model,
            self.data.tokenizer,
            "",
            length,
            self.config.model.block_size,
            seed=self.config.run.seed,
            temperature=0.8,
            precision=self.config.device.precision,
        )
        return "".join(piece for (piece,) in pieces)

    def save(self, trainer: Trainer, module: LanguageModule) -> None:
        """last.ckpt, from which a run goes on as if it had never stopped."""
        if self.sound(module):
            self.run.update(**self.totals())
            self.board.flush()
            trainer.save_checkpoint(self.run.path / "checkpoints/last.ckpt")
            self.saved_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: Trainer, module: LanguageModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what Lightning leaves out."""
        checkpoint["lmlab"] = {
            "config": self.config.flat(),
            "tokenizer": self.data.tokenizer.to_json(),
            "data_sha256": self.data.sha256,
            "metrics": self.run.metrics,
            "history_bytes": self.run.settle(),
            "step": self.step,
            "last": self.last,
            "best": self.best,
            "train_seconds": self.train_seconds,
            "train_loss": self.train_loss,
            "loss_sum": module.loss_sum.item(),
            "losses": module.losses,
            "random_state": state.random_state(module.device.type),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, module: LanguageModule, checkpoint: dict[str, Any]
    ) -> None:
        """Steps are counted in another place than when the lab's 0.1 let Lightning make them."""
        loop = checkpoint["loops"]["fit_loop"]
        before = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"][
            "total"
        ]
        if before["completed"]:
            loop["epoch_loop.manual_optimization.optim_step_progress"] = {
                "total": before,
                "current": dict(before),
            }

    def totals(self) -> dict[str, Any]:
        tokens, seconds = self.step * self.tokens_per_step, self.seconds()
        return {
            "step": self.step,
            "train/loss": self.train_loss,
            "tokens": tokens,
            "flops": tokens * self.run.metrics.get("flops_per_token", 0),
            "train_seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else math.nan,
        }

    def status(self) -> str:
        return "diverged" if self.diverged else "pruned" if self.pruned else "finished"

    def on_train_end(self, *_: object) -> None:
        if "group" in self.run.metrics and (self.last or self.diverged or self.pruned):
            write_hparams(
                self.board, self.run.metrics["group"], self.config, self.status(), self.step
            )
        self.on_exception()

    def on_exception(self, *_: object) -> None:
        self.train_seconds, self.clock = self.seconds(), None
        self.bar.stop()
        self.board.close()


def matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return (
        (name, weight.detach()) for name, weight in model.named_parameters() if weight.dim() >= 2
    )
