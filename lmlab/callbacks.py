"""What happens beside training: losses are noted, the model is evaluated and sampled, checkpoints are kept."""

import math
import time
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pytorch_lightning import Callback, Trainer
from rich.progress import Progress
from torch.utils.tensorboard import SummaryWriter

from lmlab import evaluate, generate
from lmlab.data import CharDataModule
from lmlab.models.bigram import Bigram
from lmlab.module import LanguageModule
from lmlab.runs import RunDirectory

class Recorder(Callback):
    """Takes all that is measured to history.jsonl, metrics.json, TensorBoard and the terminal."""
    def __init__(self, run: RunDirectory, data: CharDataModule) -> None:
        self.run, self.data, self.config = run, data, data.config
        keys = self.config.run
        self.tokens_per_step = keys.batch_size * keys.grad_accumulation * self.config.model.block_size
        self.step, self.train_seconds, self.train_loss = 0, 0.0, math.nan
        self.best, self.diverged, self.clock = math.inf, False, None
        self.board = SummaryWriter(run.path, purge_step=0)
        self.bar = Progress(console=run.console, refresh_per_second=4, disable=not run.console.is_terminal)
        self.task = self.bar.add_task("", total=keys.max_steps)

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:
        rows = "".join(f"|{key}|{value}|\n" for key, value in self.config.flat().items())
        self.board.add_text("config", f"|key|value|\n|-|-|\n{rows}", 0)
        self.bar.start()
        self.evaluate(trainer, module)
        self.clock = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:
        if trainer.global_step == self.step:
            return  # one of several batches of a step
        self.step, keys = trainer.global_step, self.config.run
        late = keys.max_minutes is not None and self.seconds() >= 60 * keys.max_minutes
        last = late or self.step == keys.max_steps
        due = last or self.step % keys.eval_interval == 0
        if due or self.step % keys.log_interval == 0:
            self.point(trainer, module)
        if due:
            self.train_seconds, self.clock = self.seconds(), None
            self.evaluate(trainer, module)
            self.clock = time.perf_counter()
        trainer.should_stop = late or self.diverged

    def seconds(self) -> float:
        """Seconds of training so far, evaluations left out."""
        return self.train_seconds + (time.perf_counter() - self.clock if self.clock else 0.0)

    def point(self, trainer: Trainer, module: LanguageModule) -> None:
        """A point of train/loss: the mean over the steps since the last one."""
        self.train_loss, seconds = module.take_loss(), self.seconds()
        speed = self.step * self.tokens_per_step / seconds
        self.note({"train/loss": self.train_loss, "lr": trainer.optimizers[0].param_groups[0]["lr"],
                   "grad_norm": float(module.grad_norm), "tokens_per_second": speed}, train_seconds=seconds)
        shown = f"step {self.step}  loss {self.train_loss:.3f}  {speed:,.0f} tokens/s"
        self.bar.update(self.task, completed=self.step, description=shown)
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
            keys = self.config
            answers = evaluate.log_probs(module.model, tokens, keys.model.block_size, keys.device.precision)
            values = evaluate.metrics(answers, tokens, self.data.tokenizer, "val")
            self.note(values)
        sample = self.sample(module, 60)
        self.board.add_text("sample", f"```\n{sample}\n```", self.step)
        if isinstance(module.model, Bigram):
            picture = bigram_picture(module.model, self.data.tokenizer.chars)
            self.board.add_image("bigram", picture, self.step, dataformats="HWC")
        self.keep(trainer, values)
        losses = {"train/loss": self.train_loss} | values if self.step else values
        shown = "".join(f"{key} {losses[key]:.4f}  " for key in ("train/loss", "val/loss") if key in losses)
        self.run.say(f"step {self.step:>5}  {shown}{sample.replace(chr(10), '↵')}")

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
            self.best, values["best/step"] = loss, self.step
            values |= {f"best/{key}": value for key, value in values.items() if key.startswith("val/")}
        self.run.update(**self.totals(), **values)

    def totals(self) -> dict[str, Any]:
        tokens, seconds = self.step * self.tokens_per_step, self.seconds()
        return {"step": self.step, "train/loss": self.train_loss, "tokens": tokens, "train_seconds": seconds,
                "tokens_per_second": tokens / seconds if seconds else math.nan}

    def on_train_end(self, *_: object) -> None:
        self.train_seconds, self.clock = self.seconds(), None
        self.bar.stop()
        self.board.close()
    on_exception = on_train_end

def bigram_picture(model: Bigram, chars: str) -> np.ndarray:
    """The table as an image (H, W, 3): a row a character, the darker a column, the likelier its character next."""
    shades = 255 * (1 - model.table.weight.detach().cpu().softmax(-1).sqrt())  # the root lets the rare show
    cell = max(1, min(14, 1400 // len(chars)))  # pixels
    size = cell * len(chars)
    picture = Image.new("RGB", (size + cell, size + cell), "white")
    picture.paste(Image.fromarray(shades.numpy().astype(np.uint8)).resize((size, size), 0), (cell, cell))
    for i, char in enumerate(chars, start=1):
        for place in ((3, i * cell), (i * cell + 3, 0)):
            ImageDraw.Draw(picture).text(place, repr(char)[1:-1] if char.isascii() else "?", fill="black")
    return np.asarray(picture)
