"""Counts the processor cores that this process may use."""

import os
import sys
from pathlib import Path

QUOTAS = (  # of a container: the files of cgroups, version 2 and version 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def usable_cores() -> int:
    """Returns the number of cores: those of the machine, less if the system allows fewer.

    The quota of a container (`docker --cpus`, Kubernetes) is rounded down, but to at least 1.
    """
    cores = os.cpu_count() or 1
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    if quota is None:
        return cores
    return max(1, min(cores, int(quota)))


def thread_limit() -> int | None:
    """Returns how many threads OMP_THREAD_LIMIT allows this process, or None without a limit."""
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return int(limit) or None if limit.isdecimal() else None


def heed_thread_limit() -> None:
    """Lets torch, if it is imported later, have no more threads than OMP_THREAD_LIMIT allows.

    With fewer threads than it counts on, it computes wrong products of bfloat16.
    """
    limit = thread_limit()
    if limit is not None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(asked) if asked.isdecimal() else limit
        os.environ["OMP_NUM_THREADS"] = str(min(threads, limit))


def cpu_quota() -> float | None:
    """Returns how many cores' time the container may use, or None without a limit."""
    for names in QUOTAS:
        try:
            words = " ".join(Path(name).read_text(encoding="utf-8") for name in names).split()
            allowed, period = (float(word) for word in words)
        except (OSError, ValueError):  # no such file, or "max": there is no limit
            continue
        if allowed > 0 and period > 0:
            return allowed / period
    return None
