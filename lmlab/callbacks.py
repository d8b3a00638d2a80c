"""What happens beside training: losses are noted, the model is evaluated, checkpoints are kept."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from lmlab import generate, pictures
from lmlab.data import CharDataModule
from lmlab.evaluate import log_probs, metrics
from lmlab.module import LanguageModule
from lmlab.models.bigram import Bigram
from lmlab.runs import RunDirectory
from lmlab.terminal import Terminal, one_line

SAMPLE_TOKENS = 100  # drawn at every evaluation


class Recorder(Callback):
    """Writes everything measured to history.jsonl, metrics.json, TensorBoard and the terminal."""

    def __init__(self, run: RunDirectory, data: CharDataModule, terminal: Terminal) -> None:
        self.run, self.data, self.terminal, self.config = run, data, terminal, data.config
        self.tokens_per_step = math.prod(
            (self.config.run.batch_size, self.config.run.grad_accumulation, self.config.model.block_size)
        )
        self.step = 0
        self.train_seconds = 0.0
        self.train_loss = math.nan
        self.best = math.inf
        self.diverged: int | None = None

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:
        self.board = SummaryWriter(self.run.path, purge_step=0)
        rows = "\n".join(f"|{key}|{value}|" for key, value in self.config.flat().items())
        self.board.add_text("config", f"|key|value|\n|-|-|\n{rows}", 0)
        self.terminal.progress.start()
        self.evaluate(trainer, module)
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:
        if trainer.global_step == self.step:
            return  # a batch of several that make one step
        self.step = trainer.global_step
        run = self.config.run
        late = run.max_minutes is not None and self.seconds() >= 60 * run.max_minutes
        last = late or self.step == run.max_steps
        if last or self.step % run.log_interval == 0:
            self.point(module)
        if self.diverged is None and (last or self.step % run.eval_interval == 0):
            self.train_seconds = self.seconds()
            self.evaluate(trainer, module)
            self.clock = time.perf_counter()
        trainer.should_stop = late or self.diverged is not None

    def seconds(self) -> float:
        """Seconds of training so far, evaluations left out."""
        return self.train_seconds + time.perf_counter() - self.clock

    def point(self, module: LanguageModule) -> None:
        """A point of train/loss: the mean over the steps since the last one."""
        self.train_loss = module.take_loss()
        seconds = self.seconds()
        values = {
            "train/loss": self.train_loss,
            "lr": module.lr(self.step - 1),
            "grad_norm": float(module.grad_norm),
            "tokens_per_second": self.step * self.tokens_per_step / seconds,
        }
        self.note(values, train_seconds=seconds)
        self.terminal.advance(self.step, self.train_loss, values["tokens_per_second"])
        if not math.isfinite(self.train_loss):
            self.diverged = self.step

    def note(self, values: dict[str, float], **others: float) -> None:
        self.run.record(step=self.step, **values, **others)
        for key, value in values.items():
            self.board.add_scalar(key, value, self.step)

    def evaluate(self, trainer: Trainer, module: LanguageModule) -> None:
        """Validation loss by evaluate.py's rule, a sample, a checkpoint; diverged if the weights are."""
        if not all(torch.isfinite(weight).all() for weight in module.model.parameters()):
            self.diverged = self.step
            return
        tokens = self.data.splits["val"]
        precision = self.config.device.precision
        values = {}
        if len(tokens):
            answers = log_probs(module.model, tokens, self.config.model.block_size, precision)
            values = {f"val/{key}": value for key, value in metrics(answers, tokens, self.data.tokenizer).items()}
            self.note(values)
        sample = self.sample(module, SAMPLE_TOKENS)
        self.board.add_text("sample", f"```\n{sample}\n```", self.step)
        if isinstance(module.model, Bigram):
            probs = module.model.table.weight.detach().softmax(-1).cpu().numpy()
            picture = pictures.bigram(probs, self.data.tokenizer.chars)
            self.board.add_image("bigram", picture, self.step, dataformats="HWC")
        self.keep(trainer, values)
        losses = [f"{name} {value:.4f}" for name, value in
                  (("train", self.train_loss), ("val", values.get("val/loss", math.nan))) if not math.isnan(value)]
        self.terminal.say(f"step {self.step:>5}  {'  '.join(losses)}  {one_line(sample)}")

    def sample(self, module: LanguageModule, length: int) -> str:
        return generate.text(
            module.model, self.data.tokenizer, "", length, self.config.model.block_size,
            seed=self.config.run.seed, temperature=0.8, precision=self.config.device.precision,
        )

    def keep(self, trainer: Trainer, values: dict[str, Any]) -> None:
        """Writes the numbers so far, last.ckpt, and best.ckpt if validation was never better."""
        loss = values.get("val/loss")
        self.run.update(**self.totals(), **values)
        trainer.save_checkpoint(self.run.checkpoint("last"))
        if loss is not None and loss < self.best:
            self.best = loss
            trainer.save_checkpoint(self.run.checkpoint("best"))
            self.run.update(**{"best/val/loss": loss, "best/step": self.step})

    def totals(self) -> dict[str, Any]:
        tokens = self.step * self.tokens_per_step
        return {
            "step": self.step,
            "train/loss": self.train_loss,
            "tokens": tokens,
            "train_seconds": self.train_seconds,
            "tokens_per_second": tokens / self.train_seconds if self.train_seconds else math.nan,
        }

    def on_train_end(self, *_: object) -> None:
        self.terminal.progress.stop()
        self.board.close()

    def on_exception(self, *_: object) -> None:
        self.on_train_end()
