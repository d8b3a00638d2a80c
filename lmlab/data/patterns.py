"""Writes the patterns at which a tokenizer.json cuts texts, which are Oniguruma's, in JavaScript.

Only what means the same in both, or can be written so, is taken; anything else is refused.
"""

import re

from lmlab.errors import UserError

CLASSES = {r"\s": r"\p{White_Space}", r"\S": r"\P{White_Space}", r"\d": r"\p{Nd}", r"\D": r"\P{Nd}"}
CONTROLS = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}
CATEGORIES = (
    "L|Lu|Ll|Lt|Lm|Lo|M|Mn|Mc|Me|N|Nd|Nl|No|P|Pc|Pd|Ps|Pe|Pi|Pf|Po|S|Sm|Sc|Sk|So|Z|Zs|Zl|Zp"
)
CLASS = rf"\\[pP]\{{(?:{CATEGORIES})\}}|\\[sSdD]"
LETTER = r"\\[nrt]|\\[^\w\s]|[^\\]"
WITHIN = re.compile(rf"(?P<end>\])|(?P<cls>{CLASS})|(?P<letter>{LETTER})", re.DOTALL)
# Behind * and its like a + would forbid to go back, and {3}? is another thing in Oniguruma.
TIMES = r"(?:[?*+]\??|\{\d{1,4},\d{0,4}\}\??|\{\d{1,4}\}(?!\?))(?![?*+{])"
OUTSIDE = re.compile(
    rf"(?P<open>\(\?[:=!]|\((?!\?))|(?P<end>\))|(?P<bar>\|)|(?P<times>{TIMES})|(?P<brackets>\[\^?(?!\]))"
    rf"|(?P<cls>{CLASS})|(?P<letter>\\[nrt]|\\[^\w\s]|[^\\.^$?*+(){{}}|[\]])",
    re.DOTALL,
)


def in_javascript(pattern: str) -> str:
    """Returns a pattern for JavaScript's flag u. Raises UserError for a part that cannot be written."""
    parts = []
    opened: list[str] = []  # groups
    can_repeat = False
    place = 0
    while place < len(pattern):
        found = OUTSIDE.match(pattern, place)
        kind = found.lastgroup if found else None
        if found is None or (kind == "times" and not can_repeat):
            raise refused(pattern, place)
        place = found.end()
        can_repeat = kind in ("brackets", "cls", "letter")
        if kind == "brackets":
            inside, place = brackets(pattern, place)
            parts.append(found[0] + inside)
            continue
        if kind == "open":
            opened.append(found[0])
        if kind == "end" and opened:
            can_repeat = opened.pop() in ("(", "(?:")  # not what only looks ahead
        parts.append(CLASSES.get(found[0], found[0]) if kind != "letter" else letter(found[0]))
    return "".join(parts)


def brackets(pattern: str, place: int) -> tuple[str, int]:
    """Returns what stands in square brackets from `place` on, and where they end."""
    parts: list[str] = []
    kinds: list[str] = []
    while True:
        found = WITHIN.match(pattern, place)
        if found is None or found[0] in ("[", "&"):  # sets of sets
            raise refused(pattern, place)
        kind = str(found.lastgroup)
        place = found.end()
        if kind == "end":
            return "".join([*parts, "]"]), place
        is_range = (
            kinds[-1:] == ["letter"] and found[0] == "-" and pattern[place : place + 1] != "]"
        )
        if is_range and re.match(CLASS, pattern[place:]):
            raise refused(pattern, place - 1)
        if is_range:
            parts.append("-")
        else:
            parts.append(CLASSES.get(found[0], found[0]) if kind == "cls" else letter(found[0]))
        kinds.append(kind)


def refused(pattern: str, place: int) -> UserError:
    """Returns the error for a part of a pattern."""
    return UserError(f"{pattern!r}: has {pattern[place : place + 4]!r} at {place}")


def letter(text: str) -> str:
    """Returns a letter that stands for itself, or its escape, as JavaScript takes it everywhere."""
    character = CONTROLS.get(text, text[-1])
    if character.isascii() and character.isalnum():
        return character
    return rf"\u{{{ord(character):x}}}"
