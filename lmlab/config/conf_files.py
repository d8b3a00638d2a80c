"""Reads and checks the YAML files of conf/ that hold choices, presets and recipes. No torch."""

import codecs
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lmlab.catalogue import GROUP_MARKERS
from lmlab.errors import UserError

CONF = Path(__file__).parent.parent.parent / "conf"
HEADER = "# @package _global_"


@lru_cache
def read_file(group: str, name: str) -> dict[str, Any]:
    """Returns the keys and values of conf/`group`/`name`.yaml, `defaults` among them.

    Raises UserError, with the line, for anything in the file that would have no effect: Hydra
    would ignore a file without its header, a choice that is written as a key, or nested keys.
    """
    path = CONF / group / f"{name}.yaml"
    shown = f"conf/{group}/{name}.yaml"
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
        if content.startswith(codecs.BOM_UTF8):
            raise UserError(f"{shown}: line 1 begins with a byte-order mark; save it without one")
        if text.split("\n", 1)[0].strip() != HEADER:
            raise UserError(f"{shown}: line 1 must be: {HEADER}")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        check_nodes(node, shown)
        values: dict[str, Any] = yaml.safe_load(text) or {}
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: byte {error.start} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"{shown}: {yaml_fault(error)}") from None
    return values


def names_in(group: str) -> list[str]:
    """Returns the names of the files of a group, such as gpt, or mine/gpt in a folder `mine`."""
    folder = CONF / group
    paths = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml")]
    return sorted(path.as_posix() for path in paths)


def check_nodes(node: yaml.Node | None, shown: str) -> None:
    """Raises UserError if the parsed file is not a flat mapping of different keys."""
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{shown}: line {line_of(node)}: needs lines of the form key: value")
    seen = set()
    for key_node, value_node in node.value:
        key = str(key_node.value)
        place = f"{shown}: line {line_of(key_node)}: {key}"
        if key in seen:
            raise UserError(f"{place}: is there twice")
        seen.add(key)
        if key in GROUP_MARKERS:
            raise UserError(
                f"{place}: is a group; write it under defaults, as - override /{key}: …"
            )
        if key == "hydra":
            raise UserError(f"{place}: settings of Hydra belong on the command line")
        if key != "defaults" and not isinstance(value_node, yaml.ScalarNode):
            raise UserError(f"{place}: needs a plain value, not a list or keys below it")


def line_of(node: yaml.Node) -> int:
    """Returns the line of a node, counted from 1."""
    line: int = node.start_mark.line
    return line + 1


def yaml_fault(error: yaml.YAMLError) -> str:
    """Returns the fault of a YAML file in one line, with the number of its line if it is known."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return " ".join(str(problem).split())
    return f"line {mark.line + 1}: {' '.join(str(problem).split())}"
