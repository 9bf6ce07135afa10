"""The roster: which clients came, by address, for operators who ask to see that (--show-clients).

It is the only place where an address is kept, and without the option there is none. Like the figures
it is a map that all processes share, with a page for each, to which nobody else writes; what a
process has counted stays when it is gone. A page has so many places, and a client that is new to a
full one takes the place of that seen longest ago.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from ipaddress import IPv6Address
from typing import Final, NamedTuple, Self

from blackhole.addresses import MAPPED, to_bytes
from blackhole.store.shared_memory import attach, create

NAME: Final = "blackhole.store.client_log"

PLACES: Final = 1024
"""In a page."""

HIGH, LOW, CONNECTIONS, MESSAGES, FAULTS, SEEN = range(6)
"""Cells of a place: an IPv6 address, or an IPv4 address in its dress; what the client did, and when it was
last seen, in microseconds since 1970. A place without connections is free."""

PLACE: Final = 6
PAGE: Final = PLACES * PLACE

MAX_SHOWN: Final = 100
"""Clients that are shown, those with the most messages."""


class Client(NamedTuple):
    """What is known of a client."""

    address: str
    connections: int
    messages: int
    """That came to their end."""
    violations: int
    seen: float
    """Seconds since 1970."""


class ClientLog:
    """The map. `rows` is how many processes can ever live at once, as in `Stats`."""

    def __init__(self, rows: int) -> None:
        self._cells: Final = create(NAME, rows * PAGE)

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The roster of a running master, to be read; None: it has none. Raises OperatorError."""
        cells = attach(pid, NAME)
        if cells is None:
            return None
        client_log = cls.__new__(cls)
        client_log._cells = cells  # type: ignore[misc]
        return client_log

    def page(self, row: int) -> ClientLogWriter:
        """The page of a process, for that process."""
        return ClientLogWriter(self._cells[row * PAGE : (row + 1) * PAGE])

    def clients(self) -> list[Client]:
        """Who came, the busiest first."""
        cells = self._cells
        known: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        for row in range(0, len(cells), PAGE):
            if not cells[row + CONNECTIONS]:
                continue  # places are taken in their order, and the memory of a page costs nothing until then
            values = cells[row : row + PAGE].tolist()
            for place in range(0, PAGE, PLACE):
                high, low, connections, messages, faults, seen = values[place : place + PLACE]
                if connections:
                    before = known.get((high, low), (0, 0, 0, 0))
                    known[high, low] = (
                        before[0] + connections,
                        before[1] + messages,
                        before[2] + faults,
                        max(before[3], seen),
                    )
        clients = [
            Client(format_address(high, low), connections, messages, faults, seen / 1e6)
            for (high, low), (connections, messages, faults, seen) in known.items()
        ]
        return sorted(clients, key=lambda client: (-client.messages, -client.connections, client.address))[
            :MAX_SHOWN
        ]


def format_address(high: int, low: int) -> str:
    """An address as people write it."""
    address = IPv6Address(high << 64 | low)
    return str(address.ipv4_mapped or address)


class ClientLogWriter:
    """One process' part of the roster."""

    def __init__(self, cells: memoryview) -> None:
        self._cells: Final = cells
        self._places: Final[dict[tuple[int, int], int]] = {}
        for place in range(0, PAGE, PLACE):
            if cells[place + CONNECTIONS]:  # of a process that had this page before
                self._places[cells[place + HIGH], cells[place + LOW]] = place
        self._told: Final[dict[Hashable, tuple[int, int]]] = {}
        """What is counted of the connections that are open."""

    def note(self, who: Hashable, address: str, messages: int, faults: int) -> None:
        """What the connection `who` has come to. Counts it when it is first heard of."""
        octets = to_bytes(address)
        if not octets:
            return
        octets = octets if len(octets) == 16 else MAPPED + octets
        key = int.from_bytes(octets[:8]), int.from_bytes(octets[8:])
        place = self._places.get(key)
        if place is None:
            place = self._take(key)
        cells = self._cells
        before = self._told.get(who)
        if before is None:
            cells[place + CONNECTIONS] += 1
            before = 0, 0
        cells[place + MESSAGES] += messages - before[0]
        cells[place + FAULTS] += faults - before[1]
        cells[place + SEEN] = time.time_ns() // 1000
        self._told[who] = messages, faults

    def forget(self, who: Hashable) -> None:
        """A connection has ended."""
        self._told.pop(who, None)

    def _take(self, key: tuple[int, int]) -> int:
        """A place for a client that has none."""
        cells = self._cells
        if len(self._places) < PLACES:
            place = len(self._places) * PLACE
        else:
            oldest = min(self._places, key=lambda known: cells[self._places[known] + SEEN])
            place = self._places.pop(oldest)
        for cell in range(place, place + PLACE):
            cells[cell] = 0
        cells[place + HIGH], cells[place + LOW] = key
        self._places[key] = place
        return place
