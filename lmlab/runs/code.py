"""Knows which code made a run: a hash of the lab's files and of the active plug-ins.

It also knows which hashes a person calls equal.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from lmlab import files, plugins
from lmlab.errors import UserError
from lmlab.snapshot import LAB, LIBRARY

LIMIT = 2**20  # bytes of same_code.jsonl
UNKNOWN = "unknown"  # the code of runs made before version 0.2, which did not write it down
SHORT = 8  # digits of a hash that are shown


def code_sha256() -> str:
    """Returns a hash of the code of the lab and of the active plug-ins."""
    own = plugins.sha256()
    if own is None:
        return lab_sha256()
    return hashlib.sha256(f"{lab_sha256()} {own}".encode()).hexdigest()


@cache
def lab_sha256() -> str:
    """Returns a hash of all Python files of the lab, as this process runs them."""
    return hash_of_files(LAB.files, LIBRARY)


LAB.on_change.append(lab_sha256.cache_clear)


def hash_of_files(contents: Mapping[str, bytes], folder: Path) -> str:
    """Returns a hash of files by their paths, which are below a folder."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, contents)):
        content = contents[str(path)]
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def codes_in(metrics: Mapping[str, Any]) -> list[Any]:
    """Returns the hashes of all code that trained a run, the first one first, from its metrics.json."""
    first = metrics.get("code_sha256")
    between = str(metrics.get("resumed/earlier_code", "")).split()
    return list(dict.fromkeys([first, *between, metrics.get("resumed/code_sha256", first)]))


def code_of(metrics: Mapping[str, Any]) -> str:
    """Returns the code that made a run, from its metrics.json: a short hash, or "unknown".

    For a run that other code has resumed it returns all hashes, with plus signs between them.
    """
    return "+".join(dict.fromkeys(map(short, codes_in(metrics))))


def is_other_code(code: str, metrics: Mapping[str, Any]) -> bool:
    """Returns whether a short hash is of no code that trained a run, whose code is known."""
    trained_by = code_of(metrics).split("+")
    return code not in trained_by and UNKNOWN not in trained_by


def last_provenance(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of the process that trained a run last, by their names without a prefix."""
    resumed = {
        name.removeprefix("resumed/"): value
        for name, value in metrics.items()
        if name.startswith("resumed/")
    }
    return metrics | resumed


def plugins_of(metrics: Mapping[str, Any]) -> Any:
    """Returns the hash of the plug-ins with which a run was trained last, or None without any."""
    return metrics.get("resumed/plugin_sha256", metrics.get("plugin_sha256"))


def short(sha256: Any) -> str:
    """Returns the first digits of a hash, or "unknown"."""
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        return UNKNOWN
    return sha256[:SHORT]


def own_code() -> str:
    """Returns the short hash of the code of this process."""
    return short(code_sha256())


class SameCode:
    """The codes of a sweep that a person has called equal with same_code=true.

    They are kept in the file same_code.jsonl of the sweep's own folder. Raises UserError if the
    file was not written by the lab.
    """

    def __init__(self, own_folder: Path) -> None:
        self.path = own_folder / "same_code.jsonl"
        self.sets: list[set[str]] = []
        if not self.path.exists():
            return
        content = files.read(self.path, LIMIT).decode(errors="replace")
        for n, line in enumerate(content.splitlines(), start=1):
            try:
                codes = json.loads(line)["codes"]
                if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
                    raise ValueError
                self.sets.append(set(codes))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{self.path}: line {n} was not written by the lab") from None

    def equal_to(self, code: str) -> set[str]:
        """Returns all codes that are called equal to `code`, and `code` itself."""
        equal = {code}
        for _ in self.sets:  # each line may connect two sets
            for codes in self.sets:
                if codes & equal:
                    equal |= codes
        return equal

    def name(self, code: str) -> str:
        """Returns the name of a run's code in a table: one for all codes that are called equal."""
        names = []
        for part in code.split("+"):
            name = "=".join(sorted(self.equal_to(part)))
            if name not in names:
                names.append(name)
        return "+".join(names)

    def add(self, codes: set[str], command: str) -> None:
        """Writes that these codes are equal, and the command that said so."""
        if any(codes <= known for known in self.sets):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        note = {
            "codes": sorted(codes),
            "command": command,
            "time": datetime.now().isoformat(timespec="seconds"),
        }
        before = files.read(self.path, LIMIT).decode().splitlines() if self.sets else []
        files.write(self.path, "\n".join([*before, json.dumps(note)]) + "\n")
        self.sets.append(codes)


def share_library() -> None:
    """Lets processes that are started from this one import the same library, not an installed one.

    They are not told of the folders in which this process looks for modules.
    """
    folder = str(LIBRARY.parent)
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if others[0] != folder:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, *others]))
