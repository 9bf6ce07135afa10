"""The timeouts of a connection, and the rates that it must keep, which are looked at once a second."""

from __future__ import annotations

from typing import Final

from blackhole.metrics.layout import CELL_INDEX
from blackhole.net.admission import RECEIVED_OCTETS
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.smtp.replies import SESSION_TIMEOUT, TIMEOUT, TOO_MANY_CLIENT_OCTETS

RECEIVED_CELL: Final = CELL_INDEX["received_bytes"]
TIMED_OUT: Final = CELL_INDEX["timed_out"]

STRESS_RATE: Final = 500
"""Octets per second of a body under stress, where no `min_data_rate` is set; Postfix's value."""


def enforce_timeouts(connection: ConnectionInterface) -> None:
    """Enforce timeouts and rates, and add what was received to the counters."""
    context, settings = connection.context, connection.context.settings
    fresh = connection.received - connection.counted
    if fresh:
        context.counters[RECEIVED_CELL] += fresh
        connection.counted = connection.received
        if connection.session.in_body:
            credit_body(connection, fresh)
        if connection.usage is not None and not connection.usage.meter(RECEIVED_OCTETS, fresh):
            connection.session.record_limit("client_byte_rate")
            connection.send_and_close(TOO_MANY_CLIENT_OCTETS)
            return
    connection.idle += 1
    connection.age += 1
    limit = settings.timeout if connection.deadline_override is None else connection.deadline_override
    if context.stressed:
        limit = min(limit, settings.stress_timeout)
    if connection.idle > limit:
        context.counters[TIMED_OUT] += 1
        if connection.usage is not None and settings.min_data_rate and connection.session.in_body:
            connection.session.record_limit("min_data_rate")
        connection.send_and_close(TIMEOUT)
    elif connection.usage is not None and 0 < settings.session_timeout < connection.age:
        connection.session.record_limit("session_timeout")
        connection.send_and_close(SESSION_TIMEOUT)


def credit_body(connection: ConnectionInterface, octets: int) -> None:
    """Give a client more time for octets of a body: all of it, or in proportion to a rate, as Postfix."""
    rate = connection.context.settings.min_data_rate if connection.usage is not None else 0
    if connection.context.stressed:
        rate = rate or STRESS_RATE
    connection.idle = max(0.0, connection.idle - octets / rate) if rate else 0.0
