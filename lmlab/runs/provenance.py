"""Describes what made a run: the versions, the commit and the machine."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lmlab import __version__, plugins
from lmlab.runs.code import LIBRARY, code_sha256

PACKAGES = ("torch", "pytorch_lightning", "hydra_core", "tensorboard", "numpy")
OF_A_REPOSITORY = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"),
    *("GIT_NAMESPACE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
)
QUIETLY = ("--no-optional-locks", "-c", "core.fsmonitor=false")
OPTIONAL = ("optuna", "tokenizers")  # which choose trials, and learn tokens
COMPARED = (
    "lmlab",
    "code_sha256",
    "plugin_sha256",
    *PACKAGES,
    "git_commit",
    "machine",
)  # what may change bits


def provenance(command: str) -> dict[str, Any]:
    """Returns facts for metrics.json: the command, the packages, the lab's code, the machine."""
    facts: dict[str, Any] = {"command": command, "python": platform.python_version()}
    for name in PACKAGES:
        facts[name] = version(name)
    for name in OPTIONAL:
        with suppress(PackageNotFoundError):
            facts[name] = version(name)
    facts["lmlab"] = __version__
    facts["code_sha256"] = code_sha256()
    facts["plugin_sha256"] = plugins.sha256()
    facts |= git_state(LIBRARY.parent)
    facts["machine"] = machine()
    return facts


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns the differences between two provenances, one text for each fact.

    It ignores facts that an older version did not write in `then`.
    """
    changed = [key for key in COMPARED if key in then and then[key] != now[key]]
    return [f"{key} {then[key]}, now {now[key]}" for key in changed]


def git_state(folder: Path) -> dict[str, Any]:
    """Returns the commit of the lab's checkout and whether files differ from it, or None for both.

    Both are None for a copy that is installed inside another repository, for example in a virtual
    environment: the commit of that repository does not describe the lab's files.
    """
    if git(folder, "ls-files", "--error-unmatch", "lmlab/__init__.py") is None:
        return {"git_commit": None, "git_dirty": None}
    changes = git(folder, "status", "--porcelain", "--untracked-files=normal")
    return {
        "git_commit": git(folder, "rev-parse", "--verify", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
    }


def git(folder: Path, *arguments: str) -> str | None:
    """Returns the output of git in a folder, or None if git is missing or fails.

    Variables such as GIT_DIR, which a hook of another repository has, would name that one. Git writes
    nothing, and asks no other program what has changed.
    """
    others = {name: value for name, value in os.environ.items() if name not in OF_A_REPOSITORY}
    try:
        done = subprocess.run(
            ["git", *QUIETLY, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=others,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def machine() -> str:
    """Returns the processor, the number of cores, the GPUs and the system, in words."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "; ".join([f"{processor()}, {os.cpu_count()} cores", *gpus, platform.system()])


def processor() -> str:
    """Returns the name of the processor, if the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone has it
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
        if any(names):
            return ", ".join(sorted(names))
    return platform.processor() or platform.machine()
