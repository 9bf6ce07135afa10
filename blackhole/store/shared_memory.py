"""Memory that processes share: an anonymous file (memfd_create(2)), mapped as 64-bit cells.

It ends with the processes that have it open. Whoever may read /proc/PID/fd of one of them can open it there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

from blackhole.settings import OperatorError

CELL_OCTETS: Final = 8

SEALS: Final = 0x2 | 0x4
"""F_SEAL_SHRINK and F_SEAL_GROW: a map keeps its size. A process that shrank it would kill all that
read it (SIGBUS)."""

F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
"""From linux/fcntl.h; PyPy does not have them."""


def create(name: str, cells: int) -> memoryview:
    """Return a new map of `cells` zeroed cells, which children share and others can attach to by its name."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, cells * CELL_OCTETS)
        fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)
        # mmap duplicates the descriptor, so that /proc/PID/fd shows the file after this one is closed.
        return memoryview(mmap.mmap(descriptor, 0)).cast("Q")
    finally:
        os.close(descriptor)


def attach(pid: int, name: str) -> memoryview | None:
    """Return the map of that name in a process, to be read; None if it has none.

    Raises OperatorError if the process has ended or is not ours to read.
    """
    folder = f"/proc/{pid}/fd"
    try:
        for entry in os.listdir(folder):
            with suppress(FileNotFoundError):  # closed since the listing
                if os.readlink(f"{folder}/{entry}").startswith(f"/memfd:{name} "):
                    with open(f"{folder}/{entry}", "rb") as file:
                        return _map_to_read(file.fileno())
    except (FileNotFoundError, ProcessLookupError):
        raise OperatorError(f"pid {pid} has just ended", os.EX_UNAVAILABLE) from None
    except PermissionError:
        raise OperatorError(
            f"the counters of pid {pid} can be read by its own user and by root only", os.EX_NOPERM
        ) from None
    return None


def _map_to_read(descriptor: int) -> memoryview | None:
    """Return the map in a file; None if another program made it, whose size may change at any time."""
    if fcntl.fcntl(descriptor, F_GET_SEALS) & SEALS != SEALS or not os.fstat(descriptor).st_size:
        return None
    octets = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    return octets[: len(octets) // CELL_OCTETS * CELL_OCTETS].cast("Q")
