"""Calls what somebody else has registered, and says how if it cannot be called as the lab does."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from lmlab import plugins
from lmlab.errors import UserError, is_out_of_memory, reason_of


def check_call(about: str, function: Any, form: str) -> None:
    """Raises UserError if a function cannot be called as `form` says, such as "forward(idx)".

    In "setup(trainer, stage=stage)" the second argument is named. The message begins with `about`. A function whose parameters Python does not know is not checked.
    """
    if not callable(function):
        raise UserError(f"{about}: {function!r} is no function; needs {form}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of one that is written in C
        if inspect.ismethod(function):
            raise UserError(
                f"{about}: {title_of(function, form)}(): lacks self; needs {form}"
            ) from None
        return
    arguments = [*filter(None, form.partition("(")[2].removesuffix(")").split(", "))]
    named = dict(text.split("=") for text in arguments if "=" in text)
    try:
        signature.bind(*(text for text in arguments if "=" not in text), **named)
    except TypeError as error:
        written = f"{title_of(function, form)}({', '.join(signature.parameters)})"
        raise UserError(f"{about}: {written}: {error}; needs {form}") from None


def check_methods(about: str, thing: Any, base: type, unasked: Collection[str] = ()) -> None:
    """Raises UserError if a method of `base` that was written anew cannot be called as that one is.

    Those that the lab never calls, `unasked`, may be anything.
    """
    for name, usual in vars(base).items():
        if not inspect.isfunction(usual) or name.startswith("__") or name in unasked:
            continue
        written = getattr(thing, name)
        if getattr(written, "__func__", None) is usual:
            continue
        taken = [one.name for one in parameters_of(usual) if one.default is one.empty]
        check_call(about, written, f"{name}({', '.join(taken)})")


def parameters_of(method: Any) -> list[inspect.Parameter]:
    """Returns the parameters of a method of a class, without self."""
    return [*inspect.signature(method).parameters.values()][1:]


def title_of(function: Any, form: str) -> str:
    """Returns the name of a function, with that of its class, or else the name in `form`."""
    name: str = getattr(function, "__qualname__", form.partition("(")[0])
    return name.split("<locals>.")[-1]


@contextmanager
def own_call(about: str, form: str) -> Iterator[None]:
    """A context around a call of somebody else's function, which makes an error of it a UserError.

    An error from a line of their own stays as it is, since it is shown with that line; so does one
    of memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if plugins.own_frames(error) or is_out_of_memory(error):
            raise
        raise UserError(f"{about}: {reason_of(error)}; needs {form}") from error
