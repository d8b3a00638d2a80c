"""Measures training steps: the lab's loop against a plain loop, the machine's peak, and nanoGPT."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer

from lmlab import machine
from lmlab.commands import train as cli
from lmlab.config import overrides
from lmlab.data.splits import Splits
from lmlab.errors import UserError
from lmlab.inference.loss import log_probs
from lmlab.models.base import LanguageModel, build_model
from lmlab.training.optimizers import build_optimizer
from lmlab.training.recorder import Recorder
from lmlab.training.step import LanguageModule
from suites import commands
from suites.commands import clock

STEPS = 500  # of a run
IN_TURN = 10  # steps in the lab, then as many in the open


def peak(place: torch.device, dtype: torch.dtype) -> float:
    """Multiplies large matrices twenty times, and returns the FLOP/s of the fastest product."""
    n = 2048 if place.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=place, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(20):
        begun = clock()
        a @ b
        times.append(clock() - begun)
    return 2 * n**3 / min(times)


def in_the_open(arguments: list[str]) -> Callable[[], float]:
    """Returns a loop in plain PyTorch with the model, optimizer and precision of train.py.

    Each call makes `IN_TURN` more steps and returns their seconds.
    """
    config = machine.resolve(overrides.resolved(arguments)[0])
    place = machine.pick(config.choices["device"])
    run = config.run
    T = config.model.block_size
    text = Splits.of_run(config)
    tokens = torch.from_numpy(text.train.copy()).to(place)
    model = build_model(config.model, text.tokenizer.vocab_size).to(place)
    optimizer = build_optimizer(model, config.optimizer, config.device.precision)
    weights = list(model.parameters())

    def steps() -> float:
        careful = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        begun = clock()
        for _ in range(IN_TURN):
            starts = torch.randint(len(tokens) - T, (run.batch_size, 1), device=place)
            window = tokens[starts + torch.arange(T + 1, device=place)].long()
            with machine.autocast(place, config.device.precision):
                loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, run.grad_clip)
            optimizer.step()
        seconds = clock() - begun
        torch.use_deterministic_algorithms(careful)
        return seconds

    return steps


class Timed(Recorder):
    """Measures the seconds of the lab's steps without evaluations.

    Between them it makes the same number of steps of the plain loop.
    """

    open_steps: Callable[[], float]
    lab = openly = 0.0

    def on_train_start(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        super().on_train_start(trainer, module)
        self.open_steps()  # the first warm up
        Timed.openly = 0.0
        Timed.lab = -clock()

    def on_train_batch_end(self, trainer: Trainer, module: LanguageModule, *_: object) -> None:  # type: ignore[override]  # our module
        super().on_train_batch_end(trainer, module)
        if self.meter.step % IN_TURN == 0:
            Timed.lab += clock()
            Timed.openly += self.open_steps()
            Timed.lab -= clock()

    def evaluate(self, trainer: Trainer, module: LanguageModule) -> None:
        Timed.lab += clock()
        super().evaluate(trainer, module)
        Timed.lab -= clock()

    def on_train_end(self, trainer: Trainer, module: LanguageModule) -> None:  # type: ignore[override]  # our module
        Timed.lab += clock()
        super().on_train_end(trainer, module)


def in_turn(arguments: list[str]) -> tuple[float, float]:
    """Returns the seconds of a step of train.py, and of a step of the plain loop.

    train.py also draws its bar and writes points and checkpoints.
    """
    Timed.open_steps = staticmethod(in_the_open(arguments))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.dict(os.environ, FORCE_COLOR="1"),
        mock.patch("sys.argv", ["train.py"]),
        mock.patch("lmlab.training.experiment.Recorder", Timed),
    ):  # FORCE_COLOR: the bar is drawn though nobody looks
        cli.main([*arguments, f"max_steps={STEPS}", "eval_interval=1000000"])
    return Timed.lab / STEPS, Timed.openly / STEPS


def check(nanogpt: Path | None) -> None:
    """Raises UserError if a text is missing that the suite needs at its end."""
    if nanogpt is None:
        return
    if not (nanogpt / "data/shakespeare_char/train.bin").exists():
        raise UserError(
            f"nanogpt={nanogpt}: its text isn't prepared; run data/shakespeare_char/prepare.py there first"
        )
    config, _ = overrides.resolved(("experiment=shakespeare_cpu",))
    Splits.of_run(config)


def measure(repeats: int, nanogpt: Path | None) -> dict[str, float]:
    place = machine.pick("auto")
    numbers: dict[str, float] = {}
    config = machine.resolve(overrides.resolved(("model=gpt",))[0])
    half = config.device.precision == "bf16-mixed"
    numbers["GFLOP/s, peak in float32"] = peak(place, torch.float32) / 1e9
    best = peak(place, torch.bfloat16 if half else torch.float32)
    numbers["GFLOP/s, peak in the precision of training"] = best / 1e9
    for name, arguments in (
        ("gpt", ["model=gpt", "compile=false"]),
        ("bigram", ["model=bigram", "compile=false"]),
        ("modern, muon", ["model=modern", "optimizer=muon", "compile=false"]),
    ):
        times = [in_turn(arguments) for _ in range(repeats)]
        numbers[f"{name}: ms a step, loop in the open"] = 1e3 * median(b for _, b in times)
        numbers[f"{name}: ms a step, lmlab"] = 1e3 * median(a for a, _ in times)
        numbers[f"{name}: lmlab / loop in the open"] = median(a / b for a, b in times)
        numbers[f"{name}: ms beside the loop in the open"] = 1e3 * median(a - b for a, b in times)
        if name == "gpt":
            tokens = (
                config.run.batch_size
                * config.model.block_size
                / (numbers[f"{name}: ms a step, lmlab"] / 1e3)
            )
            flops = build_model(config.model, 60).flops_per_token()  # of the stories' characters
            numbers["gpt: share of the peak (MFU)"] = flops * tokens / best
    if nanogpt:
        numbers |= against_nanogpt(repeats, nanogpt)
    return numbers


def against_nanogpt(repeats: int, clone: Path) -> dict[str, float]:
    """Returns medians over runs of nanoGPT's recipe, in turn with ours, each with a new seed."""
    recipe = "shakespeare_baby" if torch.cuda.is_available() else "shakespeare_cpu"
    tokens = {"shakespeare_cpu": 2000 * 12 * 64, "shakespeare_baby": 1000 * 64 * 256}[recipe]
    ours_only = "" if recipe == "shakespeare_cpu" else " max_steps=1000 decay_steps=5000"
    rows = []
    for seed in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            wall, training = commands.train_nanogpt(clone.resolve(), recipe, seed, Path(out))
            loss = full_pass(clone, Path(out) / "ckpt.pt")
        ours, metrics = commands.train(f"experiment={recipe} seed={seed}{ours_only}")
        row = {
            f"{recipe}: seconds in all, nanoGPT": wall,
            f"{recipe}: seconds in all, lmlab": ours,
            f"{recipe}: wall time, lmlab / nanoGPT": ours / wall,
            f"{recipe}: tokens/s of training, nanoGPT": tokens / training,
            f"{recipe}: tokens/s of training, lmlab": metrics["tokens_per_second"],
            f"{recipe}: tokens/s of training, lmlab / nanoGPT": metrics["tokens_per_second"]
            * training
            / tokens,
            f"{recipe}: val/loss, nanoGPT": loss,
            f"{recipe}: val/loss, lmlab": metrics["val/loss"],
        }
        if recipe == "shakespeare_cpu":
            _, fast = commands.train(f"experiment=shakespeare_fast seed={seed}")
            row |= {
                "shakespeare_fast: val/loss": fast["val/loss"],
                "shakespeare_fast: seconds of training": fast["train_seconds"],
                "shakespeare_fast: seconds of training / nanoGPT's": fast["train_seconds"]
                / training,
            }
        rows.append(row)
    medians = {}
    for key in rows[0]:
        medians[key] = median(row[key] for row in rows)
    return medians


def full_pass(clone: Path, checkpoint: Path) -> float:
    """Returns the loss of nanoGPT's checkpoint on the validation text, by the lab's evaluation."""
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig  # nanoGPT's own file

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    theirs = GPT(GPTConfig(**saved["model_args"]))
    theirs.load_state_dict(
        {name.removeprefix("_orig_mod."): weight for name, weight in saved["model"].items()}
    )

    config, _ = overrides.resolved(("experiment=shakespeare_cpu",))

    class Logits(LanguageModel):
        def __init__(self) -> None:
            super().__init__(config.model)
            self.theirs = theirs

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return self.theirs(idx, idx)[0]  # without targets it answers for the last token alone

    text = Splits.of_run(config)
    answers = log_probs(Logits(), text.val, saved["model_args"]["block_size"])
    return -answers.double().mean().item()
