"""Opening a file for writing without being tricked, as a master that runs as root must."""

from __future__ import annotations

import errno
import os
import stat

from blackhole.settings import OperatorError


def open_regular(path: str, flags: int, mode: int) -> int:
    """Open a regular file and return the descriptor.

    The file will be truncated or given to another user, so a symbolic link, a pipe and a second
    hard link are refused: in a directory where other users can write, any of them may have put it
    there. Root refuses a world-writable directory altogether, unless it is sticky. A
    group-writable one is accepted, as some systems have /var/log.

    Raises OperatorError (EX_CANTCREAT).
    """
    directory = os.path.dirname(path)
    if os.geteuid() == 0 and _is_open_to_all(directory):
        raise OperatorError(
            f"cannot use {path}: its directory is world-writable; chmod o-w {directory}",
            os.EX_CANTCREAT,
        )
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise OperatorError(f"cannot open {path}: {reason}", os.EX_CANTCREAT) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise OperatorError(
            f"cannot use {path}: it is not a regular file with a single name", os.EX_CANTCREAT
        )
    return descriptor


def _is_open_to_all(directory: str) -> bool:
    """Return whether any user may remove files of others from the directory."""
    try:
        mode = os.stat(directory).st_mode
    except OSError:
        return False  # opening a file in it gives the reason
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX
