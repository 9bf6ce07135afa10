"""The interface of a store of attempts, and how the records in it change.

A record changes by a function of what it was, so that a store decides where records are kept and which
process changes them. A store on another machine answers later, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

Record = tuple[int, float, float]
"""A count, and the first and the last time in seconds. A new record is (0, now, now)."""

Answer = TypeVar("Answer")

Update = Callable[[Record, float], tuple[Record, Answer]]
"""Takes a record and the time; returns the new record and an answer.

Updates of limiters are functions, or methods of tuples: a store on another machine, which cannot call them,
sends their name and the values of the tuple.
"""


class PendingAnswer:
    """An answer of a store that is still to come. A connection awaits it, and hands the result on."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __await__(self) -> Generator[Any, None, Any]: ...


HeldSlot = bytes | PendingAnswer
"""A held concurrency slot: its key, or the pending answer for one."""


class AttemptStore(Protocol):
    """What rules need of a store.

    Keys contain addresses, so a store keeps hashes of them. Each method may return a PendingAnswer, or
    None where the store has no answer.
    """

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer | PendingAnswer | None:
        """Change the record of a key and return the answer. No other process changes it at the same time."""

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        """Return True if `limit` slots of a key are held; otherwise take one and return False."""

    def release(self, slot: HeldSlot) -> None:
        """Release a slot taken by `refuse_or_acquire`."""


class NullStore:
    """A store that keeps nothing: every key is new.

    >>> [NullStore().update(b"key", now, count_attempt) for now in (1.0, 2.0)]
    [1, 1]
    """

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer:
        return change((0, now, now), now)[1]

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool:
        return limit <= 0

    def release(self, slot: HeldSlot) -> None:
        pass


NULL_STORE: Final = NullStore()


class ScopedStore(NamedTuple):
    """A part of a store: its keys are those of no other part."""

    store: AttemptStore
    prefix: bytes
    """Stands before each key."""

    def update(self, key: bytes, now: float, change: Update[Answer]) -> Answer | PendingAnswer | None:
        return self.store.update(self.prefix + key, now, change)

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        return self.store.refuse_or_acquire(self.prefix + key, limit)

    def release(self, slot: HeldSlot) -> None:
        self.store.release(self.prefix + slot if isinstance(slot, bytes) else slot)


def count_attempt(record: Record, now: float) -> tuple[Record, int]:
    """Count an attempt; the answer is its number, from 1."""
    count, first, _ = record
    return (count + 1, first, now), count + 1
