"""What the numbers of a run depend on beside its configuration."""

import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "pytorch_lightning", "hydra_core", "tensorboard", "numpy")


def provenance(command: str) -> dict[str, Any]:
    """Packages, code, machine, and the command that was typed."""
    changes = git("status --porcelain")
    return {
        "command": command,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "git_commit": git("rev-parse --verify HEAD"),
        "git_dirty": changes if changes is None else bool(changes),
        "machine": machine(),
    }


def git(command: str) -> str | None:
    """What git says of the lab's own folder; None where there is no git or no repository."""
    folder = shlex.quote(str(Path(__file__).parents[2]))
    # in a shell, since git may be missing
    done = subprocess.run(f"git -C {folder} {command}", shell=True, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> str:
    about, gpus = Path("/proc/cpuinfo"), range(torch.cuda.device_count())
    lines = about.read_text().splitlines() if about.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    cpu = ", ".join(sorted(names)) or platform.processor() or platform.machine()
    parts = [
        f"{cpu}, {os.cpu_count()} cores",
        *(torch.cuda.get_device_name(i) for i in gpus),
        platform.system(),
    ]
    return "; ".join(parts)
