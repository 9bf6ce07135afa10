"""The pidfile: one master at a time, and how commands find the running one.

The master holds an exclusive lock on the file as long as it lives. The lock decides whether a
master runs; the pid in the file only says which process to signal. The kernel releases the lock
when the process ends, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from typing import Final

from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError

MASTER_TITLE: Final = "blackhole: master"
"""The process title of the master, the process whose pid a pidfile contains."""

LOCK_TIMEOUT: Final = 0.2
"""Seconds to try to take the lock: `pidfile_owner` in another process holds it too, for a moment."""

WRITE_TIMEOUT: Final = 5.0
"""Seconds that a master may take from locking its pidfile to writing its pid into it."""

KILL_TIMEOUT: Final = 2.0
"""Seconds from SIGKILL until the lock must be released."""

POLL: Final = 0.02
"""Seconds between two looks at a pidfile."""


class Pidfile:
    """A locked file with the pid of the master.

    pidfile = Pidfile("/run/blackhole.pid")  # raises OperatorError if another master holds it
    pidfile.write()
    pidfile.remove()
    """

    def __init__(self, path: str) -> None:
        """Create the file and lock it.

        Raises OperatorError: EX_TEMPFAIL if another process holds the lock, EX_CANTCREAT if the
        file cannot be created.
        """
        self.path = path
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not self._lock():
            os.close(self.descriptor)
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"already running, pid {pidfile_owner(path) or 'not known yet'} ({path})", os.EX_TEMPFAIL
                )
            time.sleep(POLL)
        os.ftruncate(self.descriptor, 0)
        if os.fstat(self.descriptor).st_uid == os.geteuid():
            os.fchmod(self.descriptor, 0o644)  # whatever the umask: any user may run `blackhole status`

    def _lock(self) -> bool:
        self.descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._is_current()

    def _is_current(self) -> bool:
        """Return whether the path still names the locked file: the previous owner may have removed it."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def write(self) -> None:
        """Write the pid of this process; a daemon has its final pid only once it is detached."""
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def remove(self) -> None:
        """Remove the file and release the lock."""
        os.ftruncate(self.descriptor, 0)
        if self._is_current():
            os.unlink(self.path)
        os.close(self.descriptor)

    def close(self) -> None:
        """Close the file in a child process, which must not hold the lock longer than the master."""
        os.close(self.descriptor)


def pidfile_owner(path: str) -> int | None:
    """Return the pid of the process that holds the lock: None if none does, 0 if its pid is not known.

    Raises OperatorError (EX_NOPERM) if the file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", os.EX_NOPERM) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pid = os.pread(descriptor, 20, 0).strip()
        return int(pid) if pid.isdigit() and _has_open(int(pid), os.fstat(descriptor)) else 0
    finally:
        os.close(descriptor)


def _has_open(pid: int, file: os.stat_result) -> bool:
    """Return whether a process has the file open; an unrelated process with a reused pid has not."""
    descriptors = f"/proc/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        try:
            return any(
                os.path.samestat(os.stat(f"{descriptors}/{name}"), file) for name in os.listdir(descriptors)
            )
        except PermissionError:  # another user's process, or one whose interpreter has capabilities
            return _is_master(pid)
    return False


def _is_master(pid: int) -> bool:
    """Return whether a process has the master's title. Raises OSError if it has ended."""
    with open(f"/proc/{pid}/cmdline", "rb") as title:
        return title.read().rstrip(b"\0") == MASTER_TITLE.encode()


def running_masters() -> list[int]:
    """Return the pids of all masters on this machine, also of those without a pidfile."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if _is_master(int(name)):
                    found.append(int(name))
    return found


def send(path: str, number: signal.Signals) -> bool:
    """Send a signal to the owner of a pidfile; return False if it has none.

    Raises OperatorError: EX_UNAVAILABLE if the owner's pid does not become known in time,
    EX_NOPERM if this user may not signal the process.
    """
    deadline = time.monotonic() + WRITE_TIMEOUT
    while (pid := pidfile_owner(path)) == 0:
        if time.monotonic() > deadline:
            raise OperatorError(
                f"{path} is locked, but does not contain the pid of the process that locked it",
                os.EX_UNAVAILABLE,
            )
        time.sleep(POLL)
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except PermissionError:
        raise OperatorError(
            f"not permitted to send {number.name} to pid {pid} ({path})", os.EX_NOPERM
        ) from None
    except ProcessLookupError:
        return False
    return True


def stop(path: str, timeout: float) -> bool:
    """Stop the owner of a pidfile with SIGTERM, after `timeout` seconds with SIGKILL.

    Returns False if the pidfile has no owner. Raises what `send` raises, and OperatorError
    (EX_UNAVAILABLE) if the process survives SIGKILL.
    """
    if not send(path, signal.SIGTERM):
        return False
    if not _wait_released(path, timeout):
        send(path, signal.SIGKILL)
        if not _wait_released(path, KILL_TIMEOUT):
            raise OperatorError(f"pid {pidfile_owner(path)} does not end after SIGKILL", os.EX_UNAVAILABLE)
    return True


def _wait_released(path: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while pidfile_owner(path) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
