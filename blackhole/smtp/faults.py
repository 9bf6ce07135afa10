"""A fault: how much of a reply leaves, how fast, and what becomes of the connection then."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from blackhole.smtp.replies import NextAction


class Fault(NamedTuple):
    """A way in which a server fails to send a reply as it should."""

    name: str
    share: float
    """How much of the reply leaves: 0, 0.5, or 1 for all of it."""
    next_action: NextAction = NextAction.READ
    """What happens to the connection after that. Only a dripping reply goes on with READ."""
    rate: int = 0
    """Octets a second of a reply that drips; 0: it leaves at once."""


def partial_reply(wire: bytes, share: float) -> bytes:
    """Return the beginning of a reply, rounded up to whole octets."""
    return wire[: ceil(len(wire) * share)]
