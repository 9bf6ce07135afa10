"""Who tried what, and when: a bounded memory of attempts, shared by all workers and kept in no file.

What is remembered is a keyed hash, a count and two times, never an address. The
keys of the hash are drawn at start and die with the process, so nobody can ask
the memory afterwards whether some address was in it. The hash is Python's own
(SipHash, PEP 456), which all processes of one fork have in common, under a secret of ours;
BLAKE2 takes five times as long.

The table is an anonymous map made before the fork: sets of eight slots. A key
belongs to one set; when that is full, whoever was seen longest ago goes. There
is no lock, where a count may be one too low when two workers count the same key
within the same microsecond: a look-up takes 4 microseconds. Quotas have to be
exact and are changed under a lock of fcntl(2), which takes 1 more, and which the
kernel takes away from a worker that is killed.

Who is there now is another table, with a row for each process, so that a process
that dies takes along what it counted.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Hashable, Iterator
from struct import Struct
from typing import Final

from blackhole.rules.attempt_store import Answer, Slot, Update

SETS: Final = 1 << 15
"""With eight slots each: a quarter of a million keys, in 8 MiB, of which only what is used is resident."""

SLOTS: Final = 8
CELLS: Final = 4
"""In a slot: the mark of a key (0: free), the last time in microseconds, the first, and the count. What has
the same meaning stands side by side in a set, the marks first."""

SPAN: Final = SLOTS * CELLS
LAST: Final = SLOTS
FIRST: Final = 2 * SLOTS
COUNT: Final = 3 * SLOTS
"""Cells from the mark of a slot to what else is in it."""

OCTET: Final = 8
"""Octets of a cell."""

MARKS: Final = Struct(f"{SLOTS}Q").unpack_from
BOTH: Final = Struct(f"{2 * SLOTS}Q").unpack_from
"""The marks of a set, and with the last times behind them. A memoryview takes half as long again."""

PLACES: Final = 1 << 16
"""Of a row of those who are there now. Two keys that share one, as one pair in 65536 does, count together."""

OCTETS: Final = 2**64 - 1
"""Eight of them, all set: as many as a cell has."""

MOST: Final = 2**16 - 1
"""What a place can count to."""


def stored(seconds: float) -> int:
    """A time as a slot has it; 0 is what a free one has."""
    return int(seconds * 1e6 + 0.5) + 1


class AttemptTable:
    """The memory, for so many processes that come of one fork."""

    def __init__(self, rows: int = 1, sets: int = SETS) -> None:
        self._sets: Final = sets
        self._secret: Final = os.urandom(16)
        self._table: Final = mmap.mmap(-1, sets * SPAN * OCTET)
        self._cells: Final = memoryview(self._table).cast("Q")
        self._map: Final = mmap.mmap(-1, rows * PLACES * 2)
        self._present: Final = memoryview(self._map).cast("H")
        self._lock: Final = os.memfd_create("blackhole attempts")
        weakref.finalize(self, os.close, self._lock)
        self._row = 0

    def claim(self, row: int) -> None:
        """The row of this process from now on. Nobody is there yet, whatever one before it has left."""
        self._row = row * PLACES
        try:  # gives the memory back too
            self._map.madvise(mmap.MADV_REMOVE, row * PLACES * 2, PLACES * 2)
        except OSError:  # where the kernel cannot
            self._present[self._row : self._row + PLACES] = memoryview(bytes(PLACES * 2)).cast("H")

    def mark(self, key: Hashable) -> int:
        """A key's hash: stands for one that is not to be kept."""
        return hash((self._secret, key)) & OCTETS or 1

    def revise(self, key: Hashable, now: float, change: Update[Answer], alone: bool = False) -> Answer:
        """Change what is known of a key, and answer as the change does. `now` must not be negative.

        `alone` is for changes of which none may be lost. What is new and has a count of 0 is not kept.
        """
        mark = self.mark(key)
        if not alone:
            return self.amend(mark, now, change)
        place = mark % self._sets
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, place)
        try:
            return self.amend(mark, now, change)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)

    def amend(self, mark: int, now: float, change: Update[Answer]) -> Answer:
        """The same for a key that is known by its mark, and not alone."""
        start = mark % self._sets * SPAN
        both = BOTH(self._table, start * OCTET)
        if mark not in both:
            (count, first, last), answer = change((0, now, now), now)
            if count:
                self._keep(mark, start, both, stored(last), stored(first), count)
            return answer
        cells, at = self._cells, start + both.index(mark)
        known = cells[at + COUNT], (cells[at + FIRST] - 1) / 1e6, (cells[at + LAST] - 1) / 1e6
        (count, first, last), answer = change(known, now)
        cells[at + LAST], cells[at + FIRST], cells[at + COUNT] = stored(last), stored(first), count
        return answer

    def note(self, mark: int, count: int, now: float) -> bool:
        """Keep a key that is new, by its mark; false where it is known already, and nothing has changed."""
        start = mark % self._sets * SPAN
        both = BOTH(self._table, start * OCTET)
        if mark in both:
            return False
        moment = stored(now)
        self._keep(mark, start, both, moment, moment, count)
        return True

    def _keep(self, mark: int, start: int, both: tuple[int, ...], last: int, first: int, count: int) -> None:
        """Take a free slot of a set, or that of whoever was seen longest ago."""
        moments = both[SLOTS:]
        cells, at = self._cells, start + moments.index(min(moments))
        # The mark comes last: until then nobody finds the slot half written.
        cells[at] = 0
        cells[at + LAST], cells[at + FIRST], cells[at + COUNT] = last, first, count
        cells[at] = mark

    def knows(self, mark: int) -> bool:
        """Whether anything is known of a key with this mark."""
        return mark in MARKS(self._table, mark % self._sets * SPAN * OCTET)

    def visit(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        """Change what is known of every key in a set, alone. Numbers beyond the last set begin anew."""
        place = number % self._sets
        for mark in filter(None, MARKS(self._table, place * SPAN * OCTET)):
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, place)
            try:
                yield self.amend(mark, now, change)
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)

    def bars(self, key: bytes, limit: int) -> bool:
        """Whether as many are there in all processes together; if not, one more is."""
        place = self.mark(key) % PLACES
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, place)
        try:
            if sum(self._present[place::PLACES]) >= min(limit, MOST):
                return True
            self._present[self._row + place] += 1
            return False
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place)

    def leave(self, place: Slot) -> None:
        """One that was not barred, in this process, is there no more."""
        assert isinstance(place, bytes)
        self._present[self._row + self.mark(place) % PLACES] -= 1
