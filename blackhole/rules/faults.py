"""Faults: how a reply leaves, or does not leave, and what becomes of the connection."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.smtp.replies import NextAction


class Fault(NamedTuple):
    """How a reply leaves, or does not leave, and what becomes of the connection."""

    name: str
    share: float
    """How much of the reply leaves: 0, 0.5, or 1 for all of it."""
    next_action: NextAction = NextAction.READ
    """HANG_UP, RESET or STALL behind it; LISTEN for a drip, which is the only one that goes on."""
    rate: int = 0
    """Octets a second of a drip."""


FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("close", 0, NextAction.CLOSE),
            Fault("reset", 0, NextAction.RESET),
            Fault("stall", 0, NextAction.HANG),
            Fault("half-reply", 0.5, NextAction.CLOSE),
            Fault("close-before-reply", 0, NextAction.CLOSE),
            Fault("close-after-reply", 1, NextAction.CLOSE),
        )
    }
)
"""What may stand behind `next_action`. The first three come in place of the command: it is not done, and
the rule's own reply, where it has one, leaves before them. With the others the command is done."""


REPLACES_COMMAND: Final = frozenset(("close", "reset", "stall"))


def partial_reply(wire: bytes, share: float) -> bytes:
    """As much of a reply as leaves."""
    return wire[: ceil(len(wire) * share)]
