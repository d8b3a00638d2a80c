"""Reads sweeps from files: conf/sweep/ladder.yaml is what sweep=ladder names. No torch.

Such a file holds arguments as they would be typed:

    all: seed=0,1,2
    runs:
    - experiment=ladder_bigram
    - experiment=ladder_gpt n_embd=32,64,128

Each line of `runs` is a sweep with the arguments of `all`; the cells of all of them are one sweep.
"""

import shlex
from dataclasses import dataclass, field

import yaml

from lmlab.config.conf_files import decoded, line_of, names_in, path_of, shown_name, yaml_errors
from lmlab.config.grammar import key_of
from lmlab.config.keys import marked
from lmlab.errors import UserError, nearest
from lmlab.markers import ONCE

FORM = 'needs "all:" with arguments, and "runs:" with a list of lines of arguments'


@dataclass(frozen=True)
class Line:
    """One line of arguments, as a list, and the file and line where it is.

    `elsewhere` holds the places of the keys that come from somewhere else: from `all`, or, with "" as
    the place, from the command line.
    """

    arguments: list[str]
    place: str
    elsewhere: dict[str, str] = field(default_factory=dict)

    def place_of(self, key: str) -> str:
        """Returns the place of a key, or "" if it is typed. That of several keys is the line's."""
        return self.elsewhere.get(key, self.place)


def read_lines(name: str) -> list[Line]:
    """Returns the lines of a sweep's file, each with the arguments of `all`. Raises UserError."""
    if name not in names_in("sweep"):
        names = names_in("sweep")
        raise UserError(
            f"sweep={name}: there is no such file{nearest(name, names)}; allowed are "
            f"{', '.join(names)}"
        )
    shown = shown_name("sweep", name)
    with yaml_errors(shown):
        node = yaml.compose(decoded(path_of("sweep", name), shown), Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{shown}: {FORM}")
    everywhere = Line([], "")
    lines = []
    seen = set()
    for key, value in node.value:
        place = f"{shown}: line {line_of(key)}: {key.value}"
        if key.value in seen:
            raise UserError(f"{place}: is there twice")
        seen.add(key.value)
        if key.value == "all" and isinstance(value, yaml.ScalarNode):
            everywhere = Line(words_of(value, shown), place)
        elif key.value == "runs" and isinstance(value, yaml.SequenceNode):
            lines = [line_at(entry, shown) for entry in value.value]
        else:
            raise UserError(f"{place}: {FORM}")
    if not lines:
        raise UserError(f"{shown}: {FORM}")
    for line in lines:
        check_arguments(line)
        if len(lines) > 1:
            check_own(line)
    check_arguments(everywhere)
    together = []
    for line in lines:
        own = {key_of(argument) for argument in line.arguments}
        shared = {key_of(argument) for argument in everywhere.arguments} - own
        places = {key.lstrip("+~"): everywhere.place for key in shared}
        together.append(Line([*everywhere.arguments, *line.arguments], line.place, places))
    return together


def check_arguments(line: Line) -> None:
    """Raises UserError for a flag, for keys that a person types, and for a key that is there twice."""
    place = line.place
    keys = [key_of(argument) for argument in line.arguments]
    for argument in line.arguments:
        if keys.count(key_of(argument)) > 1:
            raise UserError(f"{place}: {argument}: {key_of(argument)} is there twice")
        if argument.startswith("-") or key_of(argument) in ("sweep", "plugin", "resume", "replay"):
            raise UserError(f"{place}: {argument}: belongs on the command line")


def check_own(line: Line) -> None:
    """Raises UserError for arguments of one line that a whole sweep has only once."""
    for argument in line.arguments:
        key = key_of(argument)
        if key in marked(ONCE) or key.startswith(("hydra.", "hydra/")):
            raise UserError(f"{line.place}: {argument}: is the same for all lines; write it in all")


def line_at(node: yaml.Node, shown: str) -> Line:
    """Returns the line of arguments in a list of YAML. Raises UserError if it is no text."""
    place = f"{shown}: line {line_of(node)}"
    if not isinstance(node, yaml.ScalarNode) or not str(node.value).strip():
        raise UserError(f"{place}: needs a line of arguments, such as model=gpt n_layer=2,4")
    return Line(words_of(node, shown), place)


def words_of(node: yaml.ScalarNode, shown: str) -> list[str]:
    """Returns the arguments in a text, with quotes as in a shell. Raises UserError."""
    try:
        return shlex.split(str(node.value))
    except ValueError as error:  # a quotation that does not end
        raise UserError(f"{shown}: line {line_of(node)}: {error}") from None
