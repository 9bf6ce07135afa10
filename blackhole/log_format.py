"""The formats of the log: lines for people, JSON, and syslog (RFC 5424). All are printable ASCII.

A record may have an `event`, a fixed text, and `fields`, its values by name. JSON shows them as they are;
the other formats show the message of the record, in which `log_event` writes them as logfmt.

What clients send reaches the log escaped and cut, so that nobody can forge a line or a field.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from setproctitle import getproctitle

MAX_MESSAGE: Final = 500
"""Characters of a message that are logged; clients decide how long many messages are."""

MAX_EVENT: Final = 4000
"""The same of a message that `log_event` has made of fields, each of which is cut on its own."""

MAX_VALUE: Final = 256
"""Characters of a field that are logged: as many as an address has at most (RFC 5321 4.5.3.1.3)."""

MAX_TRACEBACK: Final = 8000
"""Characters of a traceback that are logged, counted from its end, where the exception stands."""

FACILITY: Final = 2
"""The mail system (RFC 5424 6.2.1)."""

SEVERITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""The level of a record -> its severity (RFC 5424 6.2.1); below them it is 7."""

APP_NAME: Final = "blackhole"

_ESCAPES: Final = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0x100))} | {
    ord(char): escape for char, escape in zip("\t\n\r\\", (r"\t", r"\n", r"\r", r"\\"), strict=True)
}

_UNPRINTABLE: Final = re.compile(r"[^ -~]")

_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]+")
"""Matches a value that logfmt shows without quotes: no blank, quote, equals sign or backslash."""

LogValue = str | int | float | None


def printable(data: bytes) -> str:
    r"""Return octets from a client as printable ASCII with escapes.

    >>> print(printable(b"HELO \x1b[2J\\\r\n"))
    HELO \x1b[2J\\\r\n
    """
    return data.decode("latin-1").translate(_ESCAPES)


def one_line(text: str) -> str:
    """Return a text as printable ASCII, with everything else escaped."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def logfmt(fields: Mapping[str, LogValue]) -> str:
    r"""Return fields as `name=value`, the values in quotes where they need them.

    >>> print(logfmt({"client": "192.0.2.1", "helo": 'a "b" \n level=x', "size": 5, "tls": None}))
    client=192.0.2.1 helo="a \"b\" \n level=x" size=5
    """
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)


def _value(value: LogValue) -> str:
    text = _cut(value) if isinstance(value, str) else str(value)
    return text if isinstance(text, str) and _PLAIN.fullmatch(text) else json.dumps(text)


def _cut(text: str, most: int = MAX_VALUE) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def log_event(
    log: logging.Logger, level: int, event: str, fields: Mapping[str, LogValue], limited: bool = True
) -> None:
    """Log an event with its fields. Without `limited`, `logs.RateLimitFilter` lets each of them pass."""
    if log.isEnabledFor(level):
        extra = {"event": event, "fields": fields, "limited": limited}
        log.log(level, "%s: %s", event, logfmt(fields), extra=extra, stacklevel=2)


def _message(record: logging.LogRecord) -> str:
    """Return the message of a record as printable ASCII, cut to the length of its kind."""
    return one_line(_cut(record.getMessage(), MAX_EVENT if hasattr(record, "limited") else MAX_MESSAGE))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info)[-MAX_TRACEBACK:] if record.exc_info else ""


def timestamp(seconds: float, separator: str = "T") -> str:
    """Return a time in the zone of this machine, with milliseconds and the zone (RFC 3339).

    >>> len(timestamp(0.0)), timestamp(0.0025)[19:23]
    (29, '.002')
    """
    local = time.localtime(seconds)
    minutes = local.tm_gmtoff // 60
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    return f"{time.strftime(f'%Y-%m-%d{separator}%H:%M:%S', local)}.{int(seconds * 1000) % 1000:03d}{zone}"


class LineFormatter(logging.Formatter):
    """Formats a record as time, process title, level, message; a traceback follows on indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{timestamp(record.created, ' ')} {getproctitle()} {record.levelname} {_message(record)}"
        return "\n    ".join((head, *map(one_line, _traceback(self, record).splitlines())))


class JSONFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": timestamp(record.created),
            "level": record.levelname,
            "process": getproctitle().removeprefix(f"{APP_NAME}: "),
            "pid": record.process,
            "message": getattr(record, "event", None) or _message(record),
        }
        for name, value in getattr(record, "fields", {}).items():
            if value is not None:
                found[name] = _cut(value, MAX_MESSAGE) if isinstance(value, str) else value
        if trace := _traceback(self, record):
            found["traceback"] = trace
        return json.dumps(found)


class SyslogFormatter(logging.Formatter):
    """Formats a record as RFC 5424 has it, on one line. The title of the process is its MSGID."""

    def __init__(self) -> None:
        super().__init__()
        self._host: Final = re.sub(r"[^!-~]", "_", socket.gethostname())[:255] or "-"

    def format(self, record: logging.LogRecord) -> str:
        kind = re.sub(r"[^!-~]", "-", getproctitle().removeprefix(f"{APP_NAME}: "))[:32] or "-"
        head = f"<{_priority(record)}>1 {timestamp(record.created)} {self._host} {APP_NAME}"
        return f"{head} {record.process} {kind} - {_whole_message(self, record)}"


class LocalSyslogFormatter(logging.Formatter):
    """Formats a record as syslog(3) sends it to a daemon on the same machine, which knows its own name.

    The text is that of the format `log_format`; that of text and of syslog begins with the process.
    """

    def __init__(self, log_format: str) -> None:
        super().__init__()
        self._inner: Final = JSONFormatter() if log_format == "json" else None

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%b %e %H:%M:%S", time.localtime(record.created))
        head = f"<{_priority(record)}>{when} {APP_NAME}[{record.process}]: "
        if self._inner is not None:
            return head + self._inner.format(record)
        return f"{head}{getproctitle().removeprefix(f'{APP_NAME}: ')}: {_whole_message(self, record)}"


def _priority(record: logging.LogRecord) -> int:
    """Return the facility and the severity of a record as one number (RFC 5424 6.2.1)."""
    return 8 * FACILITY + next((number for level, number in SEVERITIES if record.levelno >= level), 7)


def _whole_message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the message of a record, and a traceback behind it, on one line."""
    trace = _traceback(formatter, record)
    return f"{_message(record)}{' ' if trace else ''}{one_line(trace)}"


FORMATTERS: Final[Mapping[str, Callable[[], logging.Formatter]]] = {
    "text": LineFormatter,
    "json": JSONFormatter,
    "syslog": SyslogFormatter,
}
"""A word of LOG_FORMATS -> its formatter."""
