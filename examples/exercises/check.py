"""Says whether an exercise was done right: it runs your copy, and looks at what it does.

  python examples/exercises/check.py 6 my_copy.py

docs/exercises.md has the ten exercises. What you have written is executed, as Python would do it.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the library beside the examples

from lmlab.environment import imports

with imports():
    import numpy as np
    import torch
    import torch.nn.functional as F

    from lmlab.commands.door import run_command

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class NotYet(Exception):
    """What a copy does not do yet, in words for the person who wrote it."""


def expect(holds: bool, why: str) -> None:
    """Raises NotYet with the reason `why` unless something holds."""
    if not holds:
        raise NotYet(why)


def takes(function: Callable[..., Any], name: str, default: object) -> None:
    """Raises NotYet unless a function has a parameter with this name and default."""
    parameter = inspect.signature(function).parameters.get(name)
    signature = f"{function.__qualname__.removesuffix('.__init__')}(…, {name}={default})"
    expect(parameter is not None, f"write {signature}: it has no parameter {name} yet")
    assert parameter is not None
    expect(parameter.default == default, f"write {signature}: without {name} all is as before")


def close(one: Any, two: Any) -> bool:
    """Returns whether two arrays or tensors hold the same numbers, but for rounding."""
    one, two = np.asarray(one), np.asarray(two)
    return one.shape == two.shape and bool(np.allclose(one, two, rtol=1e-4, atol=1e-5))


def same_weights(mine: Any, original: Any, absent: tuple[str, ...] = ()) -> None:
    """Gives a module of the original file the weights of the copy's, and zeros for absent ones."""
    state = {name: weight for name, weight in mine.state_dict().items() if name not in absent}
    zeros = {name: torch.zeros_like(original.state_dict()[name]) for name in absent}
    try:
        original.load_state_dict(state | zeros)
    except RuntimeError:
        raise NotYet(
            "the weights are not those of the original; change what the exercise names, no more"
        ) from None


# tiny_lm.py


def temperature(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 1."""
    takes(mine.generate, "temperature", 1.0)
    mine.W[:] = np.random.default_rng(0).normal(size=mine.W.shape)
    original.W[:] = mine.W
    expect(
        mine.generate(40, seed=3) == original.generate(40, seed=3),
        "at temperature=1 it writes another text than before; divide the scores, before softmax",
    )
    c, greedy = mine.chars.index("h"), "h"
    for _ in range(40):
        c = int(mine.W[c].argmax())
        greedy += mine.chars[c]
    expect(
        mine.generate(40, seed=3, temperature=0) == greedy,
        "at temperature=0 it does not always take the likeliest character (argmax; nothing is "
        "divided by 0)",
    )
    for value in (0.5, 2.0):
        drawn = [mine.generate(1, seed=seed, temperature=value)[1] for seed in range(800)]
        shares = np.array([drawn.count(char) / len(drawn) for char in mine.chars])
        wanted = original.softmax(mine.W[mine.chars.index("h")] / value)
        expect(
            bool(np.abs(shares - wanted).max() < 0.07),
            f"at temperature={value} the characters are not drawn by softmax(scores / {value})",
        )


def perplexity(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 2."""
    expect(hasattr(mine, "perplexity"), "there is no function perplexity() yet")
    expect(
        close(mine.perplexity(), mine.V),
        f"before training all {mine.V} characters are equally likely, so it is {mine.V}; yours is "
        f"{mine.perplexity():.3f}",
    )
    before = np.exp(mine.train(30)[-1])
    wanted = np.exp(last_loss(original, mine.W))
    expect(
        close(mine.perplexity(), wanted),
        f"after 30 steps it is e to the mean loss of the table as it is then, {wanted:.3f}; yours "
        f"is {mine.perplexity():.3f} (before the last step it was {before:.3f})",
    )


def last_loss(original: ModuleType, W: np.ndarray) -> float:
    """Returns the mean loss of a table on the text."""
    probs = original.softmax(W[original.now])
    return float(-np.log(probs[np.arange(len(original.now)), original.following]).mean())


def momentum(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 3."""
    takes(mine.train, "momentum", 0.0)
    original.train(5, 1.0)
    mine.train(5, 1.0)
    expect(close(mine.W, original.W), "with momentum=0 the table is another one than before")
    for value in (0.5, 0.9):
        wanted, velocity = np.zeros_like(mine.W), np.zeros_like(mine.W)
        for _ in range(4):
            velocity = value * velocity + gradient(original, wanted)
            wanted -= 1.0 * velocity
        mine.W[:] = 0
        mine.train(4, 1.0, momentum=value)
        expect(
            close(mine.W, wanted),
            f"after 4 steps with momentum={value} the table is not that of velocity = momentum * "
            "velocity + gradient, W -= lr * velocity (a velocity begins at zero in each training)",
        )


def gradient(original: ModuleType, W: np.ndarray) -> np.ndarray:
    """Returns how each score of a table pushes the loss, from the step that the original makes."""
    original.W[:] = W
    original.train(1, 1.0)
    return W - original.W


def counting(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 4."""
    expect(hasattr(mine, "count"), "there is no function count() yet")
    mine.count()
    counts = np.zeros_like(mine.W)
    np.add.at(counts, (original.now, original.following), 1)
    wanted = (counts + 1) / (counts + 1).sum(axis=1, keepdims=True)
    probs = original.softmax(mine.W)
    expect(
        not close(probs, np.full_like(probs, 1 / mine.V)), "after count() the table is as before"
    )
    h, e = mine.chars.index("h"), mine.chars.index("e")
    expect(
        close(probs, wanted),
        f"after h the chance of e is {probs[h, e]:.3f}; it is (how often e follows h + 1) / (how "
        f"often anything follows h + {mine.V}) = {wanted[h, e]:.3f}. W holds logarithms",
    )


def falling_rate(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 5."""
    wanted = np.zeros_like(mine.W)
    for step in range(8):
        wanted -= 2.0 * (1 - step / 8) * gradient(original, wanted)
    mine.train(8, 2.0)
    original.W[:] = 0
    original.train(8, 2.0)
    expect(not close(mine.W, original.W), "the learning rate is the same in all steps")
    expect(
        close(mine.W, wanted),
        "after 8 steps the table is not that of the rates lr * (1 - step / steps), step = 0, 1, …",
    )


# nanogpt_mini.py


def attended(attention: Any, x: torch.Tensor, n_head: int, is_causal: bool) -> torch.Tensor:
    """Returns what attention with the weights of the copy gathers, by torch's own function."""
    try:
        matrices = attention.qkv.weight, attention.proj.weight
    except AttributeError:
        raise NotYet("the names qkv and proj are gone; this check needs them") from None
    B, T, C = x.shape
    q, k, v = (x @ matrices[0].T).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
    gathered = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return gathered.transpose(1, 2).reshape(B, T, C) @ matrices[1].T


def no_mask(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 6."""
    model = mine.GPT(9)
    idx = torch.tensor([[1, 2, 3, 4]])
    other = torch.tensor([[1, 2, 3, 5]])
    expect(
        not torch.equal(model(idx)[:, 0], model(other)[:, 0]),
        "another last character does not change the scores after the first: later ones are hidden still",
    )
    attention, x = mine.Attention(), torch.randn(2, 5, mine.n_embd)
    expect(
        close(attention(x), attended(attention, x, mine.n_head, is_causal=False)),
        "characters see later ones, but what is gathered is not softmax(scores) @ v over all of them",
    )


def heads(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 7."""
    takes(mine.Attention.__init__, "heads", mine.n_head)
    x = torch.randn(2, 5, mine.n_embd)
    for n in (1, 2, 8):
        attention = mine.Attention(heads=n)
        expect(
            attention(x).shape == x.shape,
            f"Attention(heads={n}) gives {tuple(attention(x).shape)}, not {tuple(x.shape)}",
        )
        expect(
            close(attention(x), attended(attention, x, n, is_causal=True)),
            f"Attention(heads={n}) does not gather with {n} heads of {mine.n_embd // n} channels "
            "(the root that scores are divided by is of the channels of one head)",
        )
    model = mine.GPT(9)
    same_weights(model, reference := original.GPT(9))
    idx = torch.randint(9, (2, 6))
    expect(close(model(idx), reference(idx)), "without heads= the model is another one than before")


def no_positions(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 8."""
    mine.n_layer = original.n_layer = 1
    model, reference = mine.GPT(9), original.GPT(9)
    one, two = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    expect(
        close(one[:, -1], two[:, -1]),
        "with one block, 'ab' and 'ba' before a character still give it other scores: it knows where "
        "they stand",
    )
    expect(
        not [name for name, _ in model.named_parameters() if "position" in name],
        "the table of positions is not used, but it is still a weight of the model; take it away",
    )
    same_weights(model, reference, absent=("position_embedding.weight",))
    idx = torch.randint(9, (2, 6))
    expect(close(model(idx), reference(idx)), "more has changed than the positions")


def dropout(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 9."""
    share = getattr(mine, "dropout", None)
    expect(share is not None, "there is no number dropout beside n_embd and lr yet")
    expect(isinstance(share, float) and 0 < share < 1, f"dropout is {share}, not between 0 and 1")
    assert isinstance(share, float)
    mlp, reference = mine.MLP(), original.MLP()
    same_weights(mlp, reference)
    x = torch.randn(20, 50, mine.n_embd)
    whole = reference(x)
    expect(
        close(mlp.eval()(x), whole),
        "in evaluation, after model.eval(), the MLP gives something else than without dropout",
    )
    answer = mlp.train()(x)
    zeros = float((answer == 0).float().mean())
    expect(
        zeros > 0,
        "in training no number of the MLP's answer, which comes out of its last layer, is zero",
    )
    expect(
        abs(zeros - share) < 0.03,
        f"in training {zeros:.0%} of the numbers of the MLP's answer are zero, not {share:.0%}",
    )
    kept = answer != 0
    expect(
        close(answer[kept], whole[kept] / (1 - share)),
        "the numbers that are left are not divided by 1 - dropout, so that their mean stays "
        "(F.dropout does it)",
    )


def top_k(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 10."""
    takes(mine.generate, "top_k", None)
    idx = torch.tensor([[1, 2]])
    model = FewScores()
    torch.manual_seed(0)
    before = original.generate(model, idx, 30)
    torch.manual_seed(0)
    expect(
        torch.equal(mine.generate(model, idx, 30), before),
        "without top_k it writes another text than before",
    )
    for k in (1, 3):
        drawn = {*mine.generate(model, idx, 300, top_k=k)[0, 2:].tolist()}
        best = {*range(9 - k, 9)}  # of FewScores
        expect(drawn <= best, f"with top_k={k} it draws others than the {k} likeliest")
        expect(drawn == best, f"with top_k={k} it never draws some of the {k} likeliest")


class FewScores(torch.nn.Module):
    """A model for which a token is the likelier, the higher its number, whatever came before."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return (torch.arange(9.0) / 4).expand(*idx.shape, 9)


Check = Callable[[ModuleType, ModuleType], None]
EXERCISES: dict[str, tuple[str, Check]] = {
    "1": ("tiny_lm", temperature),
    "2": ("tiny_lm", perplexity),
    "3": ("tiny_lm", momentum),
    "4": ("tiny_lm", counting),
    "5": ("tiny_lm", falling_rate),
    "6": ("nanogpt_mini", no_mask),
    "7": ("nanogpt_mini", heads),
    "8": ("nanogpt_mini", no_positions),
    "9": ("nanogpt_mini", dropout),
    "10": ("nanogpt_mini", top_k),
}
MARKS = {"tiny_lm": "W", "nanogpt_mini": "GPT"}  # what a copy of each must have


def main(argv: list[str]) -> int:
    """Prints whether an exercise was done right; returns 0 if it was, 1 if not, 2 if it cannot be told."""
    if argv in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(argv) == 2 and argv[0] in EXERCISES and not Path(argv[1]).is_file():
        print(f"error: {argv[1]}: no file there", file=sys.stderr)
        return 2
    if len(argv) != 2 or argv[0] not in EXERCISES:
        print(
            "error: type the number of an exercise, 1 to 10, and the file of your copy: "
            "python examples/exercises/check.py 6 my_copy.py",
            file=sys.stderr,
        )
        return 2
    name, check = EXERCISES[argv[0]]
    torch.manual_seed(0)
    path = Path(argv[1])
    try:
        with quiet(), torch.no_grad():
            original = opened(SCRIPTS / f"{name}.py", "original")
            mine = opened(path, "mine")
            if hasattr(mine, MARKS[name]):
                check(mine, original)
    except NotYet as why:
        print(f"not yet: {why}.")
        return 1
    except (Exception, SystemExit) as error:  # of the code of the learner, whatever it is
        print(f"not yet: {place_of(error, path)}{type(error).__name__}: {error}")
        return 1
    if not hasattr(mine, MARKS[name]):
        print(
            f"error: exercise {argv[0]} needs a copy of scripts/{name}.py, in which there is {MARKS[name]}; "
            f"{path} has none",
            file=sys.stderr,
        )
        return 2
    print(f"exercise {argv[0]}: right.")
    return 0


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which nothing is printed."""
    with redirect_stdout(io.StringIO()):
        yield


def opened(path: Path, name: str) -> ModuleType:
    """Returns a file as a module, without its part for the command line."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NotYet(f"{path} is no Python file; its name ends with .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def place_of(error: BaseException, path: Path) -> str:
    """Returns the last line of the copy that an error came through, or "" if there is none."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    return f"line {lines[-1]} of {path} raises " if lines else ""


def check(argv: list[str]) -> None:
    """Ends the program with the exit status of `main`."""
    raise SystemExit(main(argv))


if __name__ == "__main__":
    run_command(check)
