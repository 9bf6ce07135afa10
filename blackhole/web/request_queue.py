"""The order in which requests to the dashboard begin: one at a time, and clients take turns.

A request is answered in one step of the event loop, in milliseconds. Without the queue, a client whose 128
connections each have a request would have 128 of them answered before another client has one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Final, NamedTuple

from blackhole.web.places import ConnectionPlace


class WaitingRequest(NamedTuple):
    """A request that waits for its turn."""

    place: ConnectionPlace
    pipelined: bool
    """Its client has sent more behind it; such requests wait for the others of the same client."""
    turn: asyncio.Future[None]


class RequestQueue:
    """Lets one request begin in each iteration of the event loop."""

    def __init__(self) -> None:
        self._waiting: Final[dict[bytes, list[WaitingRequest]]] = {}
        """By client."""
        self._clients: Final[deque[bytes]] = deque()
        """Those with waiting requests, in the order of their turns."""
        self._busy = False
        """A request has begun in this iteration of the loop, or waits."""

    def enter(self, place: ConnectionPlace) -> Awaitable[None] | None:
        """Return what a request waits for before it begins; None if it need not wait."""
        loop = asyncio.get_running_loop()
        if not self._busy:
            self._busy = True
            place.last_turn = loop.time()
            loop.call_soon(self._next)
            return None
        request = WaitingRequest(place, place.has_more_input(), loop.create_future())
        if place.client not in self._waiting:
            self._waiting[place.client] = []
            self._clients.append(place.client)
        self._waiting[place.client].append(request)
        return request.turn

    def _next(self) -> None:
        """Let the next request begin: of the client whose turn it is, the one that waits longest."""
        loop = asyncio.get_running_loop()
        if not self._clients:
            self._busy = False
            return
        client = self._clients.popleft()
        requests = self._waiting[client]
        request = min(requests, key=lambda request: (request.pipelined, request.place.last_turn))
        requests.remove(request)
        if requests:
            self._clients.append(client)
        else:
            del self._waiting[client]
        request.place.last_turn = loop.time()
        if not request.turn.done():  # cancelled as the server ends
            request.turn.set_result(None)
        loop.call_soon(self._next)
