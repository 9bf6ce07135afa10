"""The orders of namespaces: what is in force for each of them, in a map that all processes share.

Which namespaces there are is a part of the order in force; the control channel publishes it, and its number
says when all workers obey. What was ordered for a namespace is here, in one of its two slots; an order is
written into the slot that is not in force, as in the control channel.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from struct import Struct
from typing import Final

from blackhole.settings import OperatorError
from blackhole.store.control import (
    MAX_NAMESPACES,
    MAX_ORDER_OCTETS,
    ControlChannel,
    NamespaceEntry,
    RuntimeOrder,
    order_text,
    parse_order,
)
from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES, OneShotRule, UseBudgets
from blackhole.store.shared_lock import SharedLock
from blackhole.store.shared_memory import CELL_OCTETS, create

NAMESPACE_MAP: Final = "blackhole.store.namespaces"
"""Name of the anonymous file. Only the pages that were written take memory."""

NAMESPACE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
"""The name of a namespace. Its case does not matter."""

MAX_UNUSED: Final = 3600.0
"""Seconds without mail and without a request after which a namespace is gone."""

MIN_UNUSED: Final = 600.0
"""Seconds without them after which a namespace makes room for a new one, where there are too many."""

MAX_NAMESPACE_RUNS: Final = 8
"""Runs kept of a namespace. The next one takes the place of the oldest that has ended."""

MAX_NOTES: Final = 1 << 18
"""Octets of what the dashboard keeps of a namespace: its runs."""

TEXT_HEADER: Final = Struct("QQ")
"""Checksum and length of a text."""

NOTES_SLOT: Final = 2
"""The slot of what the dashboard keeps of a namespace, behind the two slots of its orders."""

TEXT_SLOTS: Final = NOTES_SLOT + 1

USED: Final = 0
"""Cell of a namespace: the monotonic time, in microseconds, when it was used last."""

BUDGETS: Final = 1
"""Its first budget."""

HEAD_CELLS: Final = 1 + MAX_ONE_SHOT_RULES

TEXT_SLOT_CELLS: Final = TEXT_HEADER.size // CELL_OCTETS + max(MAX_ORDER_OCTETS, MAX_NOTES) // CELL_OCTETS
"""Cells of each slot."""

REGION_CELLS: Final = HEAD_CELLS + TEXT_SLOTS * TEXT_SLOT_CELLS
"""Cells of a namespace."""


class NamespacesFull(OperatorError):
    """There is no room for another namespace."""


class NamespaceOrders:
    """The map, made before the fork.

    >>> orders = NamespaceOrders()
    >>> entry = NamespaceEntry("checkout", place=0, since=1, version=1, slot=0)
    >>> orders.write(entry, RuntimeOrder(name="outage.toml"))
    >>> orders.read(entry).name
    'outage.toml'
    """

    def __init__(self) -> None:
        self._lock: Final = SharedLock("blackhole namespaces")
        self._cells: Final = create(NAMESPACE_MAP, MAX_NAMESPACES * REGION_CELLS)
        self._octets: Final = self._cells.cast("B")

    def read(self, entry: NamespaceEntry) -> RuntimeOrder | None:
        """Return what is in force for a namespace; None if it is not there any more."""
        return parse_order(self._read_text(entry.place, entry.slot))

    def write(self, entry: NamespaceEntry, order: RuntimeOrder) -> None:
        """Write what is in force for a namespace. Raises ValueError if it is too large."""
        self._write_text(entry.place, entry.slot, order_text(order))

    def notes(self, entry: NamespaceEntry) -> bytes:
        """Return what the dashboard keeps of a namespace."""
        return self._read_text(entry.place, NOTES_SLOT)

    def write_notes(self, entry: NamespaceEntry, text: bytes) -> None:
        """Keep something of a namespace. Raises ValueError if it is too large."""
        if len(text) > MAX_NOTES:
            raise ValueError(f"more than {MAX_NOTES} octets")
        self._write_text(entry.place, NOTES_SLOT, text)

    def budgets(self, place: int) -> UseBudgets:
        """Return the budgets of the one-shot rules of a namespace."""
        start = place * REGION_CELLS + BUDGETS
        cells = self._cells[start : start + MAX_ONE_SHOT_RULES]
        return UseBudgets(cells, self._lock, place * MAX_ONE_SHOT_RULES)

    def touch(self, place: int) -> None:
        """Note that a namespace is used now. Several processes may do so at once."""
        self._cells[place * REGION_CELLS + USED] = time.monotonic_ns() // 1000

    def mark_unused(self, place: int) -> None:
        """Note that nobody has used a namespace yet."""
        self._cells[place * REGION_CELLS + USED] = 0

    def unused(self, entry: NamespaceEntry) -> float:
        """Return the seconds since a namespace was used last."""
        return max(0.0, time.monotonic() - self._cells[entry.place * REGION_CELLS + USED] / 1e6)

    def _start(self, place: int, slot: int) -> int:
        return (place * REGION_CELLS + HEAD_CELLS + slot * TEXT_SLOT_CELLS) * CELL_OCTETS

    def _read_text(self, place: int, slot: int) -> bytes:
        """Return a text; nothing while it is being overwritten."""
        start = self._start(place, slot)
        checksum, length = TEXT_HEADER.unpack_from(self._octets, start)
        start += TEXT_HEADER.size
        text = self._octets[start : start + min(length, MAX_ORDER_OCTETS)].tobytes()
        return text if zlib.crc32(text) == checksum else b""

    def _write_text(self, place: int, slot: int, text: bytes) -> None:
        start = self._start(place, slot)
        TEXT_HEADER.pack_into(self._octets, start, zlib.crc32(text), len(text))
        start += TEXT_HEADER.size
        self._octets[start : start + len(text)] = text


class NamespaceDirectory:
    """Which namespaces there are: makes them, finds them, and removes them.

    A process publishes orders through it. Each method that publishes returns the number of the order, and
    raises OperatorError.
    """

    def __init__(self, control: ControlChannel, orders: NamespaceOrders) -> None:
        self.control: Final = control
        self.orders: Final = orders

    def entries(self) -> tuple[NamespaceEntry, ...]:
        """Return the namespaces that there are."""
        return self.control.read()[1].namespaces

    def find(self, name: str) -> NamespaceEntry | None:
        """Return the namespace of that name; None if there is none."""
        return find_entry(self.entries(), name)

    def channel(self, name: str, shared: str = "") -> NamespaceChannel:
        """Return the control channel of a namespace, which its first order makes.

        `shared` is its id in a fleet, if it is a fleet's.
        """
        return NamespaceChannel(name.lower(), self, shared)

    def remove(self, *names: str) -> int:
        """Remove namespaces, with all that was ordered for them."""

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            return replace(before, namespaces=tuple(x for x in before.namespaces if x.name not in names))

        return self.control.publish(change)

    def remove_unused(self) -> list[str]:
        """Remove the namespaces that were not used for MAX_UNUSED seconds; return their names."""
        names = [one.name for one in self.entries() if self.orders.unused(one) >= MAX_UNUSED]
        if names:
            self.remove(*names)
        return names

    def with_entry(
        self, before: RuntimeOrder, number: int, name: str, shared: str
    ) -> tuple[tuple[NamespaceEntry, ...], NamespaceEntry]:
        """Return the other namespaces, and the entry of one, which may be new.

        Raises NamespacesFull if there is no room for it.
        """
        entries = before.namespaces
        known = find_entry(entries, name)
        if known is not None:
            return tuple(one for one in entries if one is not known), known
        if len(entries) >= MAX_NAMESPACES:
            oldest = max(entries, key=self.orders.unused)
            if self.orders.unused(oldest) < MIN_UNUSED:
                raise NamespacesFull(
                    f"there are {MAX_NAMESPACES} namespaces already, and all were used in the last"
                    f" {MIN_UNUSED / 60:g} minutes; DELETE /namespaces/NAME removes one",
                    os.EX_CANTCREAT,
                )
            entries = tuple(one for one in entries if one is not oldest)
        place = min(set(range(MAX_NAMESPACES)) - {one.place for one in entries})
        entry = NamespaceEntry(name, place, number, number, 0, time.time(), shared)
        self.orders.write(entry, RuntimeOrder())
        self.orders.write_notes(entry, b"")
        self.orders.mark_unused(place)
        return entries, entry


class NamespaceChannel:
    """The control channel of one namespace: publishes what is in force for it, as a `ControlChannel` does."""

    def __init__(self, name: str, directory: NamespaceDirectory, shared: str = "") -> None:
        self._name: Final = name
        self._directory: Final = directory
        self._shared: Final = shared
        self._place = 0
        """Of the namespace that is being changed, or was read last."""

    def read(self) -> tuple[int, RuntimeOrder]:
        """Return what is in force for the namespace, and a number that changes with it."""
        number, order = self._directory.control.read()
        entry = find_entry(order.namespaces, self._name)
        if entry is None:
            return number, RuntimeOrder(dropped=order.dropped)
        self._place = entry.place
        found = self._directory.orders.read(entry) or RuntimeOrder()
        return entry.version, replace(found, dropped=order.dropped)

    def publish(self, change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        """Put a new order for the namespace in force, and return its number.

        Raises ValueError if it is too large, and OperatorError as `ControlChannel.publish` and
        `NamespaceDirectory.with_entry` do.
        """
        orders = self._directory.orders

        def change_entry(before: RuntimeOrder, number: int) -> RuntimeOrder:
            others, entry = self._directory.with_entry(before, number, self._name, self._shared)
            self._place = entry.place
            found = orders.read(entry) or RuntimeOrder()
            entry = entry._replace(version=number, slot=1 - entry.slot)
            orders.write(entry, change(found, number))
            if not self._shared:  # an order of another machine is no use of it on this one
                orders.touch(entry.place)
            return replace(before, namespaces=(*others, entry), changed=self._name)

        return self._directory.control.publish(change_entry)

    def remaining(self, one: OneShotRule) -> int:
        """Return the number of uses that remain of a one-shot rule."""
        return self._directory.orders.budgets(self._place).remaining(one)

    def set_budget(self, one: OneShotRule, uses: int) -> None:
        """Set the number of uses that remain. Raises OperatorError."""
        self._directory.orders.budgets(self._place).set_budget(one, uses)


def find_entry(entries: tuple[NamespaceEntry, ...], name: str) -> NamespaceEntry | None:
    """Return the namespace of that name, in any case; None if there is none."""
    name = name.lower()
    return next((one for one in entries if one.name == name), None)


def is_name(name: str) -> bool:
    """Return whether a namespace can have this name."""
    return re.fullmatch(NAMESPACE_NAME, name) is not None
