"""The line of a message that shows a violation of `body_checks`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from blackhole.smtp.body_checks import MAX_BODY_LINE

SHOWN_BY: Final[Mapping[str, re.Pattern[bytes]]] = MappingProxyType(
    {
        "bare-lf": re.compile(rb"(?<!\r)\n"),
        "bare-cr": re.compile(rb"\r(?!\n)"),
        "nul": re.compile(rb"\0"),
        "8bit-undeclared": re.compile(rb"[\x80-\xff]"),
        "unstuffed-dot": re.compile(rb"(?<=\n)\.(?![.\r])"),
        "long-line": re.compile(rb"[^\n]{%d}" % (MAX_BODY_LINE + 1)),
    }
)
"""Name of a violation -> the octets that show it."""


def offending_line(violation: str, data: bytes, start: int, end: int) -> bytes:
    """Return the first line between `start` and `end` of `data` that shows a violation, without its end.

    Return nothing where the line began in an earlier piece of the message or cannot be told.

    >>> offending_line("bare-lf", b"one\\r\\ntwo\\nthree\\r\\n", 0, 16)
    b'two'
    """
    pattern = SHOWN_BY.get(violation)
    match = None if pattern is None else pattern.search(data, start, end)
    if match is None:
        return b""
    begins = data.rfind(b"\n", start, match.start()) + 1 or start
    ends = data.find(b"\n", max(begins, match.start()), end)
    return data[begins : ends if ends >= 0 else end].removesuffix(b"\r")
