"""Cut a body out of the byte stream: find its end, count its octets, keep at most four of them.

Only CR LF . CR LF ends a message (RFC 5321 4.1.1.4 and 2.3.8): LF.LF, CR.CR,
LF.CRLF and their kin are content, or a sender could hide a second message in
the first ("SMTP smuggling", CERT VU#302671).
"""

from __future__ import annotations

from typing import Final

END: Final = b"\r\n.\r\n"

DOTTED: Final = END[:3]
"""How a line begins that ends a message, or that has its first dot doubled."""

START: Final = b"\r\n"
"""The tail of a body that has not begun. The CRLF that ended DATA counts as the line end before a
dot on the very first line, so an empty message ends at once."""


SHORT: Final = 2048
"""Octets that are searched for all five at once: shorter than this, counting dots takes longer."""

DOTS: Final = 8
"""How many dots are looked at one by one. Searching for one octet is memchr, 0.02 ns an octet; for five it
is 0.5. An encoded attachment has no dots at all; of text with many the rest is searched for five."""


def skip(data: bytes, start: int, tail: bytes) -> tuple[int, bytes]:
    """Go over the body that begins or goes on at `start`; `tail` is what the last call gave back.

    Returns the position behind the end of the message, and an empty tail; or -1
    when it is all body, and the last four octets.
    """
    # The end may lie across the border between the last chunk and this one: then it starts
    # in the tail, and at most four octets of it are ours.
    border = (tail + data[start : start + 4]).find(END)
    if border >= 0:
        return start + border + len(END) - len(tail), b""
    end = find(data, start)
    if end >= 0:
        return end + len(END), b""
    if len(data) - start < 4:
        return -1, (tail + data[start:])[-4:]
    return -1, data[-4:]


def has_bare_newline(data: bytes, start: int, end: int, tail: bytes) -> bool:
    """Return whether an LF in data[start:end] has no CR before it; `tail` has the octets before `start`."""
    split = tail.endswith(b"\r") and data.startswith(b"\n", start)
    return data.count(b"\n", start, end) != data.count(b"\r\n", start, end) + split


def find(data: bytes, start: int) -> int:
    """`data.find(END, start)`, but faster where that is slow."""
    if len(data) - start < SHORT:
        return data.find(END, start)
    position = start + 2
    for _ in range(DOTS):
        dot = data.find(b".", position)
        if dot < 0:
            return -1
        if data[dot - 2 : dot + 3] == END:
            return dot - 2
        position = dot + 1
    return data.find(END, position - 2)
