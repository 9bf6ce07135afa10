"""The header section of a message (RFC 5322 2.2): collected from pieces, and taken apart into fields."""

from __future__ import annotations

import re
from typing import Final

MAX_HEADER: Final = 65536
"""Octets of a header section that are read."""

MAX_HEADER_LINES: Final = 1000
"""Lines of a header section that are read."""

BLANK: Final = re.compile(rb"(?:\A|\n)\r?\n")
"""The blank line behind the header section, of senders that end lines with LF alone too."""


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


class HeaderCollector:
    """Collects the header section of a message that arrives in pieces."""

    __slots__ = ("_ended", "_text")

    def __init__(self) -> None:
        self._text = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next octets of the message, with dots still doubled."""
        if self._ended:
            return
        seen = max(0, len(self._text) - 2)
        self._text += data[: MAX_HEADER - len(self._text)]
        self._ended = len(self._text) == MAX_HEADER or BLANK.search(self._text, seen) is not None

    @property
    def text(self) -> bytes:
        """The header section, and perhaps some octets of the body."""
        return bytes(self._text)
