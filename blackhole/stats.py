"""Counters shared by all processes: an anonymous map made before the fork, a row for each process.

A row has one writer, so there is no lock; a reader adds the rows up. A row
outlives its process: counters stay, gauges are zeroed by the master. A cell
costs 80 nanoseconds to bump, a tenth of what a metrics library asks for.
"""

from __future__ import annotations

import mmap
import time
from itertools import compress
from typing import Final, NamedTuple

from blackhole.smtp.session import CODE_SPAN
from blackhole.smtp.state import PHASES


class Cell(NamedTuple):
    """A named cell of each row. A gauge says how things are; a counter only grows."""

    name: str
    meaning: str
    gauge: bool = False


CELLS: Final = (
    Cell("beat", "microseconds of the monotonic clock when the process last said that it lives", gauge=True),
    Cell("open", "connections that are open now", gauge=True),
    Cell("accepting", "1 while the process takes connections", gauge=True),
    Cell("received_bytes", "octets that clients sent"),
)

REPLIES: Final = len(PHASES) * CODE_SPAN
"""The replies by phase and code, as `smtp.session.cell` numbers them, come first; then CELLS."""

AT: Final = {cell.name: REPLIES + number for number, cell in enumerate(CELLS)}
"""Name -> index in a row."""

WIDTH: Final = -(-(REPLIES + len(CELLS)) // 8) * 8
"""Cells in a row: a whole number of cache lines, or two writers would slow each other down."""


class Stats:
    """The map. `rows` is how many processes can ever live at once."""

    def __init__(self, rows: int) -> None:
        self.rows: Final = rows
        self._cells: Final = memoryview(mmap.mmap(-1, rows * WIDTH * 8)).cast("Q")
        self._taken: Final[set[int]] = set()

    def claim(self) -> int:
        """A row that no live process owns. Called by the master. Raises RuntimeError when there is none."""
        for row in range(self.rows):
            if row not in self._taken:
                self._taken.add(row)
                self._zero(row)
                return row
        raise RuntimeError("more processes than rows")

    def release(self, row: int) -> None:
        """The owner of a row is dead: its gauges go, its counters stay. Called by the master."""
        self._zero(row)
        self._taken.discard(row)

    def cells(self, row: int) -> memoryview:
        """The row itself, for its one writer."""
        return self._cells[row * WIDTH : (row + 1) * WIDTH]

    def beat(self, row: int) -> None:
        """Say that the owner of the row lives, and accepts connections."""
        self._cells[row * WIDTH + AT["beat"]] = time.monotonic_ns() // 1000

    def beaten(self, row: int) -> float:
        """Seconds of the monotonic clock of the last beat; 0.0: not since the row was claimed."""
        return self._cells[row * WIDTH + AT["beat"]] / 1e6

    def crowded(self, row: int) -> bool:
        """Whether the owner of the row has clearly more connections open than another who takes them."""
        accepting = self._cells[AT["accepting"] :: WIDTH].tolist()
        least = min(compress(self._cells[AT["open"] :: WIDTH].tolist(), accepting), default=0)
        return bool(self._cells[row * WIDTH + AT["open"]] > least + 1 + least // 16)

    def total(self, index: int) -> int:
        """The sum of one cell over all rows."""
        return sum(self._cells[index::WIDTH])

    def _zero(self, row: int) -> None:
        for cell in CELLS:
            if cell.gauge:
                self._cells[row * WIDTH + AT[cell.name]] = 0
