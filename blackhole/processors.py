"""The processors that this process may use: its affinity, and the quota of its control group.

A container has all processors of its host in its affinity, and a quota of processor time, as 0.5 of one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath

CGROUP_FILE = "/proc/self/cgroup"
CGROUP_ROOT = "/sys/fs/cgroup"


def available() -> int:
    """Return the number of processors, at least 1; a part of one counts as a whole one."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # PyPy
        processors = os.cpu_count() or 1
    return max(1, math.ceil(min(processors, quota())))


def quota(cgroup_file: str = CGROUP_FILE, root: str = CGROUP_ROOT) -> float:
    """Return the processor time that the control groups allow, in processors; infinite without a limit.

    See cgroups(7): of version 2 `cpu.max`, of version 1 `cpu.cfs_quota_us`. A group has the least of its own
    quota and those of the groups above it.
    """
    return min(
        (found for folder in _folders(cgroup_file, root) for found in _quotas(folder)), default=math.inf
    )


def _folders(cgroup_file: str, root: str) -> Iterator[str]:
    """Yield the folders of the groups of this process, and of those above them."""
    for line in _read(cgroup_file).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers or "cpu" in controllers.split(","):
            # A container may see its own group as the root, while the path is that of the host.
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield f"{root}/{controllers}{group}" if controllers else f"{root}{group}"


def _quotas(folder: str) -> Iterator[float]:
    """Yield the quota that the files of a folder set."""
    for text in (
        _read(f"{folder}/cpu.max"),
        f"{_read(f'{folder}/cpu.cfs_quota_us')} {_read(f'{folder}/cpu.cfs_period_us')}",
    ):
        with suppress(ValueError, ZeroDivisionError):  # "max", or no such file
            microseconds, period = map(int, text.split())
            if microseconds > 0:
                yield microseconds / period


def _read(path: str) -> str:
    with suppress(OSError, UnicodeDecodeError), open(path) as file:
        return file.read().strip()
    return ""
