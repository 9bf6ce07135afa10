"""Message directives: header fields by which a message asks for a mode or a delay.

They are X-Blackhole-Mode and X-Blackhole-Delay, as in Blackhole 2.x. A value that is not understood is
ignored, as it may be meant for another server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

MODES: Final = frozenset((b"accept", b"bounce", b"random"))
"""Modes that apply to one message."""

MAX_DELAY: Final = 60.0
"""Seconds. Anybody may send such a message."""

DELAY: Final = re.compile(rb"([0-9]{1,9}(?:\.[0-9]{1,6})?)(?:\s*,\s*([0-9]{1,9}(?:\.[0-9]{1,6})?))?")

FIELD_PREFIX: Final = b"x-blackhole-"
"""The beginning of the names of the fields, in lower case."""

FIELD_MARK: Final = b"lackhole-"
"""Octets that the fields contain. All messages are searched for them. X-BLACKHOLE is not recognized, as to
search for more spellings would take twice the time."""

END_OF_HEADER: Final = b"\r\n\r\n"


class Directives(NamedTuple):
    """What a message asks for."""

    mode: str = ""
    """Empty: the mode of the listener."""
    delay: tuple[float, float] | None = None
    """Seconds before the reply, at least and at most; None: the delay of the listener."""


def parse_directives(fields: Iterable[bytes]) -> Directives:
    """Return what the fields of a header section, each as "Name: value", ask for. The first value counts."""
    mode, delay = "", None
    for field in fields:
        name, _, value = field.partition(b": ")
        if FIELD_MARK not in name:
            continue
        name, value = name.lower(), value.strip().lower()
        if name == FIELD_PREFIX + b"mode" and not mode and value in MODES:
            mode = value.decode()
        elif name == FIELD_PREFIX + b"delay" and delay is None:
            delay = span(value)
    return Directives(mode, delay)


def span(text: bytes) -> tuple[float, float] | None:
    """Return the seconds of "10" or "10, 60", cut at MAX_DELAY; None for anything else."""
    match = DELAY.fullmatch(text)
    if match is None:
        return None
    least, most = (min(float(part), MAX_DELAY) for part in (match[1], match[2] or match[1]))
    return (least, most) if least <= most else None


def has_no_directives(data: bytes, start: int) -> bool:
    """Return whether the header section that begins at `start` is complete and asks for nothing."""
    end = data.find(END_OF_HEADER, start)
    return end >= 0 and FIELD_MARK not in data[start:end]
