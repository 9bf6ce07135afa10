"""A fault: what a server does wrong with a reply, or with the message that it is sent."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from blackhole.smtp.replies import NextAction, Reply


class InputFault(NamedTuple):
    """A way in which a server fails to read as it should what comes behind its reply."""

    name: str
    window: int = 0
    """Octets of the receive window, from now to the end of the connection; 0: as the system chooses."""
    rate: int = 0
    """Octets a second that are read; 0: as many as come."""
    after: int = 0
    """Octets of a message after which something happens; 0: nothing does."""
    reply: Reply | None = None
    """What is sent then, before the message has come to its end. The rest of the message is discarded."""
    ending: Fault | None = None
    """How the connection ends then; None: it goes on."""


class Fault(NamedTuple):
    """A way in which a server fails to send a reply as it should."""

    name: str
    share: float
    """How much of the reply leaves: 0, 0.5, or 1 for all of it."""
    next_action: NextAction = NextAction.READ
    """What happens to the connection after that. Only a dripping reply goes on with READ."""
    rate: int = 0
    """Octets a second of a reply that drips; 0: it leaves at once."""
    input: InputFault | None = None
    """What goes wrong behind the reply, which leaves as it should if the command is accepted."""


def partial_reply(wire: bytes, share: float) -> bytes:
    """Return the beginning of a reply, rounded up to whole octets."""
    return wire[: ceil(len(wire) * share)]
