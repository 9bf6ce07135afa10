"""The fields of the header section that an operator asked to see, taken from a message as it passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from blackhole.smtp.header_section import END_OF_HEADER, MAX_HEADER, MAX_HEADER_LINES, HeaderLineReader

MAX_FIELD_VALUE: Final = 256
"""Octets of each line of a value that are kept."""

MAX_FIELD_LINES: Final = 4
"""Lines of a value that are kept."""

MAX_FOUND: Final = 16
"""Fields that are kept of a message."""


class WantedFields:
    """Finds the wanted fields of messages. Of several with a name, the first counts.

    >>> WantedFields(["Subject"]).find(b"From: a@example.com\\r\\nSUBJECT: hello\\r\\n\\r\\nSubject: no")
    [b'SUBJECT: hello']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names: Final = frozenset(name.lower().encode() for name in names)
        self.find: Final = _find_function(self.names) if self.names else find_nothing
        """Returns the wanted fields of a message that is there as a whole, as they came.

        A reader takes them apart with `name_and_value`. It is a closure: a method takes longer.
        """


def find_nothing(message: bytes) -> list[bytes]:
    """Return no field."""
    return []


def _find_function(names: Collection[bytes]) -> Callable[[bytes], list[bytes]]:
    wanted = b"|".join(map(re.escape, names))
    # A dot is all but LF: to look for CR too takes four times as long.
    line = rb".{0,%d}" % MAX_FIELD_VALUE
    field = rb"((?i:%b)[ \t]*:%b(?:\n[ \t]%b){0,%d})" % (wanted, line, line, MAX_FIELD_LINES - 1)
    match_first, find_others = re.compile(field).match, re.compile(rb"\n" + field).findall
    initials = frozenset(b"".join(name[:1] + name[:1].upper() for name in names))

    def find(message: bytes) -> list[bytes]:
        end = message.find(END_OF_HEADER, 0, MAX_HEADER)
        # A search that looks for line ends alone is three times as fast as one for the first line too.
        found: list[bytes] = find_others(message, 0, end if end >= 0 else MAX_HEADER)
        if message[0] in initials:
            first = match_first(message)
            found[:0] = [] if first is None else [first[1]]
        return found if len(found) <= MAX_FOUND else found[:MAX_FOUND]

    return find


def name_and_value(field: bytes) -> tuple[bytes, bytes]:
    """Return the name of a field in lower case, and its value in one line.

    >>> name_and_value(b"Subject:hello\\r\\n\\tworld\\r")
    (b'subject', b'hello world')
    """
    name, _, value = field.partition(b":")
    return name.rstrip().lower(), b" ".join(line.strip() for line in value.split(b"\n"))


class WantedFieldReader(HeaderLineReader):
    """Reads the wanted fields of a message that arrives in pieces.

    >>> reader = WantedFieldReader(WantedFields(["Subject"]))
    >>> for piece in (b"SUB", b"JECT: hello\\r\\n  world\\r\\n\\r\\nSubject: no\\r\\n"):
    ...     reader.feed(piece)
    >>> reader.fields()
    [b'subject:hello world']
    """

    __slots__ = ("_current", "_values", "_wanted")

    def __init__(self, wanted: WantedFields) -> None:
        HeaderLineReader.__init__(self)
        self._wanted = wanted.names
        self._values: dict[bytes, bytes] = {}
        """Values by the lower-case name of the field."""
        self._current = b""
        """The name of the field that the next line may go on with; empty for one that is not wanted."""
        self.ended = not wanted.names

    def _take(self, line: bytes) -> None:
        """Take a complete line, without its LF."""
        self._lines += 1
        if line[:1] in (b" ", b"\t"):
            if self._current and len(self._values[self._current]) < MAX_FIELD_VALUE:
                self._values[self._current] += b" " + line.strip()[:MAX_FIELD_VALUE]
            return
        name, colon, value = line.partition(b":")
        # The blank line, the final dot, or a body without a blank line.
        self.ended = not colon or self._lines >= MAX_HEADER_LINES
        name = name.rstrip().lower()
        self._current = name if name in self._wanted and name not in self._values else b""
        if self._current:
            self._values[name] = value.strip()[:MAX_FIELD_VALUE]

    def fields(self) -> list[bytes]:
        """Return the fields that were found."""
        return [b"%b:%b" % field for field in self._values.items()]
