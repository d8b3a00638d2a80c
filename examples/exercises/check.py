"""Says whether an exercise was done right: it runs your copy, and looks at what it does.

  python examples/exercises/check.py 6 my_copy.py

docs/exercises.md has the ten exercises. What you have written is executed, as Python would do it.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import multiprocessing
import numbers
import re
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import pairwise
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
    from lmlab.errors import reason_of

LIMIT = 300  # seconds in which a copy must have been looked at; two or three are usual
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class NotYet(Exception):
    """What a copy does not do yet, in words for the person who wrote it."""


def expect(holds: bool, why: str) -> None:
    """Raises NotYet with the reason `why` unless something holds."""
    if not holds:
        raise NotYet(why)


def function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Returns a function of a copy. Raises NotYet if there is none with this name."""
    found = getattr(module, name, None)
    expect(found is not None, f"there is no function {name}() yet")
    expect(callable(found), f"{name} is {reprlib.repr(found)}, not a function")
    called: Callable[..., Any] = found
    return called


def takes(function: Callable[..., Any], name: str, usual: str) -> None:
    """Raises NotYet unless a function can be called with and without a parameter of this name."""
    parameter = inspect.signature(function).parameters.get(name)
    signature = f"{function.__qualname__.removesuffix('.__init__')}(…, {name}={usual})"
    expect(parameter is not None, f"write {signature}: it has no parameter {name} yet")
    assert parameter is not None
    has_default = parameter.default is not inspect.Parameter.empty
    expect(has_default, f"write {signature}: without {name} all is as before")


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
    takes(function(mine, "generate"), "temperature", "1.0")
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
        text = mine.generate(8000, seed=3, temperature=value)
        drawn = [b for a, b in pairwise(text) if a == "h"]
        shares = np.array([drawn.count(char) / max(1, len(drawn)) for char in mine.chars])
        wanted = original.softmax(mine.W[mine.chars.index("h")] / value)
        expect(
            bool(np.abs(shares - wanted).max() < 0.07),
            f"at temperature={value} the characters are not drawn by softmax(scores / {value})",
        )


def perplexity(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 2."""
    perplexity = function(mine, "perplexity")
    yours = number(perplexity(), "perplexity()")
    expect(
        close(yours, mine.V),
        f"before training all {mine.V} characters are equally likely, so it is {mine.V}; yours is "
        f"{yours:.3f}",
    )
    expect(not mine.W.any(), "perplexity() changes the table W; it only looks at it")
    losses_before = mine.train(30)
    W = mine.W.copy()
    wanted = np.exp(last_loss(original, W))
    yours = number(perplexity(), "perplexity()")
    expect(
        close(yours, wanted),
        f"after 30 steps it is e to the mean loss of the table as it is then, {wanted:.3f}; yours "
        f"is {yours:.3f} (before the last step it was {np.exp(losses_before[-1]):.3f})",
    )
    expect(close(mine.W, W), "perplexity() changes the table W; it only looks at it")


def number(value: Any, name: str) -> float:
    """Returns what a function of a copy has returned. Raises NotYet if it is no number."""
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    expect(
        isinstance(value, numbers.Real | np.number),
        f"{name} returns {reprlib.repr(value)}, which is not a number",
    )
    return float(value)


def last_loss(original: ModuleType, W: np.ndarray) -> float:
    """Returns the mean loss of a table on the text."""
    probs = original.softmax(W[original.now])
    return float(-np.log(probs[np.arange(len(original.now)), original.following]).mean())


def momentum(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 3."""
    takes(function(mine, "train"), "momentum", "0.0")
    losses, found = original.train(5, 1.0), mine.train(5, 1.0)
    expect(close(mine.W, original.W), "with momentum=0 the table is another one than before")
    expect(
        close_lists(found, losses),
        "train() does not return the losses of its steps any more, as it did before",
    )
    for value, lr in ((0.5, 1.0), (0.9, 1.0), (0.9, 0.25)):
        wanted, velocity = np.zeros_like(mine.W), np.zeros_like(mine.W)
        for _ in range(4):
            velocity = value * velocity + gradient(original, wanted)
            wanted -= lr * velocity
        mine.W[:] = 0
        mine.train(4, lr, momentum=value)
        expect(
            close(mine.W, wanted),
            f"after 4 steps with lr={lr} momentum={value} the table is not that of velocity = "
            "momentum * velocity + gradient, W -= lr * velocity (a velocity begins at zero in each "
            "training)",
        )


def close_lists(one: Any, two: list[float]) -> bool:
    """Returns whether `one` is a list of the numbers in `two`, but for rounding."""
    return isinstance(one, list | tuple | np.ndarray) and close(one, two)


def gradient(original: ModuleType, W: np.ndarray) -> np.ndarray:
    """Returns how each score of a table pushes the loss, from the step that the original makes."""
    original.W[:] = W
    original.train(1, 1.0)
    return W - original.W


def counting(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 4."""
    count = function(mine, "count")
    count()
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
    mine.W[:] = np.random.default_rng(0).normal(size=mine.W.shape)
    count()
    expect(
        close(original.softmax(mine.W), wanted),
        "after some training, count() fills the table otherwise: it must not matter what W was before",
    )


def falling_rate(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 5."""
    wanted, losses = np.zeros_like(mine.W), []
    for step in range(8):
        losses.append(last_loss(original, wanted))
        wanted -= 2.0 * (1 - step / 8) * gradient(original, wanted)
    found = mine.train(8, 2.0)
    original.W[:] = 0
    original.train(8, 2.0)
    expect(not close(mine.W, original.W), "the learning rate is the same in all steps")
    expect(
        close(mine.W, wanted),
        "after 8 steps the table is not that of the rates lr * (1 - step / steps), step = 0, 1, …",
    )
    expect(
        close_lists(found, losses),
        "train() does not return the losses of its steps any more, as it did before",
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
    attention, x = part_of(model, mine.Attention), torch.randn(2, 5, mine.n_embd)
    expect(
        close(attention(x), attended(attention, x, mine.n_head, is_causal=False)),
        "characters see later ones, but what is gathered is not softmax(scores) @ v over all of them",
    )
    same_weights(model, reference := original.GPT(9))
    for block in reference.blocks:
        block.attention.forward = partial(
            attended, block.attention, n_head=mine.n_head, is_causal=False
        )
    expect(
        close(model(idx), reference(idx)),
        "a block has its mask still, or more has changed than the mask",
    )


def with_number(mine: ModuleType, name: str, value: float) -> ModuleType:
    """Returns a copy as it is with another value of a number at its top."""
    path = Path(str(mine.__file__))
    source = importlib.util.decode_source(path.read_bytes())
    changed = re.sub(rf"^{name}\b.*", f"{name} = {value}", source, count=1, flags=re.M)
    module = ModuleType("mine")
    module.__file__ = str(path)
    sys.modules["mine"] = module
    exec(compile(changed, str(path), "exec"), module.__dict__)
    return module


def part_of(model: Any, kind: type) -> Any:
    """Returns the first part of a model that is of a class of the copy. Raises NotYet."""
    found = [part for part in model.modules() if isinstance(part, kind)]
    expect(bool(found), f"the model of the copy has no {kind.__name__} any more")
    return found[0]


def heads(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 7."""
    takes(mine.Attention.__init__, "heads", "n_head")
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
    for n in (mine.n_head, 2):
        model = with_number(mine, "n_head", n).GPT(9)
        original.n_head = n
        same_weights(model, reference := original.GPT(9))
        idx = torch.randint(9, (2, 6))
        expect(
            close(model(idx), reference(idx)),
            f"without heads= the model has not the heads of n_head = {n} at the top, as it had before",
        )


def no_positions(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 8."""
    original.n_layer = 1
    model, reference = with_number(mine, "n_layer", 1).GPT(9), original.GPT(9)
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
    for number in (share, 0.5 if share < 0.4 else 0.25):
        drops(with_number(mine, "dropout", number), original, number)


def drops(mine: ModuleType, original: ModuleType, share: float) -> None:
    """Raises NotYet unless the model of a copy drops this share of what its MLPs answer, no more."""
    model = mine.GPT(9)
    same_weights(model, whole_model := original.GPT(9))
    mlp, whole_mlp = part_of(model, mine.MLP), whole_model.blocks[0].mlp
    x = torch.randn(20, 50, mine.n_embd)
    whole = whole_mlp(x)
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
        f"with dropout = {share} at the top {zeros:.0%} of the numbers of the MLP's answer are zero in "
        f"training, not {share:.0%}",
    )
    kept = answer != 0
    expect(
        close(answer[kept], whole[kept] / (1 - share)),
        "the numbers that are left are not divided by 1 - dropout, so that their mean stays "
        "(F.dropout does it)",
    )
    expect(
        not torch.equal(mlp(x) == 0, ~kept),
        "in training the same numbers are zero each time; another share each time means others",
    )
    for axis in range(3):
        neighbours = (~kept).unfold(axis, 2, 1).all(-1).float().mean()
        expect(
            abs(float(neighbours) - share**2) < 0.03,
            "in training whole rows are zero together; each number is dropped by its own chance",
        )
    attention = part_of(model.train(), mine.Attention)
    expect(
        close(attention(x), attended(attention, x, mine.n_head, is_causal=True)),
        "the attention drops numbers, too; only what an MLP answers is dropped",
    )
    idx = torch.randint(9, (2, 6))
    expect(
        close(model.eval()(idx), whole_model(idx)),
        "in evaluation, after model.eval(), the model gives something else than without dropout",
    )


def top_k(mine: ModuleType, original: ModuleType) -> None:
    """Exercise 10."""
    takes(function(mine, "generate"), "top_k", "None")
    idx = torch.tensor([[1, 2], [3, 4]])
    model = FewScores()
    torch.manual_seed(0)
    before = original.generate(model, idx, 30)
    torch.manual_seed(0)
    expect(
        torch.equal(mine.generate(model, idx, 30), before),
        "without top_k it writes another text than before",
    )
    scores, order = model.table.sort(dim=1, descending=True)
    rank = order.argsort(dim=1)  # of each token after each other: 0 is the likeliest
    for k in (1, 3):
        tokens = mine.generate(model, idx, 800, top_k=k)
        drawn = rank[tokens[:, 1:-1], tokens[:, 2:]].flatten().tolist()
        expect(
            {*drawn} <= {*range(k)},
            f"with top_k={k} it draws others than the {k} likeliest that each of two texts has after "
            "its last token",
        )
        expect({*drawn} == {*range(k)}, f"with top_k={k} it never draws some of the {k} likeliest")
        wanted = (scores[0, :k] / 0.8).softmax(-1)  # in all rows the same
        shares = [drawn.count(n) / len(drawn) for n in range(k)]
        expect(
            bool(np.abs(np.array(shares) - wanted.numpy()).max() < 0.07),
            f"with top_k={k} it does not draw by the chances that the {k} likeliest have among "
            "themselves, softmax(scores / 0.8)",
        )


class FewScores(torch.nn.Module):
    """A model that scores the next token by the last one: each has an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        orders = [torch.randperm(9, generator=random) for _ in range(9)]
        # To add a number to all scores changes no chance.
        self.table = torch.stack(orders) / 4 + torch.arange(9.0)[:, None]

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.table[idx]


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
    status, line = judged_apart(argv[0], Path(argv[1]))
    print(line, file=sys.stderr if status == 2 else sys.stdout)
    return status


Verdict = tuple[int, str]  # the exit status, and the line that says why


def judged_apart(number: str, path: Path) -> Verdict:
    """Returns the verdict of `judge` from a process of its own, which a copy may end or hang."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    here = multiprocessing.get_context("fork")
    process = here.Process(target=lambda: theirs.send(judge(number, path)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT):
            return 1, (
                f"not yet: {path} has not come to an end in {LIMIT} seconds; is there a loop without "
                "end, or something outside of `if __name__ == ...`?"
            )
        verdict: Verdict = ours.recv()
        return verdict
    except EOFError:
        return 1, f"not yet: {path} ends the program, so that nobody can look at what it does."
    finally:
        process.kill()


def judge(number: str, path: Path) -> Verdict:
    """Returns 0 if an exercise was done right, 1 if not, 2 if it cannot be told, and says why."""
    name, check = EXERCISES[number]
    torch.manual_seed(0)
    try:
        with quiet(path), torch.no_grad():
            original = opened(SCRIPTS / f"{name}.py", "original")
            mine = opened(path, "mine")
            if hasattr(mine, MARKS[name]):
                check(mine, original)
    except NotYet as why:
        return 1, f"not yet: {why}."
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the code of the learner, whatever it is
        return 1, f"not yet: {place_of(error, path)}{cause_of(error, path)}"
    if not hasattr(mine, MARKS[name]):
        return 2, (
            f"error: exercise {number} needs a copy of scripts/{name}.py, in which there is "
            f"{MARKS[name]}; {path} has none"
        )
    return 0, f"exercise {number}: right."


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """A context in which nothing is printed, and Python sees what it would if it ran the file."""
    before = sys.argv, sys.path
    sys.argv = [str(path)]
    sys.path = [str(path.resolve().parent), *sys.path]  # a file beside it can be imported
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.argv, sys.path = before


def opened(path: Path, name: str) -> ModuleType:
    """Returns a file as a module, without its part for the command line."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NotYet(f"{path} is no Python file; its name ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names of annotations
    spec.loader.exec_module(module)
    return module


def is_unreadable(error: BaseException, path: Path) -> bool:
    """Returns whether Python could not read the copy, of which nothing was executed then."""
    if not isinstance(error, SyntaxError) or error.filename is None:
        return False
    return Path(error.filename).resolve() == path.resolve()


def cause_of(error: BaseException, path: Path) -> str:
    """Returns the kind of an error and its text, or what Python could not read."""
    if is_unreadable(error, path):
        return str(error.msg)  # type: ignore[attr-defined]
    return reason_of(error)


def place_of(error: BaseException, path: Path) -> str:
    """Returns the last line of the copy that an error came through, or that it came after it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if is_unreadable(error, path):
        return f"line {error.lineno} of {path} cannot be read: "  # type: ignore[attr-defined]
    if lines:
        return f"line {lines[-1]} of {path} raises "
    return f"what {path} returns cannot be looked at: "


def check(argv: list[str]) -> None:
    """Ends the program with the exit status of `main`."""
    raise SystemExit(main(argv))


if __name__ == "__main__":
    run_command(check)
