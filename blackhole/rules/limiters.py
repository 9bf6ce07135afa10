"""A gate: a condition of a rule that remembers. Asking it changes what is remembered, so it is asked last.

What a gate keeps of a key is a count and two times. How they change is said here, in functions
of what was known; where they are kept, and who else changes them, is the memory's affair. One that
is elsewhere answers later, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from blackhole.rules.model import RuleContext

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

    def revise(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | PendingAnswer | None:
        """Change what is known of a key; `alone` keeps others from changing it at the same time."""

    def bars(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        """Whether so many are there already; if not, one more is."""

    def leave(self, place: Slot) -> None:
        """One that was not barred is there no more. The place is the key, or the answer that came later."""


class NullStore:
    """A memory that keeps nothing: everything is new to it."""

    def revise(self, key: bytes, now: float, change: Update[Answer], alone: bool = False) -> Answer:
        return change((0, now, now), now)[1]

    def bars(self, key: bytes, limit: int) -> bool:
        return limit <= 0

    def leave(self, place: Slot) -> None:
        pass


NULL_STORE: Final = NullStore()


class ScopedStore(NamedTuple):
    """A memory for what is in force for a while: it knows nothing of what was before, or comes after."""

    memory: AttemptStore
    mark: bytes
    """Stands before each key."""

    def revise(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | PendingAnswer | None:
        return self.memory.revise(self.mark + key, now, change, alone)

    def bars(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        return self.memory.bars(self.mark + key, limit)

    def leave(self, place: Slot) -> None:
        self.memory.leave(self.mark + place if isinstance(place, bytes) else place)


def counted(known: Record, now: float) -> tuple[Record, int]:
    """How many times something was tried, this time included."""
    count, first, _ = known
    return (count + 1, first, now), count + 1


def network(client: str) -> bytes:
    """The neighbourhood a client may come back from: its /24, or with IPv6 its /64."""
    address = client.rpartition(":")[2] if "." in client else client
    if ":" in address:
        try:
            whole = int(ip_address(address.partition("%")[0]))
            return b"%x" % (whole >> 64)
        except ValueError:
            return address.encode()
    return address.rpartition(".")[0].encode()


class Greylist(NamedTuple):
    """Shut for whoever has not tried before: a client's network, with this sender and this recipient.

    It opens to a retry that comes no sooner than `least` and no later than `most` seconds after the
    first attempt, and stays open. A triplet that comes later than that is new again.
    """

    least: float
    most: float

    def stops(self, name: str, case: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        triplet = network(case.client), case.sender.lower(), case.recipient.lower()
        key = b"\0".join((b"greylist", name.encode(), *triplet))
        return memory.revise(key, case.at, self.seen)

    def seen(self, known: Record, now: float) -> tuple[Record, bool]:
        """Nothing marks a triplet that has passed: only one that has can have been seen so late."""
        count, first, last = known
        if count and last - first >= self.least:
            return (count + 1, first, now), False
        since = now - first
        if not count or since > self.most:
            return (1, now, now), True
        return (count + 1, first, now), since < self.least

    def would_stop(self, case: RuleContext) -> bool:
        """Without a memory: the second attempt is one that has waited."""
        return case.attempt == 1

    def __str__(self) -> str:
        return f"greylist lets in who comes again after {self.least:g} s"


def domain(address: bytes) -> bytes:
    """Of an address; of the null sender nothing."""
    return address[address.rfind(b"@") + 1 :].lower()


BY: Final[Mapping[str, Callable[[RuleContext], bytes]]] = MappingProxyType(
    {
        "client": lambda case: case.client.encode(),
        "sender-domain": lambda case: domain(case.sender),
        "recipient-domain": lambda case: domain(case.recipient),
        "all": lambda case: b"",
    }
)
"""Whose quota it is."""


class WindowCount(NamedTuple):
    """So much is spent of a quota, unless that is more than there is left of it."""

    amount: int
    limit: int
    period: float

    def spend(self, known: Record, now: float) -> tuple[Record, bool]:
        amount, limit, period = self
        count, first, _ = known
        if not count or now - first >= period:
            count, first = 0, now
        if count + amount > limit:
            return (count, first, now), True
        return (count + amount, first, now), False


class RateLimit(NamedTuple):
    """Shut for what goes beyond so many in a period. What is stopped is not counted.

    A period begins with the first that is counted and ends by itself, so that no more than `limit`
    pass in it, as with Postfix's anvil(8). (A bucket that fills all the time would let another
    `limit` pass in the first period.)
    """

    what: str
    """Is counted: bytes, or commands by any other name."""
    limit: int
    period: float
    """Seconds; 0: the period is a connection."""
    by: str
    """A key of BY."""

    def stops(self, name: str, case: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        amount = case.size if self.what == "bytes" else 1
        if not self.period:
            key = self.what, name
            spent = case.spent.get(key, 0) + amount
            if spent <= self.limit:
                case.spent[key] = spent
            return spent > self.limit
        # Two rules of one name have quotas of their own, where these are not the same.
        quota = f"{self.what} {self.period} {self.by} {name}"
        whose = b"\0".join((quota.encode(), BY[self.by](case)))
        return memory.revise(whose, case.at, WindowCount(amount, self.limit, self.period).spend, alone=True)

    def would_stop(self, case: RuleContext) -> bool:
        """Without a memory: as if each attempt had spent as much."""
        return case.attempt * (case.size if self.what == "bytes" else 1) > self.limit

    def __str__(self) -> str:
        return f"throttle lets in {self.limit} {self.what}"


class ConcurrencyLimit(NamedTuple):
    """Shut while so many connections are open."""

    limit: int
    by: str
    """A key of BY."""

    def stops(self, name: str, case: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        key = b"\0".join((self.by.encode(), name.encode(), BY[self.by](case)))
        full = memory.bars(key, self.limit)
        if full is False:
            case.entered.append(key)
        elif isinstance(full, PendingAnswer):
            case.entered.append(full)
        return full

    def would_stop(self, case: RuleContext) -> bool:
        """Without a memory: as if each attempt were still there."""
        return case.attempt > self.limit

    def __str__(self) -> str:
        return f"throttle lets in {self.limit} at once"


Limiter = Greylist | RateLimit | ConcurrencyLimit
