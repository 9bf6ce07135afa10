"""The fields of the header section that an operator asked to see, taken from a message as it passes."""

from __future__ import annotations

import re
from collections.abc import Iterable
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
    [(b'SUBJECT', b'hello')]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names: Final = frozenset(name.lower().encode() for name in names)
        wanted = b"|".join(map(re.escape, self.names))
        line = rb"[^\r\n]{0,%d}" % MAX_FIELD_VALUE
        field = rb"(?i:(%b)[ \t]*:[ \t]*(%b(?:\r?\n[ \t]%b){0,%d}))" % (
            *(wanted, line, line),
            MAX_FIELD_LINES - 1,
        )
        self._match: Final = re.compile(field).match
        self._find: Final = re.compile(rb"\n" + field).findall
        self._initials: Final = frozenset(b"".join(name[:1] + name[:1].upper() for name in self.names))

    def find(self, message: bytes) -> list[tuple[bytes, bytes]]:
        """Return the wanted fields of a message that is there as a whole, each with its value."""
        if not self.names:
            return []
        end = message.find(END_OF_HEADER, 0, MAX_HEADER)
        # A search that looks for line ends alone is three times as fast as one for the first line too.
        found: list[tuple[bytes, bytes]] = self._find(message, 0, end if end >= 0 else MAX_HEADER)
        if message[0] in self._initials:
            first = self._match(message)
            found[:0] = [] if first is None else [(first[1], first[2])]
        return found if len(found) <= MAX_FOUND else found[:MAX_FOUND]


class WantedFieldReader(HeaderLineReader):
    """Reads the wanted fields of a message that arrives in pieces.

    >>> reader = WantedFieldReader(WantedFields(["Subject"]))
    >>> for piece in (b"SUB", b"JECT: hello\\r\\n  world\\r\\n\\r\\nSubject: no\\r\\n"):
    ...     reader.feed(piece)
    >>> reader.fields()
    [(b'subject', b'hello world')]
    """

    __slots__ = ("_current", "_values", "_wanted")

    def __init__(self, wanted: WantedFields) -> None:
        HeaderLineReader.__init__(self)
        self._wanted = wanted.names
        self._values: dict[bytes, bytes] = {}
        """Values by the lower-case name of the field."""
        self._current = b""
        """The name of the field that the next line may go on with; empty for one that is not wanted."""
        self._ended = not wanted.names

    def _take(self, line: bytes) -> None:
        """Take a complete line, without its LF."""
        self._lines += 1
        if line[:1] in (b" ", b"\t"):
            if self._current and len(self._values[self._current]) < MAX_FIELD_VALUE:
                self._values[self._current] += b" " + line.strip()[:MAX_FIELD_VALUE]
            return
        name, colon, value = line.partition(b":")
        # The blank line, the final dot, or a body without a blank line.
        self._ended = not colon or self._lines >= MAX_HEADER_LINES
        name = name.rstrip().lower()
        self._current = name if name in self._wanted and name not in self._values else b""
        if self._current:
            self._values[name] = value.strip()[:MAX_FIELD_VALUE]

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return each field that was found, with its value."""
        return [*self._values.items()]
