"""A map: memory that processes share, as a file without a name of its own (memfd_create(2)).

It ends with the processes that have it. Whoever may look into /proc/PID/fd of one of them finds it there.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from blackhole.settings import OperatorError


def create(called: str, cells: int) -> memoryview:
    """A map of so many cells that processes can share, and others can find by its name."""
    descriptor = os.memfd_create(called, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, cells * 8)
        # The map keeps a descriptor of its own, by which /proc leads to it.
        return memoryview(mmap.mmap(descriptor, 0)).cast("Q")
    finally:
        os.close(descriptor)


def attach(pid: int, called: str) -> memoryview | None:
    """The map of that name that a process has, to be read; None: it has none. Raises OperatorError."""
    folder = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # closed since
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{called} "):
                    with open(f"{folder}/{name}", "rb") as file:
                        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("Q")
    except (FileNotFoundError, ProcessLookupError):
        raise OperatorError(f"pid {pid} has just ended", os.EX_UNAVAILABLE) from None
    except PermissionError:
        raise OperatorError(f"the figures of pid {pid} are for its own user and root", os.EX_NOPERM) from None
    return None
