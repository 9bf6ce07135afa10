"""The counters of namespaces: the same cells as in a row of the counters, but only those that were counted.

A namespace has a row for each process. A row of all cells would take 60 KiB, of which a test uses a few
dozen. So a row consists of pairs: the index of a cell, and its value. A new pair is added when a cell is
counted first. A row has one writer, and outlives its process, as the rows of the counters do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple, Self

from blackhole.metrics.counters import LARGEST_COUNT, Counters
from blackhole.metrics.layout import ROW_CELLS, limit_counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import OperatorError
from blackhole.store.control import MAX_NAMESPACES, ControlChannel, NamespaceEntry
from blackhole.store.namespaces import NamespaceDirectory, find_entry
from blackhole.store.shared_memory import attach, create

NAMESPACE_COUNTERS_MAP: Final = "blackhole.metrics.namespace_counters"
"""Name of the anonymous file. Only the pages that were written take memory."""

SINCE, PAIRS = range(2)
"""Cells of a row before its pairs: the number of the order that made the namespace, and how many pairs
there are."""

FIRST_PAIR: Final = 2

MAX_COUNTED_CELLS: Final = 511
"""Cells that a namespace can count in one process: far more than a test makes use of."""

PAIR_ROW_CELLS: Final = FIRST_PAIR + 2 * MAX_COUNTED_CELLS


class NamespaceCounters:
    """The map. `rows` is the largest number of processes that live at once, as for the counters.

    >>> counters = NamespaceCounters(rows=2)
    >>> entry = NamespaceEntry("checkout", place=7, since=3, version=3, slot=0)
    >>> counters.writer(entry, row=1).add(250, 4)
    >>> counters.cells(entry)[250]
    4
    """

    def __init__(self, rows: int) -> None:
        self._use(create(NAMESPACE_COUNTERS_MAP, MAX_NAMESPACES * rows * PAIR_ROW_CELLS))

    def _use(self, cells: memoryview) -> None:
        self._cells = cells
        self._rows = len(cells) // (MAX_NAMESPACES * PAIR_ROW_CELLS)

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the map of a running master, to be read; None if it has none. Raises OperatorError."""
        cells = attach(pid, NAMESPACE_COUNTERS_MAP)
        if cells is None:
            return None
        counters = cls.__new__(cls)
        counters._use(cells)
        return counters

    def writer(self, entry: NamespaceEntry, row: int) -> NamespaceRow:
        """Return the row of a process for a namespace, for that process to write."""
        return NamespaceRow(self._row(entry.place, row), entry.since)

    def cells(self, entry: NamespaceEntry) -> tuple[int, ...]:
        """Return the counters of a namespace: the sum of all processes."""
        found = [0] * ROW_CELLS
        for cell, value in self.counted(entry).items():
            found[cell] = value
        return tuple(found)

    def counted(self, entry: NamespaceEntry) -> dict[int, int]:
        """Return the same for those cells only that were counted."""
        found: dict[int, int] = {}
        for row in range(self._rows):
            cells = self._row(entry.place, row)
            if cells[SINCE] == entry.since:
                values = cells[FIRST_PAIR : FIRST_PAIR + 2 * min(cells[PAIRS], MAX_COUNTED_CELLS)].tolist()
                for cell, value in zip(values[::2], values[1::2], strict=True):
                    if cell < ROW_CELLS:
                        found[cell] = found.get(cell, 0) + value
        return found

    def snapshot(self, entry: NamespaceEntry, server: Snapshot) -> Snapshot:
        """Return the counters of a namespace, where `server` are those of the whole server at that time.

        There is no evidence of violations: the transactions of the namespace show the lines.
        """
        cells = self.cells(entry)
        age = max(0.0, time.time() - entry.at)
        return replace(
            server,
            started=entry.at,
            clock_origin=server.at - age,
            processes=(),
            rule_counters={
                name: cell
                for name, cell in server.rule_counters.items()
                if any(cells[each] for each in (cell, *limit_counters(cell)))
            },
            cells=cells,
            clients=None,
            domains=None,
            evidence_log=None,
        )

    def _row(self, place: int, row: int) -> memoryview:
        start = (place * self._rows + row) * PAIR_ROW_CELLS
        return self._cells[start : start + PAIR_ROW_CELLS]


class NamespaceRow:
    """The row of one process for one namespace, as that process writes it."""

    def __init__(self, cells: memoryview, since: int) -> None:
        self._cells: Final = cells
        if cells[SINCE] != since:  # of a namespace that is gone
            cells[PAIRS] = 0
            cells[SINCE] = since
        self._count = min(cells[PAIRS], MAX_COUNTED_CELLS)
        pairs = range(FIRST_PAIR, FIRST_PAIR + 2 * self._count, 2)
        self._places: Final = {cells[pair]: pair + 1 for pair in pairs}
        """Index of a counter -> where its value is."""

    def add(self, cell: int, amount: int) -> None:
        """Add to a counter; do nothing if there are too many of them."""
        place = self._places.get(cell)
        if place is not None:
            self._cells[place] = min(self._cells[place] + amount, LARGEST_COUNT)
        elif self._count < MAX_COUNTED_CELLS:
            place = FIRST_PAIR + 2 * self._count + 1
            self._cells[place - 1], self._cells[place] = cell, amount
            self._places[cell] = place
            self._count += 1
            self._cells[PAIRS] = self._count


class NamespaceState(NamedTuple):
    """What the processes of a server share for its namespaces."""

    directory: NamespaceDirectory
    counters: NamespaceCounters


def reader(pid: int, name: str) -> Callable[[], Snapshot]:
    """Return a function that reads the counters of a namespace of a running master.

    Raises OperatorError, also when it is called, if there is no such namespace.
    """
    found, counters, channel = NamespaceCounters.of(pid), Counters.of(pid), ControlChannel.of(pid)
    if found is None or channel is None:
        raise OperatorError(f"pid {pid} has no namespaces; start it with --namespace-by tag")

    def read() -> Snapshot:
        _, order = channel.read()
        entry = find_entry(order.namespaces, name)
        if entry is None:
            names = ", ".join(one.name for one in order.namespaces) or "none"
            raise OperatorError(f"there is no namespace {name}; there are: {names}")
        return found.snapshot(entry, counters.snapshot())

    return read
