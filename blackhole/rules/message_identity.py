"""The identity of a message: what tells it from others when it is sent again."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Final

from blackhole.smtp import header_section

FIELD_VALUE: Final = rb"[ \t]*:[ \t]*(?:\r?\n[ \t]+)*(\S[^\r\n]*(?:(?:\r?\n(?=[ \t])|\r(?!\n))[^\r\n]*)*)"
"""Matches the rest of a field after its name, folded or not, and captures a value that is not blank."""

IDENTITY_FIELDS: Final = frozenset((b"message-id", b"resent-message-id"))
"""The names of the fields, in lower case."""

MESSAGE_ID_FIELD: Final = re.compile(
    rb"\n(?:[Mm](?i:essage-id)" + FIELD_VALUE + rb"|[Rr](?i:esent-message-id)" + FIELD_VALUE + rb")"
)
"""Matches Message-ID and Resent-Message-ID.

The line feed before them and the class for the first letter leave few places to try.
"""

UNNAMED_LINE: Final = rb"(?:[^\r\nRrMm].*+\n|[RrMm](?![Ee][Ss]).*+\n)"
"""Matches a line that begins neither of these fields, unless it is empty."""

USUAL_HEADER_SECTION: Final = re.compile(
    rb"(?:" + UNNAMED_LINE + rb")*+Message-I[Dd]: (<[^>\n]*+>)\r\n(?![ \t])(?:" + UNNAMED_LINE + rb")*+\r?\n"
).match
"""Matches a header section with one Message-ID as nearly every program writes it, and no Resent-Message-ID.

It takes a third of the time of a search for any of them.
"""

USUAL_HEADER: Final = 1024
"""Octets that most header sections are shorter than. To look at 10 KiB takes as long as all else here."""


def message_identity(message: bytes) -> tuple[Hashable, bool]:
    """Return what identifies a message, and whether it does for certain, by a Message-ID.

    Without one a digest of the header section identifies it; the result is empty if there is none. A text
    without a blank line is all header section.

    >>> message_identity(b"Message-ID: <1@a.example>\\r\\n\\r\\nHello")
    (b'<1@a.example>', True)
    """
    usual = USUAL_HEADER_SECTION(message, 0, USUAL_HEADER)
    if usual is not None:
        return usual[1], True
    text = b"\n" + message[:USUAL_HEADER]
    end = _header_end(text)
    if not end:
        text = b"\n" + message[: header_section.MAX_HEADER]
        end = _header_end(text) or len(text)
    found = MESSAGE_ID_FIELD.findall(text, 0, end)
    if not found:
        if isinstance(message, header_section.CollectedHeader):
            return message.digest, False
        return header_section.header_digest(text[1:end]) if end > 1 else b"", False
    return found[0][0] if len(found) == 1 and found[0][0] else tuple(found), True


def _header_end(text: bytes) -> int:
    """Return where the blank line of a text begins, with CRLF or LF; 0 if it has none."""
    end = text.find(b"\n\r\n")
    # Four times as fast as an expression, of two hundred octets.
    bare = text.find(b"\n\n", 0, end + 1 if end >= 0 else len(text))
    return (end if bare < 0 else bare) + 1
