"""The log: a line of printable ASCII for each event, on standard error, in a file or for a syslog daemon."""

from __future__ import annotations

import faulthandler
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

from blackhole.process.log_handler import DescriptorHandler
from blackhole.process.syslog_socket import SyslogHandler, is_socket
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)


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
    """Send all logging to a file or to the socket of a syslog daemon, or to standard error if `path` is
    empty; return the descriptor.

    The file is given to `owner`, a uid and gid, if this process is root. The master calls this once;
    its children inherit the handler.

    Raises OperatorError (EX_CANTCREAT).
    """
    handler = SyslogHandler(path) if path and is_socket(path) else DescriptorHandler(path, owner)
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
        handler.use_format(log_format)


def reopen() -> None:
    """Open the log file again after its rotation; if that fails, log the reason into the old one.

    A child may be asked before the master has sent it the file, as where all processes get the signal at
    once. It may have no right to open the file: then the master sends it.
    """
    for handler in _handlers():
        try:
            handler.reopen()
        except OperatorError as error:
            if handler.channel is None:
                log.error("log file not reopened, the old one stays in use: %s", error)
            else:
                log.debug("log file not opened by this process, which waits for the master: %s", error)


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
