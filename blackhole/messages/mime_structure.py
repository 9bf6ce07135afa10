"""The MIME structure of a message: its parts, and what is wrong with them (RFC 2045, RFC 2046)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from blackhole.messages.content_type import (
    EIGHTBIT_ENCODINGS,
    ENCODINGS,
    PLAIN_TEXT,
    ContentType,
    encoding_fault,
    parse_content_type,
)
from blackhole.messages.field_syntax import without_comments
from blackhole.messages.header_fields import MessageTooComplexError, ParsedHeader, parse_header

MAX_PARTS: Final = 200
"""Parts of a message that is judged."""

MAX_DELIMITERS: Final = 1000
"""Lines that may be delimiters, of a message that is judged."""

MAX_PART_NESTING: Final = 10
"""Parts around a part, in a message that is judged."""

BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]").fullmatch


class MessageFault(NamedTuple):
    """What is wrong with the content of a message."""

    violation: str
    """The name of a row of the table of violations."""
    detail: str
    """More about it, without any of the content."""


class MimeStructure:
    """Goes through the parts of a message. `text` ends where the message does, or earlier.

    >>> text = b"Content-Type: multipart/mixed; boundary=x\\r\\n\\r\\n--x\\r\\n\\r\\nHello\\r\\n"
    >>> [fault.violation for fault in MimeStructure(text).faults(parse_header(text, 0, len(text)))]
    ['no-mime-version', 'open-multipart']
    """

    def __init__(self, text: bytes) -> None:
        self._text: Final = text
        self._parts = self._delimiter_lines = 0
        self.html_octets = 0
        """Octets of all HTML that is to be displayed, when it is decoded, as far as it was gone through."""

    def faults(self, header: ParsedHeader) -> Iterator[MessageFault]:
        """Yield what is wrong with a message of this header section.

        Raises MessageTooComplexError where it goes no further.
        """
        fields = [field.name for field in header.fields]
        if b"mime-version" not in fields and (
            b"content-type" in fields or b"content-transfer-encoding" in fields
        ):
            yield MessageFault("no-mime-version", "there is Content-Type or Content-Transfer-Encoding")
        yield from self._part_faults(header, header.end, len(self._text), 0, PLAIN_TEXT)

    def _part_faults(
        self, header: ParsedHeader, start: int, end: int, nesting: int, default: ContentType
    ) -> Iterator[MessageFault]:
        """Yield what is wrong with a part whose body is between two positions."""
        self._parts += 1
        if self._parts > MAX_PARTS or nesting > MAX_PART_NESTING:
            raise MessageTooComplexError
        content_type, encoding = default, b"7bit"
        for value in header.named(b"content-type")[:1]:
            found = parse_content_type(value)
            if found is None:
                yield MessageFault("bad-content-type", "Content-Type is not well formed")
            content_type = found or PLAIN_TEXT
        for value in header.named(b"content-transfer-encoding")[:1]:
            encoding = (without_comments(value[:100]) or b"").lower()
        fault = encoding_fault(encoding, content_type)
        if fault:
            yield MessageFault("bad-transfer-encoding", fault)
        elif content_type.is_multipart:
            yield from self._multipart_faults(content_type, start, end, nesting)
        elif content_type.media_type == b"message/rfc822":
            inner = parse_header(self._text, start, end)
            yield from self._part_faults(inner, inner.end, end, nesting + 1, PLAIN_TEXT)
        else:
            yield from self._leaf_faults(header, content_type, encoding, start, end)

    def _leaf_faults(
        self, header: ParsedHeader, content_type: ContentType, encoding: bytes, start: int, end: int
    ) -> Iterator[MessageFault]:
        """Yield what is wrong with a part that has no parts, and add up its HTML."""
        body = self._text[start:end]
        if encoding not in EIGHTBIT_ENCODINGS and not body.isascii():
            named = encoding.decode() if encoding in ENCODINGS else "an x-token"
            yield MessageFault("8bit-in-part", f"a part declared as {named}")
        attached = any(value[:10].lower() == b"attachment" for value in header.named(b"content-disposition"))
        if content_type.media_type == b"text/html" and not attached:
            self.html_octets += decoded_octets(body, encoding)

    def _multipart_faults(
        self, content_type: ContentType, start: int, end: int, nesting: int
    ) -> Iterator[MessageFault]:
        """Yield what is wrong with the parts of a multipart."""
        boundary = content_type.parameters.get(b"boundary", b"")
        if not BOUNDARY(boundary):
            yield MessageFault("bad-boundary", "a multipart has no valid boundary")
            return
        default = PLAIN_TEXT
        if content_type.media_type == b"multipart/digest":
            default = ContentType(b"message/rfc822", {})
        begin, closed = -1, False
        for line_start, line_end, closed in self._delimiters(b"--" + boundary, start, end):
            if begin >= 0:
                yield from self._enclosed_faults(begin, line_start, nesting, default)
            begin = line_end
            if closed:
                break
        if begin < 0:
            yield MessageFault("bad-boundary", "the boundary of a multipart does not occur in it")
        elif not closed:
            yield from self._enclosed_faults(begin, end, nesting, default)
            yield MessageFault("open-multipart", "the closing line of a multipart is missing")

    def _enclosed_faults(
        self, start: int, end: int, nesting: int, default: ContentType
    ) -> Iterator[MessageFault]:
        """Yield what is wrong with a part between two delimiters; the line end before the second is its."""
        stop = max(start, end - (2 if self._text[end - 2 : end] == b"\r\n" else 0))
        header = parse_header(self._text, start, stop)
        yield from self._part_faults(header, header.end, stop, nesting + 1, default)

    def _delimiters(self, mark: bytes, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield where each delimiter line begins and ends, and whether it closes the multipart."""
        text, position = self._text, start
        while (found := text.find(mark, position, end)) >= 0:
            position = found + len(mark)
            if found != start and text[found - 1 : found] != b"\n":
                continue
            self._delimiter_lines += 1
            if self._delimiter_lines > MAX_DELIMITERS:
                raise MessageTooComplexError
            newline = text.find(b"\n", position, end)
            stop = newline + 1 if newline >= 0 else end
            rest = text[position:stop].strip()
            if rest in (b"", b"--"):
                yield found, stop, rest == b"--"


def decoded_octets(body: bytes, encoding: bytes) -> int:
    """Return the octets that an encoded body has when it is decoded, within a few.

    >>> decoded_octets(b"a=3Db=\\r\\nc", b"quoted-printable")
    4
    """
    if encoding == b"base64":
        return (len(body) - 2 * body.count(b"\n")) * 3 // 4
    if encoding == b"quoted-printable":
        soft_breaks = body.count(b"=\r\n")
        return len(body) - 3 * soft_breaks - 2 * (body.count(b"=") - soft_breaks)
    return len(body)
