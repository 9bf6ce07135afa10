"""Opening files for writing without being tricked, as a master that runs as root must.

Each part of a path is opened once, and what was opened is examined, never the path again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import Final

from blackhole.settings import OperatorError

MAX_LINKS: Final = 40
"""Symbolic links in a path, as the kernel allows them (path_resolution(7))."""


def open_regular(path: str, flags: int, mode: int, owners: Collection[int] = ()) -> int:
    """Open a regular file and return the descriptor.

    The file will be truncated or given to another user. So a symbolic link, a pipe, a second hard
    link and a file of another user are refused where another user may have put it there: it has to
    belong to this user, to root, to the owner of its directory or to one of `owners`.

    Raises OperatorError (EX_CANTCREAT).
    """
    directory, name = open_directory(path)
    try:
        descriptor = os.open(
            name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory
        )
        status, shared = os.fstat(descriptor), os.fstat(directory)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise _error("cannot open", path, reason) from None
    finally:
        os.close(directory)
    reason = ""
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        reason = "it is not a regular file with a single name"
    elif shared.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and status.st_uid not in (
        *_trusted(),
        shared.st_uid,
        *owners,
    ):
        reason = f"it belongs to another user (uid {status.st_uid}); remove it"
    if reason:
        os.close(descriptor)
        raise _error("cannot use", path, reason)
    return descriptor


def open_directory(path: str) -> tuple[int, str]:
    """Open the directory of a path; return the descriptor, for use as `dir_fd`, and the name in it.

    A symbolic link on the way is followed if root or this user made it. Root refuses a directory
    that is world-writable, unless it is sticky. A group-writable one is accepted, as some systems
    have /var/log.

    Raises OperatorError (EX_CANTCREAT).
    """
    *parts, name = os.path.abspath(path).split("/")
    parts.reverse()  # the next one is the last
    directory, links = _open_part("/"), 0
    try:
        while parts:
            part = parts.pop()
            if not part:
                continue
            found = _open_part(part, directory)
            status = os.fstat(found)
            if not stat.S_ISLNK(status.st_mode):
                os.close(directory)
                directory = found
                _check_directory(path, directory, status)
                continue
            try:
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if status.st_uid not in _trusted() or status.st_nlink != 1:
                    raise _error(
                        "cannot use", path, f"{part!r} in it is a symbolic link that another user made"
                    )
                target = os.readlink("", dir_fd=found)
            finally:
                os.close(found)
            parts += reversed(target.split("/"))
            if target.startswith("/"):
                os.close(directory)
                directory = _open_part("/")
    except OSError as error:
        os.close(directory)
        raise _error("cannot open", path, error.strerror) from None
    except OperatorError:
        os.close(directory)
        raise
    return directory, name


def _trusted() -> tuple[int, ...]:
    """Return the users whose files this process trusts."""
    return 0, os.geteuid()


def _open_part(part: str, directory: int | None = None) -> int:
    return os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _check_directory(path: str, directory: int, status: os.stat_result) -> None:
    """Raise an error for what is no directory, or one in which any user may replace files of others."""
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if open_to_all and os.geteuid() == 0:
        name = os.readlink(f"/proc/self/fd/{directory}")
        raise _error("cannot use", path, f"its directory is world-writable; chmod o-w {name}")


def _error(what: str, path: str, reason: str | None) -> OperatorError:
    return OperatorError(f"{what} {path}: {reason}", os.EX_CANTCREAT)
