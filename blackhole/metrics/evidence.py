"""The evidence of violations: for each, when it was seen, and the last few lines in which it was committed.

Like the counters it is a map that all processes share, in memory only, with a section for each process, which
is its only writer. It has a fixed size: of each violation the last few examples are kept, one of a
connection, and in a flood of them one a second. Addresses and texts are masked before they are stored, unless
the operator asks for them (--show-lines).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from blackhole.metrics.layout import VIOLATION_NUMBERS
from blackhole.metrics.masking import mask, printable
from blackhole.smtp.state import PHASES, ViolationContext
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

EVIDENCE_MAP: Final = "blackhole.metrics.evidence"

KEPT_EXAMPLES: Final = 4
"""Examples of each violation in the section of a process."""

MAX_SHOWN_EXAMPLES: Final = 3
"""Examples of each violation that are shown: the latest that differ."""

EXAMPLE_INTERVAL: Final = 1_000_000
"""Microseconds in which one example is enough, once there are KEPT_EXAMPLES."""

QUEUE_ID: Final = re.compile(rb":? queued as [0-9A-Z]+$")
"""What differs in each reply to a message."""

FIRST_SEEN, LAST_SEEN, EXAMPLES_START = range(3)
"""Cells of a violation: two times in microseconds since 1970, and its examples."""

EXAMPLE_TIME, EXAMPLE_PHASE, EXAMPLE_TEXTS = range(3)
"""Cells of an example: its time, or 0 while it is written; the number of its phase, or one more than there
are; and two texts, the line and the reply before it."""

TEXT_CELLS: Final = 10
"""Cells for 80 characters of ASCII."""

EXAMPLE_CELLS: Final = EXAMPLE_TEXTS + 2 * TEXT_CELLS
VIOLATION_CELLS: Final = EXAMPLES_START + KEPT_EXAMPLES * EXAMPLE_CELLS
EVIDENCE_CELLS: Final = len(VIOLATION_NUMBERS) * VIOLATION_CELLS


class Example(NamedTuple):
    """Where a violation was committed once."""

    at: float
    """Seconds since 1970."""
    phase: str
    """Empty: in no phase."""
    line: str
    """What the client sent, printable and cut; empty where there is no line."""
    reply: str
    """The last line that it had been sent before; empty if there was none."""


class Evidence(NamedTuple):
    """What is known of where a violation was committed."""

    first: float
    last: float
    """When it was seen first and last, in seconds since 1970; 0.0 for a time that is not known."""
    examples: tuple[Example, ...]
    """The latest that differ, the latest first."""

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        return {
            "first": self.first or None,
            "last": self.last or None,
            "examples": [example._asdict() for example in self.examples],
        }


NO_EVIDENCE: Final = Evidence(0.0, 0.0, ())


class EvidenceLog:
    """The evidence of all processes. `rows` is the largest number of processes that live at once.

    >>> log = EvidenceLog(rows=1)
    >>> log.writer(0).add("hello-name", ViolationContext("EHLO", b"EHLO localhost"), b"220 mx")
    >>> log.read()["hello-name"].examples[0].line
    'EHLO localhost'
    """

    def __init__(self, rows: int) -> None:
        self._cells = create(EVIDENCE_MAP, rows * EVIDENCE_CELLS)

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the log of a running master, to be read; None if it has none. Raises OperatorError."""
        cells = attach(pid, EVIDENCE_MAP)
        if cells is None:
            return None
        log = cls.__new__(cls)
        log._cells = cells[: len(cells) // EVIDENCE_CELLS * EVIDENCE_CELLS]
        return log

    def writer(self, row: int, shows_lines: bool = False) -> EvidenceWriter:
        """Return the section of a process, for that process to write."""
        return EvidenceWriter(self._cells[row * EVIDENCE_CELLS : (row + 1) * EVIDENCE_CELLS], shows_lines)

    def read(self, since: float = 0.0, until: float = float("inf")) -> Mapping[str, Evidence]:
        """Return the evidence from the time between these two, by violation, of those that have any."""
        found = {}
        for name, number in VIOLATION_NUMBERS.items():
            starts = range(number * VIOLATION_CELLS, len(self._cells), EVIDENCE_CELLS)
            # A violation that was never seen is not read, so that its memory stays unallocated.
            seen = [self._read(start) for start in starts if self._cells[start + LAST_SEEN]]
            evidence = _merged([one for one in seen if one.last >= since and one.first <= until])
            if evidence is not None:
                found[name] = _within(evidence, since, until)
        return found

    def _read(self, start: int) -> Evidence:
        """Return the evidence of a violation in one section."""
        cells = self._cells[start : start + VIOLATION_CELLS]
        examples = (
            _example(cells[place : place + EXAMPLE_CELLS])
            for place in range(EXAMPLES_START, VIOLATION_CELLS, EXAMPLE_CELLS)
            if cells[place + EXAMPLE_TIME]
        )
        return Evidence(cells[FIRST_SEEN] / 1e6, cells[LAST_SEEN] / 1e6, tuple(examples))


def _example(cells: memoryview) -> Example:
    phase = cells[EXAMPLE_PHASE]
    middle = EXAMPLE_TEXTS + TEXT_CELLS
    return Example(
        cells[EXAMPLE_TIME] / 1e6,
        PHASES[phase] if phase < len(PHASES) else "",
        _read_text(cells[EXAMPLE_TEXTS:middle]),
        _read_text(cells[middle:]),
    )


def _merged(parts: list[Evidence]) -> Evidence | None:
    """Return the evidence of all processes as one, with the latest examples that differ."""
    if not parts:
        return None
    latest = sorted((one for part in parts for one in part.examples), reverse=True)
    different = {(one.phase, one.line, one.reply): one for one in reversed(latest)}
    return Evidence(
        min(part.first for part in parts),
        max(part.last for part in parts),
        tuple(sorted(different.values(), reverse=True)),
    )


def _within(evidence: Evidence, since: float, until: float) -> Evidence:
    """Return the evidence of a time; when it was seen first or last is not known if that was at another."""
    examples = [one for one in evidence.examples if since <= one.at <= until]
    return Evidence(
        evidence.first if evidence.first >= since else 0.0,
        evidence.last if evidence.last <= until else 0.0,
        tuple(examples[:MAX_SHOWN_EXAMPLES]),
    )


class EvidenceWriter:
    """The section of one process."""

    def __init__(self, cells: memoryview, shows_lines: bool) -> None:
        self._cells: Final = cells
        self._shows_lines: Final = shows_lines

    def touch(self, number: int) -> None:
        """Record that the violation of this number was seen now."""
        self._touch(number * VIOLATION_CELLS, time.time_ns() // 1000)

    def add(self, name: str, violation_context: ViolationContext, sent: bytes) -> None:
        """Record where a violation was committed now; `sent` is what the client was told before."""
        start, now = VIOLATION_NUMBERS[name] * VIOLATION_CELLS, time.time_ns() // 1000
        self._touch(start, now)
        cells = self._cells
        first = start + EXAMPLES_START
        places = range(first, first + KEPT_EXAMPLES * EXAMPLE_CELLS, EXAMPLE_CELLS)
        times = [cells[place] for place in places]
        if min(times) and 0 <= now - max(times) < EXAMPLE_INTERVAL:
            return
        oldest = places[times.index(min(times))]
        cells[oldest] = 0  # a concurrent reader finds no example instead of half of one
        phase, hides = violation_context.phase, not self._shows_lines
        line = mask(phase, violation_context.line) if hides else violation_context.line
        reply = QUEUE_ID.sub(b"", sent.rstrip().rpartition(b"\n")[2])
        cells[oldest + EXAMPLE_PHASE] = PHASES.index(phase) if phase else len(PHASES)
        middle = oldest + EXAMPLE_TEXTS + TEXT_CELLS
        _write_text(cells, oldest + EXAMPLE_TEXTS, violation_context.detail or printable(line, hides))
        _write_text(cells, middle, printable(reply))
        cells[oldest] = now

    def _touch(self, start: int, now: int) -> None:
        cells = self._cells
        cells[start + LAST_SEEN] = now
        if not cells[start + FIRST_SEEN]:
            cells[start + FIRST_SEEN] = now


def _write_text(cells: memoryview, start: int, text: str) -> None:
    octets = text.encode("ascii")[: TEXT_CELLS * CELL_OCTETS].ljust(TEXT_CELLS * CELL_OCTETS, b"\0")
    cells[start : start + TEXT_CELLS] = memoryview(octets).cast("Q")


def _read_text(cells: memoryview) -> str:
    return cells.tobytes().rstrip(b"\0").decode("ascii", "replace")
