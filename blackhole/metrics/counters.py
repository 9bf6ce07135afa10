"""The shared counters: one map in memory, with a row for each process.

A row has one writer, so no lock is needed; a reader adds the rows. A row outlives its process: counters keep
their values, and the master zeroes the gauges. Incrementing a cell costs 80 nanoseconds, a tenth of what a
metrics library needs.

The map is an anonymous file (memfd_create(2)), which ends with the processes that have it open. Whoever may
read the master's /proc/PID/fd may read it, so that `blackhole report` needs neither a port nor a file.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from operator import add
from types import MappingProxyType
from typing import Final, Protocol, Self

from blackhole.metrics.evidence import EvidenceLog
from blackhole.metrics.layout import (
    CELL_INDEX,
    CELLS,
    HEADER_CELLS,
    HEADER_CLOCK_ORIGIN,
    HEADER_CRC,
    HEADER_ROWS,
    HEADER_STARTED,
    HEADER_USED_ROWS,
    HISTOGRAM_INDEX,
    LAST_BUCKET,
    LAYOUT_CRC,
    LIMIT_TEXT_CELLS,
    LIMIT_TEXTS_START,
    LISTENER_NAMES_START,
    LISTENERS_START,
    MAX_LISTENERS,
    MAX_RULE_NAMES,
    NAME_CELLS,
    OTHERS,
    ROW_CELLS,
    RULE_HITS_START,
    RULE_NAMES_START,
    TITLE_CELLS,
    TITLE_START,
    limit_counters,
)
from blackhole.metrics.snapshot import ProcessStatus, Snapshot
from blackhole.settings import OperatorError
from blackhole.store.client_log import ClientLog
from blackhole.store.domain_log import DomainLog
from blackhole.store.shared_lock import SharedLock
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

LARGEST_COUNT: Final = 2**63
"""No counter grows so far. One that another process has overwritten would go beyond what a cell holds."""

NO_LIMITS: Final[Mapping[str, str]] = MappingProxyType({})

COUNTERS_MAP: Final = "blackhole.metrics.counters"
"""Name of the anonymous file."""

HEARTBEAT: Final = CELL_INDEX["heartbeat"]
APPLIED_ORDER: Final = CELL_INDEX["applied_order"]
READING_ORDER: Final = CELL_INDEX["reading_order"]
OPEN_CONNECTIONS: Final = CELL_INDEX["open"]


class CounterCells(Protocol):
    """A row of the counters, or what stands for it."""

    def __getitem__(self, cell: int, /) -> int:
        """Return the value of a counter."""

    def __setitem__(self, cell: int, value: int, /) -> None:
        """Set the value of a counter."""


def record_value(cells: CounterCells, histogram: str, value: int) -> None:
    """Add a value, in the unit of the histogram, to a histogram of a row."""
    start, last = HISTOGRAM_INDEX[histogram], LAST_BUCKET[histogram]
    cells[start + min(value.bit_length(), last)] += 1
    cells[start + last + 1] += value


def record_values(cells: CounterCells, histogram: str, values: Sequence[int]) -> None:
    """Add many values to a histogram of a row, in 0.1 microseconds each."""
    start, last = HISTOGRAM_INDEX[histogram], LAST_BUCKET[histogram]
    for bits, count in Counter(map(int.bit_length, values)).items():
        cells[start + min(bits, last)] += count
    cells[start + last + 1] += sum(values)


class Counters:
    """The map of counters. `rows` is the largest number of processes that live at once.

    >>> counters = Counters(rows=1)
    >>> cells = counters.cells(counters.allocate_row())
    >>> cells[CELL_INDEX["received_bytes"]] += 512
    >>> counters.snapshot().total("received_bytes")
    512
    """

    def __init__(self, rows: int) -> None:
        self._cells = create(COUNTERS_MAP, HEADER_CELLS + rows * ROW_CELLS)
        self.rows = rows
        """The number of rows, in memory of this process: any worker could change that in the map."""
        self._used_rows = 0
        self._cells[HEADER_ROWS] = rows
        self._cells[HEADER_STARTED] = time.time_ns() // 1000
        self._cells[HEADER_CLOCK_ORIGIN] = time.monotonic_ns() // 1000
        self._cells[HEADER_CRC] = LAYOUT_CRC
        self._allocated: Final[set[int]] = set()
        self._lock: Final = SharedLock("blackhole names")
        self.evidence: EvidenceLog | None = EvidenceLog(rows)
        """Where violations were committed; None if the server has no such log."""
        self.client_log: ClientLog | None = None
        """The log of clients, where the operator asked for one."""
        self.domain_log: DomainLog | None = None
        """The log of the domains of recipients, where the operator asked for one."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the counters of a running master, to be read. Raises OperatorError."""
        counters = cls.__new__(cls)
        cells = attach(pid, COUNTERS_MAP)
        if cells is None:
            raise OperatorError(
                f"pid {pid} has no counters of Blackhole; is it the master process?", os.EX_UNAVAILABLE
            )
        counters._cells = cells
        counters.rows = (len(cells) - HEADER_CELLS) // ROW_CELLS
        if counters.rows < 1 or counters._cells[HEADER_CRC] != LAYOUT_CRC:
            raise OperatorError(f"pid {pid} runs another version of Blackhole; restart it", os.EX_UNAVAILABLE)
        counters.client_log = ClientLog.of(pid)
        counters.domain_log = DomainLog.of(pid)
        counters.evidence = EvidenceLog.of(pid)
        return counters

    # Rows and their owners.

    def allocate_row(self) -> int:
        """Return a row that no live process owns.

        Only the master calls it. Raises RuntimeError if none is free.
        """
        for row in range(self.rows):
            if row not in self._allocated:
                self._allocated.add(row)
                self._zero_gauges(row)
                self._zero_impossible(row)
                self._used_rows = max(self._used_rows, row + 1)
                self._cells[HEADER_USED_ROWS] = self._used_rows
                return row
        raise RuntimeError("more processes than rows")

    def free_row(self, row: int) -> None:
        """Free the row of a dead process: zero its gauges, keep its counters. Only the master calls it."""
        self._zero_gauges(row)
        self._allocated.discard(row)

    def set_owner(self, row: int, title: str) -> None:
        """Write the pid and the title of the calling process into its row."""
        cells = self.cells(row)
        cells[CELL_INDEX["pid"]] = os.getpid()
        _write_text(cells, TITLE_START, TITLE_CELLS, title)

    def cells(self, row: int) -> memoryview:
        """Return a row, for its one writer."""
        return self._cells[HEADER_CELLS + row * ROW_CELLS : HEADER_CELLS + (row + 1) * ROW_CELLS]

    def heartbeat(self, row: int) -> None:
        """Record that the owner of a row is alive now, for all readers; the master does not rely on it."""
        self._cells[HEADER_CELLS + row * ROW_CELLS + HEARTBEAT] = time.monotonic_ns() // 1000

    def live_rows(self) -> list[int]:
        """Return the rows whose owners have sent a heartbeat."""
        return [row for row, heartbeat in enumerate(self._column(HEARTBEAT)) if heartbeat]

    def open_connections(self, row: int) -> tuple[int, int]:
        """Return how many connections the owner of a row has open, and the accepting process that has the
        fewest."""
        accepting = self._column(CELL_INDEX["accepting"]).tolist()
        least = min(compress(self._column(OPEN_CONNECTIONS).tolist(), accepting), default=0)
        return self._cells[HEADER_CELLS + row * ROW_CELLS + OPEN_CONNECTIONS], least

    def applied_order(self) -> int | None:
        """Return the number of the last runtime order that every worker applied; None without workers."""
        applied = min(filter(None, self._column(APPLIED_ORDER)), default=None)
        return None if applied is None else applied - 1

    def set_applied_order(self, row: int, number: int) -> None:
        """Record the number of the last runtime order that the owner of a row applied."""
        cells = self.cells(row)
        cells[APPLIED_ORDER] = number + 1
        cells[READING_ORDER] = 0

    def set_reading_order(self, row: int, number: int | None) -> None:
        """Record the number of the runtime order that the owner of a row begins to read; None: it failed."""
        self.cells(row)[READING_ORDER] = 0 if number is None else number + 1

    def orders_of(self, row: int) -> tuple[int | None, int | None]:
        """Return the numbers of the orders that the owner of a row is reading and has applied."""
        cells = self.cells(row)
        reading, applied = cells[READING_ORDER], cells[APPLIED_ORDER]
        return (reading - 1 if reading else None), (applied - 1 if applied else None)

    def _column(self, cell: int) -> memoryview:
        """Return one cell of every row that was ever allocated."""
        end = HEADER_CELLS + min(self.rows, self._cells[HEADER_USED_ROWS]) * ROW_CELLS
        return self._cells[HEADER_CELLS + cell : end : ROW_CELLS]

    # Names of listeners and rules.

    def listener(self, name: str) -> int:
        """Return the index of the cell that counts a listener's connections.

        Only the master adds new names. Of a long one the end is kept, where the port or the file is.
        """
        name = clipped_before(name)
        for number in range(MAX_LISTENERS - 1):
            start = LISTENER_NAMES_START + number * NAME_CELLS
            known = _read_text(self._cells, start, NAME_CELLS)
            if not known:
                _write_text(self._cells, start, NAME_CELLS, name)
            if known in ("", name):
                return LISTENERS_START + number
        last = MAX_LISTENERS - 1
        _write_text(self._cells, LISTENER_NAMES_START + last * NAME_CELLS, NAME_CELLS, OTHERS)
        return LISTENERS_START + last

    def rule_counters(self, names: Iterable[str], limits: Mapping[str, str] = NO_LIMITS) -> list[int]:
        """Return, for each of these rules, the index of the cell that counts its matches.

        `limits` are the texts of their throttles and greylists, by name. Names and texts that are new are
        written under a lock: rules also come with runtime orders, after the fork. While the lock is not to be
        had, matches of rules with new names are counted in the last cell.
        """
        names = [*names]
        wanted = [clipped(name) for name in names]
        texts = {clipped(name): clipped(limits.get(name, ""), LIMIT_TEXT_CELLS) for name in names}
        last = RULE_HITS_START + MAX_RULE_NAMES - 1
        known = self._known_rules()
        is_new = not known.keys() >= {*wanted} or self._new_limits(known, texts)
        if is_new and self._lock.acquire():
            try:
                self._add_rules(wanted)
                known = self._known_rules()
                for cell, text in self._new_limits(known, texts):
                    self._write_limit(cell, text)
            finally:
                self._lock.release()
        if not known.keys() >= {*wanted}:
            self._write_rule_name(last, OTHERS)
        return [known.get(name, last) for name in wanted]

    def _add_rules(self, names: Iterable[str]) -> None:
        """Give each new name a cell, as long as there are free ones."""
        known = self._known_rules()
        last = RULE_HITS_START + MAX_RULE_NAMES - 1
        free = sorted({*range(RULE_HITS_START, last)} - {*known.values()})
        new = (name for name in dict.fromkeys(names) if name not in known and name != OTHERS)
        for cell, name in zip(free, new, strict=False):
            self._write_rule_name(cell, name)

    def _write_rule_name(self, cell: int, name: str) -> None:
        _write_text(self._cells, RULE_NAMES_START + (cell - RULE_HITS_START) * NAME_CELLS, NAME_CELLS, name)

    def limit_counters(self, counter: int) -> tuple[int, ...]:
        """Return the cells that count what the limit of a rule lets pass, and what it limits.

        `counter` is the cell that counts the matches of the rule.
        """
        return limit_counters(counter)

    def _new_limits(self, known: Mapping[str, int], texts: Mapping[str, str]) -> list[tuple[int, str]]:
        """Return the texts that are not written yet, each with the cell of its rule."""
        written = self._limit_texts(known)
        return [
            (known[name], text)
            for name, text in texts.items()
            if name in known and name != OTHERS and text != written.get(name, "")
        ]

    def _write_limit(self, cell: int, text: str) -> None:
        start = LIMIT_TEXTS_START + (cell - RULE_HITS_START) * LIMIT_TEXT_CELLS
        _write_text(self._cells, start, LIMIT_TEXT_CELLS, text)

    def _limit_texts(self, known: Mapping[str, int]) -> dict[str, str]:
        """Return the limit of every rule that has one, by the name of the rule."""
        end = LIMIT_TEXTS_START + MAX_RULE_NAMES * LIMIT_TEXT_CELLS
        octets, width = self._cells[LIMIT_TEXTS_START:end].tobytes(), LIMIT_TEXT_CELLS * CELL_OCTETS
        starts = {name: (cell - RULE_HITS_START) * width for name, cell in known.items()}
        return {
            name: _decode(octets[start : start + width]) for name, start in starts.items() if octets[start]
        }

    def _known_rules(self) -> dict[str, int]:
        """Return the index of the cell of every rule that was ever in force, by name."""
        end = RULE_NAMES_START + MAX_RULE_NAMES * NAME_CELLS
        octets, width = self._cells[RULE_NAMES_START:end].tobytes(), NAME_CELLS * CELL_OCTETS
        names = (octets[start : start + width] for start in range(0, len(octets), width))
        return {_decode(name): RULE_HITS_START + number for number, name in enumerate(names) if name[0]}

    def rule_names(self) -> dict[int, str]:
        """Return the name of every rule that was ever in force, by the index of its cell."""
        return {cell: name for name, cell in self._known_rules().items()}

    # Reading.

    def snapshot(self) -> Snapshot:
        """Return all counters as of now, in about a millisecond for a handful of workers."""
        # Before the totals, of which they are parts.
        clients = None if self.client_log is None else tuple(self.client_log.clients())
        domains = None if self.domain_log is None else tuple(self.domain_log.domains())
        now = time.monotonic()
        totals = [0] * ROW_CELLS
        processes = []
        for row in range(min(self.rows, self._cells[HEADER_USED_ROWS])):
            values = self.cells(row).tolist()
            totals = list(map(add, totals, values))
            if values[CELL_INDEX["pid"]]:
                processes.append(self._process_status(row, values, now))
        names = (
            _read_text(self._cells, LISTENER_NAMES_START + number * NAME_CELLS, NAME_CELLS)
            for number in range(MAX_LISTENERS)
        )
        rules = self._known_rules()
        return Snapshot(
            at=now,
            started=self._cells[HEADER_STARTED] / 1e6,
            listeners=tuple(name for name in names if name),
            processes=tuple(sorted(processes)),
            rule_counters=rules,
            rule_limit_texts=self._limit_texts(rules),
            cells=tuple(totals),
            clock_origin=self._cells[HEADER_CLOCK_ORIGIN] / 1e6,
            clients=clients,
            domains=domains,
            evidence_log=self.evidence,
        )

    def _process_status(self, row: int, values: Sequence[int], now: float) -> ProcessStatus:
        """Return the status of the process that owns a row."""
        heartbeat = values[HEARTBEAT] / 1e6
        return ProcessStatus(
            title=_read_text(self.cells(row), TITLE_START, TITLE_CELLS),
            pid=values[CELL_INDEX["pid"]],
            silent=max(0.0, now - heartbeat) if heartbeat else 0.0,
            open=values[OPEN_CONNECTIONS],
            cpu=values[CELL_INDEX["cpu_microseconds"]] / 1e6,
        )

    def _zero_impossible(self, row: int) -> None:
        """Zero counters that were overwritten: the next owner of the row could not count on."""
        cells = self.cells(row)
        for cell, value in enumerate(cells.tolist()):
            if value > LARGEST_COUNT:
                cells[cell] = 0

    def _zero_gauges(self, row: int) -> None:
        cells = self.cells(row)
        for cell in CELLS:
            if cell.gauge:
                cells[CELL_INDEX[cell.name]] = 0
        _write_text(cells, TITLE_START, TITLE_CELLS, "")


def clipped(text: str, cells: int = NAME_CELLS) -> str:
    """Return as much of a rule's name, or of another text, as its cells hold."""
    return text.encode()[: cells * CELL_OCTETS].decode(errors="ignore")


def clipped_before(name: str) -> str:
    """Return as much of the end of a listener's name as its cells hold.

    >>> clipped_before("unix:/run/smtp.sock"), clipped_before("unix:/" + 70 * "x" + "/smtp.sock")[:6]
    ('unix:/run/smtp.sock', '...xxx')
    """
    octets, most = name.encode(), NAME_CELLS * CELL_OCTETS
    return name if len(octets) <= most else "..." + octets[3 - most :].decode(errors="ignore")


def _write_text(cells: memoryview, start: int, length: int, text: str) -> None:
    """Write a text into `length` cells.

    The first cell comes last: a reader takes the text as empty until then.
    """
    octets = text.encode()[: length * CELL_OCTETS].ljust(length * CELL_OCTETS, b"\0")
    for number in reversed(range(length)):
        at = number * CELL_OCTETS
        cells[start + number] = int.from_bytes(octets[at : at + CELL_OCTETS], "little")


def _read_text(cells: memoryview, start: int, length: int) -> str:
    return _decode(b"".join(cell.to_bytes(CELL_OCTETS, "little") for cell in cells[start : start + length]))


def _decode(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode("utf-8", "replace")
