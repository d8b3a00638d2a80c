"""Reads the options of the scripts (key=value), and makes the text of train.py --help."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lmlab import files
from lmlab.catalogue import CATALOGUE, VALUES
from lmlab.config.check import check_value, suggestion
from lmlab.config.conf_files import CONF, names_in, text_of
from lmlab.config.grammar import parse
from lmlab.config.keys import (
    CHOICES,
    companion_keys,
    companions,
    keys_of,
    markers,
    may_be_null,
    plain_kind,
)
from lmlab.errors import UserError
from lmlab.markers import FILLED
from lmlab.runs.typed import as_typed

# What the lab's own results have in them, by the ending of the file.
MADE_HERE = {".png": b"Matplotlib version", ".html": b"lmlab</title>"}


def help_page() -> str:
    """Returns the text of --help: conf/help.txt, then the comments of the files in conf/."""
    page = (CONF / "help.txt").read_text(encoding="utf-8")
    for group in (*CHOICES, "sweep", "hydra/launcher", "hydra/sweeper"):
        page += f"\n{group}=\n"
        for name in names_in(group):
            page += f"  {name:<24}{title_of(group, name)}\n"
    page += keys_in("config", "every run")
    for group, rows in CATALOGUE.items():
        described = set()
        for choice, row in rows.items():
            if row.config not in described:
                page += keys_of_choice(group, choice)
            described.add(row.config)
    page += keys_of_companions()
    for kind, choice in (("launcher", "local"), ("sweeper", "search")):
        page += keys_in(f"hydra/{kind}/{choice}", f"hydra/{kind}={choice}", f"hydra.{kind}.")
    return as_typed(page)


def title_of(group: str, name: str) -> str:
    """Returns the comment in the first two lines of a file of conf/, or "" if there is none."""
    if name in VALUES.get(group, ()):
        return "(of a plug-in)"
    for line in text_of(group, name).splitlines()[:2]:
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""


def keys_of_choice(group: str, choice: str) -> str:
    """Returns the keys of a choice, from its file or from the plug-in that registered it."""
    title = f"{group}={choice}"
    if choice not in VALUES.get(group, ()):
        return keys_in(f"{group}/{choice}", title)
    return key_lines(title, CATALOGUE[group][choice].config, VALUES[group][choice])


def keys_of_companions() -> str:
    """Returns the keys that callbacks and loggers of plug-ins add to every run."""
    page = ""
    in_file = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    for name, config in companions().items():
        values = {key: value for key, value in companion_keys().items() if key in keys_of(config)}
        if values and not values.keys() <= in_file.keys():
            page += key_lines(f"every run, of {name}", config, values)
    return page


def key_lines(title: str, config: type, values: dict[str, Any]) -> str:
    """Returns a title and a line for each key: its value, and its type and range."""
    hints = get_type_hints(config, include_extras=True)
    page = f"\nKeys of {title}\n"
    for key, value in values.items():
        setting = f"{key}: {yaml.safe_dump(value).splitlines()[0]}"
        page += f"  {setting:<22}# {meaning_of(hints[key])}\n"
    return page


def meaning_of(hint: Any) -> str:
    """Returns the type and the range of a key, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kind = plain_kind(hint)
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    ranges = [mark for mark in markers(hint) if isinstance(mark, str)]
    return " ".join([names.get(kind, str(kind)), *(f"in {range_}" for range_ in ranges)])


def keys_in(file: str, title: str, prefix: str = "") -> str:
    """Returns a title and the lines of a file of conf/ that set a key."""
    lines = (CONF / f"{file}.yaml").read_text(encoding="utf-8").split("\nhydra:")[0].splitlines()
    keys = [line for line in lines if line[:1].islower() and not line.startswith("defaults:")]
    if not keys:
        return ""
    return f"\nKeys of {title}\n" + "".join(f"  {prefix}{line}\n" for line in keys)


def parse_script(options: type, page: str | None, argv: list[str]) -> Any:
    """Returns the dataclass `options`, filled with checked key=value arguments.

    --help prints `page`, a docstring, and ends the program. Raises UserError.
    """
    if {"-h", "--help"} & set(argv):
        check_alone("--help", argv)
        if page is None:
            raise UserError(
                "--help: Python has left the page out; needs a call without -OO and PYTHONOPTIMIZE=2"
            )
        print(as_typed(page.strip()))
        if Path(getattr(options, "out", None) or "").suffix:
            print("\nA file that out= names is replaced if it is there.")
        raise SystemExit
    hints = get_type_hints(options, include_extras=True)
    values: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(
                f"{argument}: needs key=value{suggestion(key, hints)}; keys are {', '.join(hints)}"
            )
        if key in values:
            raise UserError(f"{argument}: {key} is there twice")
        check_known(argument, key, hints)
        value: Any = text
        if text == "null" and may_be_null(hints[key]):
            value = None
        elif plain_kind(hints[key]) in (int, float, bool):
            value = unquoted(argument)
            if re.fullmatch(r"-?\d+,\d+", text):
                raise UserError(f"{argument}: write a decimal point: {argument.replace(',', '.')}")
        elif FILLED in markers(hints[key]) and re.fullmatch(r"(['\"]).*\1", text):
            value = unquoted(argument)  # in the quotes that train.py needs around some paths
        values[key] = value
    result = filled(options, values)
    if "out" not in values and getattr(result, "out", None):
        check_unnamed(Path(result.out))
    return result


def unquoted(argument: str) -> Any:
    """Returns the value of key=value, and several values as they were typed. Raises UserError."""
    override = parse(argument)
    if override.is_sweep_override():
        return argument.partition("=")[2]
    return override.value()


def check_alone(flag: str, argv: list[str], allowed: str = "") -> None:
    """Raises UserError if there are arguments beside a flag that only shows something.

    The error says what is `allowed`, by default nothing else.
    """
    for argument in argv:
        if argument not in (flag, "-h"):
            raise UserError(f"{flag} {argument}: {allowed or f'allowed is {flag} alone'}")


def filled(options: type, values: Mapping[str, Any]) -> Any:
    """Returns the dataclass `options` with these values, checked. Raises UserError."""
    hints = get_type_hints(options, include_extras=True)
    checked = {}
    for key, value in values.items():
        check_known(f"{key}={value}", key, hints)
        checked[key] = check_value(key, value, hints[key])
    if checked.get("out"):
        check_out(Path(checked["out"]))
    return options(**checked)


def with_dashes(argument: str) -> UserError:
    """Returns the error for an argument in the form of other programs, --key=value."""
    key, _, value = argument.lstrip("-").partition("=")
    plain = key.replace("-", "_")
    return UserError(f"{argument}: keys are written without dashes: {plain}={value or '…'}")


def check_known(argument: str, key: str, hints: Mapping[str, Any]) -> None:
    """Raises UserError if there is no key of this name."""
    if key not in hints:
        if key.lstrip("-").replace("-", "_") in hints:
            raise with_dashes(argument)
        raise UserError(
            f"{argument}: there is no key {key}{suggestion(key, hints)}; keys are "
            f"{', '.join(hints)}"
        )


def named_folders(text: str, separator: str) -> tuple[list[str], str]:
    """Returns the existing folders that `text` names, with separators between them, and what is left.

    The name of a folder can contain the separator, too. So a name ends at the last separator before
    which the text is an existing folder. Two separators in a row have an empty name between them.
    """
    folders = []
    pieces = text.split(separator)
    while pieces:
        for n in range(len(pieces), 0, -1):
            name = separator.join(pieces[:n])
            if not name or os.path.isdir(name):  # False for many names that are too long for one
                break
        else:
            break
        folders.append(name)
        pieces = pieces[n:]
    return folders, separator.join(pieces)


def check_file(out: str, key: str = "out") -> None:
    """Raises UserError if `out` is a folder, for a command that writes one file."""
    if Path(out).is_dir():
        raise UserError(f"{key}={out}: is a folder; needs the name of a file")


def check_unnamed(out: Path) -> None:
    """Raises UserError if a result's usual place, which nobody typed, has a file of somebody else."""
    mark = MADE_HERE.get(out.suffix)
    if mark is not None and out.is_file() and mark not in out.read_bytes():
        raise UserError(f"{out}: is there and was not written by lmlab; out= names another file")


def check_out(out: Path, key: str = "out") -> None:
    """Raises UserError if nothing can be written at `out`: before the work, not after it.

    A link, a device or a pipe is not replaced by a file or folder. A link to a folder is that folder.
    """
    if out.is_symlink() and not out.is_dir():
        raise UserError(f"{key}={out}: is a link to {os.readlink(out)}; needs the name itself")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UserError(f"{key}={out}: is no plain file; needs the name of a new file")
    reason = files.obstacle(out.absolute().parent)
    if reason:
        raise UserError(f"{key}={out}: {reason}")
