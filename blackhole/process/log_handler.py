"""The handler of the log: writes each line to standard error, or to a file that may be rotated."""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
from contextlib import suppress
from typing import Final

from blackhole.log_format import FORMATTERS
from blackhole.process.safe_open import open_regular

STALL_MILLISECONDS: Final = 1000
"""How long a line waits for the reader of a pipe or a terminal. The next ones then do not wait."""


class DescriptorHandler(logging.Handler):
    """Writes each record with one write(2), to a descriptor whose number never changes.

    The file is opened with O_APPEND, so processes do not overwrite each other's lines. faulthandler
    keeps the number of the descriptor, and still writes into the right file after a rotation. A full
    disk loses lines, and nothing else; so does a pipe or a terminal whose reader has stopped.
    """

    def __init__(self, path: str, owner: tuple[int, int] | None) -> None:
        """Open the file for appending, or use standard error if `path` is empty."""
        super().__init__()
        self.path: Final = path
        self.owner: Final = owner
        self.channel: socket.socket | None = None
        """In a child, where the master sends the file after a rotation."""
        self.descriptor: Final = self.open() if path else _unblocked(2)
        self._may_stall: Final = not stat.S_ISREG(os.fstat(self.descriptor).st_mode)
        self._stalled = False

    def open(self) -> int:
        """Open the file and return the descriptor. Raises OperatorError (EX_CANTCREAT)."""
        users = () if self.owner is None else self.owner[:1]
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640, users)
        if self.owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, *self.owner)  # workers open the file themselves after a rotation
        return descriptor

    def use_format(self, log_format: str) -> None:
        """Use one of LOG_FORMATS."""
        self.setFormatter(FORMATTERS[log_format]())

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            if not self._may_stall or self._is_writable():
                os.write(self.descriptor, f"{self.format(record)}\n".encode())

    def _is_writable(self) -> bool:
        """Return whether the reader takes a line, if need be after a time, but not again and again."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        self._stalled = not poll.poll(0 if self._stalled else STALL_MILLISECONDS)
        return not self._stalled

    def reopen(self) -> None:
        """Use the file that the master has sent, or open the path again.

        Raises OperatorError (EX_CANTCREAT).
        """
        if self.path:
            received = self._received()
            fresh = self.open() if received is None else received
            os.dup2(fresh, self.descriptor, inheritable=False)
            os.close(fresh)

    def _received(self) -> int | None:
        """Return the last descriptor that the master has sent, if any came since the last call."""
        last = None
        with suppress(BlockingIOError):
            while self.channel is not None:
                data, descriptors, _, _ = socket.recv_fds(self.channel, 1, 1)
                if not data:  # the master is gone
                    break
                if last is not None:
                    os.close(last)
                (last,) = descriptors
        return last

    def send(self, channel: socket.socket) -> None:
        """Send the open file to a child, unless the child takes none."""
        if self.path:
            with suppress(OSError):
                socket.send_fds(channel, [b"L"], [self.descriptor])


def _unblocked(descriptor: int) -> int:
    """Return a descriptor of the same pipe or terminal that can be written to without waiting.

    Without a second one, the first: its flags are those of other processes, too.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return descriptor
