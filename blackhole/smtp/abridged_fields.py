"""Header fields of any name, abridged to what rules see of them that name no field."""

from __future__ import annotations

from enum import Enum
from typing import Final

ABRIDGED_FIELD: Final = 512
"""Octets that are kept of a field, unfolded, with its name."""

ABRIDGED_ROOM: Final = 8192
"""Octets that are kept of all fields of a message."""

SEPARATOR: Final = b": "


class FieldPart(Enum):
    """The part of a field that the next octets belong to."""

    NOTHING = 0
    """They are of no field, or of one that is not kept."""
    NAME = 1
    INDENT = 2
    """The blanks before the value, or before the text of a folded line."""
    VALUE = 3


class AbridgedFields:
    """Adds the beginning of each field to a text, without the blanks that no rule sees.

    What is kept depends on the fields alone, and not on the pieces that they come in. A field whose name does
    not fit is left out.

    >>> text = bytearray()
    >>> fields = AbridgedFields(text)
    >>> for piece in (b"X-Tag  : ", b"  one  ", b" two  "):
    ...     fields.take(piece, begins=piece.startswith(b"X"))
    >>> text
    bytearray(b'X-Tag: one   two')
    """

    __slots__ = ("_blanks", "_left", "_part", "_room", "_start", "_text")

    def __init__(self, text: bytearray) -> None:
        self._text = text
        self._room = ABRIDGED_ROOM
        """Octets that are left for all fields behind the one under way."""
        self._left = 0
        """Octets that are left for this field."""
        self._part = FieldPart.NOTHING
        self._start = 0
        """Where the field begins in the text."""
        self._blanks = b""
        """Blanks that count once something follows them in the line."""

    def take(self, line: bytes, begins: bool) -> None:
        """Take a line, or a piece of one."""
        if begins:
            self._begin_line(is_folded=line[:1] in (b" ", b"\t"))
        if self._part is FieldPart.NAME:
            name, colon, line = line.partition(b":")
            self._add(name)
            if not colon:
                return
            self._begin_value()
        if self._part is FieldPart.INDENT and (line := line.lstrip()):
            self._part = FieldPart.VALUE
        if self._part is FieldPart.VALUE:
            self._add(line)

    def end(self) -> None:
        """End the field, if one has begun."""
        if self._part is FieldPart.NAME:
            self._leave_out()  # A line without a colon is no field.
        self._part = FieldPart.NOTHING
        self._room += self._left
        self._left = 0

    def _begin_line(self, is_folded: bool) -> None:
        self._blanks = b""
        if not is_folded:
            self.end()
            self._left = min(ABRIDGED_FIELD, self._room)
            self._room -= self._left
            self._part, self._start = FieldPart.NAME, len(self._text)
        elif self._part is not FieldPart.NOTHING and self._left:
            self._text += b" "
            self._left -= 1
            self._part = FieldPart.INDENT

    def _begin_value(self) -> None:
        self._blanks = b""
        if self._left < len(SEPARATOR):
            self._leave_out()
        else:
            self._text += SEPARATOR
            self._left -= len(SEPARATOR)
            self._part = FieldPart.INDENT

    def _add(self, piece: bytes) -> None:
        """Add a piece, but for the blanks at its end, which may be those at the end of the line."""
        text = piece.rstrip()
        if text:
            added = (self._blanks + text)[: self._left]
            self._text += added
            self._left -= len(added)
            self._blanks = b""
        self._blanks = (self._blanks + piece[len(text) :])[: self._left]

    def _leave_out(self) -> None:
        """Leave the field out: its octets are left for others."""
        self._left += len(self._text) - self._start
        del self._text[self._start :]
        self._part = FieldPart.NOTHING
