"""The connections to the dashboard: how many each client may have, and which one makes room for another."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from tornado.iostream import IOStream

CLIENT_SHARE: Final = 0.5
"""The share of all connections that one IPv4 address, or one IPv6 network of 64 bits, can have."""

RESPONSE_TIMEOUT: Final = 5
"""Seconds for a client to receive a response."""

DISPENSABLE_AFTER: Final = 1
"""Seconds without a request, or with an unread response, after which a connection can make room."""


class ConnectionPlace:
    """The place of one open connection."""

    def __init__(self, stream: IOStream, client: bytes, now: float) -> None:
        self.stream: Final = stream
        self.client: Final = client
        self.idle_since: float | None = now
        """Since when the server waits for a request; None while there is one."""
        self.answering = False
        """A request has arrived as a whole, and the response is not sent yet."""
        self.last_turn = now
        """When the last request began, or the connection."""
        self.unread_since: float | None = None
        """When the connection was first seen with a response that its client does not read."""
        self.seemed_gone = False
        """The last sweep found that the client had closed its side, and no request began since."""

    def wait_for_request(self, now: float) -> None:
        """Note that the server reads the next request."""
        self.idle_since = now
        self.answering = self.seemed_gone = False

    def note_writing(self, now: float) -> None:
        """Note whether a response waits for the client to read."""
        if not self.stream.writing():
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = now

    def unread_for(self, now: float) -> float:
        """Return the seconds that a response has waited for the client to read."""
        return 0.0 if self.unread_since is None else now - self.unread_since

    def idle_for(self, now: float) -> float:
        """Return the seconds that the server has waited for a request."""
        return 0.0 if self.idle_since is None else now - self.idle_since

    def has_more_input(self) -> bool:
        """Return whether the client has sent more than the server has read."""
        return bool(with_event((self,), select.POLLIN))


class ConnectionPlaces:
    """The places of all open connections: at most `limit`, and CLIENT_SHARE of them for one client."""

    def __init__(self, limit: int) -> None:
        self._limit: Final = limit
        self._places: Final[dict[IOStream, ConnectionPlace]] = {}
        self._by_client: Final[Counter[bytes]] = Counter()
        """Open connections by client."""

    def __iter__(self) -> Iterator[ConnectionPlace]:
        return iter([*self._places.values()])

    def of(self, stream: IOStream) -> ConnectionPlace:
        """Return the place of a connection; one that is closed may still have requests that were read."""
        return self._places.get(stream) or ConnectionPlace(stream, b"", 0.0)

    def take(self, stream: IOStream, client: bytes, now: float) -> bool:
        """Take a place for a new connection, that of another one if need be; return whether there is one."""
        if not self._make_room(client, now):
            return False
        self._places[stream] = ConnectionPlace(stream, client, now)
        self._by_client[client] += 1
        return True

    def release(self, stream: IOStream) -> None:
        """Release the place of a connection, if it still has one."""
        place = self._places.pop(stream, None)
        if place is None:
            return
        self._by_client[place.client] -= 1
        if not self._by_client[place.client]:
            del self._by_client[place.client]

    def close(self, place: ConnectionPlace) -> None:
        """Close a connection. Its place is free at once, though Tornado notices the end later."""
        self.release(place.stream)
        place.stream.close()

    def sweep(self, now: float) -> None:
        """Close the connections of clients that do not read or are gone; to be called once a second."""
        for place in self:
            place.note_writing(now)
            if place.unread_for(now) >= RESPONSE_TIMEOUT:
                self.close(place)
        # A client that has closed its side may have sent many requests before: what is answered between two
        # sweeps is no sign that it is gone, though nothing is being written at the time of either.
        # Tornado does not notice the end while a request waits for its response, if octets came behind it.
        reading = [place for place in self if place.unread_since is None]
        gone = with_event(reading, select.POLLRDHUP)
        for place in reading:
            if place in gone and place.seemed_gone:
                self.close(place)
            place.seemed_gone = place in gone

    def _make_room(self, client: bytes, now: float) -> bool:
        """Return whether a client can have one more connection; close another one if that is needed for it.

        A client that has its share, or as many connections as any other when all are taken, loses one that it
        can spare. Otherwise the client with the most connections loses one: its newest, if it can spare none.
        """
        if self._by_client[client] >= self._limit * CLIENT_SHARE:
            return self._spare(client, now)
        if len(self._places) < self._limit:
            return True
        ((crowd, most),) = self._by_client.most_common(1)
        if most <= self._by_client[client] + 1:
            return self._spare(client, now)
        if not self._spare(crowd, now):
            self.close([place for place in self if place.client == crowd][-1])
        return True

    def _spare(self, client: bytes, now: float) -> bool:
        """Close the connection that a client can spare most easily; return whether there was one.

        That is one whose response it does not read, then one without a request, then one where it has sent
        further requests before the first was answered.
        """
        places = [place for place in self if place.client == client]
        for place in places:
            place.note_writing(now)
        unread = [place for place in places if place.unread_for(now) >= DISPENSABLE_AFTER]
        idle = [place for place in places if place.idle_for(now) >= DISPENSABLE_AFTER]
        pipelined = with_event((place for place in places if place.answering), select.POLLIN)
        spare = (
            max(unread, key=lambda place: place.unread_for(now), default=None)
            or max(idle, key=lambda place: place.idle_for(now), default=None)
            or min(pipelined, key=lambda place: place.last_turn, default=None)
        )
        if spare is not None:
            self.close(spare)
        return spare is not None


def with_event(places: Iterable[ConnectionPlace], event: int) -> set[ConnectionPlace]:
    """Return those places whose sockets report an event of poll(2), or an error."""
    found = {place.stream.socket.fileno(): place for place in places if not place.stream.closed()}
    poll = select.poll()
    for descriptor in found:
        poll.register(descriptor, event)
    return {found[descriptor] for descriptor, _ in poll.poll(0)}
