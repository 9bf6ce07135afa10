"""The switch: header fields with which a message says itself how it wants to be treated.

They are X-Blackhole-Mode and X-Blackhole-Delay, as in Blackhole 2.x. A value that is not
understood is as good as none: it may have been meant for another server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

MODES: Final = frozenset((b"accept", b"bounce", b"random"))
"""Those that say what becomes of one message."""

LONGEST: Final = 60.0
"""Seconds. Anybody may send such a message."""

DELAY: Final = re.compile(rb"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:\s*,\s*([0-9]{1,9}(?:\.[0-9]{1,6})?))?")

NAME: Final = b"x-blackhole-"
"""How their names begin, in small letters."""

FIELD_MARK: Final = b"lackhole-"
"""What is in them, X-Blackhole or x-blackhole. All messages are searched for it, in half the time that
more spellings would take, so X-BLACKHOLE is none of them."""

END_OF_HEADER: Final = b"\r\n\r\n"


class Directives(NamedTuple):
    """What a message wants."""

    mode: str = ""
    """Empty: the listener's."""
    delay: tuple[float, float] | None = None
    """Seconds before the reply, at least and at most; None: the listener's."""


def parse_directives(fields: Iterable[bytes]) -> Directives:
    """What a header section asks for, each field as "Name: value". Of several values the first is meant."""
    mode, delay = "", None
    for field in fields:
        name, _, value = field.partition(b": ")
        if FIELD_MARK not in name:
            continue
        name, value = name.lower(), value.strip().lower()
        if name == NAME + b"mode" and not mode and value in MODES:
            mode = value.decode()
        elif name == NAME + b"delay" and delay is None:
            delay = span(value)
    return Directives(mode, delay)


def span(text: bytes) -> tuple[float, float] | None:
    """The seconds of "10" or "10, 60", cut at LONGEST."""
    match = DELAY.fullmatch(text)
    if match is None:
        return None
    least, most = (min(float(part), LONGEST) for part in (match[1], match[2] or match[1]))
    return (least, most) if least <= most else None


def has_no_directives(data: bytes, start: int) -> bool:
    """Whether the header section of the message that begins here is all here, and asks for nothing."""
    end = data.find(END_OF_HEADER, start)
    return end >= 0 and FIELD_MARK not in data[start:end]
