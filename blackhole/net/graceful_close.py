"""The graceful close of a connection: the client can read the last reply before the connection ends."""

from __future__ import annotations

import asyncio
from typing import Final

from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.stream import CHUNK, has_unread_input, shutdown_write

LINGER: Final = 2
"""Seconds that a client is given to read why the server closes the connection."""

TLS_SHUTDOWN_DELAY: Final = 0.1
"""Seconds for which close_notify waits for what the client sends after a 421."""

LINGER_OCTETS: Final = 1 << 20
"""Octets that are read and dropped meanwhile, at most."""


async def close_gracefully(connection: ConnectionInterface) -> None:
    """End the server's side of a connection, then read until the client closes its side, for LINGER seconds.

    OpenSSL cannot read what came before close_notify was sent, and was not read by then. What a client sends
    after a 421 comes at once and is to be read, so close_notify waits for it.
    """
    session, stream = connection.session, connection.stream
    after_421, left = session.after_421, LINGER_OCTETS
    shutting: asyncio.TimerHandle | None = None
    if session.secure and (after_421 is not None or has_unread_input(stream)):
        loop = asyncio.get_running_loop()
        shutting = loop.call_later(TLS_SHUTDOWN_DELAY, shutdown_write, stream)
    else:
        shutdown_write(stream)
    connection.deadline_override, connection.idle = LINGER, 0
    try:
        while left > 0:
            data = await stream.read_bytes(CHUNK, True)
            left -= len(data)
            if after_421 is not None:
                after_421.feed(data)
            input_ended = after_421 is None or after_421.ended
            if input_ended and shutting is not None and not shutting.cancelled():
                shutting.cancel()
                shutdown_write(stream)
    finally:
        if shutting is not None:
            shutting.cancel()
        if after_421 is not None and after_421.talked:
            session.record_violation("talk-after-421", after_421.violation_context)
