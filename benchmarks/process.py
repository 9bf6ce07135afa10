"""The processes of a server as the kernel sees them: CPU time, memory, sockets."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; the second is a name that may contain blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Return `root` and all its descendants, without zombies."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent, *_ = stat(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                parents[int(entry)] = int(parent)
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of a process since its start, of all its threads."""

    total: float
    """User and system time, to the nanosecond."""
    user: float
    """To the clock tick (10 ms): precise enough for the share of the kernel only."""
    system: float

    @classmethod
    def of(cls, pid: int) -> Cpu:
        """Return the CPU time of a process so far."""
        # The CPU clock of the process, numbered as in clock_getcpuclockid(3). It is the sum that
        # /proc/PID/stat shows in ticks, and is up to date while the process runs on another core.
        total = time.clock_gettime(~pid << 3 | 2)
        fields = stat(pid)
        return cls(total, int(fields[11]) * TICK, int(fields[12]) * TICK)

    def __sub__(self, then: Cpu) -> Cpu:
        return Cpu(self.total - then.total, self.user - then.user, self.system - then.system)

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.total + other.total, self.user + other.user, self.system + other.system)


def kibibytes(pid: int, file: str, field: str) -> int:
    """Return the value of a `Field:  123 kB` line of /proc/PID/FILE. Raises KeyError if there is none."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def peak(pids: list[int]) -> int:
    """Return the sum of the largest resident sizes (VmHWM) in KiB; shared pages count in each process."""
    return sum(kibibytes(pid, "status", "VmHWM") for pid in pids)


def resident(pids: list[int]) -> int:
    """Return the sum of the resident sizes in KiB; shared pages count in each process."""
    return sum(kibibytes(pid, "status", "VmRSS") for pid in pids)


def proportional(pids: list[int]) -> int:
    """Return the anonymous memory in KiB, with shared pages divided among their processes (Pss_Anon)."""
    return sum(kibibytes(pid, "smaps_rollup", "Pss_Anon") for pid in pids)


def sockets(pid: int) -> int:
    """Return the number of open sockets of a process."""
    found = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(entry.path).startswith("socket:")
        except FileNotFoundError:
            continue
    return found
