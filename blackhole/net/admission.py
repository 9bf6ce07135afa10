"""Admission control: which clients are trusted, and the limits on all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.net.client_table import (
    CONNECTIONS,
    MESSAGES,
    RECEIVED,
    RECIPIENTS,
    TLS_HANDSHAKES,
    ClientSlot,
    ClientTableView,
    client_key,
)
from blackhole.net.fleet_usage import FleetConnection, FleetUsage
from blackhole.settings import Settings
from blackhole.smtp.replies import (
    TOO_MANY_CLIENT_CONNECTIONS,
    TOO_MANY_CLIENT_OCTETS,
    TOO_MANY_NEW_CONNECTIONS,
    TOO_MANY_TLS_HANDSHAKES,
    Reply,
)
from blackhole.smtp.state import ClientLimits

RECEIVED_OCTETS: Final = "octets"
"""Counted like a phase: all octets received, whatever they are."""

LIMIT_OF_REPLY: Final[Mapping[Reply, str]] = {
    TOO_MANY_CLIENT_CONNECTIONS: "client_connections",
    TOO_MANY_CLIENT_OCTETS: "client_byte_rate",
    TOO_MANY_NEW_CONNECTIONS: "client_connection_rate",
    TOO_MANY_TLS_HANDSHAKES: "client_tls_rate",
}
"""Reply in place of the greeting -> the limit that the client met."""

Rates = Mapping[str, tuple[int, int]]
"""By phase: the cell that counts it, and the most that are allowed per minute."""


def client_limits(settings: Settings) -> ClientLimits:
    """Return the limits on one client in a session."""
    return ClientLimits(
        soft_errors=settings.soft_errors,
        errors=settings.max_errors,
        junk=settings.max_junk,
        recipients=settings.max_recipients,
        messages=settings.max_messages,
        metered=bool(settings.client_message_rate or settings.client_recipient_rate),
    )


def stressed_limits(limits: ClientLimits) -> ClientLimits:
    """Return the limits while connections are running out: as strict as those of Postfix.

    A client may send EHLO twice, with STARTTLS between them. A limit of 0 stays off.
    """
    return limits._replace(errors=min(limits.errors, 1), junk=min(limits.junk, 2))


class ClientUsage:
    """One connection of a client that is not trusted, and what is counted against it."""

    __slots__ = ("_rates", "_slot")

    shared: FleetConnection | None = None
    """The connection as all machines of a fleet count it; None where there is no fleet."""

    def __init__(self, slot: ClientSlot | None, rates: Rates) -> None:
        self._slot = slot
        self._rates = rates

    def meter(self, phase: str, amount: int = 1) -> bool:
        """Count one more command of a phase, or so many octets. Return false if that exceeds the rate."""
        rate = self._rates.get(phase)
        if rate is None or self._slot is None:
            return True
        cell, most = rate
        return self._slot.count(cell, amount) <= most

    def over_connection_limit(self, most: int) -> bool:
        """Return whether the client has more than `most` connections open; 0 is no limit."""
        return self._slot is not None and 0 < most < self._slot.open()

    def leave(self) -> None:
        """Stop counting the connection as open."""
        if self._slot is not None:
            self._slot.leave()


class FleetClientUsage(ClientUsage):
    """One connection of a client that all machines of a fleet count, beside this one."""

    __slots__ = ("shared",)

    def __init__(self, slot: ClientSlot | None, rates: Rates, shared: FleetConnection) -> None:
        super().__init__(slot, rates)
        self.shared: FleetConnection = shared

    def meter(self, phase: str, amount: int = 1) -> bool:
        """Count one more command of a phase, or so many octets. Return false if that exceeds the rate."""
        rate = self._rates.get(phase)
        if rate is None:
            return True
        cell, most = rate
        within = super().meter(phase, amount)
        client = self.shared.client
        # The question to the store has counted the connection.
        shared = client.sum(cell) if cell == CONNECTIONS else client.count(cell, amount)
        return within and shared <= most

    def over_connection_limit(self, most: int) -> bool:
        """Return whether the client has more than `most` connections open; 0 is no limit."""
        return self.shared.has_too_many_open or super().over_connection_limit(most)

    def leave(self) -> None:
        """Stop counting the connection as open."""
        super().leave()
        self.shared.leave()


class AdmissionControl:
    """Admits clients. Without a client table, nothing is counted over all connections of a client."""

    def __init__(
        self, settings: Settings, clients: ClientTableView | None, fleet: FleetUsage | None = None
    ) -> None:
        """`fleet` counts the connections of all machines; None: there are no others."""
        self._trusted: Final = NetworkSet(settings.trusted)
        self._clients: Final = clients
        self._fleet: Final = fleet
        self._most: Final = settings.client_connections
        rates = {
            "CONNECT": (CONNECTIONS, settings.client_connection_rate),
            "DATA": (MESSAGES, settings.client_message_rate),
            "RCPT": (RECIPIENTS, settings.client_recipient_rate),
            "STARTTLS": (TLS_HANDSHAKES, settings.client_tls_rate),
            RECEIVED_OCTETS: (RECEIVED, settings.client_byte_rate),
        }
        self._rates: Final = {phase: rate for phase, rate in rates.items() if rate[1]}

    def admit(self, address: str) -> ClientUsage | None:
        """Return the usage of a new connection, or None for a trusted client."""
        octets = to_bytes(address)
        if octets in self._trusted:
            return None
        client = client_key(octets)
        slot = self._clients.enter(client) if self._clients else None
        if self._fleet is None:
            return ClientUsage(slot, self._rates)
        return FleetClientUsage(slot, self._rates, self._fleet.enter(client))

    def refusal(self, usage: ClientUsage) -> Reply | None:
        """Return the reply to a client that must not connect now, or None."""
        if usage.over_connection_limit(self._most):
            return TOO_MANY_CLIENT_CONNECTIONS
        if not usage.meter(RECEIVED_OCTETS, 0):
            return TOO_MANY_CLIENT_OCTETS
        return None if usage.meter("CONNECT") else TOO_MANY_NEW_CONNECTIONS
