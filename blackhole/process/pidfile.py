"""The pidfile: one master at a time, and how commands find the running one.

Beside the pidfile, which any user may read, is a lock file, which only its owner may open. The
master holds an exclusive lock on it as long as it lives. The lock decides whether a master runs; the
file says which process holds it: pid, start time and version, and then pid and start time of each
child. The kernel releases the lock when the process ends, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from contextlib import suppress
from typing import Final, NamedTuple

from blackhole import __version__
from blackhole.process import orphans, processes
from blackhole.process.processes import MASTER_TITLE, Process
from blackhole.process.safe_open import open_directory, open_regular
from blackhole.settings import OperatorError

LOCK_SUFFIX: Final = ".lock"
"""Appended to the path of a pidfile, it is that of the lock file."""

LOCK_TIMEOUT: Final = 0.2
"""Seconds to try to take the lock: `pidfile_owner` in another process holds it too, for a moment."""

WRITE_TIMEOUT: Final = 5.0
"""Seconds that a master may take from locking its pidfile to writing its pid into it."""

KILL_TIMEOUT: Final = 2.0
"""Seconds from SIGKILL until the lock must be released."""

POLL: Final = 0.02
"""Seconds between two looks at a pidfile."""

MAX_LOCK_OCTETS: Final = 1 << 16
"""The most that is read of a lock file."""

MAX_STALE_OCTETS: Final = 20
"""A pidfile is not larger. A larger file is another one, named by mistake."""


class Holder(NamedTuple):
    """What a lock file says."""

    process: Process | None
    """The master; None until it has written its pid."""
    version: str
    """The version of Blackhole that the master runs."""
    children: tuple[Process, ...]
    """All children that lived when the last one was started."""


class Pidfile:
    """A file with the pid of the master, and a locked file beside it.

    pidfile = Pidfile("/run/blackhole.pid")  # raises OperatorError if another master holds it
    pidfile.write()
    pidfile.remove()
    """

    def __init__(self, path: str) -> None:
        """Create both files and lock one.

        Raises OperatorError: EX_TEMPFAIL if another process holds the lock, EX_CANTCREAT if a
        file cannot be created.
        """
        self.path = path
        self._children: list[Process] = []
        self.descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(self.descriptor).st_size > MAX_STALE_OCTETS:
                raise OperatorError(f"cannot use {path}: it is not a pidfile", os.EX_CANTCREAT)
            self._take_lock(time.monotonic() + LOCK_TIMEOUT)
        except OperatorError:
            os.close(self.descriptor)
            raise
        os.close(self.descriptor)
        self.descriptor = open_regular(path, os.O_RDWR | os.O_CREAT, 0o644)  # the previous owner removed it
        previous = _read_lock(self.lock_descriptor)
        self.left_behind: Final = previous.children
        """The children of the previous master: if it was killed, they may still live."""
        if previous.process is None and os.fstat(self.lock_descriptor).st_size > len("\n"):
            self.close()
            raise OperatorError(
                f"cannot use {path}: {path}{LOCK_SUFFIX} is a file of another program", os.EX_CANTCREAT
            )
        try:
            for descriptor, mode in ((self.descriptor, 0o644), (self.lock_descriptor, 0o600)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"\n", 0)  # so that a full disk shows now
                if os.fstat(descriptor).st_uid == os.geteuid():
                    os.fchmod(descriptor, mode)  # whatever the umask: any user may run `blackhole status`
        except OSError as error:
            self.remove()
            raise _write_error(path, error) from None

    def _take_lock(self, deadline: float) -> None:
        while not self._lock():
            os.close(self.lock_descriptor)
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"already running, pid {pidfile_owner(self.path) or 'not known yet'} ({self.path})",
                    os.EX_TEMPFAIL,
                )
            time.sleep(POLL)

    def _lock(self) -> bool:
        self.lock_descriptor = open_regular(self.path + LOCK_SUFFIX, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return _is_at(self.lock_descriptor, self.path + LOCK_SUFFIX)

    def write(self) -> None:
        """Write the pid of this process; a daemon has its final pid only once it is detached.

        Raises OperatorError (EX_CANTCREAT).
        """
        try:
            self._write_lock()
            os.ftruncate(self.descriptor, os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0))
        except OSError as error:
            raise _write_error(self.path, error) from None

    def record_child(self, pid: int) -> None:
        """Write down a child of this process, for the next master to find if this one is killed."""
        child = Process.of(pid)
        if child is not None:
            self._children = [*(one for one in self._children if one.is_alive()), child]
            with suppress(OSError):
                self._write_lock()

    def _write_lock(self) -> None:
        master = Process.of(os.getpid()) or Process(os.getpid(), 0)
        lines = [f"{master.pid} {master.started} {__version__}"]
        lines += (f"{child.pid} {child.started}" for child in self._children)
        text = "".join(f"{line}\n" for line in lines).encode()
        os.ftruncate(self.lock_descriptor, os.pwrite(self.lock_descriptor, text, 0))

    def remove(self) -> None:
        """Remove both files and release the lock."""
        for descriptor, path in (
            (self.descriptor, self.path),
            (self.lock_descriptor, self.path + LOCK_SUFFIX),
        ):
            os.ftruncate(descriptor, 0)
            with suppress(OperatorError):
                directory, name = open_directory(path)
                if _is_at(descriptor, name, directory):
                    os.unlink(name, dir_fd=directory)
                os.close(directory)
        self.close()

    def close(self) -> None:
        """Close the files in a child process, which must not hold the lock longer than the master."""
        os.close(self.descriptor)
        os.close(self.lock_descriptor)


def _is_at(descriptor: int, path: str, directory: int | None = None) -> bool:
    """Return whether the path names the open file: the previous owner may have removed it."""
    try:
        found = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)


def _write_error(path: str, error: OSError) -> OperatorError:
    return OperatorError(f"cannot write {path}: {error.strerror}", os.EX_CANTCREAT)


def _read_lock(descriptor: int) -> Holder:
    """Read a lock file. What is not as a master writes it is left out."""
    found: list[Process | None] = []
    version = ""
    for line in os.pread(descriptor, MAX_LOCK_OCTETS, 0).decode("ascii", "replace").splitlines():
        words = line.split()
        valid = len(words) >= 2 and all(word.isdecimal() and len(word) < 20 for word in words[:2])
        found.append(Process(int(words[0]), int(words[1])) if valid else None)
        if len(found) == 1 and len(words) == 3:
            version = words[2]
    return Holder(found[0] if found else None, version, tuple(filter(None, found[1:])))


def pidfile_owner(path: str) -> int | None:
    """Return the pid of the process that holds the lock: None if none does, 0 if its pid is not known.

    Raises OperatorError (EX_NOPERM) if the files cannot be read.
    """
    holder = _holder(path)
    if holder is None:
        return None
    return holder.process.pid if holder.process is not None else 0


def running_version(path: str) -> str:
    """Return the version that the pidfile's owner runs; empty if that is not known."""
    holder = _holder(path)
    return holder.version if holder is not None else ""


def _holder(path: str) -> Holder | None:
    """Return what the lock file says, if it is locked; None if not. Raises OperatorError (EX_NOPERM)."""
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise OSError(errno.ELOOP, "it is a symbolic link")
        descriptor = _open_to_read(path + LOCK_SUFFIX)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        pid = _owner_of_root(path)
        if pid is None:
            raise OperatorError(f"cannot read {path}{LOCK_SUFFIX}: {error.strerror}", os.EX_NOPERM) from None
        return Holder(Process.of(pid), "", ()) if pid else None
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", os.EX_NOPERM) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        found = _read_lock(descriptor)
        process, user = found.process, os.fstat(descriptor).st_uid
        known = process is not None and process.is_alive() and processes.owner(process.pid) == user
        return found if known else Holder(None, "", ())
    finally:
        os.close(descriptor)


def _open_to_read(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _owner_of_root(path: str) -> int | None:
    """Return the pid in a pidfile of root, for a user who may not open the lock file.

    0 if that process is no master. None if the pidfile is not root's, or cannot be read.
    """
    try:
        descriptor = _open_to_read(path)
    except OSError:
        return None
    try:
        status, text = os.fstat(descriptor), os.pread(descriptor, 20, 0).strip()
    finally:
        os.close(descriptor)
    if status.st_uid != 0:
        return None
    pid = int(text) if text.isdigit() else 0
    return pid if pid and processes.owner(pid) == 0 and processes.title(pid) == MASTER_TITLE else 0


def running_masters() -> list[int]:
    """Return the pids of all masters of this user and of root, also of those without a pidfile."""
    users = 0, os.geteuid()
    return [
        pid
        for pid in processes.pids()
        if processes.title(pid) == MASTER_TITLE and processes.owner(pid) in users
    ]


def known_owner(path: str) -> int | None:
    """Return the pid of the pidfile's owner, waiting until it is known; None if it has none.

    Raises OperatorError (EX_UNAVAILABLE) if it does not become known in time.
    """
    deadline = time.monotonic() + WRITE_TIMEOUT
    while (pid := pidfile_owner(path)) == 0:
        if time.monotonic() > deadline:
            raise OperatorError(
                f"{path}{LOCK_SUFFIX} is locked, but does not contain the pid of the process that locked it",
                os.EX_UNAVAILABLE,
            )
        time.sleep(POLL)
    return pid


def send(path: str, number: signal.Signals) -> bool:
    """Send a signal to the owner of a pidfile; return False if it has none.

    Raises OperatorError: EX_UNAVAILABLE if the owner's pid does not become known in time,
    EX_NOPERM if this user may not signal the process.
    """
    pid = known_owner(path)
    return pid is not None and processes.send_signal(pid, number)


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


def clear(path: str) -> list[str]:
    """Remove what a killed master left: its files, and children that keep its ports.

    Returns a line for each child that was ended.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return []
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_STALE_OCTETS:
        with suppress(OperatorError):  # another master has just started, or this user may not
            pidfile = Pidfile(path)
            ended = orphans.end_listening(pidfile.left_behind)
            pidfile.remove()
            return ended
    return []


def _wait_released(path: str, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while pidfile_owner(path) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True
