"""What processes use: memory and processor time, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from tests.program import children, title


def master_and_workers(pid: int) -> list[int]:
    """Return the pids of a master and its children."""
    return [pid, *(child for child in children(pid) if title(child).startswith("blackhole: "))]


def memory(pid: int) -> dict[str, int]:
    """Return the KiB of each kind of memory, by the names of /proc/PID/smaps_rollup."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def proportional_memory(*pids: int) -> float:
    """Return the KiB of memory of these processes; of a shared page each counts its share (PSS).

    Pages of files are left out: a process's share of them changes by a MiB when another process that runs
    the same Python starts or exits.
    """
    return sum(sizes["Pss_Anon"] + sizes["Pss_Shmem"] for sizes in map(memory, pids))


def cpu_seconds(*pids: int) -> float:
    """Return the seconds of processor time that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
