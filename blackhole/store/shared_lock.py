"""Locks between the processes of a server, for which no process waits long.

They are record locks (fcntl(2)) on the octets of an anonymous file. The kernel releases the locks of a
process that dies. A process that is stopped (SIGSTOP) keeps its lock, and one that the machine gives no
processor time keeps it for a while; the others must go on without it.
"""

from __future__ import annotations

import os
import time
import weakref
from fcntl import F_GETLK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_UN, fcntl, lockf
from struct import Struct
from typing import Final

MAX_WAIT: Final = 0.25
"""Seconds that `acquire` waits for a lock: a thousand times as long as its owner usually needs it."""

MAX_WAIT_AGAIN: Final = 0.002
"""The same, while the lock is held by an owner that was waited for in vain before."""

FIRST_PAUSE: Final = 10e-6
LONGEST_PAUSE: Final = 1e-3
"""Seconds between two tries. They double, so that a lock that is held for microseconds is had soon."""

TRY: Final = LOCK_EX | LOCK_NB

LOCK_DESCRIPTION: Final = Struct("hhqqi0q")
"""struct flock of fcntl(2): type, origin, start, length, pid of the owner."""

STOPPED_STATES: Final = frozenset((b"T", b"t"))
"""States in /proc/PID/stat of a process that was stopped by a signal or by a debugger (proc(5))."""


class SharedLock:
    """A lock for each octet of an anonymous file, made before the fork, for one thread of each process.

    >>> lock = SharedLock("example")
    >>> if lock.acquire(7):
    ...     lock.release(7)
    """

    def __init__(self, name: str) -> None:
        self._file: Final = os.memfd_create(name, os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._overdue: Final[set[int]] = set()
        """Octets whose owner was waited for in vain, until they are had again."""

    def acquire(self, octet: int = 0, max_wait: float = MAX_WAIT) -> bool:
        """Lock an octet, and return True; return False if its owner is stopped, or keeps it for too long."""
        try:  # here and not in `_try`, since a call takes as long as half a system call
            lockf(self._file, TRY, 1, octet)
        except OSError:
            return self._wait(octet, max_wait)
        if self._overdue:
            self._overdue.discard(octet)
        return True

    def release(self, octet: int = 0) -> None:
        """Unlock an octet that this process has locked."""
        lockf(self._file, LOCK_UN, 1, octet)

    def _try(self, octet: int) -> bool:
        try:
            lockf(self._file, TRY, 1, octet)
        except OSError:  # another process has it, or the kernel is out of memory
            return False
        return True

    def _wait(self, octet: int, max_wait: float) -> bool:
        """Try again until the lock is had, or its owner is not worth waiting for."""
        deadline = time.monotonic() + (MAX_WAIT_AGAIN if octet in self._overdue else max_wait)
        pause = FIRST_PAUSE
        while not is_stopped(self._owner(octet)) and time.monotonic() < deadline:
            time.sleep(pause)
            if self._try(octet):
                self._overdue.discard(octet)
                return True
            pause = min(2 * pause, LONGEST_PAUSE)
        self._overdue.add(octet)
        return False

    def _owner(self, octet: int) -> int:
        """Return the pid of the process that has locked an octet; 0 if there is none, or none to be seen."""
        wanted = LOCK_DESCRIPTION.pack(F_WRLCK, os.SEEK_SET, octet, 1, 0)
        kind, *_, pid = LOCK_DESCRIPTION.unpack(fcntl(self._file, F_GETLK, wanted))
        return 0 if kind == F_UNLCK else int(pid)


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped; False if that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read()
    except OSError:
        return False
    return fields.rpartition(b") ")[2][:1] in STOPPED_STATES
