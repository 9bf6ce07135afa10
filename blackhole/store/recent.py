"""The records of the last transactions, where the operator asks for them (--recent), in memory alone.

Like the counters they are in a map that all processes share, with a section for each process, which is its
only writer. A writer waits for nobody: the newest record takes the place of the oldest. A reader in another
process (the dashboard, `blackhole recent`, a test) copies a record, and then sees whether it was overwritten
meanwhile. A section outlives its process.

A section is a ring of octets, in which records lie behind one another, and a ring of the positions of the
records. A record keeps its number, by which readers ask for all that are newer.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple, Self

from blackhole.settings import MAX_RECENT, OperatorError
from blackhole.smtp.transaction_record import MAX_RECORD
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

RECENT_MAP: Final = "blackhole.store.recent"

OCTETS_EACH: Final = 1024
"""Octets of memory for each transaction that is to be kept, in each section. The usual one takes half."""

ENTRIES_EACH: Final = 2
"""Positions for each of them: an addendum has one too."""

MAP_ID, MAP_KEPT = range(2)
"""Cells at the beginning of the map: what tells it from other maps, and how many transactions to keep."""

MAP_CELLS: Final = 8

COUNT, RESERVED = range(2)
"""Cells at the beginning of a section: records that were written, and the position up to which the writer
may have overwritten older ones. Positions only grow; modulo the size of the ring they are places in it."""

SECTION_HEAD: Final = 8

RECORD_HEAD: Final = Struct("<II")
"""Length and checksum of a record."""


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
    return SECTION_HEAD + kept * ENTRIES_EACH + ring_octets(kept) // CELL_OCTETS


def ring_octets(kept: int) -> int:
    """Return the octets of a section's ring of records."""
    return max(kept * OCTETS_EACH, 4 * MAX_RECORD)


class ProcessRing:
    """The section of one process."""

    def __init__(self, cells: memoryview, kept: int) -> None:
        self.cells: Final = cells
        self.size: Final = ring_octets(kept)
        """Octets of the ring."""
        self.entries: Final = kept * ENTRIES_EACH
        self.ring: Final = cells[SECTION_HEAD + self.entries :].cast("B")

    @property
    def count(self) -> int:
        """The number of records that were written."""
        return int(self.cells[COUNT])

    def numbers(self, first: int, end: int) -> range:
        """Return the numbers of the records that may still be there, from `first` to before `end`."""
        return range(max(first, self.count - self.entries), end)

    def record(self, number: int) -> bytes | None:
        """Return a record; None if it is not there, or not there any more."""
        if not max(0, self.count - self.entries) <= number < self.count:
            return None
        position = self.cells[SECTION_HEAD + number % self.entries]
        start = position % self.size
        if start + RECORD_HEAD.size > self.size:
            return None
        length, checksum = RECORD_HEAD.unpack_from(self.ring, start)
        start += RECORD_HEAD.size
        if length > MAX_RECORD or start + length > self.size:
            return None
        octets = self.ring[start : start + length].tobytes()
        # What was overwritten while it was copied has another checksum, or another record's.
        overwritten = self.cells[RESERVED] - self.size > position
        return None if overwritten or zlib.crc32(octets) != checksum else octets


class RecentWriter:
    """The section of one process, as that process writes it. `append` adds a record, and returns its number.

    `append` is a closure: a method takes half as long again.
    """

    def __init__(self, section: ProcessRing) -> None:
        self.append: Final = _append_function(section)


def _append_function(section: ProcessRing) -> Callable[[bytes], int]:
    cells, ring, size, entries = section.cells, section.ring, section.size, section.entries
    crc32, pack_into, head_size = zlib.crc32, RECORD_HEAD.pack_into, RECORD_HEAD.size
    number, position = cells[COUNT] - 1, cells[RESERVED]  # of the process that had the section before

    def append(octets: bytes) -> int:
        nonlocal number, position
        length = len(octets)
        begins, start = position, position % size
        if start + head_size + length > size:  # records do not go over the end of the ring
            begins += size - start
            start = 0
        cells[RESERVED] = position = begins + head_size + length
        pack_into(ring, start, length, crc32(octets))
        start += head_size
        ring[start : start + length] = octets
        number += 1
        cells[SECTION_HEAD + number % entries] = begins
        cells[COUNT] = number + 1
        return number

    return append


def recent_records(pid: int) -> RecentRecords:
    """Return the records of a running master. Raises OperatorError if it keeps none."""
    found = RecentRecords.of(pid)
    if found is None:
        raise OperatorError(f"pid {pid} keeps no transactions; start it with --recent 1000")
    return found
