"""The body of one message as it arrives in pieces: where it ends, and what is to be known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blackhole.smtp.body_checks import BodyInspector
from blackhole.smtp.directives import FIELD_MARK, DirectiveReader
from blackhole.smtp.framing import START, has_bare_newline, skip
from blackhole.smtp.header_section import END_OF_HEADER, FIELD_ROOM, MAX_HEADER, HeaderCollector
from blackhole.smtp.offending_line import offending_line

FINAL_DOT: Final = len(b".\r\n")
"""Octets of the line that ends a body, which are no part of it (RFC 5321 4.1.1.4)."""


BARE_LF: Final = "bare-lf"
"""The name of the violation that is looked for in all of a body where a listener counts or refuses it."""


UNSTUFFED_DOT: Final = "unstuffed-dot"
"""The name of the violation that no chunk commits: a dot in it ends nothing."""

MessageHeader = HeaderCollector | DirectiveReader | bytes
"""The header section of a message, if it is short, or what took it; empty if nobody wants it."""


class MessageBody:
    """What a session keeps of the body under way: at most four octets of it, and of its header section what
    `header` keeps."""

    __slots__ = (
        "_reads_header",
        "_searches_bare_newlines",
        "_wanted_fields",
        "has_bare_newline",
        "header",
        "inspector",
        "needs_general_path",
        "new_bare_newline",
        "new_violations",
        "octets",
        "tail",
    )

    def __init__(
        self,
        inspector: BodyInspector | None,
        searches_bare_newlines: bool,
        wanted_fields: frozenset[bytes],
        obeys_directives: bool,
    ) -> None:
        self.inspector = inspector
        """What inspects the body; None if it is not inspected."""
        self._searches_bare_newlines = searches_bare_newlines
        self.tail = START
        self.header: MessageHeader = b""
        """The header section, as far as it has come, or what takes it."""
        self._wanted_fields = wanted_fields
        """The names of the fields to collect; with none of them, only directives are looked for."""
        self._reads_header = obeys_directives or len(wanted_fields) > 0
        """More of the header section is to come."""
        self.needs_general_path = inspector is not None
        """There may be something to report of a piece that comes."""
        self.octets = 0
        """Octets so far, the line with the final dot included."""
        self.has_bare_newline = False
        self.new_violations: Sequence[tuple[str, bytes]] = ()
        """What the last piece has shown to be wrong, each with the line that shows it."""
        self.new_bare_newline: bytes | None = None
        """The first line of the body that ends with LF alone, if it is searched for and in the last piece."""

    def take(self, data: bytes, start: int, end: int, tail: bytes) -> None:
        """Take the octets from `start` to `end`; `tail` has the last ones."""
        self.tail = tail
        self.octets += end - start
        if self._reads_header:
            self._take_header(data[start : min(end, start + MAX_HEADER)])

    def _take_header(self, data: bytes) -> None:
        """Take the next octets of the header section.

        A short one is kept as it comes. To take its lines one by one would take ten times as long.
        """
        header = self.header
        if isinstance(header, bytes):
            data = header + data
            end = data.find(END_OF_HEADER) + len(END_OF_HEADER)
            if end < len(END_OF_HEADER):
                if len(data) < FIELD_ROOM:
                    self.header = data
                    return
            elif self._wanted_fields:
                if end <= FIELD_ROOM:
                    self.header, self._reads_header = data[:end], False
                    return
            elif data.find(FIELD_MARK, 0, end) < 0:
                self.header, self._reads_header = b"", False
                return
            self.header = header = self._new_reader()
        header.feed(data)
        self._reads_header = not header.ended

    def _new_reader(self) -> HeaderCollector | DirectiveReader:
        return HeaderCollector(self._wanted_fields) if self._wanted_fields else DirectiveReader()

    def final_header(self) -> MessageHeader:
        """Return the header section, or what has taken it, of a message that has ended."""
        header = self.header
        if self._reads_header and isinstance(header, bytes):
            reader = self._new_reader()
            reader.feed(header)
            return reader
        return header

    def _search_bare_newline(self, data: bytes, start: int, end: int, tail: bytes) -> None:
        """Search a piece for the first line that ends with LF alone; `tail` has the octets before it."""
        self.new_bare_newline = None
        if not self.has_bare_newline and has_bare_newline(data, start, end, tail):
            self.has_bare_newline = self.needs_general_path = True
            self.new_bare_newline = offending_line(BARE_LF, data[start:end], tail)


class DotStuffedBody(MessageBody):
    """A body behind DATA: a line with a dot alone ends it (RFC 5321 4.1.1.4)."""

    __slots__ = ()

    def feed(self, data: bytes, start: int) -> int:
        """Take the octets from `start`; return the position behind the end of the message, or -1 for none."""
        before = self.tail
        position, tail = skip(data, start, before)
        end = position if position >= 0 else len(data)
        self.new_violations = ()
        if self.inspector is not None and self.octets < self.inspector.inspected_octets:
            left = self.inspector.inspected_octets - self.octets
            stop = min(end if position < 0 else end - FINAL_DOT, start + left)
            self.new_violations = self.inspector.inspect(data[start : max(start, stop)], before)
        if self._searches_bare_newlines:
            self.new_violations = [one for one in self.new_violations if one[0] != BARE_LF]
            self._search_bare_newline(data, start, end, before)
        self.take(data, start, end, tail)
        return position


class ChunkedBody(MessageBody):
    """A message that comes in chunks (RFC 3030).

    Nothing in it is searched for: the size of each chunk says where it ends.
    """

    __slots__ = ("_ignored", "left")

    def __init__(
        self,
        inspector: BodyInspector | None,
        searches_bare_newlines: bool,
        wanted_fields: frozenset[bytes],
        obeys_directives: bool,
    ) -> None:
        MessageBody.__init__(self, inspector, searches_bare_newlines, wanted_fields, obeys_directives)
        self.needs_general_path = True
        self._ignored = (UNSTUFFED_DOT, BARE_LF) if searches_bare_newlines else (UNSTUFFED_DOT,)
        self.left = 0
        """Octets of the chunk that have yet to come."""

    def feed(self, data: bytes, start: int) -> int:
        """Take the octets of the chunk from `start`; return the position behind them."""
        end = min(start + self.left, len(data))
        self.new_violations = ()
        if self.inspector is not None and self.octets < self.inspector.inspected_octets:
            piece = data[start : min(end, start + self.inspector.inspected_octets - self.octets)]
            found = self.inspector.inspect(piece, self.tail)
            self.new_violations = [one for one in found if one[0] not in self._ignored]
        if self._searches_bare_newlines:
            self._search_bare_newline(data, start, end, self.tail)
        tail = data[end - 4 : end] if end - start >= 4 else (self.tail + data[start:end])[-4:]
        self.take(data, start, end, tail)
        self.left -= end - start
        return end
