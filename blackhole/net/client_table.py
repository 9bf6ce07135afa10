"""What all workers know of each client: how many connections it has open, and what it did this minute.

An anonymous map made before the fork, of a fixed size, with a region for each
process. Only its owner writes to a region, so there is no lock, and no worker
waits for one that was stopped or killed; who asks adds up the regions of the
processes that live. A dead process' connections are forgotten within a second.

A client is an IPv4 address or an IPv6 /64, which is what one customer gets; of
it a keyed hash is kept. A region is a hash table of buckets of WAYS places. In
a full bucket the client that has nothing open and was seen longest ago makes
room; if all have, the newcomer goes uncounted, which costs an attacker as many
addresses as there are places.
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
HANDSHAKES: Final = 6
RECEIVED: Final = 7
"""Cells of a place. OPEN is how things are now; those behind it count since MINUTE began."""

PLACE: Final = 8
"""Cells of 4 octets in a place; two places share a cache line evenly."""

MOST: Final = 2**32 - 1
"""What a cell can count to."""

WAYS: Final = 4
"""Places in a bucket."""

BUCKETS: Final = 2048
"""So a region is of 256 KiB, of which the kernel gives only the pages that were written to."""

REGION: Final = BUCKETS * WAYS * PLACE
"""Cells of a region."""


def client(octets: bytes) -> bytes:
    """Who is behind an address, as `packed` has it; nobody in particular where there is none."""
    return octets[:8]


class ClientTable:
    """The map. `rows` is how many processes can ever live at once, as in `Stats`."""

    def __init__(self, rows: int) -> None:
        self._map: Final = mmap.mmap(-1, rows * REGION * 4)
        self.cells: Final = memoryview(self._map).cast("I")
        self.secret: Final = os.urandom(16)
        """Nobody can choose addresses that meet in a bucket."""

    def clear(self, row: int) -> None:
        """Forget what a former process wrote, and give the memory back."""
        start, length = row * REGION * 4, REGION * 4
        try:
            self._map.madvise(mmap.MADV_REMOVE, start, length)
        except OSError:  # where the kernel cannot: then it stays resident
            self._map[start : start + length] = bytes(length)


class ClientTableView:
    """One process' view of the map: it writes to its own row, and reads those of `others`."""

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
        """Where the regions of the others begin."""
        self.sweep()

    def sweep(self) -> None:
        """Once a second: who else lives, and what minute it is."""
        self._minute: int = int(self._clock() // 60) + 1
        self._beside = [row * REGION for row in self._others() if row * REGION != self._base]

    def enter(self, who: bytes) -> ClientSlot:
        """A connection of this client has begun. `Place.leave` has to follow."""
        digest = blake2b(who, digest_size=8, key=self._secret).digest()
        key = int.from_bytes(digest[:4]) or 1
        bucket = int.from_bytes(digest[4:]) % BUCKETS * WAYS * PLACE
        return ClientSlot(self, key, bucket, self._find(key, bucket))

    def _find(self, key: int, bucket: int) -> int:
        """The client's place in our region, made where there was none; -1 when all are taken."""
        cells, start = self._cells, self._base + bucket
        place = self._place(key, start)
        if place >= 0:
            return place
        places = range(start, start + WAYS * PLACE, PLACE)
        free = [place for place in places if not cells[place + OPEN]]
        if not free:
            return -1
        place = min(free, key=lambda place: cells[place + MINUTE])
        cells[place + KEY] = 0  # nobody else's, while the rest is another's
        for cell in range(place + MINUTE, place + PLACE):
            cells[cell] = 0
        cells[place + KEY] = key
        return place

    def _place(self, key: int, start: int) -> int:
        """A client's place in the bucket that begins here; -1: there is none."""
        keys = self._cells[start + KEY : start + WAYS * PLACE : PLACE].tolist()
        return start + keys.index(key) * PLACE if key in keys else -1

    def add(self, place: int, cell: int, amount: int) -> None:
        """So many more, in our region."""
        cells = self._cells
        if cells[place + MINUTE] != self._minute:
            for count in range(place + CONNECTIONS, place + PLACE):
                cells[count] = 0
            cells[place + MINUTE] = self._minute
        cells[place + cell] = min(cells[place + cell] + amount, MOST)

    def change(self, place: int, step: int) -> None:
        """The number of open connections, in our region."""
        self._cells[place + OPEN] += step

    def total(self, key: int, bucket: int, place: int, cell: int) -> int:
        """The sum of a cell of a client over all regions."""
        cells = self._cells
        minute = 0 if cell == OPEN else self._minute
        found = cells[place + cell]
        for region in self._beside:
            other = self._place(key, region + bucket)
            if other >= 0 and minute in (0, cells[other + MINUTE]):
                found += cells[other + cell]
        return found


class ClientSlot:
    """One connection's entry in the ledger; those of one client share what it says."""

    __slots__ = ("_bucket", "_key", "_ledger", "_place")

    def __init__(self, ledger: ClientTableView, key: int, bucket: int, place: int) -> None:
        self._ledger = ledger
        self._key = key
        self._bucket = bucket
        self._place = place
        if place >= 0:
            ledger.change(place, 1)

    def open(self) -> int:
        """How many connections the client has, this one among them; 0 if it is not counted."""
        if self._place < 0:
            return 0
        return self._ledger.total(self._key, self._bucket, self._place, OPEN)

    def count(self, cell: int, amount: int = 1) -> int:
        """So many more; how many that makes this minute. 0 if the client is not counted."""
        if self._place < 0:
            return 0
        self._ledger.add(self._place, cell, amount)
        return self._ledger.total(self._key, self._bucket, self._place, cell)

    def leave(self) -> None:
        """The connection is over."""
        if self._place >= 0:
            self._ledger.change(self._place, -1)
            self._place = -1
