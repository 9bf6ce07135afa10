"""What the program is to its system: alone, detached, expected by somebody, no longer root."""

from __future__ import annotations

import ctypes
import fcntl
import grp
import os
import pwd
import resource
import signal
import socket
import sys
import time
from contextlib import suppress

from blackhole.process.logs import open_regular
from blackhole.settings import OperatorError

_NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS of linux/prctl.h


TITLE = "blackhole: master"
"""Of the process whose pid a pidfile has."""

PATIENCE = 5.0
"""Seconds a program may take from locking its pidfile to writing into it."""

# Alone: the pidfile.


class Pidfile:
    """A file that is locked while its program lives, and says its pid.

    The lock is the truth, what stands in the file only an address. The lock ends with the
    program, however that came about, so a crash leaves nothing to clean up.
    """

    def __init__(self, path: str) -> None:
        """Lock it. Raises OperatorError: EX_TEMPFAIL if another program has it, or EX_CANTCREAT."""
        self.path = path
        patience = time.monotonic() + 0.2  # `pidfile_owner` holds the lock as well, for a moment
        while not self._lock():
            os.close(self.descriptor)
            if time.monotonic() > patience:
                raise OperatorError(
                    f"already running, pid {pidfile_owner(path) or 'not known yet'} ({path})", os.EX_TEMPFAIL
                )
            time.sleep(0.01)
        os.ftruncate(self.descriptor, 0)
        if os.fstat(self.descriptor).st_uid == os.geteuid():
            os.fchmod(self.descriptor, 0o644)  # whatever the umask: anybody may ask for our status

    def _lock(self) -> bool:
        self.descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._is_named()

    def _is_named(self) -> bool:
        """Whether the path leads to the file we locked, and not to none or to a later one."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def write(self) -> None:
        """Say who we are, which a daemon knows when it is detached."""
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def remove(self) -> None:
        """End it all: the address, the file, the lock."""
        os.ftruncate(self.descriptor, 0)
        if self._is_named():
            os.unlink(self.path)
        os.close(self.descriptor)

    def forget(self) -> None:
        """In a child, which may outlive the master: the lock is not to."""
        os.close(self.descriptor)


def pidfile_owner(path: str) -> int | None:
    """The pid of the program that holds a pidfile: None if none does, 0 if it does not say yet.

    Raises OperatorError (EX_NOPERM).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}", os.EX_NOPERM) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pid = os.pread(descriptor, 20, 0).strip()
        return int(pid) if pid.isdigit() and _has_open(int(pid), os.fstat(descriptor)) else 0
    finally:
        os.close(descriptor)


def _has_open(pid: int, file: os.stat_result) -> bool:
    """Whether a process has that file open: a stranger who got the number of a dead one has not."""
    descriptors = f"/proc/{pid}/fd"
    with suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        try:
            return any(
                os.path.samestat(os.stat(f"{descriptors}/{name}"), file) for name in os.listdir(descriptors)
            )
        except PermissionError:  # another user's; or our own, where the interpreter has capabilities
            with open(f"/proc/{pid}/cmdline", "rb") as title:
                return title.read().rstrip(b"\0") == TITLE.encode()
    return False


def running_masters() -> list[int]:
    """The pids of all servers on this machine, those without a pidfile too."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as title:
                if title.read().rstrip(b"\0") == TITLE.encode():
                    found.append(int(name))
    return found


def send(path: str, number: signal.Signals) -> bool:
    """Signal the program that holds a pidfile; False if none does. Raises OperatorError."""
    patience = time.monotonic() + PATIENCE
    while (pid := pidfile_owner(path)) == 0:
        if time.monotonic() > patience:
            raise OperatorError(f"{path} is locked by a process it does not name", os.EX_UNAVAILABLE)
        time.sleep(0.02)
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except PermissionError:
        raise OperatorError(f"pid {pid} is not ours to signal: {number.name}", os.EX_NOPERM) from None
    except ProcessLookupError:
        return False
    return True


def stop(path: str, patience: float) -> bool:
    """End the program that holds a pidfile, by force after `patience` seconds; False if none does.

    Raises OperatorError (EX_UNAVAILABLE) if it would not die.
    """
    if not send(path, signal.SIGTERM):
        return False
    if not _gone(path, patience):
        send(path, signal.SIGKILL)
        if not _gone(path, 2.0):
            raise OperatorError(f"pid {pidfile_owner(path)} does not end", os.EX_UNAVAILABLE)
    return True


def _gone(path: str, patience: float) -> bool:
    until = time.monotonic() + patience
    while pidfile_owner(path) is not None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# Detached: the shell waits until we are ready.


class LauncherPipe:
    """What waits in our caller's shell until it is told how we fare, or until we are gone.

    Without a descriptor there is none, as in the foreground.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor

    @property
    def waits(self) -> bool:
        return self._descriptor >= 0

    def tell(self, code: int) -> None:
        """Let it exit with that code, and from now on leave its standard error alone."""
        if self.waits:
            with suppress(BrokenPipeError):  # Ctrl-C: nobody waits any more
                os.write(self._descriptor, bytes((code,)))
            self.forget()

    def forget(self) -> None:
        """Keep nothing open of the caller, who may wait for the end of our standard error."""
        if self.waits:
            os.close(self._descriptor)
            self._descriptor = -1
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)


def detach(keep: list[int]) -> LauncherPipe:
    """Go on as a daemon with these descriptors. Standard error stays the caller's until `Shell.tell`.

    All that python-daemon would do when it is too late to be heard of, or does by halves, is done
    elsewhere: it drops root but not root's groups, locks a pidfile as somebody who may not, and
    says nothing of any failure.
    """
    from daemon import DaemonContext

    answer, told = os.pipe()
    pid = os.fork()
    if pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(told)
        os.waitpid(pid, 0)
        code = os.read(answer, 1)
        if not code:
            os.write(2, b"blackhole: it died before it was ready\n")
        os._exit(code[0] if code else os.EX_SOFTWARE)
    os.close(answer)
    DaemonContext(
        detach_process=True, umask=0o027, signal_map={}, files_preserve=[*keep, told], stderr=sys.stderr
    ).open()
    return LauncherPipe(told)


# Expected: by systemd.


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notes, suppress(OSError):
            notes.connect("\0" + address[1:] if address[0] == "@" else address)
            notes.sendall(state.encode())


# No longer root.


def resolve(user: str, group: str) -> tuple[int, int]:
    """The uid and gid workers run with, from names or numbers; two numbers are taken as they are.

    Root with no user becomes `blackhole` or else `nobody`; everybody else stays who they are.
    Raises OperatorError: EX_NOUSER for names nobody has, EX_NOPERM for what only root may ask.
    """
    us = os.geteuid(), os.getegid()
    if us[0] != 0 and not user:
        user = str(us[0])
        group = group or str(us[1])
    if user.isdecimal() and group.isdecimal():
        wanted = int(user), int(group)
    else:
        account = _user(user) if user else _nobody()
        wanted = account.pw_uid, _group(group) if group else account.pw_gid
    if us[0] != 0 and wanted != us:
        raise OperatorError(
            f"only root may run workers as user {user}, group {group or wanted[1]}", os.EX_NOPERM
        )
    return wanted


def _user(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise OperatorError(f"there is no user {user}", os.EX_NOUSER) from None


def _nobody() -> pwd.struct_passwd:
    try:
        return _user("blackhole")
    except OperatorError:
        return _user("nobody")


def _group(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise OperatorError(f"there is no group {group}", os.EX_NOUSER) from None


def drop_privileges(user: str, group: str) -> None:
    """Become that user for good, if we are root, and in any case gain nothing later.

    Groups, gid, uid, in this order, for each step needs the right the next one takes away
    (Exim, CVE-2011-0017, did not look whether they were taken). Raises OperatorError.
    """
    uid, gid = resolve(user, group)
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() != 0:
        return
    try:
        os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise OperatorError(
            f"cannot become user {uid}, group {gid}: {error.strerror}", os.EX_NOPERM
        ) from None
    if (os.getresuid(), os.getresgid(), os.getgroups()) != ((uid,) * 3, (gid,) * 3, [gid]) or _may_return(
        uid
    ):
        raise OperatorError(f"did not become user {uid}, group {gid}", os.EX_SOFTWARE)


def _may_return(uid: int) -> bool:
    """Whether root could be had back; not asked of those who are to be root."""
    if uid == 0:
        return False
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
