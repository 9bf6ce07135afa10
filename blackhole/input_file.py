"""Input files: what an operator names to be read, as a conf file, a scenario or a certificate."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

MAX_OCTETS: Final = 1 << 26
"""The largest file that is read."""


class InputFile(NamedTuple):
    """A file that was read."""

    octets: bytes
    status: os.stat_result
    """Of the file that was opened: its owner and its mode."""


def read(path: str) -> InputFile:
    """Read a regular file.

    A FIFO or a device is refused and never waited for. Raises OSError.
    """
    not_regular = OSError(errno.EINVAL, "not a regular file", path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise not_regular if error.errno == errno.ENXIO else error from None  # a socket
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise not_regular
        with open(descriptor, "rb", closefd=False) as file:
            octets: bytes | None = file.read(MAX_OCTETS + 1)
    finally:
        os.close(descriptor)
    if octets is None:  # as of /proc/kmsg
        raise not_regular
    if len(octets) > MAX_OCTETS:
        raise OSError(errno.EFBIG, f"larger than {MAX_OCTETS >> 20} MiB", path)
    return InputFile(octets, status)
