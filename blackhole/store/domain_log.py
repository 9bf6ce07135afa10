"""The domain log: what became of recipients by their domain, where the operator asks for it (--show-domains).

Like the client log it is a map that all processes share, with a section for each process, which is its only
writer, and which outlives it. In a full section, the domain that was seen longest ago makes room for a new
one, and its figures are added to those of all others. Beside it is a table of attempts, which keeps keyed
hashes of sender and recipient, by which the time from a deferral to the next attempt is known in all workers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self

from blackhole.rules.attempt_store import Record
from blackhole.store.attempts import AttemptTable
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

DOMAIN_LOG_MAP: Final = "blackhole.store.domain_log"

MAX_DOMAINS: Final = 256
"""Domains in the section of a process, with the slot of all others."""

MAX_SHOWN_DOMAINS: Final = 100
"""Domains that are shown: those with the most recipients. The figures of the rest are added up."""

OTHER_DOMAINS: Final = "others"
"""Stands for the rest. No domain has this name, as each is shown with a dot or in brackets."""

DOMAIN_NAME_CELLS: Final = 32
"""A domain has 255 octets at most (RFC 5321 section 4.5.3.1.2)."""

DOMAIN_OUTCOMES: Final = ("accepted", "deferred", "refused")
INTERVAL_BUCKETS: Final = 24
"""Retries by the bits of their seconds: bucket k holds those of less than 2^k seconds, and the last of half a
year and more."""

SEEN_AT: Final = DOMAIN_NAME_CELLS
COUNTED_MINUTE: Final = SEEN_AT + 1
THIS_MINUTE: Final = COUNTED_MINUTE + 1
LAST_MINUTE: Final = THIS_MINUTE + 1
OUTCOMES_AT: Final = LAST_MINUTE + 1
INTERVALS_AT: Final = OUTCOMES_AT + len(DOMAIN_OUTCOMES)
DOMAIN_SLOT_CELLS: Final = INTERVALS_AT + INTERVAL_BUCKETS
DOMAIN_SECTION_CELLS: Final = MAX_DOMAINS * DOMAIN_SLOT_CELLS
"""Cells of a slot: the name, when it was seen last, in microseconds since 1970, the minute of the last
recipient, and how many came in it and in the minute before, the outcomes, and the retries."""

MINUTE_MS: Final = 60_000
"""Milliseconds of a minute."""

ENVELOPE_SETS: Final = 1 << 13
"""Of eight envelopes each: those that were deferred last."""


class Domain(NamedTuple):
    """What is known of the recipients of a domain."""

    domain: str
    accepted: int
    deferred: int
    refused: int
    per_minute: int
    """Recipients in the last 60 seconds, about: those of this minute, and a share of the minute before."""
    retries: int
    retry_p50: float | None
    """Seconds from a deferral to the next attempt, as an upper limit of the median; None without a retry."""
    retry_p99: float | None

    @property
    def recipients(self) -> int:
        """All recipients that had an outcome."""
        return self.accepted + self.deferred + self.refused


def note_attempt(deferred: bool, record: Record, now: float) -> tuple[Record, float]:
    """Return the record of an envelope, and the seconds since it was deferred; -1 if it was not."""
    count, _, last = record
    interval = max(0.0, now - last) if count else -1.0
    return (int(deferred), now, now), interval


class DomainLog:
    """The log. `rows` is the largest number of processes that live at once, as for the counters.

    >>> log = DomainLog(rows=1)
    >>> writer = log.writer(0)
    >>> writer.update(b"ann@a.test", b"Bob@B.test", "deferred", 0.0)
    >>> writer.update(b"ann@a.test", b"bob@b.test", "accepted", 50.0)
    >>> [(one.domain, one.accepted, one.deferred, one.retry_p50) for one in log.domains()]
    [('b.test', 1, 1, 64.0)]
    """

    def __init__(self, rows: int) -> None:
        self._cells: Final = create(DOMAIN_LOG_MAP, rows * DOMAIN_SECTION_CELLS)
        self._envelopes: Final = AttemptTable(sets=ENVELOPE_SETS)

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the log of a running master, to be read; None if it has none. Raises OperatorError."""
        cells = attach(pid, DOMAIN_LOG_MAP)
        if cells is None:
            return None
        domain_log = cls.__new__(cls)
        domain_log._cells = cells[: len(cells) // DOMAIN_SECTION_CELLS * DOMAIN_SECTION_CELLS]  # type: ignore[misc]
        return domain_log

    def writer(self, row: int) -> DomainLogWriter:
        """Return the section of a process, for that process to write."""
        section = self._cells[row * DOMAIN_SECTION_CELLS : (row + 1) * DOMAIN_SECTION_CELLS]
        return DomainLogWriter(section, self._envelopes)

    def domains(self, now: float | None = None) -> list[Domain]:
        """Return the domains with the most recipients, at most MAX_SHOWN_DOMAINS, and then the rest as one.

        `now` is in seconds since 1970.
        """
        now_ms = int((time.time() if now is None else now) * 1000)
        totals: dict[str, list[int]] = {}
        for start in range(0, len(self._cells), DOMAIN_SECTION_CELLS):
            if not self._cells[start + SEEN_AT] and not self._cells[start + DOMAIN_SLOT_CELLS + SEEN_AT]:
                continue  # an unused section is not read, so it stays unallocated
            for slot in range(start, start + DOMAIN_SECTION_CELLS, DOMAIN_SLOT_CELLS):
                if self._cells[slot + SEEN_AT]:
                    values = self._cells[slot : slot + DOMAIN_SLOT_CELLS].tolist()
                    name = OTHER_DOMAINS if slot == start else _read_name(values)
                    total = totals.setdefault(name, [0] * (DOMAIN_SLOT_CELLS - OUTCOMES_AT + 1))
                    _add(total, values, now_ms)
        rest = totals.pop(OTHER_DOMAINS, [0] * (DOMAIN_SLOT_CELLS - OUTCOMES_AT + 1))
        found = [_domain(name, counts) for name, counts in totals.items()]
        found.sort(key=lambda one: (-one.recipients, one.domain))
        for one in found[MAX_SHOWN_DOMAINS:]:
            rest = [mine + theirs for mine, theirs in zip(rest, totals[one.domain], strict=True)]
        return found[:MAX_SHOWN_DOMAINS] + ([_domain(OTHER_DOMAINS, rest)] if any(rest) else [])


def _read_name(values: Sequence[int]) -> str:
    octets = b"".join(cell.to_bytes(CELL_OCTETS, "little") for cell in values[:DOMAIN_NAME_CELLS])
    return octets.rstrip(b"\0").decode("utf-8", "replace")


def _add(total: list[int], values: Sequence[int], now_ms: int) -> None:
    """Add the values of a slot: the recipients of the last minute, the outcomes, and the retries.

    A recipient of this minute counts MINUTE_MS. One of the minute before counts as many milliseconds as are
    left of this one, as if they had come evenly.
    """
    minute, passed = divmod(now_ms, MINUTE_MS)
    left = MINUTE_MS - passed
    if values[COUNTED_MINUTE] == minute:
        total[0] += values[THIS_MINUTE] * MINUTE_MS + values[LAST_MINUTE] * left
    elif values[COUNTED_MINUTE] == minute - 1:
        total[0] += values[THIS_MINUTE] * left
    for place, value in enumerate(values[OUTCOMES_AT:], 1):
        total[place] += value


def _domain(name: str, total: Sequence[int]) -> Domain:
    """Return a domain, from the sum of `_add`."""
    per_minute, accepted, deferred, refused, *intervals = total
    shown = name if name == OTHER_DOMAINS or name else "<none>"
    return Domain(
        shown,
        accepted,
        deferred,
        refused,
        -(-per_minute // MINUTE_MS),  # rounded up: one recipient is not none
        sum(intervals),
        _percentile(intervals, 0.5),
        _percentile(intervals, 0.99),
    )


def _percentile(intervals: Sequence[int], share: float) -> float | None:
    """Return the upper limit of the bucket with a percentile; None without any value."""
    wanted, below = share * sum(intervals), 0
    for bits, count in enumerate(intervals):
        below += count
        if count and below >= wanted:
            return float(2**bits)
    return None


class DomainLogWriter:
    """The section of one process. Its first slot has the figures of the domains that made room."""

    def __init__(self, cells: memoryview, envelopes: AttemptTable) -> None:
        self._cells: Final = cells
        self._envelopes: Final = envelopes
        self._slots: Final[dict[bytes, int]] = {}
        for slot in range(DOMAIN_SLOT_CELLS, DOMAIN_SECTION_CELLS, DOMAIN_SLOT_CELLS):
            if cells[slot + SEEN_AT]:  # left by a process that had this section before
                name = _read_name(cells[slot : slot + DOMAIN_NAME_CELLS].tolist())
                self._slots[name.encode()] = slot

    def update(self, sender: bytes, recipient: bytes, outcome: str, now: float) -> None:
        """Count a recipient. `now` is in seconds of a clock that all processes share."""
        recipient = recipient.lower()
        change: Any = partial(note_attempt, outcome == "deferred")
        interval = self._envelopes.update(sender.lower() + b"\0" + recipient, now, change)
        domain = recipient[recipient.rfind(b"@") + 1 :][: DOMAIN_NAME_CELLS * CELL_OCTETS]
        # What is not UTF-8 is shown with signs in its place, and counted as what is shown.
        slot = self._slot(domain.decode("utf-8", "replace").encode()[: DOMAIN_NAME_CELLS * CELL_OCTETS])
        self.count(slot, outcome, 1)
        if interval is not None and interval >= 0:
            self._cells[slot + INTERVALS_AT + min(int(interval).bit_length(), INTERVAL_BUCKETS - 1)] += 1

    def count_others(self, outcome: str, count: int) -> None:
        """Count recipients whose domains are not known."""
        self.count(0, outcome, count)

    def count(self, slot: int, outcome: str, count: int) -> None:
        """Add to an outcome of a slot."""
        cells, now = self._cells, time.time_ns() // 1000
        minute = now // 60_000_000
        if cells[slot + COUNTED_MINUTE] != minute:
            cells[slot + LAST_MINUTE] = (
                cells[slot + THIS_MINUTE] if cells[slot + COUNTED_MINUTE] == minute - 1 else 0
            )
            cells[slot + THIS_MINUTE], cells[slot + COUNTED_MINUTE] = 0, minute
        cells[slot + THIS_MINUTE] += count
        cells[slot + OUTCOMES_AT + DOMAIN_OUTCOMES.index(outcome)] += count
        cells[slot + SEEN_AT] = now

    def _slot(self, name: bytes) -> int:
        """Return the slot of a domain: a free one, or that of the domain seen longest ago, if it is new."""
        slot = self._slots.get(name)
        if slot is not None:
            return slot
        cells = self._cells
        if len(self._slots) < MAX_DOMAINS - 1:
            slot = (len(self._slots) + 1) * DOMAIN_SLOT_CELLS
        else:
            oldest = min(self._slots, key=lambda known: cells[self._slots[known] + SEEN_AT])
            slot = self._slots.pop(oldest)
            for cell in range(OUTCOMES_AT, DOMAIN_SLOT_CELLS):
                cells[cell] += cells[slot + cell]
            cells[SEEN_AT] = max(cells[SEEN_AT], cells[slot + SEEN_AT])
        for cell in range(slot, slot + DOMAIN_SLOT_CELLS):
            cells[cell] = 0
        octets = name.ljust(DOMAIN_NAME_CELLS * CELL_OCTETS, b"\0")
        for number in range(DOMAIN_NAME_CELLS):
            at = number * CELL_OCTETS
            cells[slot + number] = int.from_bytes(octets[at : at + CELL_OCTETS], "little")
        self._slots[name] = slot
        return slot
