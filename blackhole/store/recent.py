"""The records of the last transactions, where the operator asks for them (--recent), in memory alone.

Like the counters they are in a map that all processes share, with a section for each process, which is its
only writer. A writer waits for nobody: the newest record takes the place of the oldest. A reader in another
process (the dashboard, `blackhole recent`, a test) copies a record, and then sees whether it was overwritten
meanwhile. A section outlives its process.

A section is a ring of octets, in which records lie behind one another, and a ring of entries that say where
each record is. A record keeps its number, by which readers ask for all that are newer.

A writer reserves octets long before it writes them, so that a reader never takes for a record what is being
overwritten, also on a processor that shows it what was written in another order. A checksum of each record
would tell that too, and takes as long as all the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Self

from blackhole.settings import MAX_RECENT, OperatorError
from blackhole.smtp.transaction_record import MAX_RECORD
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

RECENT_MAP: Final = "blackhole.store.recent"

OCTETS_EACH: Final = 1024
"""Octets of memory for each transaction that is to be kept, in each section. The usual one takes half."""

ENTRIES_EACH: Final = 2
"""Entries for each of them: an addendum has one too."""

MAP_ID, MAP_KEPT = range(2)
"""Cells at the beginning of the map: what tells it from other maps, and how many transactions to keep."""

MAP_CELLS: Final = 8

COUNT, RESERVED = range(2)
"""Cells at the beginning of a section: records that were written, and the position up to which the writer
may have overwritten older ones. Positions only grow; modulo the size of the ring they are places in it."""

SECTION_HEAD: Final = 8

LENGTH_BITS: Final = 15
"""Bits of an entry that have the length of its record. The others have its position."""

RESERVED_AT_ONCE: Final = 4 * MAX_RECORD
"""Octets that are reserved from a record on, until one begins MAX_RECORD behind it. That one ends within
these octets too, whatever is left free at the end of the ring: so each record lies in what an earlier one has
reserved."""

MAX_POSITION: Final = 1 << 48
"""More records, or octets, than any process writes."""


class StoredRecord(NamedTuple):
    """A record as it was read."""

    section: int
    number: int
    """Counted in its section, from 0."""
    octets: bytes


Cursor = dict[int, int]
"""Section -> number of the first record in it that was not read. A section that is missing was not read."""


class RecentRecords:
    """The map. `rows` is the largest number of processes that live at once, as for the counters.

    >>> records = RecentRecords(rows=2, kept=100)
    >>> records.writer(1).append(b"a record")
    0
    >>> [one.octets for stream in records.streams({}) for one in stream]
    [b'a record']
    """

    def __init__(self, rows: int, kept: int) -> None:
        cells = create(RECENT_MAP, MAP_CELLS + rows * section_cells(kept))
        cells[MAP_ID] = time.time_ns()
        cells[MAP_KEPT] = kept
        self._use(cells, kept)

    def _use(self, cells: memoryview, kept: int) -> None:
        self.kept = kept
        """How many transactions to keep."""
        self._cells = cells
        self._id = cells[MAP_ID]
        length = section_cells(kept)
        self._sections = [
            ProcessRing(cells[start : start + length], kept)
            for start in range(MAP_CELLS, len(cells) - length + 1, length)
        ]

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the map of a running master, to be read; None if it has none. Raises OperatorError."""
        cells = attach(pid, RECENT_MAP)
        if cells is None or len(cells) <= MAP_CELLS or not 0 < cells[MAP_KEPT] <= MAX_RECENT:
            return None
        records = cls.__new__(cls)
        records._use(cells, cells[MAP_KEPT])
        return records

    @property
    def id(self) -> int:
        """What tells this map from those before and after it."""
        return self._id

    @property
    def total(self) -> int:
        """The number of records that were ever written."""
        return sum(section.count for section in self._sections)

    def writer(self, row: int) -> RecentWriter:
        """Return the section of a process, for that process to write."""
        return RecentWriter(self._sections[row])

    def end(self) -> Cursor:
        """Return the cursor behind all records."""
        return {number: count for number, one in enumerate(self._sections) if (count := one.count)}

    def streams(self, cursor: Cursor) -> list[Iterator[StoredRecord]]:
        """Return, for each section that has some, its records from a cursor on, the oldest first."""
        return [
            self._stream(number, section.numbers(cursor.get(number, 0), end))
            for number, section in enumerate(self._sections)
            if (end := section.count) > cursor.get(number, 0)
        ]

    def streams_back(self, cursor: Cursor) -> list[Iterator[StoredRecord]]:
        """Return, for each section that has some, its records before a cursor, the newest first."""
        return [
            self._stream(number, reversed(self._sections[number].numbers(0, end)))
            for number, end in cursor.items()
        ]

    def _stream(self, number: int, entries: Iterable[int]) -> Iterator[StoredRecord]:
        section = self._sections[number]
        for entry in entries:
            octets = section.record(entry)
            if octets is not None:
                yield StoredRecord(number, entry, octets)

    def record(self, section: int, number: int) -> StoredRecord | None:
        """Return a record by its number; None if it is not there any more."""
        if section >= len(self._sections):
            return None
        octets = self._sections[section].record(number)
        return None if octets is None else StoredRecord(section, number, octets)


def section_cells(kept: int) -> int:
    """Return the cells of a section."""
    return SECTION_HEAD + ring_entries(kept) + ring_octets(kept) // CELL_OCTETS


def ring_entries(kept: int) -> int:
    """Return the entries of a section, one of which may be being overwritten."""
    return kept * ENTRIES_EACH + 1


def ring_octets(kept: int) -> int:
    """Return the octets of a section's ring of records."""
    return max(kept * OCTETS_EACH, 4 * MAX_RECORD) + RESERVED_AT_ONCE


class ProcessRing:
    """The section of one process."""

    def __init__(self, cells: memoryview, kept: int) -> None:
        self.cells: Final = cells
        self.size: Final = ring_octets(kept)
        """Octets of the ring."""
        self.entries: Final = ring_entries(kept)
        self.ring: Final = cells[SECTION_HEAD + self.entries :].cast("B")

    @property
    def count(self) -> int:
        """The number of records that were written."""
        return int(self.cells[COUNT])

    def numbers(self, first: int, end: int) -> range:
        """Return the numbers of the records that may still be there, from `first` to before `end`."""
        return range(max(first, self.count - self.entries + 1), end)

    def record(self, number: int) -> bytes | None:
        """Return a record; None if it is not there, or not there any more."""
        if number not in self.numbers(0, self.count):
            return None
        position, length = divmod(self.cells[SECTION_HEAD + number % self.entries], 1 << LENGTH_BITS)
        start = position % self.size
        if start + length > self.size:
            return None
        octets = self.ring[start : start + length].tobytes()
        # Meanwhile it may have been overwritten, and so may its entry.
        is_there = position >= self.cells[RESERVED] - self.size and number in self.numbers(0, self.count)
        return octets if is_there else None

    def end(self) -> tuple[int, int]:
        """Return the number of the last record, and the position behind it, for who writes the next.

        They begin anew where something else was written there.
        """
        number, reserved = self.count - 1, self.cells[RESERVED]
        if number < 0 or max(number, reserved) > MAX_POSITION:
            return -1, 0
        position, length = divmod(self.cells[SECTION_HEAD + number % self.entries], 1 << LENGTH_BITS)
        return number, min(position + length, reserved)


class RecentWriter:
    """The section of one process, as that process writes it. `append` adds a record, and returns its number.

    `append` is a closure: a method takes half as long again.
    """

    def __init__(self, section: ProcessRing) -> None:
        self.append: Final = _append_function(section)


def _append_function(section: ProcessRing) -> Callable[[bytes], int]:
    cells, ring, size, entries = section.cells, section.ring, section.size, section.entries
    number, position = section.end()  # of the process that had the section before
    renewal, start = position, position % size

    def append(octets: bytes) -> int:
        nonlocal number, position, renewal, start
        length = len(octets)
        end = start + length
        if end > size:  # records do not go over the end of the ring
            position += size - start
            start, end = 0, length
        if position >= renewal:
            cells[RESERVED] = position + RESERVED_AT_ONCE
            renewal = position + MAX_RECORD
        ring[start:end] = octets
        number += 1
        cells[SECTION_HEAD + number % entries] = position << LENGTH_BITS | length
        cells[COUNT] = number + 1
        position += length
        start = end
        return number

    return append


def recent_records(pid: int) -> RecentRecords:
    """Return the records of a running master. Raises OperatorError if it keeps none."""
    found = RecentRecords.of(pid)
    if found is None:
        raise OperatorError(f"pid {pid} keeps no transactions; start it with --recent 1000")
    return found
