"""Clients that are gone, or have closed their side, while a reply to them is held back.

Nobody reads from a client during a delay or a look-up, and what it sent before may still be unread. So
its end is not seen by reading; poll(2) reports it all the same.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from time import monotonic
from typing import Final

from blackhole.net.connection import Connection
from blackhole.net.pauses import holds_reply_back, limit_delay
from blackhole.net.stream import descriptor

HALF_CLOSED_WAIT: Final = 5
"""Seconds that a reply is held back from a client that has closed its side, at most. To the kernel such a
client is the same as one that is gone, until something is sent to it."""

SEARCH_PAUSE: Final = 10
"""How many times as long as a search for connections to end in favour of new ones no other one is made."""

GONE: Final = select.POLLERR | select.POLLHUP


class DisconnectWatch:
    """Ends connections of a listener whose clients left during a wait, and shortens the wait of others."""

    __slots__ = ("_next_search", "_room")

    def __init__(self) -> None:
        self._room = 0
        """How many connections may be accepted in place of those that `make_room` ended."""
        self._next_search = 0.0

    def sweep(self, connections: Iterable[Connection], stressed: bool) -> None:
        """End connections whose clients are gone; once a second.

        A client that closed its side gets its reply after HALF_CLOSED_WAIT seconds at the latest, which
        tells whether it is gone. If `stressed`, its connection is ended at once.
        """
        self._room = 0
        for connection, gone in ended_waits(connections):
            if gone or stressed:
                end(connection, gone)
            else:
                limit_delay(connection, HALF_CLOSED_WAIT)

    def make_room(self, connections: Iterable[Connection]) -> bool:
        """End connections whose clients have closed their side; return whether one more can be accepted."""
        began = monotonic()
        if not self._room and began >= self._next_search:
            for connection, gone in ended_waits(connections):
                end(connection, gone)
                self._room += 1
            now = monotonic()
            self._next_search = now + SEARCH_PAUSE * (now - began)
        if not self._room:
            return False
        self._room -= 1
        return True


def end(connection: Connection, gone: bool) -> None:
    """End a connection. Whoever is not gone is not to blame for how it ends."""
    connection.closed_by_server = not gone
    connection.close()


def ended_waits(connections: Iterable[Connection]) -> list[tuple[Connection, bool]]:
    """Return the connections that hold a reply back while the client has closed its side. The second of each
    is true where the connection is broken, so that the client cannot get the reply."""
    waiting = {
        descriptor(connection.stream): connection
        for connection in connections
        if holds_reply_back(connection)
    }
    poller = select.poll()
    for fd in waiting:
        poller.register(fd, select.POLLRDHUP)
    return [(waiting[fd], bool(events & GONE)) for fd, events in poller.poll(0)]
