"""The faults that rules may have, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.smtp.faults import Fault, InputFault
from blackhole.smtp.replies import NextAction

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("close", 0, NextAction.CLOSE),
            Fault("reset", 0, NextAction.ABORT),
            Fault("stall", 0, NextAction.HANG),
            Fault("half-reply", 0.5, NextAction.CLOSE),
            Fault("close-before-reply", 0, NextAction.CLOSE),
            Fault("close-after-reply", 1, NextAction.CLOSE),
        )
    }
)
"""Value of `then` -> fault."""

INPUT_PHASES: Final = ("CONNECT", "HELO", "EHLO", "MAIL", "RCPT", "DATA", "BDAT")
"""Phases of rules with a fault in what comes behind the reply."""

MIN_SLOW_WINDOW: Final = 4096
MAX_SLOW_WINDOW: Final = 65536
"""Octets of the receive window of a connection that is read slowly: about as many as are read in a second.
With a larger one the client would find out only when it has sent some megabytes."""


class NumberedFault(NamedTuple):
    """A kind of fault that has a number."""

    name: str
    unit: str
    most: int
    """The greatest number; the least is 1."""
    make: Callable[[str, int], Fault]


def with_window(name: str, number: int) -> Fault:
    """Return the fault of a small receive window."""
    return Fault(name, 1, input=InputFault(name, window=number))


def with_rate(name: str, number: int) -> Fault:
    """Return the fault of slow reading."""
    window = min(max(number, MIN_SLOW_WINDOW), MAX_SLOW_WINDOW)
    return Fault(name, 1, input=InputFault(name, window, rate=number))


def after_octets(share: float, next_action: NextAction | None) -> Callable[[str, int], Fault]:
    """Return what makes the fault of a connection that ends in the middle of a message; None: it goes on."""

    def make(name: str, number: int) -> Fault:
        ending = None if next_action is None else Fault(name, share, next_action)
        return Fault(name, 1, input=InputFault(name, after=number, ending=ending))

    return make


MAX_FAULT_OCTETS: Final = 2**48 - 1

NUMBERED_FAULTS: Final[Mapping[str, NumberedFault]] = MappingProxyType(
    {
        row.name: row
        for row in (
            NumberedFault("drip", "octets a second", 65536, lambda name, number: Fault(name, 1, rate=number)),
            NumberedFault("window", "octets", 2**30, with_window),
            NumberedFault("read", "octets a second", 2**30, with_rate),
            NumberedFault("reset-after", "octets", MAX_FAULT_OCTETS, after_octets(0, NextAction.ABORT)),
            NumberedFault("close-after", "octets", MAX_FAULT_OCTETS, after_octets(0, NextAction.CLOSE)),
            NumberedFault("reply-after", "octets", MAX_FAULT_OCTETS, after_octets(1, None)),
            NumberedFault(
                "reply-and-close-after", "octets", MAX_FAULT_OCTETS, after_octets(1, NextAction.CLOSE)
            ),
        )
    }
)
"""Key in the value of `then` -> kind of fault."""

REPLIES_IN_MESSAGE: Final = frozenset(("reply-after", "reply-and-close-after"))
"""Faults that send the reply of the rule in the middle of the message, in place of that to the message."""

REPLACES_COMMAND: Final = frozenset(("close", "reset", "stall"))
"""Faults that replace the command: it is not done, and a reply of the rule leaves before them."""
