"""Limiters: conditions of a rule that are remembered from one attempt to the next.

Asking a limiter changes its record in the store, so it is asked after all other conditions. A limiter
blocks an attempt by having its rule match.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer, Record
from blackhole.rules.context import RuleContext
from blackhole.rules.letters import fold_octets


def client_network(client: str) -> bytes:
    """Return the network that a client may come back from: its /24, or with IPv6 its /64.

    >>> client_network("::ffff:192.0.2.7")
    b'192.0.2'
    """
    address = client.rpartition(":")[2] if "." in client else client
    if ":" in address:
        try:
            whole = int(ip_address(address.partition("%")[0]))
            return b"%x" % (whole >> 64)
        except ValueError:
            return address.encode()
    return address.rpartition(".")[0].encode()


class Greylist(NamedTuple):
    """Blocks a client's network, sender and recipient until they have been retried.

    A retry is accepted from `least` to `most` seconds after the first attempt, and all attempts after it.
    After a first retry that comes later, the triplet is new again.

    >>> greylist = Greylist(300, 86400)
    >>> record, blocked = greylist.blocks_attempt((0, 0.0, 0.0), 0.0)
    >>> blocked, greylist.blocks_attempt(record, 300.0)[1]
    (True, False)
    """

    least: float
    most: float

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        addresses = fold_octets(context.sender), fold_octets(context.recipient)
        key = b"\0".join((b"greylist", rule_key.encode(), client_network(context.client), *addresses))
        return store.update(key, context.elapsed, self.blocks_attempt)

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

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if every retry waited long enough."""
        return context.attempt == 1

    def __str__(self) -> str:
        return f"greylist accepts retries after {self.least:g} s"


def _domain(address: bytes) -> bytes:
    """Return the domain of an address; empty for the null sender."""
    return fold_octets(address[address.rfind(b"@") + 1 :])


QUOTA_OWNERS: Final[Mapping[str, Callable[[RuleContext], bytes]]] = MappingProxyType(
    {
        "client": lambda context: context.client.encode(),
        "sender-domain": lambda context: _domain(context.sender),
        "recipient-domain": lambda context: _domain(context.recipient),
        "all": lambda context: b"",
    }
)
"""Value of `by` -> what a quota is counted for."""


MAX_CONNECTION_QUOTAS: Final = 1000
"""Quotas that a connection remembers. Beyond them a new domain takes the place of the oldest one."""


class WindowCount(NamedTuple):
    """An amount to take from a quota of `limit` in `period` seconds."""

    amount: int
    limit: int
    period: float

    def spend(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether more than the limit would be taken; then nothing is."""
        amount, limit, period = self
        count, first, _ = record
        if not count or now - first >= period:
            count, first = 0, now
        if count + amount > limit:
            return (count, first, now), True
        return (count + amount, first, now), False


class RateLimit(NamedTuple):
    """Blocks what goes beyond a limit in a period. What is blocked is not counted.

    The window is fixed: a period begins with the first command that is counted and ends after its time, so
    that no more than `limit` pass in it, as with Postfix's anvil(8). A token bucket, which fills all the
    time, would let another `limit` pass in the first period.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> limit, context = RateLimit("messages", 2, 0, "client"), RuleContext()
    >>> [limit.blocks("example", context, NULL_STORE) for _ in range(3)]
    [False, False, True]
    """

    what: str
    """What is counted: "bytes", or commands by any other name."""
    limit: int
    period: float
    """Seconds; 0 for the time of a connection."""
    by: str
    """A key of QUOTA_OWNERS."""

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        amount = context.size if self.what == "bytes" else 1
        if not self.period:
            return self._blocks_connection(rule_key, amount, context)
        # After a reload a rule keeps its quota where it still counts the same.
        quota = f"{self.what} {self.period} {self.by} {rule_key}"
        key = b"\0".join((quota.encode(), QUOTA_OWNERS[self.by](context)))
        spend = WindowCount(amount, self.limit, self.period).spend
        return store.update(key, context.elapsed, spend)

    def _blocks_connection(self, rule_key: str, amount: int, context: RuleContext) -> bool:
        """Return whether the rule matches where it counts for each connection."""
        domain = QUOTA_OWNERS[self.by](context) if self.by.endswith("-domain") else b""
        quotas, quota = context.quota_used, (rule_key, domain)
        used = quotas.get(quota, 0) + amount
        if used <= self.limit:
            quotas[quota] = used
            if domain and len(quotas) > MAX_CONNECTION_QUOTAS:
                del quotas[next(known for known in quotas if known[1])]
        return used > self.limit

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if each one before took as much."""
        return context.attempt * (context.size if self.what == "bytes" else 1) > self.limit

    def __str__(self) -> str:
        return f"throttle allows {self.limit} {self.what}"


class ConcurrencyLimit(NamedTuple):
    """Blocks connections while `limit` others are open.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> ConcurrencyLimit(0, "client").blocks("example", RuleContext(), NULL_STORE)
    True
    """

    limit: int
    by: str
    """A key of QUOTA_OWNERS."""

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches; see AttemptStore for other answers."""
        key = b"\0".join((self.by.encode(), rule_key.encode(), QUOTA_OWNERS[self.by](context)))
        refused = store.refuse_or_acquire(key, self.limit)
        if refused is False:
            context.held_slots.append(key)
        elif isinstance(refused, PendingAnswer):
            context.held_slots.append(refused)
        return refused

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if the connection of each one before is open."""
        return context.attempt > self.limit

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

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule matches; see AttemptStore for other answers."""
        return store.update(b"use\0" + self.name.encode(), context.elapsed, UseCount(self.limit).take)

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if each one before was."""
        return context.attempt <= self.limit

    def __str__(self) -> str:
        return f"applies {self.limit} times"


Limiter = Greylist | RateLimit | ConcurrencyLimit | UseLimit
