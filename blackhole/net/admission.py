"""The guard of a listener: whom it trusts, whom it lets in, and what it counts against everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from blackhole.addresses import Networks, packed
from blackhole.net.client_table import (
    CONNECTIONS,
    HANDSHAKES,
    MESSAGES,
    RECEIVED,
    RECIPIENTS,
    Ledger,
    Place,
    client,
)
from blackhole.settings import Settings
from blackhole.smtp.replies import CROWDED, HURRIED, TOO_MUCH_DATA, Reply
from blackhole.smtp.state import Limits

OCTETS: Final = "octets"
"""Stands among the phases for all that comes, whatever it is."""

Rates = Mapping[str, tuple[int, int]]
"""Phase -> what it is counted as, and how many there may be in a minute."""


def limits(settings: Settings) -> Limits:
    """What is borne of one client in a conversation."""
    return Limits(
        soft_errors=settings.soft_errors,
        errors=settings.max_errors,
        junk=settings.max_junk,
        recipients=settings.max_recipients,
        messages=settings.max_messages,
        metered=bool(settings.client_message_rate or settings.client_recipient_rate),
    )


def hurried(limits: Limits) -> Limits:
    """What is borne while connections are running out: as little as Postfix bears then.

    A client may say EHLO twice, with STARTTLS between. What has no limit gets none.
    """
    return limits._replace(errors=min(limits.errors, 1), junk=min(limits.junk, 2))


class Guest:
    """One connection of somebody who is not trusted."""

    __slots__ = ("_place", "_rates")

    def __init__(self, place: Place | None, rates: Rates) -> None:
        self._place = place
        self._rates = rates

    def meter(self, phase: str, amount: int = 1) -> bool:
        """Count one more command of a phase, or so many octets; false if that is too many."""
        rate = self._rates.get(phase)
        if rate is None or self._place is None:
            return True
        cell, most = rate
        return self._place.count(cell, amount) <= most

    def crowds(self, most: int) -> bool:
        """Whether the client has more connections open than `most`; 0 is any number."""
        return self._place is not None and 0 < most < self._place.open()

    def leave(self) -> None:
        """The connection is over."""
        if self._place is not None:
            self._place.leave()


class Guard:
    """Lets clients in. Without a ledger none is counted over its connections."""

    def __init__(self, settings: Settings, ledger: Ledger | None) -> None:
        self._trusted: Final = Networks(settings.trusted)
        self._ledger: Final = ledger
        self._most: Final = settings.client_connections
        rates = {
            "CONNECT": (CONNECTIONS, settings.client_connection_rate),
            "DATA": (MESSAGES, settings.client_message_rate),
            "RCPT": (RECIPIENTS, settings.client_recipient_rate),
            "STARTTLS": (HANDSHAKES, settings.client_tls_rate),
            OCTETS: (RECEIVED, settings.client_byte_rate),
        }
        self._rates: Final = {phase: rate for phase, rate in rates.items() if rate[1]}

    def admit(self, address: str) -> Guest | None:
        """Who is there: None for one that is trusted, in whatever it does."""
        octets = packed(address)
        if octets in self._trusted:
            return None
        return Guest(self._ledger.enter(client(octets)) if self._ledger else None, self._rates)

    def refusal(self, guest: Guest) -> Reply | None:
        """Why somebody may not come in now."""
        if guest.crowds(self._most):
            return CROWDED
        if not guest.meter(OCTETS, 0):
            return TOO_MUCH_DATA
        return None if guest.meter("CONNECT") else HURRIED
