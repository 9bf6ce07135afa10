"""The accounts of namespaces: what a connection counts is also counted for the namespace that it belongs to.

What is counted before a connection has chosen a namespace is kept, and counted for the one that it chooses
first: the greeting, the handshake, the reply to EHLO, and by a tag the reply to MAIL too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from blackhole.metrics.counters import CounterCells
from blackhole.metrics.namespace_counters import NamespaceCounters, NamespaceRow
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.control import NamespaceEntry


class NamespaceScenario(NamedTuple):
    """A namespace, and the scenario that is in force in it."""

    entry: NamespaceEntry
    scenario: ActiveScenario


class NamespaceAccounts:
    """The rows of all namespaces in one worker.

    `touch` takes the place of a namespace that is used now.
    """

    def __init__(self, counters: NamespaceCounters, row: int, touch: Callable[[int], None]) -> None:
        self._counters, self._row, self._touch = counters, row, touch
        self._rows: dict[bytes, tuple[NamespaceEntry, NamespaceRow]] = {}

    def update(self, namespaces: Mapping[bytes, NamespaceScenario]) -> None:
        """Learn which namespaces there are."""
        found = {}
        for name, (entry, _) in namespaces.items():
            known = self._rows.get(name)
            same = known is not None and known[0].since == entry.since
            found[name] = known if known and same else (entry, self._counters.writer(entry, self._row))
        self._rows = found

    def open(self, name: bytes) -> NamespaceRow | None:
        """Return the row of a namespace that is used now; None if it is gone."""
        found = self._rows.get(name)
        if found is None:
            return None
        entry, row = found
        self._touch(entry.place)
        return row


class AccountedCells:
    """A worker's row of the counters, as one connection counts in it.

    Stands for the row wherever a connection counts, and adds what it counts to a namespace too. `listener` is
    the counter of connections, which was incremented for this one already.
    """

    __slots__ = ("_accounts", "_counted_before", "_entered", "_kept", "_listener", "_name", "_row", "cells")

    def __init__(self, cells: CounterCells, accounts: NamespaceAccounts, listener: int) -> None:
        self.cells = cells
        self._accounts = accounts
        self._listener = listener
        self._row: NamespaceRow | None = None
        """What is counted for now."""
        self._name: bytes | None = None
        self._kept: Counter[int] | None = Counter()
        """What was counted while no namespace is known; None: it is known, or there is none."""
        self._counted_before: Counter[int] = Counter()
        """Events that were counted for an earlier namespace, before the connection counts them."""
        self._entered: tuple[bytes, ...] = ()
        """Namespaces for which this connection was counted."""

    def __getitem__(self, cell: int) -> int:
        return int(self.cells[cell])

    def __setitem__(self, cell: int, value: int) -> None:
        amount = value - self.cells[cell]
        self.cells[cell] = value
        if self._counted_before:
            known = min(self._counted_before[cell], amount)
            self._counted_before[cell] -= known
            self._counted_before += Counter()  # without those that are 0
            amount -= known
        if amount > 0:
            self._add(cell, amount)

    def _add(self, cell: int, amount: int) -> None:
        if self._row is not None:
            self._row.add(cell, amount)
        elif self._kept is not None:
            self._kept[cell] += amount

    def choose(self, name: bytes | None, events: Sequence[int]) -> None:
        """Count for a namespace from now on: see `rules.namespaces.NamespaceWatcher`."""
        if name == self._name:
            return
        for event in events:
            self._add(event, 1)
            self._counted_before[event] += 1
        self._name = name
        if name is None:
            self._row, self._kept = None, Counter()
            return
        kept, self._kept = self._kept, None
        self._row = self._accounts.open(name) if name else None
        if self._row is None:
            return
        if name not in self._entered:
            self._entered += (name,)
            self._row.add(self._listener, 1)
        for cell, amount in (kept or Counter()).items():
            self._row.add(cell, amount)

    def end(self) -> None:
        """Count what was kept for the last namespace, as the connection ends."""
        if self._kept and self._entered:
            row = self._accounts.open(self._entered[-1])
            if row is not None:
                for cell, amount in self._kept.items():
                    row.add(cell, amount)
