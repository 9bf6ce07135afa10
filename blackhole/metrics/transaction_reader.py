"""Reads the last transactions, the newest or all since a cursor, in the order in which they ended."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from blackhole.metrics.counters import Counters
from blackhole.metrics.transactions import Transaction, ViolationLine, transaction, violations
from blackhole.rules.globs import GlobSet
from blackhole.smtp.transaction_record import ADDENDUM, StoredTransaction, read_record
from blackhole.store.recent import Cursor, RecentRecords, StoredRecord, recent_records

CURSOR: Final = re.compile(r"([0-9a-f]{1,16})((?:\.[0-9]{1,5}-[0-9]{1,19})*)")
"""A cursor as text: the map, and for each section that was read its number and that of the next record."""


TURN: Final = 100
"""Records that are read before other requests are served: two milliseconds."""

MAX_SCAN: Final = 1000
"""Records behind a cursor that are read at once."""


@dataclass(frozen=True)
class TransactionFilter:
    """Which transactions are wanted: those that match each condition."""

    recipient: GlobSet | None = None
    sender: GlobSet | None = None
    client: GlobSet | None = None
    outcome: str = ""
    after: float = -math.inf
    """The time, in seconds since 1970, after which it ended."""
    namespace: str = ""
    """The namespace that it belongs to; empty: any, or none."""

    def matches(self, one: Transaction) -> bool:
        """Return whether a transaction matches."""
        if one.time <= self.after or (self.outcome and one.outcome != self.outcome):
            return False
        if self.namespace and one.namespace != self.namespace:
            return False
        given = (
            (self.recipient, (*one.recipients, *one.refused_recipients)),
            (self.sender, () if one.sender is None else (one.sender,)),
            (self.client, (one.client,)),
        )
        return all(
            globs is None or any(globs.match(text.encode(errors="replace")) for text in texts)
            for globs, texts in given
        )


EVERYTHING: Final = TransactionFilter()


class TransactionPage(NamedTuple):
    """Transactions that were found, the oldest first."""

    transactions: list[Transaction]
    cursor: Cursor
    """Where to go on."""
    more: bool = False
    """There are more behind the cursor already."""


class TransactionReader:
    """Reads what the workers of a server record.

    reader = TransactionReader.of(pid)
    found = reader.newest(100)
    while True:
        found = reader.since(found.cursor, 100)
    """

    def __init__(self, records: RecentRecords, rules: Callable[[], Mapping[int, str]]) -> None:
        """`rules` returns the names of all rules, by the numbers of their counters."""
        self.records: Final = records
        self._rules: Final = rules

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return a reader for a running server. Raises OperatorError if it keeps no transactions."""
        return cls(recent_records(pid), Counters.of(pid).rule_names)

    def newest(self, limit: int, wanted: TransactionFilter = EVERYTHING) -> TransactionPage:
        """Return the newest transactions, at most `limit`, and the cursor behind all."""
        turns = self.newest_in_turns(limit, wanted)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                found: TransactionPage = end.value
                return found

    def newest_in_turns(
        self, limit: int, wanted: TransactionFilter = EVERYTHING, max_octets: float = math.inf
    ) -> Generator[None, None, TransactionPage]:
        """Yield when others should have their turn, and return the newest transactions.

        They come from records of at most `max_octets`.
        """
        cursor, rules = self.records.end(), self._rules()
        found: list[Transaction] = []
        addenda: dict[tuple[int, int], list[ViolationLine]] = {}
        seen = 0
        for stored, record in self._backwards(cursor):
            if record.ending == ADDENDUM:
                addenda.setdefault((stored.section, record.size), [])[:0] = violations(record.marks)
                continue
            seen += 1
            one = transaction(stored, record, rules)
            if one.time <= wanted.after or seen > self.records.kept:
                break
            if wanted.matches(one):
                found.append(with_violations(one, addenda.pop((stored.section, stored.number), ())))
                max_octets -= len(stored.octets)
                if len(found) >= limit or max_octets <= 0:
                    break
            if not seen % TURN:
                yield
        return TransactionPage(found[::-1], cursor)

    def since(
        self,
        cursor: Cursor,
        limit: int,
        wanted: TransactionFilter = EVERYTHING,
        max_octets: float = math.inf,
    ) -> TransactionPage:
        """Return the transactions behind a cursor: at most `limit`, from records of at most `max_octets`.

        One to which a violation was added since comes again.
        """
        rules, after = self._rules(), dict(cursor)
        found: dict[tuple[int, int], Transaction] = {}
        for seen, (stored, record) in enumerate(self._forwards(cursor)):
            if len(found) >= limit or seen >= MAX_SCAN or max_octets <= 0:
                return TransactionPage([*found.values()], after, more=True)
            after[stored.section] = stored.number + 1
            key = stored.section, stored.number
            if record.ending == ADDENDUM:
                key = stored.section, record.size
                before = found.get(key) or self._earlier(*key, rules)
                if before is None:
                    continue
                one = with_violations(before, violations(record.marks))
            else:
                one = transaction(stored, record, rules)
            if wanted.matches(one):
                found[key] = one
                max_octets -= len(stored.octets)
        return TransactionPage([*found.values()], after)

    def _earlier(self, section: int, number: int, rules: Mapping[int, str]) -> Transaction | None:
        """Return a transaction by its record; None if it is not kept any more."""
        stored = self.records.record(section, number)
        record = None if stored is None else read_record(stored.octets)
        if stored is None or record is None or record.ending == ADDENDUM:
            return None
        return transaction(stored, record, rules)

    def _forwards(self, cursor: Cursor) -> Iterator[tuple[StoredRecord, StoredTransaction]]:
        """Yield the records behind a cursor, the oldest first; each section in its own order."""
        streams = [_timed(stream, max, 0.0) for stream in self.records.streams(cursor)]
        for _, stored, record in heapq.merge(*streams, key=_time_of):
            yield stored, record

    def _backwards(self, cursor: Cursor) -> Iterator[tuple[StoredRecord, StoredTransaction]]:
        """Yield the records before a cursor, the newest first."""
        streams = [_timed(stream, min, math.inf) for stream in self.records.streams_back(cursor)]
        for _, stored, record in heapq.merge(*streams, key=_time_of, reverse=True):
            yield stored, record

    # Cursors as text.

    def cursor_text(self, cursor: Cursor) -> str:
        """Return a cursor as text."""
        sections = "".join(f".{section}-{number}" for section, number in sorted(cursor.items()))
        return f"{self.records.id:x}{sections}"

    def read_cursor(self, text: str) -> Cursor:
        """Return the cursor of a text; that before all records if it is one of an earlier server.

        Raises ValueError for anything that is no cursor.
        """
        match = CURSOR.fullmatch(text)
        if match is None:
            raise ValueError("expected the cursor of an earlier answer")
        if int(match[1], 16) != self.records.id:
            return {}
        pairs = (part.split("-") for part in match[2].split(".")[1:])
        return {int(section): int(number) for section, number in pairs}


def with_violations(one: Transaction, added: Iterable[ViolationLine]) -> Transaction:
    """Return a transaction with violations that were found after its end."""
    added = tuple(added)
    return replace(one, violations=one.violations + added) if added else one


TimedRecord = tuple[float, StoredRecord, StoredTransaction]


def _time_of(timed: TimedRecord) -> float:
    return timed[0]


def _timed(
    stream: Iterable[StoredRecord], bound: Callable[[float, float], float], time: float
) -> Iterator[TimedRecord]:
    """Yield the records of a section with times that only rise, or only fall: a clock may be set back.

    An addendum has the time of what came before it, or else `time`.
    """
    for stored in stream:
        record = read_record(stored.octets)
        if record is not None:
            if record.ending != ADDENDUM:
                time = bound(time, record.time)
            yield time, stored, record
