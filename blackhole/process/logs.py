"""The log: a line of printable ASCII for each event, on standard error or in a file that may be rotated."""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from blackhole.log_format import FORMATTERS
from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)

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


class RateLimitFilter(logging.Filter):
    """Limits the lines that come from one place in the program, as clients can cause thousands a second.

    At most LINES pass in a period of SECONDS. The first line after it says how many were dropped.
    Lines of --debug and of --log-transactions are not limited.
    """

    LINES: Final = 20
    SECONDS: Final = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock: Final = clock
        self._periods: Final[dict[tuple[str, int], tuple[float, int]]] = {}
        """File and line number of the call -> when its period began, and the lines since then."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or not getattr(record, "limited", True):
            return True
        place = record.pathname, record.lineno
        now = self._clock()
        began, count = self._periods.get(place, (now, 0))
        if now - began >= self.SECONDS:
            if count > self.LINES:
                self._tell_dropped(record, count - self.LINES)
            began, count = now, 0
        self._periods[place] = began, count + 1
        return count < self.LINES

    @staticmethod
    def _tell_dropped(record: logging.LogRecord, dropped: int) -> None:
        record.msg = f"{record.msg} ({dropped} more were not logged)"
        if hasattr(record, "fields"):
            record.fields = {**record.fields, "not_logged": dropped}


def limit_repeated_lines() -> None:
    """Install RateLimitFilter: in a worker, whose clients decide how much there is to log."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateLimitFilter())


def set_up(path: str, debug: bool, owner: tuple[int, int] | None = None, log_format: str = "text") -> int:
    """Send all logging to a file, or to standard error if `path` is empty; return the descriptor.

    The file is given to `owner`, a uid and gid, if this process is root. The master calls this once;
    its children inherit the handler.

    Raises OperatorError (EX_CANTCREAT).
    """
    handler = DescriptorHandler(path, owner)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Tornado warns of each connection to the dashboard's port that is not HTTP, as of a port scan.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    configure(debug, log_format)
    faulthandler.enable(handler.descriptor)
    return handler.descriptor


def configure(debug: bool, log_format: str) -> None:
    """Set the level of Blackhole's own loggers to DEBUG or INFO, and the format of all lines."""
    logging.getLogger("blackhole").setLevel(logging.DEBUG if debug else logging.INFO)
    for handler in _handlers():
        handler.setFormatter(FORMATTERS[log_format]())


def reopen() -> None:
    """Open the log file again after its rotation; if that fails, log the reason into the old one."""
    for handler in _handlers():
        try:
            handler.reopen()
        except OperatorError as error:
            log.error("log file not reopened, the old one stays in use: %s", error)


def open_again(channel: socket.socket) -> None:
    """Open the log file again, in a child process of the master, and send it to the master for `use`.

    Raises OperatorError (EX_CANTCREAT).
    """
    for handler in _handlers():
        if handler.path:
            socket.send_fds(channel, [b"L"], [handler.open()])


def use(channel: socket.socket) -> None:
    """Use the log file that `open_again` has sent."""
    for handler in _handlers():
        handler.channel = channel
        handler.reopen()
        handler.channel = None


def send(channel: socket.socket) -> None:
    """Send the log file to a child, in the master."""
    for handler in _handlers():
        handler.send(channel)


def receive_from(channel: socket.socket | None) -> None:
    """Let `reopen` use the file that comes from the master, in a child."""
    for handler in _handlers():
        handler.channel = channel


def _handlers() -> list[DescriptorHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, DescriptorHandler)]
