"""Processes of this machine, as /proc shows them. A pid is used again; pid and start time are not."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final, NamedTuple, Self

from blackhole.settings import OperatorError

MASTER_TITLE: Final = "blackhole: master"
"""The process title of the master, the process whose pid a pidfile contains."""

ENDED: Final = (b"Z", b"X")
"""States of a process that has ended, and that its parent has not waited for yet."""

LISTENING: Final = "0A"
"""State of a socket in /proc/PID/net/tcp."""


class Process(NamedTuple):
    """A process, which may have ended."""

    pid: int
    started: int
    """When it started, in clock ticks since the machine did."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the process that has a pid now; None if there is none."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name in parentheses may contain any character.
                fields = file.read().rpartition(b")")[2].split()
            return None if fields[0] in ENDED else cls(pid, int(fields[19]))
        except (OSError, ValueError, IndexError):
            return None

    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return self == Process.of(self.pid)


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process; return False if it has ended.

    Raises OperatorError (EX_NOPERM) if this user may not.
    """
    try:
        os.kill(pid, number)
    except PermissionError:
        raise OperatorError(f"not permitted to send {number.name} to pid {pid}", os.EX_NOPERM) from None
    except ProcessLookupError:
        return False
    return True


def is_computing(pid: int) -> bool:
    """Return whether a process runs, or waits for a processor: it neither sleeps nor is stopped."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"R"
    return False


def owner(pid: int) -> int | None:
    """Return the effective uid of a process; None if there is no such process."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    return None


def parent(pid: int) -> int:
    """Return the pid of the parent of a process; 0 if there is no such process."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0


def title(pid: int) -> str:
    """Return the title of a process; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).rstrip(b"\0").decode("latin-1")
    except OSError:
        return ""


def pids() -> list[int]:
    """Return the pids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def is_listening(pid: int, port: int | None = None) -> bool:
    """Return whether a process has a listening TCP socket, on a port if given; True if this user may not
    know."""
    try:
        inodes = _listening_inodes(pid, port)
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed since the listing
                if os.readlink(f"/proc/{pid}/fd/{name}") in inodes:
                    return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return False


def _listening_inodes(pid: int, port: int | None) -> set[str]:
    found = set()
    end = "" if port is None else f":{port:04X}"
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), open(f"/proc/{pid}/net/{table}") as file:
            rows = (line.split() for line in file)
            found |= {f"socket:[{row[9]}]" for row in rows if row[3] == LISTENING and row[1].endswith(end)}
    return found
