"""The line of a message that shows what is wrong with it, as evidence for a report."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

SHOWN_BEFORE: Final = 40
SHOWN_OCTETS: Final = 120
"""Octets that are shown of a line, at most: before what is wrong, and together."""

ELLIPSIS: Final = b"..."
"""Stands for the beginning of a line that is too long to be shown."""


class ViolationPattern(NamedTuple):
    """What shows a violation: a pattern, and how many octets before a piece it may begin."""

    pattern: re.Pattern[bytes]
    before: int = 0


VIOLATION_PATTERNS: Final = {
    "nul": ViolationPattern(re.compile(rb"\0")),
    "8bit-undeclared": ViolationPattern(re.compile(rb"[\x80-\xff]")),
    "bare-lf": ViolationPattern(re.compile(rb"(?<!\r)\n")),
    "bare-cr": ViolationPattern(re.compile(rb"\r(?=[^\n])"), len(b"\r")),
    "unstuffed-dot": ViolationPattern(re.compile(rb"(?<=\r\n)\.(?!\.|\r)"), len(b".")),
}
"""By violation. A long line is found by its length."""


def offending_line(violation: str, piece: bytes, before: bytes) -> bytes:
    """Return the line of a body that shows a violation: what this piece has of it, with its end, and cut.

    `before` has the octets before the piece; some of them are shown where the mark of the violation begins in
    them. What is returned depends on how a body is cut into pieces; what is wrong does not.

    >>> offending_line("bare-lf", b"Subject: test\\n\\r\\n", b"\\r\\n")
    b'Subject: test\\n'
    """
    text, mark = before + piece, VIOLATION_PATTERNS.get(violation)
    if mark is None:
        at = text.find(max(piece.split(b"\n"), key=len), len(before))
    else:
        match = mark.pattern.search(text, len(before) - mark.before)
        at = len(before) if match is None else match.start()
    start = text.rfind(b"\n", 0, at) + 1
    end = text.find(b"\n", at) + 1 or len(text)
    if at - start <= SHOWN_BEFORE:
        return text[start : min(end, start + SHOWN_OCTETS)]
    start = at - SHOWN_BEFORE
    return ELLIPSIS + text[start : min(end, start + SHOWN_OCTETS)]
