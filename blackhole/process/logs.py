"""The log: one event one line of printable ASCII, on standard error or in a file that may be rotated."""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from setproctitle import getproctitle

from blackhole.process.safe_open import open_regular
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)

LINE = 500
"""Characters of a message that are logged; a client decides how long many of them are."""
TRACE = 8000
"""Characters of a traceback, counted from its end, where the reason stands."""

_ESCAPES = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0x100))} | {
    ord(char): escape for char, escape in zip("\t\n\r\\", (r"\t", r"\n", r"\r", r"\\"), strict=True)
}

_UNPRINTABLE = re.compile(r"[^ -~]")


def printable(data: bytes) -> str:
    r"""What a client sent, fit for a log: b"a\r\n\x1b" becomes a\r\n\x1b, and a backslash two."""
    return data.decode("latin-1").translate(_ESCAPES)


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class _Format(logging.Formatter):
    """Time, process, level, message. A traceback follows on lines of its own, indented."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        text = record.getMessage()
        if len(text) > LINE:
            text = f"{text[:LINE]}... ({len(text)} in all)"
        head = f"{stamp}.{int(record.msecs):03d} {getproctitle()} {record.levelname} {_one_line(text)}"
        trace = self.formatException(record.exc_info)[-TRACE:] if record.exc_info else ""
        return "\n    ".join((head, *map(_one_line, trace.splitlines())))


class _Lines(logging.Handler):
    """Writes a record with one write(2), to a descriptor that keeps its number for good.

    With O_APPEND no line of one process tears one of another, and faulthandler, which
    knows no files, still hits the file after it was rotated. A full disk loses lines, not mail.
    """

    def __init__(self, path: str, owner: tuple[int, int] | None) -> None:
        super().__init__()
        self.path, self.owner = path, owner
        self.descriptor = self.open() if path else 2

    def open(self) -> int:
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        if self.owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, *self.owner)  # workers open it again, when it was rotated
        return descriptor

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            os.write(self.descriptor, f"{self.format(record)}\n".encode())

    def reopen(self) -> None:
        if self.path:
            fresh = self.open()
            os.dup2(fresh, self.descriptor, inheritable=False)
            os.close(fresh)


class RateLimitFilter(logging.Filter):
    """Lets FEW lines of a kind through in a WHILE; the first after that says how many were left out.

    What a client can bring about it can bring about a thousand times a second. A kind is
    the place in the program that a line comes from. Those of --debug are all wanted.
    """

    FEW: Final = 20
    WHILE: Final = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock: Final = clock
        self._kinds: Final[dict[tuple[str, int], tuple[float, int]]] = {}
        """Kind -> when its while began, and how many lines there were since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        kind = record.pathname, record.lineno
        now = self._clock()
        began, count = self._kinds.get(kind, (now, 0))
        if now - began >= self.WHILE:
            if count > self.FEW:
                record.msg = f"{record.msg} ({count - self.FEW} more were not logged)"
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        return count < self.FEW


def limit_repeated_lines() -> None:
    """From now on log no more of what repeats itself than is of use: in a worker, which strangers talk to."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateLimitFilter())


def set_up(path: str, debug: bool, owner: tuple[int, int] | None = None) -> int:
    """Send all logging to a file, which then belongs to `owner`, or to standard error; the descriptor.

    Once per process, by the master; its children inherit it. Raises OperatorError (EX_CANTCREAT).
    """
    handler = _Lines(path, owner)
    handler.setFormatter(_Format())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # A line for each scan of the dashboard's port that does not speak HTTP.
    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    set_level(debug)
    faulthandler.enable(handler.descriptor)
    return handler.descriptor


def set_level(debug: bool) -> None:
    """INFO, or DEBUG; of Blackhole's own loggers alone."""
    logging.getLogger("blackhole").setLevel(logging.DEBUG if debug else logging.INFO)


def reopen() -> None:
    """Open the file anew, for the old one was rotated; if that cannot be, go on in the old one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Lines):
            try:
                handler.reopen()
            except OperatorError as error:
                log.error("the log is not opened again: %s", error)
