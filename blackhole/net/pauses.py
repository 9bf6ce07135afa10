"""Pauses of a connection: a look-up, or a delay, while a reply is held back."""

from __future__ import annotations

import asyncio
from typing import Final

from blackhole.metrics.counters import record_value
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.stream import has_ended, has_unread_input
from blackhole.net.waits import finish_early, timer
from blackhole.smtp.replies import NextAction

PAUSES: Final = (NextAction.SLEEP, NextAction.LOOKUP)


async def pause(connection: ConnectionInterface, action: NextAction) -> bytes:
    """Wait for a look-up, or as long as the reply is to be held back. Return the reply."""
    session, stream = connection.session, connection.stream
    if action is NextAction.LOOKUP:
        answer = await connection.wait(asyncio.shield(session.pending_lookup), watched=True)
        if has_ended(stream):
            session.client_left()
        out = session.resume_with_answer(answer)
    elif session.wait:
        connection.idle = -session.wait
        if await connection.wait(timer(session.wait), watched=True):
            record_value(connection.context.counters, "delay_seconds", int(session.wait * 1e6))
        if has_ended(stream):
            session.client_left()
        out = session.resume()
    else:
        connection.idle = 0
        await asyncio.sleep(0)  # other connections have their turn
        out = session.resume()
    if has_unread_input(stream):
        if not connection.received and session.next_action not in PAUSES:
            out = session.client_spoke_first(out, sampled=False)
        out = session.client_sent_early(out)
    return out


def holds_reply_back(connection: ConnectionInterface) -> bool:
    """Return whether a connection is in a delay or a look-up."""
    in_pause = connection.waiting is not None and connection.session.next_action in PAUSES
    return in_pause and not connection.stream.closed()


def limit_delay(connection: ConnectionInterface, seconds: float) -> None:
    """Send a delayed reply now if it was held back for so many seconds. A look-up goes on."""
    waiting, session = connection.waiting, connection.session
    if waiting and session.next_action is NextAction.SLEEP and connection.idle + session.wait >= seconds:
        finish_early(waiting)
