"""The guard of a listener: whom it trusts, whom it lets in, and what it counts against everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.net.client_table import (
    CONNECTIONS,
    HANDSHAKES,
    MESSAGES,
    RECEIVED,
    RECIPIENTS,
    ClientSlot,
    ClientTableView,
    client,
)
from blackhole.settings import Settings
from blackhole.smtp.replies import (
    TOO_MANY_CLIENT_CONNECTIONS,
    TOO_MANY_CLIENT_OCTETS,
    TOO_MANY_NEW_CONNECTIONS,
    Reply,
)
from blackhole.smtp.state import ClientLimits

OCTETS: Final = "octets"
"""Stands among the phases for all that comes, whatever it is."""

Rates = Mapping[str, tuple[int, int]]
"""Phase -> what it is counted as, and how many there may be in a minute."""


def client_limits(settings: Settings) -> ClientLimits:
    """What is borne of one client in a conversation."""
    return ClientLimits(
        soft_errors=settings.soft_errors,
        errors=settings.max_errors,
        junk=settings.max_junk,
        recipients=settings.max_recipients,
        messages=settings.max_messages,
        metered=bool(settings.client_message_rate or settings.client_recipient_rate),
    )


def stressed_limits(client_limits: ClientLimits) -> ClientLimits:
    """What is borne while connections are running out: as little as Postfix bears then.

    A client may say EHLO twice, with STARTTLS between. What has no limit gets none.
    """
    return client_limits._replace(errors=min(client_limits.errors, 1), junk=min(client_limits.junk, 2))


class ClientUsage:
    """One connection of somebody who is not trusted."""

    __slots__ = ("_place", "_rates")

    def __init__(self, place: ClientSlot | None, rates: Rates) -> None:
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


class AdmissionControl:
    """Lets clients in. Without a ledger none is counted over its connections."""

    def __init__(self, settings: Settings, ledger: ClientTableView | None) -> None:
        self._trusted: Final = NetworkSet(settings.trusted)
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

    def admit(self, address: str) -> ClientUsage | None:
        """Who is there: None for one that is trusted, in whatever it does."""
        octets = to_bytes(address)
        if octets in self._trusted:
            return None
        return ClientUsage(self._ledger.enter(client(octets)) if self._ledger else None, self._rates)

    def refusal(self, usage: ClientUsage) -> Reply | None:
        """Why somebody may not come in now."""
        if usage.crowds(self._most):
            return TOO_MANY_CLIENT_CONNECTIONS
        if not usage.meter(OCTETS, 0):
            return TOO_MANY_CLIENT_OCTETS
        return None if usage.meter("CONNECT") else TOO_MANY_NEW_CONNECTIONS
