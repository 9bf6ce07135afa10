"""Cut a body out of the byte stream: find its end, count its octets, keep at most four of them.

Only CR LF . CR LF ends a message (RFC 5321 4.1.1.4 and 2.3.8): LF.LF, CR.CR,
LF.CRLF and their kin are content, or a sender could hide a second message in
the first ("SMTP smuggling", CERT VU#302671).
"""

from __future__ import annotations

from typing import Final

END: Final = b"\r\n.\r\n"

START: Final = b"\r\n"
"""The tail of a body that has not begun. The CRLF that ended DATA counts as the line end before a
dot on the very first line, so an empty message ends at once."""


def skip(data: bytes, position: int, tail: bytes) -> tuple[int, bytes]:
    """Go over the body that starts at `position`; `tail` is what the last call gave back.

    Returns the position behind the end of the message, and an empty tail; or -1
    when it is all body, and the last four octets.
    """
    # The end may lie across the border between the last chunk and this one: then it starts
    # in the tail, and at most four octets of it are ours.
    border = (tail + data[position : position + 4]).find(END)
    if border >= 0:
        return position + border + len(END) - len(tail), b""
    end = data.find(END, position)
    if end >= 0:
        return end + len(END), b""
    if len(data) - position < 4:
        return -1, (tail + data[position:])[-4:]
    return -1, data[-4:]
