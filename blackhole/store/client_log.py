"""The client log: which clients connected, by address, where the operator asks for it (--show-clients).

It is the only place where addresses are kept; without the option there is none. Like the counters it is a map
that all processes share, with a section for each process, which is its only writer. A section outlives its
process. It has a fixed number of slots; in a full one, a new client replaces the client that was seen longest
ago.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final, NamedTuple, Self

from blackhole.addresses import MAPPED, address_text, to_bytes
from blackhole.store.shared_memory import attach, create

CLIENT_LOG_MAP: Final = "blackhole.store.client_log"

MAX_CLIENTS: Final = 1024
"""Clients in the section of a process."""

ADDRESS_HIGH, ADDRESS_LOW, CONNECTION_COUNT, MESSAGE_COUNT, VIOLATION_COUNT, SAMPLED_COUNT, LAST_SEEN = range(
    7
)
"""Cells of a slot: both halves of an IPv6 address (IPv4 as IPv4-mapped, RFC 4291 2.5.5.2), four counts,
and the time of the last update in microseconds since 1970. A slot without connections is free."""

CLIENT_CELLS: Final = 7
SECTION_CELLS: Final = MAX_CLIENTS * CLIENT_CELLS

MAX_SHOWN_CLIENTS: Final = 100
"""Clients that are shown: those with the most messages."""


class Client(NamedTuple):
    """What is known of a client."""

    address: str
    connections: int
    messages: int
    """Messages that ended and were answered."""
    violations: int
    """Violations that are all counted."""
    sampled_violations: int
    """Violations that were found in inspected sessions and messages."""
    seen: float
    """When it was last seen, in seconds since 1970."""


class ClientLog:
    """The log. `rows` is the largest number of processes that live at once, as for the counters.

    >>> log = ClientLog(rows=1)
    >>> log.writer(0).update("first connection", "192.0.2.1", messages=3, violations=0, sampled=0)
    >>> log.clients()[0].address
    '192.0.2.1'
    """

    def __init__(self, rows: int) -> None:
        self._cells: Final = create(CLIENT_LOG_MAP, rows * SECTION_CELLS)

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the log of a running master, to be read; None if it has none. Raises OperatorError."""
        cells = attach(pid, CLIENT_LOG_MAP)
        if cells is None:
            return None
        client_log = cls.__new__(cls)
        client_log._cells = cells[: len(cells) // SECTION_CELLS * SECTION_CELLS]  # type: ignore[misc]
        return client_log

    def writer(self, row: int) -> ClientLogWriter:
        """Return the section of a process, for that process to write."""
        return ClientLogWriter(self._cells[row * SECTION_CELLS : (row + 1) * SECTION_CELLS])

    def clients(self) -> list[Client]:
        """Return the clients with the most messages, at most MAX_SHOWN, those with the most first."""
        totals: dict[tuple[int, int], list[int]] = {}
        for start in range(0, len(self._cells), SECTION_CELLS):
            if not self._cells[start + CONNECTION_COUNT]:
                continue  # slots are taken in order: an unused section is not read, so it stays unallocated
            values = self._cells[start : start + SECTION_CELLS].tolist()
            for slot in range(0, SECTION_CELLS, CLIENT_CELLS):
                high, low, *counts, seen = values[slot : slot + CLIENT_CELLS]
                if counts[0]:
                    *before, last_seen = totals.get((high, low), (0, 0, 0, 0, 0))
                    sums = [one + other for one, other in zip(counts, before, strict=True)]
                    totals[high, low] = [*sums, max(seen, last_seen)]
        clients = [
            Client(format_address(high, low), connections, messages, violations, sampled, seen / 1e6)
            for (high, low), (connections, messages, violations, sampled, seen) in totals.items()
        ]
        clients.sort(key=lambda client: (-client.messages, -client.connections, client.address))
        return clients[:MAX_SHOWN_CLIENTS]


def format_address(high: int, low: int) -> str:
    """Return an address as text, from both halves of its 128 bits."""
    return address_text((high << 64 | low).to_bytes(16))


class ClientLogWriter:
    """The section of one process."""

    def __init__(self, cells: memoryview) -> None:
        self._cells: Final = cells
        self._slots: Final[dict[tuple[int, int], int]] = {}
        for slot in range(0, SECTION_CELLS, CLIENT_CELLS):
            if cells[slot + CONNECTION_COUNT]:  # left by a process that had this section before
                self._slots[cells[slot + ADDRESS_HIGH], cells[slot + ADDRESS_LOW]] = slot
        self._counted: Final[dict[Hashable, tuple[int, int, int]]] = {}
        """Messages and violations that are counted so far, by open connection."""

    def update(
        self, connection: Hashable, address: str, messages: int, violations: int, sampled: int = 0
    ) -> None:
        """Record the totals of an open connection. The first call counts the connection itself."""
        octets = to_bytes(address)
        if not octets:
            return
        octets = octets if len(octets) == 16 else MAPPED + octets
        key = int.from_bytes(octets[:8]), int.from_bytes(octets[8:])
        slot = self._slots.get(key)
        if slot is None:
            slot = self._allocate(key)
        cells = self._cells
        before = self._counted.get(connection)
        if before is None:
            cells[slot + CONNECTION_COUNT] += 1
            before = 0, 0, 0
        cells[slot + MESSAGE_COUNT] += messages - before[0]
        cells[slot + VIOLATION_COUNT] += violations - before[1]
        cells[slot + SAMPLED_COUNT] += sampled - before[2]
        cells[slot + LAST_SEEN] = time.time_ns() // 1000
        self._counted[connection] = messages, violations, sampled

    def forget(self, connection: Hashable) -> None:
        """Forget a connection that has ended."""
        self._counted.pop(connection, None)

    def _allocate(self, key: tuple[int, int]) -> int:
        """Return an empty slot for a new client: a free one, or that of the client seen longest ago."""
        cells = self._cells
        if len(self._slots) < MAX_CLIENTS:
            slot = len(self._slots) * CLIENT_CELLS
        else:
            oldest = min(self._slots, key=lambda known: cells[self._slots[known] + LAST_SEEN])
            slot = self._slots.pop(oldest)
        for cell in range(slot, slot + CLIENT_CELLS):
            cells[cell] = 0
        cells[slot + ADDRESS_HIGH], cells[slot + ADDRESS_LOW] = key
        self._slots[key] = slot
        return slot
