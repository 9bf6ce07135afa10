"""The client table: each client's open connections, and its activity this minute, over all workers.

An anonymous map of a fixed size, made before the fork, with a region for each process. Only its
owner writes to a region, so there is no lock, and no worker waits for one that was stopped or
killed; a reader adds up the regions of the processes that live. The connections of a dead process
are forgotten within a second.

A client is an IPv4 address or an IPv6 /64, which is what one customer gets; the table has a keyed
hash of it. A region is a hash table of buckets with SLOTS_PER_BUCKET slots. In a full bucket, the
client without open connections that was seen longest ago makes room. If all have open connections,
the new client is not counted, which costs an attacker as many addresses as there are slots.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

KEY: Final = 0
MINUTE: Final = 1
OPEN: Final = 2
CONNECTIONS: Final = 3
MESSAGES: Final = 4
RECIPIENTS: Final = 5
TLS_HANDSHAKES: Final = 6
RECEIVED: Final = 7
"""Cells of a slot. OPEN is the number of open connections; the cells behind it count since MINUTE began."""

SLOT_CELLS: Final = 8
"""Cells of 4 octets in a slot; two slots fill a cache line."""

MAX_COUNT: Final = 2**32 - 1
"""The largest value of a cell."""

SLOTS_PER_BUCKET: Final = 4
"""Slots in a bucket."""

BUCKETS: Final = 2048
"""A region has 256 KiB, of which the kernel allocates only the pages that were written to."""

REGION: Final = BUCKETS * SLOTS_PER_BUCKET * SLOT_CELLS
"""Cells of a region."""


def client_key(octets: bytes) -> bytes:
    """Return the client of an address, from the octets of `addresses.to_bytes`: the /64 of IPv6."""
    return octets[:8]


class ClientTable:
    """The shared map. `rows` is the largest number of processes that live at once, as in `Counters`."""

    def __init__(self, rows: int) -> None:
        self._map: Final = mmap.mmap(-1, rows * REGION * 4)
        self.cells: Final = memoryview(self._map).cast("I")
        self.secret: Final = os.urandom(16)
        """Key of the hash, so that a client cannot choose addresses that share a bucket."""

    def clear(self, row: int) -> None:
        """Clear the region of a process that has ended, and free its memory."""
        start, length = row * REGION * 4, REGION * 4
        try:
            self._map.madvise(mmap.MADV_REMOVE, start, length)
        except OSError:  # the kernel cannot free it; then it stays resident
            self._map[start : start + length] = bytes(length)


class ClientTableView:
    """The table as one process uses it: it writes to its own region, and reads those of `others`."""

    def __init__(
        self,
        clients: ClientTable,
        row: int,
        others: Callable[[], Iterable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        clients.clear(row)
        self._cells: Final = clients.cells
        self._secret: Final = clients.secret
        self._base: Final = row * REGION
        self._others: Final = others
        self._clock: Final = clock
        self._beside: list[int] = []
        """The first cells of the regions of the others."""
        self.sweep()

    def sweep(self) -> None:
        """Once a second, update the list of live processes and the current minute."""
        self._minute: int = int(self._clock() // 60) + 1
        self._beside = [row * REGION for row in self._others() if row * REGION != self._base]

    def enter(self, client: bytes) -> ClientSlot:
        """Count a new connection of a client. `ClientSlot.leave` must follow."""
        digest = blake2b(client, digest_size=8, key=self._secret).digest()
        key = int.from_bytes(digest[:4]) or 1
        bucket = int.from_bytes(digest[4:]) % BUCKETS * SLOTS_PER_BUCKET * SLOT_CELLS
        return ClientSlot(self, key, bucket, self._find(key, bucket))

    def _find(self, key: int, bucket: int) -> int:
        """Return the client's slot in this region, made if there was none; -1 if all are in use."""
        cells, start = self._cells, self._base + bucket
        slot = self._slot(key, start)
        if slot >= 0:
            return slot
        slots = range(start, start + SLOTS_PER_BUCKET * SLOT_CELLS, SLOT_CELLS)
        free = [slot for slot in slots if not cells[slot + OPEN]]
        if not free:
            return -1
        slot = min(free, key=lambda slot: cells[slot + MINUTE])
        cells[slot + KEY] = 0  # no client has it while the other cells are changed
        for cell in range(slot + MINUTE, slot + SLOT_CELLS):
            cells[cell] = 0
        cells[slot + KEY] = key
        return slot

    def _slot(self, key: int, start: int) -> int:
        """Return a client's slot in the bucket that begins at `start`; -1 if it has none."""
        keys = self._cells[start + KEY : start + SLOTS_PER_BUCKET * SLOT_CELLS : SLOT_CELLS].tolist()
        return start + keys.index(key) * SLOT_CELLS if key in keys else -1

    def add(self, slot: int, cell: int, amount: int) -> None:
        """Add to a count of this minute, in this region."""
        cells = self._cells
        if cells[slot + MINUTE] != self._minute:
            for count in range(slot + CONNECTIONS, slot + SLOT_CELLS):
                cells[count] = 0
            cells[slot + MINUTE] = self._minute
        cells[slot + cell] = min(cells[slot + cell] + amount, MAX_COUNT)

    def change(self, slot: int, step: int) -> None:
        """Change the number of open connections, in this region."""
        self._cells[slot + OPEN] += step

    def total(self, key: int, bucket: int, slot: int, cell: int) -> int:
        """Return the sum of a cell of a client over all regions."""
        cells = self._cells
        minute = 0 if cell == OPEN else self._minute
        found = cells[slot + cell]
        for region in self._beside:
            other = self._slot(key, region + bucket)
            if other >= 0 and minute in (0, cells[other + MINUTE]):
                found += cells[other + cell]
        return found


class ClientSlot:
    """The entry of one connection in the table. The connections of a client share its counts."""

    __slots__ = ("_bucket", "_key", "_slot", "_table")

    def __init__(self, table: ClientTableView, key: int, bucket: int, slot: int) -> None:
        self._table = table
        self._key = key
        self._bucket = bucket
        self._slot = slot
        if slot >= 0:
            table.change(slot, 1)

    def open(self) -> int:
        """Return the open connections of the client, with this one; 0 if it is not counted."""
        if self._slot < 0:
            return 0
        return self._table.total(self._key, self._bucket, self._slot, OPEN)

    def count(self, cell: int, amount: int = 1) -> int:
        """Add to a count, and return its sum for this minute; 0 if the client is not counted."""
        if self._slot < 0:
            return 0
        self._table.add(self._slot, cell, amount)
        return self._table.total(self._key, self._bucket, self._slot, cell)

    def leave(self) -> None:
        """Stop counting the connection as open."""
        if self._slot >= 0:
            self._table.change(self._slot, -1)
            self._slot = -1
