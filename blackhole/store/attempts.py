"""The table of attempts: a bounded store that all workers share, in memory only.

A slot keeps a keyed hash, a count and two times, never an address. The secret of the hash is drawn at start
and ends with the process, so that nobody can ask afterwards whether some address was in the table. The hash
is Python's own (SipHash, PEP 456), which all processes of one fork have in common; BLAKE2 takes five times as
long.

The table is an anonymous map made before the fork: sets of eight slots. A key belongs to one set; in a full
set, a new key replaces the one that was used longest ago. Where there are several workers, records are
updated under a lock of their set, which takes 1.5 microseconds of 3. A worker that is killed releases it.
While a worker that holds the lock is stopped, the others have no answer for the keys of that set.

The slots of concurrency limits are another table, with a row for each process, so that the slots that a
process holds end with it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Hashable, Iterator
from struct import Struct
from typing import Final

from blackhole.rules.attempt_store import Answer, HeldSlot, Update
from blackhole.store.shared_lock import SharedLock
from blackhole.store.shared_memory import CELL_OCTETS

SETS: Final = 1 << 15
"""With eight slots each: a quarter of a million keys, in 8 MiB, of which only the pages in use are
resident."""

SLOTS_PER_SET: Final = 8
CELLS_PER_SLOT: Final = 4
"""The key's hash (0: the slot is free), the last time, the first time (both in microseconds), and the count.
Cells of the same meaning stand side by side in a set: first all hashes, then all last times, and so on."""

CELLS_PER_SET: Final = SLOTS_PER_SET * CELLS_PER_SLOT
LAST: Final = SLOTS_PER_SET
FIRST: Final = 2 * SLOTS_PER_SET
COUNT: Final = 3 * SLOTS_PER_SET
"""Distance in cells from the hash of a slot to its other cells."""

read_hashes: Final = Struct(f"{SLOTS_PER_SET}Q").unpack_from
read_hashes_and_times: Final = Struct(f"{2 * SLOTS_PER_SET}Q").unpack_from
"""The hashes of a set, and with its last times behind them. A memoryview takes half as long again."""

COUNTERS_PER_ROW: Final = 1 << 20
"""Counters of held concurrency slots in a process's row, of which only the pages in use are resident.

Keys that share one (a pair in a million) count together.
"""

COUNTER_OCTETS: Final = 2
MAX_HELD: Final = 2**16 - 1
"""The largest value of such a counter."""

HASH_MASK: Final = 2**64 - 1


def _to_microseconds(seconds: float) -> int:
    """Return a time as a slot stores it, which is never 0: a free slot has that."""
    return int(seconds * 1e6 + 0.5) + 1


def _to_seconds(stored: int) -> float:
    """Return a time that a slot stores, in seconds."""
    return (stored - 1) / 1e6


class AttemptTable:
    """The table, for `rows` processes of one fork. It is an AttemptStore.

    >>> from blackhole.rules.attempt_store import count_attempt
    >>> table = AttemptTable(sets=1)
    >>> [table.update(b"ann@example.com", now, count_attempt) for now in (1.0, 2.5)]
    [1, 2]
    """

    def __init__(self, rows: int = 1, sets: int = SETS) -> None:
        self._sets: Final = sets
        self._secret: Final = os.urandom(16)
        self._table: Final = mmap.mmap(-1, sets * CELLS_PER_SET * CELL_OCTETS)
        self._cells: Final = memoryview(self._table).cast("Q")
        self._held_map: Final = mmap.mmap(-1, rows * COUNTERS_PER_ROW * COUNTER_OCTETS)
        self._held: Final = memoryview(self._held_map).cast("H")
        self._lock: Final = SharedLock("blackhole attempts")
        self._users: Final = mmap.mmap(-1, rows)
        """An octet for each row, which is 1 while a process uses the row."""
        self._row = -1
        """The row of this process; -1 for none."""
        self._row_start = 0

    def set_row(self, row: int) -> None:
        """Use this row for the calling process."""
        self.clear_row(row)
        self._users[row] = 1
        self._row, self._row_start = row, row * COUNTERS_PER_ROW

    def clear_row(self, row: int) -> None:
        """Release all slots that the former owner of a row held. Its memory goes back to the kernel."""
        self._users[row] = 0
        octets = COUNTERS_PER_ROW * COUNTER_OCTETS
        try:
            self._held_map.madvise(mmap.MADV_REMOVE, row * octets, octets)
        except OSError:  # not supported by this kernel
            self._held[row * COUNTERS_PER_ROW : (row + 1) * COUNTERS_PER_ROW] = memoryview(
                bytes(octets)
            ).cast("H")

    def key_hash(self, key: Hashable) -> int:
        """Return the keyed hash of a key: 64 bits, never 0."""
        return hash((self._secret, key)) & HASH_MASK or 1

    # AttemptStore.

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer | None:
        """Change the record of a key, and return the answer of the change. `now` must not be negative.

        Return None and change nothing if the lock cannot be taken. A new record with a count of 0 is not
        kept.
        """
        key_hash, users, row = self.key_hash(key), self._users, self._row
        if row >= 0 and users.find(b"\1") == row and users.find(b"\1", row + 1) < 0:
            # The only user. Another one takes its row long before it serves its first client.
            return self._change(key_hash, now, change)
        return self._update(key_hash, now, change)

    def _update(self, key_hash: int, now: float, change: Update[Answer]) -> Answer | None:
        """Do as `update` for a key that is known by its hash."""
        octet = key_hash % self._sets
        if not self._lock.acquire(octet):
            return None
        try:
            return self._change(key_hash, now, change)
        finally:
            self._lock.release(octet)

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | None:
        """Return whether all processes together hold `limit` slots of a key; if not, take one more.

        Return None and take none if the lock is not to be had.
        """
        counter = self.key_hash(key) % COUNTERS_PER_ROW
        if not self._lock.acquire(counter):
            return None
        try:
            if sum(self._held[counter::COUNTERS_PER_ROW]) >= min(limit, MAX_HELD):
                return True
            self._held[self._row_start + counter] += 1
            return False
        finally:
            self._lock.release(counter)

    def release(self, place: HeldSlot) -> None:
        """Release a slot that this process took by `refuse_or_acquire`; the slot is named by its key."""
        assert isinstance(place, bytes)
        self._held[self._row_start + self.key_hash(place) % COUNTERS_PER_ROW] -= 1

    # Records by their hash.

    def contains(self, key_hash: int) -> bool:
        """Return whether there is a record of a key with this hash."""
        return key_hash in read_hashes(self._table, key_hash % self._sets * CELLS_PER_SET * CELL_OCTETS)

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        """Do as `update` for a key that is known by its hash.

        Return the answer for a new key, and change nothing, if the lock cannot be taken.
        """
        octet = key_hash % self._sets
        if not self._lock.acquire(octet):
            return change((0, now, now), now)[1]
        try:
            return self._change(key_hash, now, change)
        finally:
            self._lock.release(octet)

    def sweep(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        """Change every record of one set, under a lock, and yield the answers.

        `number` is taken modulo the sets. A record whose lock cannot be taken is left for the next time.
        """
        chosen = number % self._sets
        for key_hash in filter(None, read_hashes(self._table, chosen * CELLS_PER_SET * CELL_OCTETS)):
            answer = self._update(key_hash, now, change)
            if answer is not None:
                yield answer

    def _change(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        """Change a record under the lock of its set."""
        start = key_hash % self._sets * CELLS_PER_SET
        entries = read_hashes_and_times(self._table, start * CELL_OCTETS)
        if key_hash not in entries:
            (count, first, last), answer = change((0, now, now), now)
            if count:
                self._insert(key_hash, start, entries, _to_microseconds(last), _to_microseconds(first), count)
            return answer
        place = entries.index(key_hash)
        cells, at = self._cells, start + place
        first_before = _to_seconds(cells[at + FIRST])
        known = cells[at + COUNT], first_before, _to_seconds(entries[LAST + place])
        (count, first, last), answer = change(known, now)
        # In this sequence, a process that is killed in between leaves no count of a window that has ended in
        # a window that begins, and no triplet of a greylist that seems to have waited.
        cells[at + COUNT] = count
        if first != first_before:
            cells[at + FIRST] = _to_microseconds(first)
        cells[at + LAST] = _to_microseconds(last)
        return answer

    def _insert(
        self, key_hash: int, start: int, entries: tuple[int, ...], last: int, first: int, count: int
    ) -> None:
        """Write a record into a free slot of a set, or into the slot that was used longest ago."""
        times = entries[SLOTS_PER_SET:]
        cells, at = self._cells, start + times.index(min(times))
        # The hash is written last: until then no reader finds the half-written slot.
        cells[at] = 0
        cells[at + LAST], cells[at + FIRST], cells[at + COUNT] = last, first, count
        cells[at] = key_hash
