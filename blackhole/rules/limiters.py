"""Limiters: conditions of a rule that are remembered from one attempt to the next.

Asking a limiter changes its record in the store, so it is asked after all other conditions. A limiter
blocks an attempt by having its rule match.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer, Record, Update
from blackhole.rules.conduct import GrowingCount, Growth, RefusalLimit
from blackhole.rules.context import NO_QUOTAS, NO_SLOTS, RuleContext
from blackhole.rules.quota_owners import Owners, owner_key, varies
from blackhole.rules.quotas import SlidingCount, TokenCount, WindowCount

TRIPLET: Final = ("network", "sender", "recipient")
"""What a greylist usually counts for."""


class RetryWindow(NamedTuple):
    """Blocks a first attempt, and retries that come too early or too late."""

    least: float
    most: float

    def blocks_attempt(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether the attempt is blocked."""
        count, first, last = record
        # Only a triplet that was accepted has a last attempt so long after the first.
        if count and last - first >= self.least:
            return (count + 1, first, now), False
        since = now - first
        if not count or since > self.most:
            return (1, now, now), True
        return (count + 1, first, now), since < self.least


class Greylist(NamedTuple):
    """Blocks a client's network, sender and recipient, or what else `by` names, until they were retried.

    A retry is accepted from `least` to `most` seconds after the first attempt, and all attempts after it.
    After a first retry that comes later, the triplet is new again.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> Greylist(300, 86400).blocks("example", RuleContext(), NULL_STORE)
    True
    """

    least: float
    most: float
    by: Owners = TRIPLET

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        what = "greylist" if self.by == TRIPLET else f"greylist {','.join(self.by)}"
        key = b"\0".join((what.encode(), rule_key.encode(), owner_key(self.by, context)))
        return store.update(key, context.elapsed, RetryWindow(self.least, self.most).blocks_attempt)

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if every retry waited long enough."""
        return context.attempt == 1

    @property
    def summary(self) -> str:
        """The limit as figures show it."""
        return f"retry after {self.least:g} to {self.most:g} s by {', '.join(self.by)}"

    def __str__(self) -> str:
        return f"greylist accepts retries after {self.least:g} s"


MAX_CONNECTION_QUOTAS: Final = 1000
"""Quotas, and as many slots, that a connection remembers, of all rules together. Beyond them a new quota
takes the place of the oldest, and a new slot that of the oldest of the same rule, if it has one."""


class RateLimit(NamedTuple):
    """Blocks what goes beyond a limit in a period. What is blocked is not counted.

    A fixed window begins with the first command that is counted and ends after its time, so that no more than
    `limit` pass in it, as with Postfix's anvil(8). A sliding one is the last `period` at any moment. A bucket
    of tokens lets `burst` pass at once, and after that `limit` in each period.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> limit, context = RateLimit("messages", 2, 0, ("client",)), RuleContext()
    >>> [limit.blocks("example", context, NULL_STORE) for _ in range(3)]
    [False, False, True]
    """

    what: str
    """What is counted: "bytes", or commands by any other name."""
    limit: int
    period: float
    """Seconds; 0 for the time of a connection."""
    by: Owners
    sliding: bool = False
    burst: int = 0
    """Tokens of a bucket; 0 for a window."""
    growth: Growth | None = None
    """How the limit grows while it is kept; None for one that does not."""

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        amount = context.size if self.what == "bytes" else 1
        if not self.period:
            return self._blocks_connection(rule_key, amount, context)
        change, kind = self._update(amount)
        # After a reload a rule keeps its quota where it still counts the same.
        quota = f"{self.what} {self.period} {','.join(self.by)}{kind} {rule_key}"
        return store.update(
            b"\0".join((quota.encode(), owner_key(self.by, context))), context.elapsed, change
        )

    def _update(self, amount: int) -> tuple[Update[bool], str]:
        """Return the update that takes an amount, and what tells its records from others."""
        if self.growth is not None:
            factor, every, most, steps = self.growth
            growing = GrowingCount(amount, self.limit, factor, most, self.period, every, steps)
            return growing.spend_growing, f" grows {every}"
        if self.burst:
            return TokenCount(amount, self.burst, self.limit, self.period).spend_tokens, " burst"
        if self.sliding:
            sliding = SlidingCount(amount, self.limit, self.period)
            return sliding.spend_sliding, f" sliding {sliding.bits}"
        return WindowCount(amount, self.limit, self.period).spend, ""

    def _blocks_connection(self, rule_key: str, amount: int, context: RuleContext) -> bool:
        """Return whether the rule matches where it counts for each connection."""
        owner = owner_key(self.by, context) if varies(self.by) else b""
        if context.quota_used is NO_QUOTAS:
            context.quota_used = {}
        quotas, quota = context.quota_used, (rule_key, owner)
        used = quotas.get(quota, 0) + amount
        if used <= self.limit:
            quotas[quota] = used
            if owner and len(quotas) > MAX_CONNECTION_QUOTAS:
                del quotas[next(known for known in quotas if known[1])]
        return used > self.limit

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if each one before took as much."""
        amount = context.size if self.what == "bytes" else 1
        return context.attempt * amount > (self.burst or self.limit)

    @property
    def summary(self) -> str:
        """The limit as figures show it."""
        period = f"in {self.period:g} s" if self.period else "in a connection"
        more = f", {self.burst} at once" if self.burst else ", sliding" if self.sliding else ""
        if self.growth is not None:
            more = f", growing to {self.growth.most}"
        return f"{self.limit} {self.what} {period} by {', '.join(self.by)}{more}"

    def __str__(self) -> str:
        return f"throttle allows {self.burst or self.limit} {self.what}{' at once' if self.burst else ''}"


class ConcurrencyLimit(NamedTuple):
    """Blocks connections while `limit` others are open.

    A connection holds a slot for each owner that it was counted for, until it is closed.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> ConcurrencyLimit(0, ("client",)).blocks("example", RuleContext(), NULL_STORE)
    True
    """

    limit: int
    by: Owners

    def _prefix(self, rule_key: str) -> bytes:
        """Return what the keys of a rule's slots begin with."""
        return f"{','.join(self.by)}\0{rule_key}\0".encode()

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        if context.held_slots is NO_SLOTS:
            context.held_slots = {}
        prefix, slots = self._prefix(rule_key), context.held_slots
        key = prefix + owner_key(self.by, context)
        if key in slots:
            return False
        if len(slots) >= MAX_CONNECTION_QUOTAS:
            oldest = next((held for held in slots if held.startswith(prefix)), None)
            if oldest is not None:
                store.release(slots.pop(oldest))
        refused = store.refuse_or_acquire(key, self.limit)
        if refused is False:
            slots[key] = key
        elif isinstance(refused, PendingAnswer):
            slots[key] = refused
        return refused

    def forget_refused(self, rule_key: str, context: RuleContext) -> None:
        """Forget the slot that a pending answer has refused."""
        context.held_slots.pop(self._prefix(rule_key) + owner_key(self.by, context), None)

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if the connection of each one before is open."""
        return context.attempt > self.limit

    @property
    def summary(self) -> str:
        """The limit as figures show it."""
        return f"{self.limit} connections at once by {', '.join(self.by)}"

    def __str__(self) -> str:
        return f"throttle allows {self.limit} connections at once"


class UseCount(NamedTuple):
    """Takes one of `limit` uses."""

    limit: int

    def take(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether there was a use to take."""
        count, first, last = record
        if count >= self.limit:
            return (count, first, last), False
        return (count + 1, first, now), True


class UseLimit(NamedTuple):
    """Lets a rule match `limit` times over all machines that share a store.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> UseLimit(1, "example").blocks("", RuleContext(), NULL_STORE)
    True
    """

    limit: int
    name: str
    """What the uses are counted for, in place of the rule."""
    store: AttemptStore | None = None
    """Where they are counted, whatever else is in force; None: in the store of the scenario."""

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule matches; see AttemptStore for other answers."""
        key = b"use\0" + self.name.encode()
        return (self.store or store).update(key, context.elapsed, UseCount(self.limit).take)

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if each one before was."""
        return context.attempt <= self.limit

    @property
    def summary(self) -> str:
        """Nothing: it limits the rule, and no client."""
        return ""

    def __str__(self) -> str:
        return f"applies {self.limit} times"


Limiter = Greylist | RateLimit | ConcurrencyLimit | RefusalLimit | UseLimit
