"""Reads and checks the YAML files that hold choices, presets and recipes. No torch.

They are in conf/ and in the folder of --config-dir. What plug-ins register takes the place of files.
"""

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lmlab import files
from lmlab.catalogue import GROUP_MARKERS, VALUES
from lmlab.errors import UserError
from lmlab.own_code import LIBRARY
from lmlab.registry import forget, remembered

INSTALLED = LIBRARY / "conf"  # in a package; a checkout has the folder beside the library
CONF = INSTALLED if INSTALLED.is_dir() else LIBRARY.parent / "conf"
HEADER = "# @package _global_"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
NUMBER = r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?|[-+]?\.inf|\.nan"  # as everyone reads it
ADDED: list[Path] = []  # the folder of --config-dir
TEXT = "tag:yaml.org,2002:str"  # the tag that YAML gives to a plain word


@remembered
def read_file(group: str, name: str) -> dict[str, Any]:
    """Returns the keys and values of conf/`group`/`name`.yaml, `defaults` among them.

    Raises UserError, with the line, for anything in the file that would have no effect: Hydra
    would ignore a file without its header, a choice that is written as a key, or nested keys.
    """
    if name in VALUES.get(group, ()):
        return dict(VALUES[group][name])
    shown = shown_name(group, name)
    with yaml_errors(shown):
        text = decoded(path_of(group, name), shown)
        if text.split("\n", 1)[0].strip() != HEADER:
            raise UserError(f"{shown}: line 1 must be: {HEADER}")
        check_headers(text, shown)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        check_nodes(node, shown, group)
        values: dict[str, Any] = yaml.safe_load(text) or {}
    return values


def check_headers(text: str, shown: str) -> None:
    """Raises UserError for a second header, which Hydra would follow instead of the first."""
    for number, line in enumerate(text.splitlines()[1:], start=2):
        if line.strip() and not line.lstrip().startswith("#"):
            return
        if re.match(r"\s*#\s*@", line):
            raise UserError(f"{shown}: line {number}: {line.strip()}: only line 1 is a header")


def decoded(path: Path, shown: str) -> str:
    """Returns the text of a file. Raises UserError if it begins with a byte-order mark."""
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        raise UserError(f"{shown}: line 1 begins with a byte-order mark; save it without one")
    return content.decode("utf-8")


@contextmanager
def yaml_errors(shown: str) -> Iterator[None]:
    """Turns errors of reading a YAML file, which is `shown` in messages, into UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: byte {error.start} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"{shown}: {yaml_fault(error)}") from None
    except (ValueError, RecursionError) as error:  # such as a number of 5,000 digits
        raise UserError(f"{shown}: {error}") from None


def names_in(group: str) -> list[str]:
    """Returns the names of the files of a group, such as gpt, or mine/gpt in a folder `mine`."""
    names = {*VALUES.get(group, ())}
    for conf in (CONF, *ADDED):
        folder = conf / group
        for path in yaml_files(folder):
            names.add(path.relative_to(folder).with_suffix("").as_posix())
    return sorted(names)


def yaml_files(folder: Path) -> list[Path]:
    """Returns the YAML files in a folder and below it, sorted."""
    found = []
    for parent, _, names in files.walk(folder):
        found += [parent / name for name in names if name.endswith(".yaml")]
    return sorted(found)


def path_of(group: str, name: str) -> Path:
    """Returns the path of a file: in the folder of --config-dir if it is there, else in conf/."""
    for conf in ADDED:
        if (conf / group / f"{name}.yaml").exists():
            return conf / group / f"{name}.yaml"
    return CONF / group / f"{name}.yaml"


def shown_name(group: str, name: str) -> str:
    """Returns the name of a file as messages show it."""
    path = path_of(group, name)
    return str(path) if CONF not in path.parents else f"conf/{group}/{name}.yaml"


def text_of(group: str, name: str) -> str:
    """Returns the text of a file; "" for what a plug-in registers."""
    if name in VALUES.get(group, ()):
        return ""
    return path_of(group, name).read_text(encoding="utf-8", errors="replace")


def place_of(group: str, name: str, text: str) -> str:
    """Returns "conf/…: line N: text", with the first line of the file that holds `text`."""
    lines = text_of(group, name).splitlines()
    number = next((i for i, line in enumerate(lines, 1) if text in line), 1)
    return f"{shown_name(group, name)}: line {number}: {text}"


def add_folders(folders: list[Path]) -> None:
    """Lets the files in these folders, that of --config-dir or none, be read beside those in conf/."""
    ADDED[:] = folders
    forget()


def check_added(folder: Path) -> None:
    """Raises UserError if a folder of --config-dir has nothing to add, or a file that is not read.

    The runs that were made there are no such files.
    """
    typed = f"--config-dir={folder}"
    groups = [*GROUP_MARKERS, "sweep", "hydra/launcher", "hydra/sweeper"]
    if not folder.is_dir():
        raise UserError(f"{typed}: is no folder")
    if not any((folder / group).is_dir() for group in groups):
        raise UserError(f"{typed}: has none of the folders {', '.join(groups)}")
    for path in yaml_files(folder):
        name = path.relative_to(folder)
        if is_of_run(path, name):
            continue
        if not path.is_file():  # as a named pipe, which would be waited for
            raise UserError(f"{path}: is no plain file")
        group = next((group for group in groups if Path(group) in name.parents), None)
        if group is None:
            raise UserError(f"{path}: is not read; files are in the folders {', '.join(groups)}")
        if path.stem == "null":
            raise UserError(f"{path}: null stands for no choice; the file needs another name")
        if (CONF / name).exists():
            raise UserError(f"{path}: the lab has a file of this name; it needs another one")


def is_of_run(path: Path, name: Path) -> bool:
    """Returns whether a file in a folder of --config-dir is of a run there, or of a sweep's notes.

    `name` is its path in that folder. Runs may be made in it; they write each file with a checksum.
    """
    return files.seal(path).exists() or ".sweep" in name.parts


def check_nodes(node: yaml.Node | None, shown: str, group: str) -> None:
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
        if key_node.tag != TEXT:
            raise UserError(f"{place}: needs the name of a key before the colon")
        if key in GROUP_MARKERS:
            raise UserError(
                f"{place}: is a group; write it under defaults, as - override /{key}: …"
            )
        if key == "hydra":
            raise UserError(f"{place}: settings of Hydra belong on the command line")
        if key == "defaults":
            check_defaults(value_node, shown, group)
        elif not isinstance(value_node, yaml.ScalarNode):
            raise UserError(f"{place}: needs a plain value, not a list or keys below it")
        elif value_node.tag in NUMBERS and (
            not re.fullmatch(NUMBER, value_node.value) or vanishing(value_node.value)
        ):
            raise UserError(
                f"{place}={value_node.value}: YAML reads this as {number_of(value_node)}; write that"
            )


def check_defaults(node: yaml.Node, shown: str, group: str) -> None:
    """Raises UserError if a file's defaults list holds anything but names and choices.

    A recipe names other recipes and choices of groups, a preset the choice that it builds on.
    """
    groups = [name for name in GROUP_MARKERS if name != "experiment"]
    allowed = "the name of the choice that it builds on, and _self_"
    if group == "experiment":
        allowed = (
            "override /group: choice (a group is one of "
            f"{', '.join(groups)}), the name of another recipe, and _self_"
        )
    seen: set[str] = set()
    for entry in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        place = f"{shown}: line {line_of(entry)}: defaults"
        words = [entry]
        if isinstance(entry, yaml.MappingNode) and group == "experiment" and len(entry.value) == 1:
            words = [*entry.value[0]]
        if not isinstance(node, yaml.SequenceNode) or any(word.tag != TEXT for word in words):
            raise UserError(f"{place}: needs a list; allowed in it are {allowed}")
        first = words[0].value
        if len(words) == 2 and first not in {f"override /{name}" for name in groups}:
            raise UserError(f"{place}: {first}: {words[1].value}: allowed are {allowed}")
        if first in seen:
            raise UserError(f"{place}: {first}: is there twice")
        if len(words) == 1 and any(name.startswith("override ") for name in seen):
            raise UserError(f"{place}: {first}: must be above all lines with override")
        if len(words) == 1 and "_self_" in seen:
            raise UserError(
                f"{place}: {first}: must be above _self_, or it would overwrite this file"
            )
        seen.add(first)


def vanishing(text: str) -> str | None:
    """Returns a number in a text that is so small that it is read as 0, such as 1e-400, or None."""
    for number in re.findall(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)[eE]-\d+(?![\w.])", text):
        if re.search("[1-9]", re.split("[eE]", number)[0]) and float(number) == 0:
            return str(number)
    return None


def number_of(node: yaml.Node) -> Any:
    """Returns the number that YAML reads in a node, such as 8 for 010 and 90 for 1:30."""
    return yaml.safe_load(node.value)


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
