"""The header section of a message (RFC 5322 2.2): collected from pieces, and taken apart into fields."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from blackhole.smtp.abridged_fields import AbridgedFields

MAX_HEADER: Final = 65536
"""Octets of a header section that are read."""

MAX_HEADER_LINES: Final = 1000
"""Lines of a header section that are read."""

MAX_FIELD_LINE: Final = 1024
"""Octets of an incomplete line that are kept where its beginning is all that matters."""

FIELD_ROOM: Final = 2048
"""Octets that are kept of all fields of one name, with their lines."""

LINE_ROOM: Final = 512
"""Octets that are kept of an incomplete line, until it is taken without its end."""

ANY_NAME: Final = b"*"
"""Among the names of fields to collect: those of every name."""

END_OF_HEADER: Final = b"\r\n\r\n"

NO_FIELD: Final = b"-\r\n"
"""A line at which `fields` stops, in place of the one at which the fields of a message end."""

BLANK: Final = re.compile(rb"\n\r?\n")
"""The blank line behind the header section, of senders that end lines with LF alone too."""

DIGEST_OCTETS: Final = 16


def fields(text: bytes) -> list[bytes]:
    """Return the fields of the header section that a text begins with, unfolded, each as "Name: value".

    >>> fields(b"Subject : a\\r\\n long one\\r\\n\\r\\nHello")
    [b'Subject: a long one']
    """
    found: list[bytes] = []
    for line in text.split(b"\n", MAX_HEADER_LINES)[:MAX_HEADER_LINES]:
        line = line.removesuffix(b"\r")
        if line in (b"", b"."):
            break
        if line[:1] in (b" ", b"\t"):
            if found:
                found[-1] += b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            break  # A message without a blank line: this is its body.
        found.append(name.rstrip() + b": " + value.strip())
    return found


def header_digest(text: bytes) -> bytes:
    """Return a digest of a header section, without the blank line behind it."""
    return blake2b(text, digest_size=DIGEST_OCTETS).digest()


class HeaderLineReader:
    """Takes the lines of the header section of a message that arrives in pieces."""

    __slots__ = ("_line", "_lines", "_octets", "ended")

    def __init__(self) -> None:
        self._line = b""
        """The line that is incomplete, or something shorter that has the same effect."""
        self._lines = 0
        """Lines that were taken."""
        self._octets = 0
        self.ended = False
        """Nothing more is to be taken."""

    def feed(self, data: bytes) -> None:
        """Take the next octets of the message, with dots still doubled."""
        if self.ended:
            return
        end = data.find(END_OF_HEADER)
        data = data[: min(MAX_HEADER - self._octets, end + len(END_OF_HEADER) if end >= 0 else MAX_HEADER)]
        self._octets += len(data)
        *lines, rest = data.split(b"\n", MAX_HEADER_LINES)
        for line in lines:
            self._take(self._line + line)
            self._line = b""
            if self.ended:
                return
        self._line = self._abridged(self._line + rest)
        self.ended = self._octets >= MAX_HEADER

    def _take(self, line: bytes) -> None:
        """Take a complete line, without its LF."""

    def _abridged(self, line: bytes) -> bytes:
        """Return an incomplete line, or something shorter that has the same effect: its beginning."""
        return line[:MAX_FIELD_LINE]


class CollectedHeader(bytes):
    """A header section of which only some fields are left."""

    digest: bytes
    """That of the whole header section; empty if there is none."""


class HeaderCollector:
    """Collects the fields of some names from the header section of a message that arrives in pieces.

    Nothing is kept of other fields, and FIELD_ROOM octets of those of one name. `names` are in lower case.
    Fields whose names are not ASCII are all kept, like those of one name. With ANY_NAME among the names, all
    others are kept as `AbridgedFields`.

    >>> collector = HeaderCollector(frozenset((b"subject",)))
    >>> for piece in (b"To: bob@example.com\\r\\nSub", b"ject: hello\\r\\n\\r\\nHow are you?"):
    ...     collector.feed(piece)
    >>> collector.text
    b'Subject: hello\\r\\n\\r\\n'
    """

    __slots__ = (
        "_abridged",
        "_digest",
        "_fields_ended",
        "_has_colon",
        "_is_long",
        "_kept",
        "_key",
        "_line",
        "_lines",
        "_names",
        "_octets",
        "_room",
        "ended",
    )

    def __init__(self, names: frozenset[bytes]) -> None:
        self._names = names
        self._room: dict[bytes, int] = {}
        """How many octets more may be kept, by the key of a name."""
        self._kept = bytearray()
        self._abridged = AbridgedFields(self._kept) if ANY_NAME in names else None
        self._digest: Final = blake2b(digest_size=DIGEST_OCTETS)
        """That of the header section so far, from the first octet on."""
        self._key: bytes | None = None
        """The key of the field that the last line belongs to; None if it is not kept."""
        self._line = b""
        """The incomplete line, or what was not taken of it."""
        self._is_long = False
        """The incomplete line was taken in part."""
        self._has_colon = False
        self._lines = 0
        self._octets = 0
        self._fields_ended = False
        """A line was no field, or there were too many; a blank line may still follow."""
        self.ended = False
        """Nothing more is to be taken."""

    def feed(self, data: bytes) -> None:
        """Take the next octets of the message, with dots still doubled."""
        if self.ended:
            return
        data = data[: MAX_HEADER - self._octets]
        self._octets += len(data)
        position = 0
        while not self._fields_ended:
            end = data.find(b"\n", position) + 1
            if not end:
                self._line += data[position:]
                if len(self._line) > LINE_ROOM:
                    self._take(self._line, False)
                    self._line = b""
                break
            line, self._line = self._line + data[position:end], b""
            position = end
            if not self._is_long and line in (b"\n", b"\r\n"):
                self.ended = True
                return
            self._take(line, True)
        else:
            self._find_blank_line(self._line + data[position:])
        self.ended = self.ended or self._octets == MAX_HEADER

    @property
    def text(self) -> CollectedHeader:
        """The fields that were asked for. Nothing can be fed afterwards."""
        if self._fields_ended:
            self._digest.update(self._line)
        elif self._line:
            self._take(self._line, False)
        self.ended, self._line = True, b""
        if self._abridged is not None:
            self._abridged.end()
        self._end_line()
        text = CollectedHeader(self._kept + (NO_FIELD if self._fields_ended else b"") + b"\r\n")
        text.digest = self._digest.digest() if self._lines else b""
        return text

    def _take(self, line: bytes, is_complete: bool) -> None:
        """Take a line, or a piece of one that is long."""
        begins = not self._is_long
        if begins:
            self._lines += 1
            self._end_line()
            self._begin_line(line)
        self._has_colon = self._has_colon or b":" in line
        self._is_long = not is_complete
        if is_complete and (not self._has_colon or self._lines == MAX_HEADER_LINES):
            self._fields_ended = True
            self._line = line[-1:]  # may be the beginning of the blank line
            self._digest.update(line[:-1])
        else:
            self._digest.update(line)
        if self._key is ANY_NAME and self._abridged is not None:
            self._abridged.take(line, begins)
        elif self._key is not None:
            self._keep(self._key, line)

    def _end_line(self) -> None:
        """End the last line that was kept, if its end was not."""
        if self._kept and not self._kept.endswith(b"\n"):
            self._kept += b"\r\n"

    def _begin_line(self, line: bytes) -> None:
        """Find out to which field a line belongs."""
        if line[:1] in (b" ", b"\t"):
            self._has_colon = True
            return
        # The rest of a long line may be there already, or not.
        name, colon, _ = line[: LINE_ROOM + 1].partition(b":")
        name = name.rstrip().lower()
        if self._abridged is not None:
            self._abridged.end()
        self._has_colon, self._key = bool(colon), None
        if colon and name in self._names:
            self._key = name
        elif ANY_NAME in self._names or (colon and not name.isascii()):
            self._key = ANY_NAME

    def _keep(self, key: bytes, line: bytes) -> None:
        room = self._room.setdefault(key, FIELD_ROOM)
        self._room[key] = max(0, room - len(line))
        self._kept += line[:room]

    def _find_blank_line(self, text: bytes) -> None:
        """Take octets behind the last field, up to a blank line."""
        found = BLANK.search(text)
        end = found.start() + 1 if found is not None else max(0, len(text) - 2)
        self._digest.update(text[:end])
        self._line = text[end:] if found is None else b""
        self.ended = found is not None


def shortened(message: bytes, names: frozenset[bytes]) -> bytes:
    """Return the part of a message's header section that sessions keep when it arrives in pieces.

    `names` are those of the fields that are kept, as for a `HeaderCollector`.
    """
    if isinstance(message, CollectedHeader):
        return message
    if ANY_NAME not in names and message.find(b"\n\r\n", 0, FIELD_ROOM) >= 0:
        return message
    collector = HeaderCollector(names)
    collector.feed(message[:MAX_HEADER])
    return collector.text
