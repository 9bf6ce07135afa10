"""A gate: a condition of a rule that remembers. Asking it changes what is remembered, so it is asked last.

What a gate keeps of a key is a count and two times. How they change is said here, in functions
of what was known; where they are kept, and who else changes them, is the memory's affair. One that
is elsewhere answers later, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer, Record
from blackhole.rules.context import RuleContext


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

    def blocks(self, name: str, context: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        triplet = network(context.client), context.sender.lower(), context.recipient.lower()
        key = b"\0".join((b"greylist", name.encode(), *triplet))
        return memory.update(key, context.elapsed, self.blocks_attempt)

    def blocks_attempt(self, known: Record, now: float) -> tuple[Record, bool]:
        """Nothing marks a triplet that has passed: only one that has can have been seen so late."""
        count, first, last = known
        if count and last - first >= self.least:
            return (count + 1, first, now), False
        since = now - first
        if not count or since > self.most:
            return (1, now, now), True
        return (count + 1, first, now), since < self.least

    def would_block(self, context: RuleContext) -> bool:
        """Without a memory: the second attempt is one that has waited."""
        return context.attempt == 1

    def __str__(self) -> str:
        return f"greylist lets in who comes again after {self.least:g} s"


def domain(address: bytes) -> bytes:
    """Of an address; of the null sender nothing."""
    return address[address.rfind(b"@") + 1 :].lower()


QUOTA_OWNERS: Final[Mapping[str, Callable[[RuleContext], bytes]]] = MappingProxyType(
    {
        "client": lambda context: context.client.encode(),
        "sender-domain": lambda context: domain(context.sender),
        "recipient-domain": lambda context: domain(context.recipient),
        "all": lambda context: b"",
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
    """A key of QUOTA_OWNERS."""

    def blocks(self, name: str, context: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        amount = context.size if self.what == "bytes" else 1
        if not self.period:
            key = self.what, name
            spent = context.quota_used.get(key, 0) + amount
            if spent <= self.limit:
                context.quota_used[key] = spent
            return spent > self.limit
        # Two rules of one name have quotas of their own, where these are not the same.
        quota = f"{self.what} {self.period} {self.by} {name}"
        whose = b"\0".join((quota.encode(), QUOTA_OWNERS[self.by](context)))
        return memory.update(
            whose, context.elapsed, WindowCount(amount, self.limit, self.period).spend, alone=True
        )

    def would_block(self, context: RuleContext) -> bool:
        """Without a memory: as if each attempt had spent as much."""
        return context.attempt * (context.size if self.what == "bytes" else 1) > self.limit

    def __str__(self) -> str:
        return f"throttle lets in {self.limit} {self.what}"


class ConcurrencyLimit(NamedTuple):
    """Shut while so many connections are open."""

    limit: int
    by: str
    """A key of QUOTA_OWNERS."""

    def blocks(self, name: str, context: RuleContext, memory: AttemptStore) -> bool | PendingAnswer | None:
        key = b"\0".join((self.by.encode(), name.encode(), QUOTA_OWNERS[self.by](context)))
        full = memory.refuse_or_acquire(key, self.limit)
        if full is False:
            context.held_slots.append(key)
        elif isinstance(full, PendingAnswer):
            context.held_slots.append(full)
        return full

    def would_block(self, context: RuleContext) -> bool:
        """Without a memory: as if each attempt were still there."""
        return context.attempt > self.limit

    def __str__(self) -> str:
        return f"throttle lets in {self.limit} at once"


Limiter = Greylist | RateLimit | ConcurrencyLimit
