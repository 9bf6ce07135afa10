"""The store of attempts, as rules see it: what it is asked, and how it answers.

How a record changes is said by functions of what was known; where records are kept, and who else changes
them, is the store's affair. One that is on another machine answers later, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

Record = tuple[int, float, float]
"""A count, and the first and the last time, in seconds of the rules' clock; of what is new 0, now, now."""


Answer = TypeVar("Answer")


Update = Callable[[Record, float], tuple[Record, Answer]]
"""What was known, and what time it is -> what is known now, and what was asked. Those of gates are
functions or methods of tuples: a memory that cannot call them can tell their names, and of what."""


class PendingAnswer:
    """An answer that is still to come. Whoever can wait awaits it, and tells the session."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __await__(self) -> Generator[Any, None, Any]: ...


Slot = bytes | PendingAnswer
"""Where somebody is who counts as being there."""


class AttemptStore(Protocol):
    """What gates remember by. Keys have addresses in them: whoever keeps them hashes them.

    An answer may come later; None: there is none to be had.
    """

    def update(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | PendingAnswer | None:
        """Change what is known of a key; `alone` keeps others from changing it at the same time."""

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        """Whether so many are there already; if not, one more is."""

    def release(self, place: Slot) -> None:
        """One that was not barred is there no more. The place is the key, or the answer that came later."""


class NullStore:
    """A memory that keeps nothing: everything is new to it."""

    def update(self, key: bytes, now: float, change: Update[Answer], alone: bool = False) -> Answer:
        return change((0, now, now), now)[1]

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool:
        return limit <= 0

    def release(self, place: Slot) -> None:
        pass


NULL_STORE: Final = NullStore()


class ScopedStore(NamedTuple):
    """A memory for what is in force for a while: it knows nothing of what was before, or comes after."""

    memory: AttemptStore
    mark: bytes
    """Stands before each key."""

    def update(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | PendingAnswer | None:
        return self.memory.update(self.mark + key, now, change, alone)

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        return self.memory.refuse_or_acquire(self.mark + key, limit)

    def release(self, place: Slot) -> None:
        self.memory.release(self.mark + place if isinstance(place, bytes) else place)


def count_attempt(known: Record, now: float) -> tuple[Record, int]:
    """How many times something was tried, this time included."""
    count, first, _ = known
    return (count + 1, first, now), count + 1
