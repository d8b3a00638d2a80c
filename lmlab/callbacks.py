"""What happens beside training: losses are noted, the model is evaluated and sampled, checkpoints are kept."""

import math
import time
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter

from lmlab import evaluate, generate, pictures
from lmlab.data import CharDataModule
from lmlab.models.bigram import Bigram
from lmlab.module import LanguageModule
from lmlab.runs import RunDirectory
from lmlab.terminal import Terminal

SAMPLE_TOKENS = 100  # at each evaluation


class Recorder(Callback):
    """Takes all that is measured to history.jsonl, metrics.json, TensorBoard and the terminal."""

    def __init__(self, run: RunDirectory, data: CharDataModule, terminal: Terminal) -> None:
        self.run, self.data, self.terminal, self.config = run, data, terminal, data.config
        keys = self.config.run
        self.tokens_per_step = keys.batch_size * keys.grad_accumulation * self.config.model.block_size
        self.step, self.train_seconds, self.train_loss = 0, 0.0, math.nan
        self.best, self.diverged = math.inf, False

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:
        self.board = SummaryWriter(self.run.path, purge_step=0)
        rows = "".join(f"|{key}|{value}|\n" for key, value in self.config.flat().items())
        self.board.add_text("config", f"|key|value|\n|-|-|\n{rows}", 0)
        self.terminal.bar.start()
        self.evaluate(trainer, module)
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:
        if trainer.global_step == self.step:
            return  # one of several batches of a step
        self.step, keys = trainer.global_step, self.config.run
        late = keys.max_minutes is not None and self.seconds() >= 60 * keys.max_minutes
        last = late or self.step == keys.max_steps
        if last or self.step % keys.log_interval == 0:
            self.point(module)
        if last or self.step % keys.eval_interval == 0:
            self.train_seconds = self.seconds()
            self.evaluate(trainer, module)
            self.clock = time.perf_counter()
        trainer.should_stop = late or self.diverged

    def seconds(self) -> float:
        """Seconds of training so far, evaluations left out."""
        return self.train_seconds + time.perf_counter() - self.clock

    def point(self, module: LanguageModule) -> None:
        """A point of train/loss: the mean over the steps since the last one."""
        self.train_loss, seconds = module.take_loss(), self.seconds()
        speed = self.step * self.tokens_per_step / seconds
        self.note({"train/loss": self.train_loss, "lr": module.lr(self.step - 1), "tokens_per_second": speed,
                   "grad_norm": float(module.grad_norm)}, train_seconds=seconds)
        self.terminal.bar.update(self.terminal.task, completed=self.step, loss=self.train_loss, speed=speed)
        self.diverged = not math.isfinite(self.train_loss)

    def note(self, values: dict[str, float], **others: float) -> None:
        self.run.record(step=self.step, **values, **others)
        for key, value in values.items():
            self.board.add_scalar(key, value, self.step)

    def evaluate(self, trainer: Trainer, module: LanguageModule) -> None:
        """Validation, a sample and a checkpoint; none of them once the loss or a weight is not finite."""
        self.diverged |= not all(torch.isfinite(weight).all() for weight in module.parameters())
        if self.diverged:
            return
        values, tokens = {}, self.data.splits["val"]
        if len(tokens):
            answers = evaluate.log_probs(
                module.model, tokens, self.config.model.block_size, self.config.device.precision)
            numbers = evaluate.metrics(answers, tokens, self.data.tokenizer)
            values = {f"val/{key}": value for key, value in numbers.items()}
            self.note(values)
        sample = self.sample(module, SAMPLE_TOKENS)
        self.board.add_text("sample", f"```\n{sample}\n```", self.step)
        if isinstance(module.model, Bigram):
            probs = module.model.table.weight.detach().softmax(-1).cpu().numpy()
            picture = pictures.bigram(probs, self.data.tokenizer.chars)
            self.board.add_image("bigram", picture, self.step, dataformats="HWC")
        self.keep(trainer, values)
        losses = {"train": self.train_loss, "val": values.get("val/loss", math.nan)}
        shown = "".join(f"  {name} {loss:.4f}" for name, loss in losses.items() if not math.isnan(loss))
        self.terminal.say(f"step {self.step:>5}{shown}  {sample[:60].replace(chr(10), '↵')}")

    def sample(self, module: LanguageModule, length: int) -> str:
        pieces = generate.stream(module.model, self.data.tokenizer, "", length, self.config.model.block_size,
                                 seed=self.config.run.seed, temperature=0.8, precision=self.config.device.precision)
        return "".join(piece for (piece,) in pieces)

    def keep(self, trainer: Trainer, values: dict[str, float]) -> None:
        """The numbers so far, last.ckpt, and best.ckpt if validation was never better."""
        trainer.save_checkpoint(self.run.path / "checkpoints/last.ckpt")
        loss = values.get("val/loss", math.inf)
        if loss < self.best:
            trainer.save_checkpoint(self.run.path / "checkpoints/best.ckpt")
            self.best, values = loss, values | {"best/val/loss": loss, "best/step": self.step}
        self.run.update(**self.totals(), **values)

    def totals(self) -> dict[str, Any]:
        tokens = self.step * self.tokens_per_step
        speed = tokens / self.train_seconds if self.train_seconds else math.nan
        return {"step": self.step, "train/loss": self.train_loss, "tokens": tokens,
                "train_seconds": self.train_seconds, "tokens_per_second": speed}

    def on_train_end(self, *_: object) -> None:
        self.board.close()

    on_exception = on_train_end
