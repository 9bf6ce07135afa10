"""The header section of a message that is passing by, for those who ask for it."""

from __future__ import annotations

import re
from typing import Final

MOST: Final = 65536
"""Octets that are looked at."""

LINES: Final = 1000
"""Lines that are looked at."""

BLANK: Final = re.compile(rb"(?:\A|\n)\r?\n")
"""The blank line behind the header section. Senders that end lines with LF alone have one too."""


def fields(text: bytes) -> list[bytes]:
    """Each field of the header section that a text begins with as "Name: value", unfolded, without blanks
    around name and value."""
    found: list[bytes] = []
    for line in text.split(b"\n", LINES)[:LINES]:
        line = line.removesuffix(b"\r")
        if line in (b"", b"."):
            break
        if line[:1] in (b" ", b"\t"):
            if found:
                found[-1] += b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            break  # the body, of a message without a blank line
        found.append(name.rstrip() + b": " + value.strip())
    return found


class HeaderCollector:
    """What has come of it so far. It is forgotten with the message."""

    __slots__ = ("_ended", "_text")

    def __init__(self) -> None:
        self._text = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """The next octets of the message, as they came over the wire."""
        if self._ended:
            return
        seen = max(0, len(self._text) - 2)
        self._text += data[: MOST - len(self._text)]
        self._ended = len(self._text) == MOST or BLANK.search(self._text, seen) is not None

    @property
    def text(self) -> bytes:
        """As it came, and some of what came behind it."""
        return bytes(self._text)
