"""The hash of what a notebook or a script registers: all of its own code and values, no more."""

import pytest

from lmlab.own_code import code_of

PROGRAM = """
import torch.nn as nn
SCALE = {scale}
OTHER = {other}

def helper(x):
    return x * {factor}

class Base(nn.Module):
    size = {size}
    def grow(self, x):
        return x + {added}

class Part(nn.Module):
    def forward(self, x):
        return {value}

def make(n):
    def inner(x):
        return x + n
    return inner

inner = make({cell})

class Model(Base):
    def __init__(self):
        self.part = Part()
    def forward(self, x):
        return helper(self.part(x)) * SCALE + inner(x)
"""
PARTS = {"scale": 1, "other": 1, "factor": 2, "size": 3, "added": 4, "value": 5, "cell": 6}


def model_code(before="", **parts):
    space = {"__name__": "__main__"}
    exec(before + PROGRAM.format(**PARTS | parts), space)
    return code_of(space["Model"])


@pytest.mark.parametrize("part", [name for name in PARTS if name != "other"])
def test_all_code_that_a_model_uses_is_in_its_hash(part):
    assert model_code() == model_code() != model_code(**{part: 9})


def test_what_it_does_not_use_and_where_it_stands_is_not():
    assert model_code() == model_code(other=2) == model_code(before="\n\n\n")


VALUES = {  # what a function names, and what it may be instead
    "an array": ("np.array([1.0, 2.0])", "np.array([1.0, 3.0])"),
    "its type": ("np.array([1, 2])", "np.array([1, 2], np.int32)"),
    "a number of numpy's": ("np.float32(2)", "np.float32(3)"),
    "an array of objects": ("np.array([1, 'a'], object)", "np.array([1, 'b'], object)"),
    "a tensor": ("torch.tensor([1.0, 2.0])", "torch.tensor([1.0, 3.0])"),
    "half a tensor": ("torch.ones(2).bfloat16()", "torch.zeros(2).bfloat16()"),
    "a scalar": ("torch.tensor(2)", "torch.tensor(3)"),
    "a partial": ("functools.partial(max, 3)", "functools.partial(max, 4)"),
    "a partial's function": ("functools.partial(f, 3)", "functools.partial(g, 3)"),
    "an instance": ("Keys(3)", "Keys(4)"),
    "an instance in a dict": ("{'a': [Keys(3)]}", "{'a': [Keys(4)]}"),
    "an instance with slots": ("Slots(3)", "Slots(4)"),
    "a set of instances": ("{Keys(3), Keys(4)}", "{Keys(3), Keys(5)}"),
    "a function of a library": ("torch.relu", "torch.tanh"),
    "a class of a library": ("torch.nn.GRU", "torch.nn.RNN"),
    "a module of a library": ("torch.nn", "torch.fft"),
    "an instance of a library's class": ("torch.nn.ReLU()", "torch.nn.Tanh()"),
    "a class of its own from a library's": (
        "type('A', (torch.nn.GRU,), {})",
        "type('A', (torch.nn.RNN,), {})",
    ),
    "an attribute from a library": (
        "type('A', (), {'act': torch.relu})",
        "type('A', (), {'act': torch.tanh})",
    ),
    "a cached function": ("functools.cache(f)", "functools.cache(g)"),
    "a cached property": (
        "type('A', (), {'a': functools.cached_property(f)})",
        "type('A', (), {'a': functools.cached_property(g)})",
    ),
    "the setter of a property": (
        "type('A', (), {'a': property(f, f)})",
        "type('A', (), {'a': property(f, g)})",
    ),
    "a range": ("range(3)", "range(4)"),
    "a pattern": ("re.compile('a')", "re.compile('b')"),
    "a namespace": ("types.SimpleNamespace(a=1)", "types.SimpleNamespace(a=2)"),
}


def code_with(value, body="return SCALE", default="None"):
    text = f"""
import dataclasses, functools, re, types
import numpy as np
import torch

@dataclasses.dataclass(frozen=True)
class Keys:
    n: int

class Slots:
    __slots__ = "n"
    def __init__(self, n): self.n = n

def f(x): return x
def g(x): return -x
SCALE = {value}
def used(default={default}):
    {body}
"""
    space = {"__name__": "__main__"}
    exec(text, space)
    return code_of(space["used"])


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_it_uses_is_in_its_hash(kind):
    """Also as a default, of which the text may hold an address."""
    one, two = VALUES[kind]
    assert code_with(one) == code_with(one) != code_with(two)
    assert code_with(0, default=one) == code_with(0, default=one) != code_with(0, default=two)


def test_a_file_that_it_imports_when_it_is_called_is_in_its_hash(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    found = []
    for scale in (1, 2, 1):
        (here / "late_helper.py").write_text(f"SCALE = {scale}\n")
        found.append(code_with(0, "from late_helper import SCALE; return SCALE"))
    assert found[0] == found[2] != found[1]
