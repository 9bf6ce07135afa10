"""Message directives: header fields by which a message asks for a mode or a delay.

They are X-Blackhole-Mode and X-Blackhole-Delay, as in Blackhole 2.x. A value that is not understood is
ignored, as it may be meant for another server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from blackhole.smtp.header_section import MAX_HEADER_LINES, HeaderLineReader

DIRECTIVE_MODES: Final = frozenset((b"accept", b"bounce", b"random"))
"""Modes that apply to one message."""

MAX_DELAY: Final = 60.0
"""Seconds. Anybody may send such a message."""

DELAY: Final = re.compile(rb"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:\s*,\s*([0-9]{1,9}(?:\.[0-9]{1,6})?))?")

FIELD_PREFIX: Final = b"x-blackhole-"
"""The beginning of the names of the fields, in lower case."""

DIRECTIVE_FIELDS: Final = frozenset((FIELD_PREFIX + b"mode", FIELD_PREFIX + b"delay"))
"""The names of the fields, in lower case."""

FIELD_MARK: Final = b"lackhole-"
"""Octets that the fields contain. All messages are searched for them. X-BLACKHOLE is not recognized, as to
search for more spellings would take twice the time."""

MAX_FIELD: Final = 512
"""Octets of a field that asks for something, at most, with all its lines. Longer ones are ignored."""


class Directives(NamedTuple):
    """What a message asks for."""

    mode: str = ""
    """Empty: the mode of the listener."""
    delay: tuple[float, float] | None = None
    """Seconds before the reply, at least and at most; None: the delay of the listener."""


NOTHING_ASKED: Final = Directives()


def parse_directives(fields: Iterable[bytes], before: Directives = NOTHING_ASKED) -> Directives:
    """Return what the fields of a header section, each as "Name: value", ask for. The first value counts;
    `before` is what earlier fields asked for."""
    mode, delay = before
    for field in fields:
        if len(field) > MAX_FIELD:
            continue
        name, _, value = field.partition(b": ")
        if FIELD_MARK not in name:
            continue
        name, value = name.lower(), value.strip().lower()
        if name == FIELD_PREFIX + b"mode" and not mode and value in DIRECTIVE_MODES:
            mode = value.decode()
        elif name == FIELD_PREFIX + b"delay" and delay is None:
            delay = span(value)
    return Directives(mode, delay)


def span(text: bytes) -> tuple[float, float] | None:
    """Return the seconds of "10" or "10, 60", cut at MAX_DELAY; None for anything else."""
    match = DELAY.fullmatch(text)
    if match is None:
        return None
    least, most = (min(float(part), MAX_DELAY) for part in (match[1], match[2] or match[1]))
    return (least, most) if least <= most else None


class DirectiveReader(HeaderLineReader):
    """Reads the directives of a message that arrives in pieces.

    Keeps the beginning of one line, and one field if it may be a directive: less than MAX_FIELD octets each.

    >>> reader = DirectiveReader()
    >>> for piece in (b"Subject: hello\\r\\nX-Black", b"hole-Mode: bou", b"nce\\r\\n\\r\\nHello"):
    ...     reader.feed(piece)
    >>> reader.directives()
    Directives(mode='bounce', delay=None)
    """

    __slots__ = ("_asked", "_field")

    def __init__(self) -> None:
        HeaderLineReader.__init__(self)
        self._asked = NOTHING_ASKED
        self._field = b""
        """The last field, as "Name: value", if it may be a directive."""

    def directives(self) -> Directives:
        """Return what the message asks for."""
        self._end_field()
        return self._asked

    def _take(self, line: bytes) -> None:
        """Take a complete line, without its LF."""
        line = line.removesuffix(b"\r")
        self._lines += 1
        if line[:1] in (b" ", b"\t"):
            if self._field:
                self._field += b" " + line.strip()
                if max(len(line), len(self._field)) > MAX_FIELD:
                    self._field = b""
        else:
            self._end_field()
            name, colon, value = line.partition(b":")
            self.ended = not colon  # the blank line, the final dot, or a body without a blank line
            if FIELD_MARK in name and len(line) <= MAX_FIELD:
                self._field = name.rstrip() + b": " + value.strip()
        self.ended = self.ended or self._lines == MAX_HEADER_LINES

    def _abridged(self, line: bytes) -> bytes:
        """Return an incomplete line; of one that is too long, something shorter that has the same effect."""
        if len(line) <= MAX_FIELD + len(b"\r"):
            return line
        if line[:1] in (b" ", b"\t"):
            return b" " + b"x" * MAX_FIELD  # makes the field too long
        return b"x:" if b":" in line else b"x"

    def _end_field(self) -> None:
        if self._field:
            self._asked = parse_directives((self._field,), self._asked)
            self._field = b""
