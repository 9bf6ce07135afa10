"""The namespaces of a fleet in its store: which there are, what is in force in each, and when it was used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final, NamedTuple

from blackhole.fleet.namespace_script import (
    FULL,
    INDEX_NUMBER,
    PUBLISH_TO_NAMESPACE,
    PUBLISHED,
    REMOVE_NAMESPACE,
    RESTORE_NAMESPACES,
    TOUCH_NAMESPACES,
)
from blackhole.fleet.replies import FleetOrder, StoreError, checked_count
from blackhole.fleet.store import FleetStore
from blackhole.store.control import MAX_NAMESPACES
from blackhole.store.namespaces import MAX_UNUSED, MIN_UNUSED, NamespacesFull, is_name
from blackhole.store.redis_replies import InvalidReply

INDEX_KEYS: Final = ("namespaces", "namespaces:used", "orders")
"""The index, when each namespace was used, and the channel of the fleet's orders."""

INDEX_ENTRY: Final = re.compile(r"([0-9a-f]{1,32}) ([0-9]{1,18}) ([0-9]{1,12}(?:\.[0-9]{1,9})?)")


class SharedNamespace(NamedTuple):
    """A namespace of a fleet."""

    name: str
    id: str
    """Tells it from an earlier one of that name."""
    number: int
    """Number of the order that changed it last."""
    made: float
    """When it was made, by the store's clock, in seconds since 1970."""


class NamespaceIndex(NamedTuple):
    """The namespaces of a fleet at one moment."""

    number: int = 0
    """Number of the last order to any of them; 0 before the first."""
    namespaces: Mapping[str, SharedNamespace] = {}
    """By name."""


class NamespaceStore:
    """The namespaces of a fleet. All methods raise StoreError."""

    def __init__(self, store: FleetStore) -> None:
        self._store: Final = store
        self._publish: Final = store.script(PUBLISH_TO_NAMESPACE)
        self._remove: Final = store.script(REMOVE_NAMESPACE)
        self._touch: Final = store.script(TOUCH_NAMESPACES)
        self._restore: Final = store.script(RESTORE_NAMESPACES)

    async def index(self) -> NamespaceIndex:
        """Return which namespaces there are."""
        found = await self._store.read_hash("namespaces")
        number = _checked_count(found.pop(INDEX_NUMBER.encode(), b"0"))
        entries = (one for name, text in found.items() if (one := parse_entry(name, text)) is not None)
        return NamespaceIndex(number, {one.name: one for one in islice(entries, MAX_NAMESPACES)})

    async def order(self, namespace: SharedNamespace) -> FleetOrder:
        """Return what is in force in a namespace; its number is 0 if the namespace is gone."""
        return await self._store.of_namespace(namespace.id).order()

    async def publish(self, name: str, order: FleetOrder, is_new: bool) -> int:
        """Put an order for a namespace in force, and make the namespace if there is none.

        The number of the order is that of the one that it was made of, and `is_new` says that its scenario is
        another. Return the number of the order; 0 if another one came in between. Raises NamespacesFull.
        """
        reply = await self._publish(
            INDEX_KEYS,
            *(name, os.urandom(8).hex(), order.number, int(is_new), order.name, order.text),
            *(json.dumps(order.rules), MAX_NAMESPACES, f"{MIN_UNUSED:.0f}"),
        )
        if not (isinstance(reply, list) and len(reply) == 2):
            raise StoreError("an answer of another type")
        code, number = map(_checked_count, reply)
        if code == FULL:
            raise NamespacesFull(
                f"there are {MAX_NAMESPACES} namespaces already, and all were used in the last"
                f" {MIN_UNUSED / 60:g} minutes; DELETE /namespaces/NAME removes one",
                os.EX_CANTCREAT,
            )
        return number if code == PUBLISHED else 0

    async def remove(self, name: str, namespace: str = "") -> int:
        """Remove a namespace, with all that belongs to it; return the number of the order.

        With an id, nothing happens if the namespace of that name has another one.
        """
        return _checked_count(await self._remove(INDEX_KEYS, name, namespace))

    async def touch(self, used: Iterable[tuple[SharedNamespace, float]]) -> list[str]:
        """Note how many seconds ago namespaces were used, and remove those that were not used for long.

        Return the names of those that are gone.
        """
        words = [word for one, seconds in used for word in (one.name, one.id, f"{seconds:.3f}")]
        gone = await self._touch(INDEX_KEYS, f"{MAX_UNUSED:.0f}", *words)
        if not (isinstance(gone, list) and all(isinstance(name, bytes) for name in gone)):
            raise StoreError("an answer of another type")
        return [name.decode(errors="replace") for name in gone]

    async def restore(self, index: NamespaceIndex, orders: Mapping[str, FleetOrder]) -> None:
        """Write all namespaces again, where the store has an earlier order as its last."""
        words: list[str | int] = []
        for one in index.namespaces.values():
            order = orders.get(one.name, FleetOrder())
            words += (one.name, one.id, one.number, f"{one.made:.6f}")
            words += (order.name, order.text, f"{order.at:.6f}", json.dumps(order.rules))
        await self._restore(INDEX_KEYS, index.number, *words)

    async def unused(self) -> dict[str, float]:
        """Return the seconds since each namespace was used last, by name."""
        now = await self._store.now()
        found = await self._store.read_scores("namespaces:used")
        return {name.decode(errors="replace"): max(0.0, now - at) for name, at in found.items()}


def parse_entry(name: bytes, text: bytes) -> SharedNamespace | None:
    """Return a namespace as it is in the index; None for what is none.

    >>> parse_entry(b"checkout", b"6f0a 12 1764400000.5")
    SharedNamespace(name='checkout', id='6f0a', number=12, made=1764400000.5)
    """
    decoded = name.decode("ascii", errors="replace")
    found = INDEX_ENTRY.fullmatch(text.decode("ascii", errors="replace"))
    if found is None or not is_name(decoded) or decoded != decoded.lower():
        return None
    return SharedNamespace(decoded, found[1], int(found[2]), float(found[3]))


def _checked_count(reply: object) -> int:
    try:
        return checked_count(reply)
    except InvalidReply as error:
        raise StoreError(str(error)) from None
