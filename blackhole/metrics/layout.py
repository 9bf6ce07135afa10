"""The layout of the shared counters: which cell of a process's row counts what.

A cell is an unsigned 64-bit integer. The map begins with a header that the master writes; a row for each
process follows. A row consists of these sections, in this order:

    replies by phase and code | violations that are counted | those that are found in samples
    | connections by violation | inspections | outcomes of messages | connections by listener | rule matches
    | what the limits of rules let pass | what they limited | limits that clients met | the cells of CELLS
    | the title of the process | the histograms

Every other module finds a cell through the names and functions of this one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from blackhole.metrics.tls_events import ENTRY_RESULTS, TLS_FAILURES, entry_cell, failure_cell
from blackhole.rules.outcomes import EVENT_NUMBERS, EVENTS
from blackhole.settings import CLIENT_LIMITS
from blackhole.smtp.state import PHASES
from blackhole.smtp.violations import INSPECTED, SAMPLED, VIOLATIONS
from blackhole.tls_menu import TLS_MENU

CACHE_LINE: Final = 8
"""Cells in a cache line."""


class Cell(NamedTuple):
    """A named cell of each row. A gauge is a current value; a counter only grows."""

    name: str
    meaning: str
    gauge: bool = False


class Histogram(NamedTuple):
    """A histogram in each row, with buckets that double in width.

    Bucket k holds the values of k bits, so `int.bit_length` finds the bucket of a value; the last bucket
    holds all larger values too. The cell behind the buckets holds the sum of all values.
    """

    name: str
    meaning: str
    buckets: int
    unit: float = 1
    """What the recorded integer 1 means, in the unit that the name ends with."""
    sampled: bool = False
    """Whether only a sample of the values is recorded."""


CELLS: Final = (
    Cell("heartbeat", "monotonic time of the last heartbeat, in microseconds", gauge=True),
    Cell("pid", "process ID", gauge=True),
    Cell("accepting", "1 while the process accepts connections", gauge=True),
    Cell("open", "open connections", gauge=True),
    Cell("received_bytes", "octets received from clients"),
    Cell("timed_out", "connections closed after the client timeout"),
    Cell("closed_without_command", "connections that the client closed before it sent anything"),
    Cell("tls_ok", "TLS handshakes that succeeded, resumed sessions included"),
    Cell("tls_failed", "TLS handshakes that failed"),
    Cell("tls_resumed", "TLS handshakes that resumed an earlier session"),
    Cell("store_questions", "questions that mail had for a shared store"),
    Cell("store_unanswered", "questions that the store did not answer in time, or was not asked"),
    Cell("store_openings", "times that the store was not asked any more because it did not answer"),
    *(
        Cell(failure_cell(reason), f"TLS handshakes that failed: {meaning}")
        for reason, meaning in TLS_FAILURES.items()
    ),
    *(
        Cell(
            entry_cell(entry.name, result),
            f"connections at the entry {entry.name}: {meaning}",
        )
        for entry in TLS_MENU
        for result, meaning in ENTRY_RESULTS.items()
    ),
    Cell("cpu_microseconds", "processor time of all processes that had this row, in microseconds"),
    Cell(
        "applied_order",
        "number of the last runtime order that the process applied, plus 1",
        gauge=True,
    ),
    Cell("reading_order", "number of the runtime order that the process is reading, plus 1", gauge=True),
)

HISTOGRAMS: Final = (
    Histogram(
        "service_seconds", "Time from the arrival of a client's input to its reply (sampled)", 28, 1e-6, True
    ),
    Histogram(
        "client_think_seconds", "Time from a reply to the client's next input (sampled)", 32, 1e-6, True
    ),
    Histogram("delay_seconds", "Delays that rules and modes added before a reply", 34, 1e-6),
    Histogram("store_seconds", "Time that questions to a shared store waited for an answer", 26, 1e-6),
    Histogram("message_bytes", "Size of a message as received, in octets", 40),
    Histogram("connection_messages", "Messages in a connection that has ended", 28),
)

# The sections of a row.

FIRST_CODE: Final = 200
CODES_PER_PHASE: Final = 400
"""Reply codes 200 to 599 have a cell in each phase."""

VIOLATIONS_START: Final = len(PHASES) * CODES_PER_PHASE
SAMPLED_START: Final = VIOLATIONS_START + len(VIOLATIONS)
VIOLATING_CONNECTIONS_START: Final = SAMPLED_START + len(SAMPLED)
INSPECTED_START: Final = VIOLATING_CONNECTIONS_START + len(VIOLATIONS)
OUTCOMES_START: Final = INSPECTED_START + len(INSPECTED)
LISTENERS_START: Final = OUTCOMES_START + len(EVENTS)

MAX_LISTENERS: Final = 64
"""Listeners with a cell of their own; connections of all further listeners are counted in the last cell."""

RULE_HITS_START: Final = LISTENERS_START + MAX_LISTENERS

MAX_RULE_NAMES: Final = 128
"""Rule names with a cell of their own; matches of all further rules are counted in the last cell."""

LIMIT_DECISIONS: Final = ("passed", "limited")
"""What the throttle or greylist of a rule decides on a command. Each has a counter for each rule name."""

LIMIT_DECISIONS_START: Final = RULE_HITS_START + MAX_RULE_NAMES
LIMITS_START: Final = LIMIT_DECISIONS_START + len(LIMIT_DECISIONS) * MAX_RULE_NAMES
CELLS_START: Final = LIMITS_START + len(CLIENT_LIMITS)
CELL_INDEX: Final = {cell.name: CELLS_START + number for number, cell in enumerate(CELLS)}
"""Name of a cell -> its index in a row."""

TITLE_START: Final = CELLS_START + len(CELLS)
TITLE_CELLS: Final = 3
"""Cells for the title of the process that owns the row, as text."""


def _histogram_starts() -> Iterator[tuple[str, int]]:
    """Yield the name and the first cell of each histogram, and at last "" and the end of the last one."""
    start = TITLE_START + TITLE_CELLS
    for histogram in HISTOGRAMS:
        yield histogram.name, start
        start += histogram.buckets + 1
    yield "", start


HISTOGRAM_INDEX: Final = dict(_histogram_starts())
"""Name of a histogram -> index of its first bucket in a row."""

LAST_BUCKET: Final = {histogram.name: histogram.buckets - 1 for histogram in HISTOGRAMS}
"""Name of a histogram -> number of its last bucket."""

ROW_CELLS: Final = -(-HISTOGRAM_INDEX[""] // CACHE_LINE) * CACHE_LINE
"""Cells in a row: whole cache lines, so that two writers never share one."""

# The header. Only the master writes it, except for the names of rules, which are written under a lock.

NAME_CELLS: Final = 8
"""Cells for the name of a listener or a rule, as text."""

LIMIT_TEXT_CELLS: Final = 12
"""Cells for the limit of a rule, as text."""

HEADER_CRC, HEADER_ROWS, HEADER_USED_ROWS, HEADER_STARTED, HEADER_CLOCK_ORIGIN = range(5)
"""Cells of the header: LAYOUT_CRC, the number of rows, how many of them were ever allocated, and the start of
the server, in microseconds since 1970 and in microseconds of the monotonic clock."""

LISTENER_NAMES_START: Final = 5
RULE_NAMES_START: Final = LISTENER_NAMES_START + MAX_LISTENERS * NAME_CELLS
LIMIT_TEXTS_START: Final = RULE_NAMES_START + MAX_RULE_NAMES * NAME_CELLS
HEADER_CELLS: Final = -(-(LIMIT_TEXTS_START + MAX_RULE_NAMES * LIMIT_TEXT_CELLS) // CACHE_LINE) * CACHE_LINE

OTHERS: Final = "others"
"""Name of the last listener and of the last rule, which stand for all that have no cell of their own."""

LAYOUT_CRC: Final = zlib.crc32(
    repr(
        (
            LISTENER_NAMES_START,
            PHASES,
            VIOLATIONS,
            INSPECTED,
            EVENTS,
            CELLS,
            HISTOGRAMS,
            CLIENT_LIMITS,
            MAX_LISTENERS,
            MAX_RULE_NAMES,
            LIMIT_DECISIONS,
            LIMIT_TEXT_CELLS,
            TITLE_CELLS,
        )
    ).encode()
)
"""Checksum of the layout, by which a reader of another version notices that cells have another meaning."""


VIOLATION_NUMBERS: Final = {violation.name: number for number, violation in enumerate(VIOLATIONS)}
"""The number of each violation in the table, by name."""

NUMBER_OF_EVENT: Final = {
    **{VIOLATIONS_START + number: number for number in range(len(VIOLATIONS))},
    **{SAMPLED_START + place: VIOLATION_NUMBERS[name] for place, name in enumerate(SAMPLED)},
}
"""Event of a violation, counted or found in a sample -> the number of the violation in the table."""

SAMPLED_NUMBERS: Final = {name: number for number, name in enumerate(SAMPLED)}


def limit_counters(counter: int) -> tuple[int, ...]:
    """Return the cells that count what the limit of a rule decides, in the order of LIMIT_DECISIONS.

    `counter` is the cell that counts the matches of the rule.
    """
    first = counter - RULE_HITS_START + LIMIT_DECISIONS_START
    return tuple(range(first, first + len(LIMIT_DECISIONS) * MAX_RULE_NAMES, MAX_RULE_NAMES))


class EventCells:
    """The mapping from the events of a session to the cells that count them.

    It is an `smtp.events.EventNumbers`: a listener's engine resolves its events through it once, and emits
    the numbers it was given. No event has the number 0, which means "not counted": no greeting has the code
    200.

    >>> numbers = EventCells()
    >>> numbers.reply("RCPT", 550) - numbers.reply("RCPT", 250)
    300
    """

    __slots__ = ()

    def reply(self, phase: str, code: int) -> int:
        """Return the number of replies with this code in this phase. Raises ValueError for an unknown phase.

        It grows with the code: reply(phase, 0) + code is reply(phase, code).
        """
        return PHASES.index(phase) * CODES_PER_PHASE + code - FIRST_CODE

    def violation(self, name: str) -> int:
        """Return the number of a violation that is counted. Raises KeyError for an unknown name."""
        return VIOLATIONS_START + VIOLATION_NUMBERS[name]

    def limit(self, name: str) -> int:
        """Return the number of a limit on clients. Raises ValueError for an unknown name."""
        return LIMITS_START + CLIENT_LIMITS.index(name)

    def sampled_violation(self, name: str) -> int:
        """Return the number of a violation that is found in a sample.

        Raises KeyError for the name of one that is not.
        """
        return SAMPLED_START + SAMPLED_NUMBERS[name]

    def inspection(self, what: str) -> int:
        """Return the number of the inspections of sessions, of messages or of what they contain."""
        return INSPECTED_START + INSPECTED.index(what)

    def outcome(self, name: str) -> int:
        """Return the number of an outcome in the retry tracker's table.

        Raises KeyError for an unknown name.
        """
        return OUTCOMES_START + EVENT_NUMBERS[name]
