"""The canonical forms of header fields and bodies, over which signatures are made (RFC 6376 3.4)."""

from __future__ import annotations

import re
from typing import Final

FIELD_ENDS: Final = re.compile(rb"\r\n(?![ \t])")


def with_crlf(text: bytes) -> bytes:
    """Return a text whose lines all end with CR LF."""
    return text if text.count(b"\n") == text.count(b"\r\n") else re.sub(rb"\r?\n", b"\r\n", text)


def raw_fields(section: bytes) -> list[tuple[bytes, bytes]]:
    r"""Return the fields of a header section as they are: the name, and what is behind its colon.

    >>> raw_fields(b"Subject : a\r\n long one\r\n")
    [(b'Subject ', b' a\r\n long one')]
    """
    return [
        (name, value)
        for name, colon, value in (field.partition(b":") for field in FIELD_ENDS.split(section))
        if colon
    ]


def single_blanks(text: bytes) -> bytes:
    """Return a text with one space in place of all blanks that stand together.

    Each step halves the blanks, so that their number does not matter, as it does for a regular expression.
    """
    text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


def canonical_field(name: bytes, value: bytes, is_relaxed: bool) -> bytes:
    """Return a header field in its canonical form, without the CR LF behind it."""
    if not is_relaxed:
        return name + b":" + value
    return name.strip().lower() + b":" + single_blanks(value.replace(b"\r\n", b"")).strip()


def canonical_body(body: bytes, is_relaxed: bool) -> bytes:
    r"""Return a body in its canonical form; its lines end with CR LF.

    >>> canonical_body(b"a \t b \r\n\r\n\r\n", True), canonical_body(b"", True), canonical_body(b"", False)
    (b'a b\r\n', b'', b'\r\n')
    """
    if is_relaxed:
        body = single_blanks(body).replace(b" \r\n", b"\r\n")
    text = body.rstrip(b"\r\n")
    ends = body[len(text) :]
    # CRs before the empty lines belong to the last line.
    if not ends.endswith(b"\n"):
        text = body
    else:
        text += ends[: ends.rfind(b"\r\r") + 1]
    return text + b"\r\n" if text or not is_relaxed else b""
