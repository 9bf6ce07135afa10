"""The figures: a map that all processes share, a row for each process, and how its cells are read.

A row has one writer, so there is no lock; a reader adds the rows up. A row outlives its process:
counters stay, gauges are zeroed by the master. A cell costs 80 nanoseconds to bump, a tenth of
what a metrics library asks for.

The map is a file without a name (memfd_create(2)): it ends with the processes that have it, and
whoever may look into the master's /proc/PID/fd may read it, so that `blackhole report` needs no
port and no file.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from operator import add, sub
from typing import Any, Final, NamedTuple, Self

from blackhole.rules.retries import EVENTS, RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.settings import OperatorError
from blackhole.smtp.state import ACCUSED, CODE_SPAN, NOTED, PHASES
from blackhole.smtp.violations import VIOLATIONS
from blackhole.store.client_log import Client, ClientLog
from blackhole.store.shared_memory import attach, create


class Cell(NamedTuple):
    """A named cell of each row. A gauge says how things are; a counter only grows."""

    name: str
    meaning: str
    gauge: bool = False


class Histogram(NamedTuple):
    """Counts by magnitude: bucket k of `buckets` has the values that need k bits, the last all beyond.

    So each bucket reaches twice as far as the one before, which takes one `int.bit_length` to find. A cell
    with the sum of all values stands behind the buckets. `unit` is what 1 means in the unit of the name.
    """

    name: str
    meaning: str
    buckets: int
    unit: float = 1


CELLS: Final = (
    Cell("beat", "microseconds of the monotonic clock when the process last said that it lives", gauge=True),
    Cell("pid", "of the process", gauge=True),
    Cell("accepting", "1 while the process takes connections", gauge=True),
    Cell("open", "connections that are open now", gauge=True),
    Cell("received_bytes", "octets that clients sent"),
    Cell("timed_out", "connections closed because the client was silent for too long"),
    Cell("probes", "connections closed by a client that had said nothing, as health checks do"),
    Cell("tls_ok", "TLS handshakes that succeeded"),
    Cell("tls_failed", "TLS handshakes that failed"),
    Cell(
        "tls_resumed", "TLS handshakes that resumed an earlier session; they are among those that succeeded"
    ),
    Cell("cpu", "microseconds of processor time that the processes of this row took"),
    Cell(
        "obeys", "number of the last order that the process follows; 0 in those that follow none", gauge=True
    ),
)

HISTOGRAMS: Final = (
    Histogram("service_seconds", "from the moment a worker heard of a client's bytes to its reply", 28, 1e-6),
    Histogram("client_seconds", "from a reply to the next bytes of the client", 32, 1e-6),
    Histogram("delay_seconds", "delays that were asked for", 34, 1e-6),
    Histogram("message_bytes", "octets of a message as it came over the wire", 40),
    Histogram("connection_messages", "messages of a connection that has ended", 28),
)

LISTENERS: Final = 64
"""Listeners that are told apart; those beyond are counted together as the last."""

RULE_NAMES: Final = 128
"""Names of scenarios' rules that are told apart; those beyond are counted together as the last."""

TITLE: Final = 3
"""Cells for the title of the process that has a row, as text."""

# The order in a row: replies by phase and code, as `smtp.session.cell` numbers them; violations, as
# `smtp.session` numbers them; what became of messages, as `smtp.retry_tracker` does; then these.

REPLIES: Final = ACCUSED

CONNECTIONS: Final = NOTED + len(EVENTS)
"""Connections by listener."""

RULE_HITS: Final = CONNECTIONS + LISTENERS
"""How often rules of scenarios spoke, by name."""

CELL_INDEX: Final = {cell.name: RULE_HITS + RULE_NAMES + number for number, cell in enumerate(CELLS)}
"""Name of a cell -> index in a row."""

TITLE_AT: Final = RULE_HITS + RULE_NAMES + len(CELLS)


def _starts() -> Iterator[tuple[str, int]]:
    start = TITLE_AT + TITLE
    for row in HISTOGRAMS:
        yield row.name, start
        start += row.buckets + 1
    yield "", start


HISTOGRAM_INDEX: Final = dict(_starts())
"""Name of a histogram -> index of its first bucket in a row."""

WIDTH: Final = -(-HISTOGRAM_INDEX[""] // 8) * 8
"""Cells in a row: a whole number of cache lines, or two writers would slow each other down."""

# The header, before the rows, has one writer too, the master; but for the names of rules, which come with
# orders too: who meets a new one writes it, under a lock.

LAYOUT_CRC: Final = zlib.crc32(
    repr((PHASES, VIOLATIONS, EVENTS, CELLS, HISTOGRAMS, LISTENERS, RULE_NAMES, TITLE)).encode()
)
"""Differs when the cells mean something else."""

NAME: Final = 8
"""Cells for the name of a listener or a rule, as text."""

ROWS, USED, STARTED, NAMES = 1, 2, 3, 4
"""Where the header has: how many rows there are, how many were ever claimed, when it all began
(microseconds since 1970), and the names of the listeners. Its first cell has LAYOUT."""

SPOKEN: Final = NAMES + LISTENERS * NAME
"""Where it has the names of rules."""

HEADER: Final = -(-(SPOKEN + RULE_NAMES * NAME) // 8) * 8

OTHERS: Final = "others"
"""The name of those that have no place of their own."""

MEMFD: Final = "blackhole.metrics.counters"


LAST_BUCKET: Final = {row.name: row.buckets - 1 for row in HISTOGRAMS}
"""Name of a histogram -> its last bucket."""


def record(cells: memoryview, histogram: str, value: int) -> None:
    """Add a value to a histogram of a row, in its unit."""
    start, last = HISTOGRAM_INDEX[histogram], LAST_BUCKET[histogram]
    cells[start + min(value.bit_length(), last)] += 1
    cells[start + last + 1] += value


def record_all(cells: memoryview, histogram: str, values: Sequence[int]) -> None:
    """Add many values: 0.1 microseconds each."""
    start, last = HISTOGRAM_INDEX[histogram], LAST_BUCKET[histogram]
    for bits, count in Counter(map(int.bit_length, values)).items():
        cells[start + min(bits, last)] += count
    cells[start + last + 1] += sum(values)


class Counters:
    """The map. `rows` is how many processes can ever live at once."""

    def __init__(self, rows: int) -> None:
        self._cells = create(MEMFD, HEADER + rows * WIDTH)
        self._cells[ROWS] = rows
        self._cells[STARTED] = time.time_ns() // 1000
        self._cells[0] = LAYOUT_CRC
        self._taken: Final[set[int]] = set()
        self._lock: Final = os.memfd_create("blackhole names", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._lock)
        self.client_log: ClientLog | None = None
        """Which clients came, where that is to be seen."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The map of a running master, to be read. Raises OperatorError."""
        stats = cls.__new__(cls)
        cells = attach(pid, MEMFD)
        if cells is None:
            raise OperatorError(f"pid {pid} keeps no figures", os.EX_UNAVAILABLE)
        stats._cells = cells
        if stats._cells[0] != LAYOUT_CRC:
            raise OperatorError(f"pid {pid} is another version of Blackhole; restart it", os.EX_UNAVAILABLE)
        stats.client_log = ClientLog.of(pid)
        return stats

    @property
    def rows(self) -> int:
        return self._cells[ROWS]

    def claim(self) -> int:
        """A row that no live process owns. Called by the master. Raises RuntimeError when there is none."""
        for row in range(self.rows):
            if row not in self._taken:
                self._taken.add(row)
                self._zero(row)
                self._cells[USED] = max(self._cells[USED], row + 1)
                return row
        raise RuntimeError("more processes than rows")

    def release(self, row: int) -> None:
        """The owner of a row is dead: its gauges go, its counters stay. Called by the master."""
        self._zero(row)
        self._taken.discard(row)

    def sign(self, row: int, title: str) -> None:
        """Say who owns the row. Called by the process itself."""
        cells = self.cells(row)
        cells[CELL_INDEX["pid"]] = os.getpid()
        _write(cells, TITLE_AT, TITLE, title)

    def cells(self, row: int) -> memoryview:
        """The row itself, for its one writer."""
        return self._cells[HEADER + row * WIDTH : HEADER + (row + 1) * WIDTH]

    def heartbeat(self, row: int) -> None:
        """Say that the owner of the row lives, and accepts connections."""
        self._cells[HEADER + row * WIDTH + CELL_INDEX["beat"]] = time.monotonic_ns() // 1000

    def last_heartbeat(self, row: int) -> float:
        """Seconds of the monotonic clock of the last beat; 0.0: not since the row was claimed."""
        return self._cells[HEADER + row * WIDTH + CELL_INDEX["beat"]] / 1e6

    def living(self) -> list[int]:
        """The rows whose owners live."""
        end = HEADER + self._cells[USED] * WIDTH
        return [
            row
            for row, heartbeat in enumerate(self._cells[HEADER + CELL_INDEX["beat"] : end : WIDTH])
            if heartbeat
        ]

    def should_yield_accept(self, row: int) -> bool:
        """Whether the owner of the row has clearly more connections open than another who takes them."""
        end = HEADER + self._cells[USED] * WIDTH
        accepting = self._cells[HEADER + CELL_INDEX["accepting"] : end : WIDTH].tolist()
        least = min(
            compress(self._cells[HEADER + CELL_INDEX["open"] : end : WIDTH].tolist(), accepting), default=0
        )
        return bool(self._cells[HEADER + row * WIDTH + CELL_INDEX["open"]] > least + 2 + least // 16)

    def applied_order(self) -> int | None:
        """The last order that all who follow orders do follow; None where nobody does."""
        end = HEADER + self._cells[USED] * WIDTH
        return min(filter(None, self._cells[HEADER + CELL_INDEX["obeys"] : end : WIDTH]), default=None)

    def listener(self, name: str) -> int:
        """The index of the cell that counts the connections of a listener. A new name: the master only."""
        for number in range(LISTENERS - 1):
            known = _read(self._cells, NAMES + number * NAME, NAME)
            if not known:
                _write(self._cells, NAMES + number * NAME, NAME, name)
            if known in ("", name[: NAME * 8]):
                return CONNECTIONS + number
        _write(self._cells, NAMES + (LISTENERS - 1) * NAME, NAME, OTHERS)
        return CONNECTIONS + LISTENERS - 1

    def rule_counters(self, names: Iterable[str]) -> list[int]:
        """The indices of the cells that count how often the rules of these names spoke, one for each."""
        wanted = [clipped(name) for name in names]
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            known = self._speakers()
            taken = set(known.values())
            free = (cell for cell in range(RULE_HITS, RULE_HITS + RULE_NAMES - 1) if cell not in taken)
            for name in wanted:
                if name not in known:
                    last = RULE_HITS + RULE_NAMES - 1
                    cell = known[name] = last if name == OTHERS else next(free, last)
                    start = SPOKEN + (cell - RULE_HITS) * NAME
                    _write(self._cells, start, NAME, OTHERS if cell == last else name)
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return [known[name] for name in wanted]

    def _speakers(self) -> dict[str, int]:
        octets = self._cells[SPOKEN : SPOKEN + RULE_NAMES * NAME].tobytes()
        names = (octets[at : at + NAME * 8] for at in range(0, len(octets), NAME * 8))
        return {_text(name): RULE_HITS + number for number, name in enumerate(names) if name[0]}

    def snapshot(self) -> Snapshot:
        """All figures as they are now. Takes about a millisecond for a handful of workers."""
        now = time.monotonic()
        totals = [0] * WIDTH
        workers = []
        for row in range(self._cells[USED]):
            values = self.cells(row).tolist()
            totals = list(map(add, totals, values))
            if values[CELL_INDEX["pid"]]:
                title = _read(self.cells(row), TITLE_AT, TITLE)
                workers.append(
                    ProcessStatus(
                        title,
                        values[CELL_INDEX["pid"]],
                        max(0.0, now - values[CELL_INDEX["beat"]] / 1e6)
                        if values[CELL_INDEX["beat"]]
                        else 0.0,
                        values[CELL_INDEX["open"]],
                        values[CELL_INDEX["cpu"]] / 1e6,
                    )
                )
        names = (_read(self._cells, NAMES + number * NAME, NAME) for number in range(LISTENERS))
        return Snapshot(
            seconds=now,
            started=self._cells[STARTED] / 1e6,
            listeners=tuple(name for name in names if name),
            workers=tuple(sorted(workers)),
            rule_counters=self._speakers(),
            cells=tuple(totals),
            clients=None if self.client_log is None else tuple(self.client_log.clients()),
        )

    def _zero(self, row: int) -> None:
        cells = self.cells(row)
        for cell in CELLS:
            if cell.gauge:
                cells[CELL_INDEX[cell.name]] = 0
        _write(cells, TITLE_AT, TITLE, "")


def clipped(name: str) -> str:
    """As much of a rule's name as has room."""
    return name.encode()[: NAME * 8].decode(errors="ignore")


def _write(cells: memoryview, start: int, length: int, text: str) -> None:
    octets = text.encode()[: length * 8].ljust(length * 8, b"\0")
    for number in reversed(range(length)):  # the first last: until then it is as good as empty
        cells[start + number] = int.from_bytes(octets[number * 8 : number * 8 + 8], "little")


def _read(cells: memoryview, start: int, length: int) -> str:
    return _text(b"".join(cell.to_bytes(8, "little") for cell in cells[start : start + length]))


def _text(octets: bytes) -> str:
    return octets.rstrip(b"\0").decode("utf-8", "replace")


# Reading.


class ProcessStatus(NamedTuple):
    """A process that lives now."""

    title: str
    pid: int
    silent: float
    """Seconds since it last said that it lives; it does so once a second."""
    open: int
    """Connections."""
    cpu: float
    """Seconds of processor time of all processes that had this row, as of a second ago."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram as it was read."""

    counts: tuple[int, ...]
    """Of each bucket."""
    sum: float
    unit: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    @property
    def edges(self) -> tuple[float, ...]:
        """The largest value of each bucket but the last, which has no limit."""
        return tuple(
            ((1 << k) - 1 if self.unit == 1 else 1 << k) * self.unit for k in range(len(self.counts) - 1)
        )

    def quantile(self, share: float) -> float:
        """What so large a share of all values does not exceed, as far as the buckets tell: an upper limit."""
        wanted = share * self.count
        seen = 0
        for edge, count in zip(self.edges, self.counts, strict=False):
            seen += count
            if seen >= wanted:
                return edge
        return self.edges[-1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Empty buckets are left out."""
        return {
            "count": self.count,
            "sum": self.sum,
            "mean": self.mean,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "buckets": {
                f"{edge:g}": count for edge, count in zip(self.edges, self.counts, strict=False) if count
            },
            "beyond": self.counts[-1],
        }


OUTCOMES: Final = {2: "accepted", 4: "deferred", 5: "rejected"}
"""What becomes of a message, by the class of the reply to its end."""


@dataclass(frozen=True)
class Snapshot:
    """All figures at one moment; or, as the difference of two, all that happened between them.

    In a difference `seconds` is how long it took; what lives (`workers`, `open`) is that of the later.
    """

    seconds: float
    """Of the monotonic clock, or between two."""
    started: float
    """Seconds since 1970 when the server began."""
    listeners: tuple[str, ...]
    workers: tuple[ProcessStatus, ...]
    """Every process that counts, sorted by title."""
    rule_counters: Mapping[str, int]
    """Name of a scenario's rule -> the index of its cell."""
    cells: tuple[int, ...]
    """The sum of all rows."""
    clients: tuple[Client, ...] | None = None
    """Who came since the start, the busiest first; None where that is not to be seen, and in a difference."""

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        return Snapshot(
            self.seconds - earlier.seconds,
            self.started,
            self.listeners,
            self.workers,
            self.rule_counters,
            tuple(map(sub, self.cells, earlier.cells)),
        )

    def total(self, name: str) -> int:
        """A cell of CELLS that is a counter."""
        return self.cells[CELL_INDEX[name]]

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return sum(worker.open for worker in self.workers)

    @property
    def cpu(self) -> float:
        """Seconds of processor time of all workers."""
        return self.total("cpu") / 1e6

    @cached_property
    def replies(self) -> Mapping[tuple[str, int], int]:
        """By phase and code, those that were said."""
        return {
            (phase, code + 200): count
            for number, phase in enumerate(PHASES)
            for code, count in enumerate(self.cells[number * CODE_SPAN : (number + 1) * CODE_SPAN])
            if count
        }

    @cached_property
    def commands(self) -> Mapping[str, int]:
        """Commands that were answered, by phase; CONNECT and the end of a message are none."""
        return {
            phase: sum(self.cells[number * CODE_SPAN : (number + 1) * CODE_SPAN])
            for number, phase in enumerate(PHASES)
            if phase not in ("CONNECT", ".")
        }

    @cached_property
    def messages(self) -> Mapping[str, int]:
        """By outcome: messages that came to their end and were answered."""
        return {outcome: self._answered(".", digit) for digit, outcome in OUTCOMES.items()}

    @property
    def recipients(self) -> int:
        """That were accepted."""
        return self._answered("RCPT", 2)

    @cached_property
    def connections(self) -> Mapping[str, int]:
        """By listener."""
        return dict(zip(self.listeners, self.cells[CONNECTIONS : CONNECTIONS + LISTENERS], strict=False))

    @property
    def refused(self) -> int:
        """Connections with a refusal in place of the greeting."""
        return self._answered("CONNECT", 4) + self._answered("CONNECT", 5)

    @cached_property
    def violations(self) -> Mapping[str, int]:
        """By rule; all of them, in the order of the table."""
        return dict(zip((rule.name for rule in VIOLATIONS), self.cells[REPLIES:NOTED], strict=True))

    @cached_property
    def events(self) -> Mapping[str, int]:
        """What became of messages, and what came again, by the names of `witness.EVENTS`."""
        return dict(zip((event.name for event in EVENTS), self.cells[NOTED:CONNECTIONS], strict=True))

    @property
    def rule_hits(self) -> dict[str, int]:
        """How often rules of scenarios spoke, by name; of all that ever were in force."""
        return {name: self.cells[cell] for name, cell in self.rule_counters.items()}

    @property
    def retries(self) -> dict[str, Any]:
        """What became of messages that were not taken at once, or not for sure: by outcome, how many there
        were, and how many of these came again. `waits` are retries by the seconds, at most, since the
        attempt before."""
        seen = self.events
        return {
            "deferred": {
                "recipients": seen["deferred"],
                "returned": seen["returned"],
                "missing": max(0, seen["deferred"] - seen["returned"]),
                "again": seen["again"],
                "taken": seen["taken"],
                "waits": {str(span): seen[f"wait-{span}"] for span in (*RETRY_INTERVALS, "more")},
            },
            "refused": {"recipients": seen["refused"], "returned": seen["insisted"]},
            "uncertain": {
                name: {"messages": seen[name], "returned": seen[f"{name}-again"]}
                for name, _ in UNCERTAIN_OUTCOMES.values()
            },
        }

    @property
    def hung_up(self) -> int:
        """Connections that the client closed without QUIT."""
        return self.violations["no-quit"] + self.violations["hung-up-in-body"]

    @cached_property
    def histograms(self) -> Mapping[str, Distribution]:
        """By name; see HISTOGRAMS."""
        return {row.name: self._histogram(row) for row in HISTOGRAMS}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything, by the names that `blackhole status --json` and the dashboard give it."""
        replies: dict[str, dict[str, int]] = {}
        for (phase, code), count in self.replies.items():
            replies.setdefault(phase, {})[str(code)] = count
        return {
            "seconds": self.seconds,
            "started": self.started,
            "messages": dict(self.messages),
            "recipients": self.recipients,
            "connections": {
                "total": sum(self.connections.values()),
                "open": self.open,
                "by_listener": dict(self.connections),
                "refused": self.refused,
                "timed_out": self.total("timed_out"),
                "hung_up": self.hung_up,
                "probes": self.total("probes"),
            },
            "tls": {result: self.total(f"tls_{result}") for result in ("ok", "failed", "resumed")},
            "received_bytes": self.total("received_bytes"),
            "commands": dict(self.commands),
            "replies": replies,
            "violations": dict(self.violations),
            "retries": self.retries,
            "rule_hits": self.rule_hits,
            "cpu_seconds": self.cpu,
            "histograms": {name: one.as_dict() for name, one in self.histograms.items()},
            "workers": [worker._asdict() for worker in self.workers],
        } | self.shown

    @property
    def shown(self) -> dict[str, Any]:
        """The clients, for JSON, where they are to be seen."""
        return {} if self.clients is None else {"clients": [client._asdict() for client in self.clients]}

    def _answered(self, phase: str, digit: int) -> int:
        start = PHASES.index(phase) * CODE_SPAN + digit * 100 - 200
        return sum(self.cells[start : start + 100])

    def _histogram(self, row: Histogram) -> Distribution:
        start = HISTOGRAM_INDEX[row.name]
        *counts, total = self.cells[start : start + row.buckets + 1]
        return Distribution(tuple(counts), total * row.unit, row.unit)
