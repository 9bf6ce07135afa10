"""The header section of a message or of a part of one, taken apart into its fields (RFC 5322 2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_JUDGED_LINES: Final = 2000
"""Lines of a header section that are read. One that has more is not judged."""

FIELD_START: Final = re.compile(rb"([!-9;-~]++)[ \t]*+:").match
"""Matches the name of a field and the colon behind it, also where old programs put a blank between them."""


class MessageTooComplexError(Exception):
    """A message has more lines or parts than are checked."""


class HeaderField(NamedTuple):
    """A field of a header section."""

    name: bytes
    """In lower case."""
    value: bytes
    """Unfolded, without the blanks around it."""


class ParsedHeader(NamedTuple):
    """The fields of a header section, and where it ends."""

    fields: tuple[HeaderField, ...]
    end: int
    """Position of the body behind the section."""
    is_complete: bool
    """The section ends before the text does."""
    fault: str
    """What is wrong with the form of a line; empty if nothing is."""

    def named(self, name: bytes) -> list[bytes]:
        """Return the values of all fields of a name, which is given in lower case."""
        return [field.value for field in self.fields if field.name == name]


def header_lines(text: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the position behind each line from `start`, and the line without its end."""
    while start < end:
        newline = text.find(b"\n", start, end)
        stop = newline + 1 if newline >= 0 else end
        yield stop, text[start : newline if newline >= 0 else end].removesuffix(b"\r")
        start = stop


def parse_header(text: bytes, start: int, end: int) -> ParsedHeader:
    r"""Return the header section that begins at a position of a text.

    A line that is no field ends the section, as a blank line does. Raises MessageTooComplexError if there
    are too many lines.

    >>> parse_header(b"Subject: a\r\n long one\r\n\r\nHello", 0, 29).fields
    (HeaderField(name=b'subject', value=b'a long one'),)
    """
    names: list[bytes] = []
    values: list[list[bytes]] = []
    position, fault, is_complete = start, "", False
    for count, (stop, line) in enumerate(header_lines(text, start, end)):
        if count > MAX_JUDGED_LINES:
            raise MessageTooComplexError
        begin = FIELD_START(line)
        if line[:1] in (b" ", b"\t") and names:
            values[-1].append(line)
        elif begin is not None:
            if len(begin[1]) + 1 < begin.end():
                fault = "a blank stands before the colon of a field"
            names.append(begin[1].lower())
            values.append([line[begin.end() :]])
        else:
            is_complete = True
            if line:
                fault = "a line is no field"
            else:
                position = stop
            break
        position = stop
    return ParsedHeader(_fields(names, values), position, is_complete, fault)


def _fields(names: list[bytes], values: list[list[bytes]]) -> tuple[HeaderField, ...]:
    """Return fields of these names, each with the lines of its value."""
    return tuple(
        HeaderField(name, b"".join(lines).strip()) for name, lines in zip(names, values, strict=True)
    )
