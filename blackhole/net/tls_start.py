"""The start of TLS on a connection, before the greeting or after STARTTLS."""

from __future__ import annotations

from tornado.iostream import StreamClosedError

from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.handshake import ClosedWithoutHello, HandshakeFault
from blackhole.net.tls_choice import TLSChoice, count_entry


async def start_tls(connection: ConnectionInterface) -> None:
    """Do the TLS handshake. Raises StreamClosedError if it fails, or is to fail."""
    connection.deadline_override, connection.idle = connection.context.settings.tls_timeout, 0
    choice = TLSChoice.of(connection)
    try:
        connection.stream = await connection.wait(choice.start_tls(connection.stream))
    except HandshakeFault as fault:
        count_entry(connection.context.counters, choice.parameters, "failed")
        await connection.finish(fault.next_action, b"")
        raise StreamClosedError from None
    except (OSError, ValueError) as error:
        if not isinstance(error, ClosedWithoutHello) or connection.received:
            connection.closed_by_server = True
            choice.failed(connection, error)
        # Where TLS begins at once, a client that says nothing is a probe.
        raise StreamClosedError(error) from None
    connection.deadline_override = None
    connection.tls = choice.parameters
    choice.succeeded(connection)
    connection.share_local_address()
