"""The log in the hands of a syslog daemon on this machine: a datagram for each line, such as to /dev/log."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from blackhole.log_format import LocalSyslogFormatter
from blackhole.process.log_handler import DescriptorHandler
from blackhole.settings import OperatorError

RECONNECT_INTERVAL: Final = 1.0
"""Seconds between attempts to find a daemon that has gone away, as it does when it is restarted."""


def is_socket(path: str) -> bool:
    """Return whether a path is that of a socket."""
    with suppress(OSError):
        return stat.S_ISSOCK(os.stat(path).st_mode)
    return False


class SyslogHandler(DescriptorHandler):
    """Sends each record as a datagram, and never waits: what a daemon does not take is dropped.

    The first line that it takes again says how many were dropped. Messages of faulthandler have no
    priority; daemons take them as notices of a user.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Connect to the socket of that path. Raises OperatorError (EX_CANTCREAT)."""
        self._clock: Final = clock
        self._tried = clock()
        self.dropped = 0
        """Lines that were dropped since one was sent."""
        super().__init__(path, None)

    def open(self) -> int:
        """Connect to the socket, and return its descriptor. Raises OperatorError (EX_CANTCREAT)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            raise OperatorError(
                f"cannot log to the socket {self.path}: {error.strerror}; is a syslog daemon running?",
                os.EX_CANTCREAT,
            ) from None
        return connection.detach()

    def use_format(self, log_format: str) -> None:
        """Use one of LOG_FORMATS, behind what syslog(3) puts before each message."""
        self.setFormatter(LocalSyslogFormatter(log_format))

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if self.dropped:
            line += f" ({self.dropped} lines before were not logged)"
        try:
            os.write(self.descriptor, line.encode())
            self.dropped = 0
        except BlockingIOError:
            self.dropped += 1
        except OSError:
            self.dropped += 1
            self._connect_again()

    def _connect_again(self) -> None:
        """Connect to the socket that a daemon may have opened since, for the lines to come."""
        now = self._clock()
        if now - self._tried >= RECONNECT_INTERVAL:
            self._tried = now
            with suppress(OperatorError):
                self.reopen()
