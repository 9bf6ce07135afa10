"""Limits by the conduct of a client: they grow while it keeps to them, or count its refused recipients.

Each is an update of a record, as those of `blackhole.rules.quotas`: `blackhole.store.redis_conduct` does the
same in Redis. The count of a record holds several numbers, in 53 bits, as many as a number of Redis has.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer, Record
from blackhole.rules.context import RuleContext
from blackhole.rules.quota_owners import Owners, owner_key
from blackhole.rules.quotas import MICROSECONDS, in_microseconds

USED_BITS: Final = 32
MAX_GROWN: Final = 2**USED_BITS - 1
"""The largest limit to which another one grows."""

PERIOD_BITS: Final = 12
MAX_PERIODS: Final = 2**PERIOD_BITS - 1
"""Periods of a limit in the time after which it grows."""

MAX_STEPS: Final = 62
"""Times that a limit may grow."""

REFUSED_BITS: Final = 26
MAX_REFUSED: Final = 2**REFUSED_BITS - 1
"""Recipients that are counted, and those of them that were refused."""


class Growth(NamedTuple):
    """How a limit grows: by a factor after each time in which it was used and kept, up to the largest."""

    factor: float
    every: float
    """Seconds."""
    most: int
    steps: int
    """Times that it grows until it has reached the largest limit."""


class GrowingCount(NamedTuple):
    """An amount to take from a quota in each `period`, which grows after each `every` seconds.

    In the count of the record are, from its lowest bits on: what was used in the period, the number of the
    period since the limit grew last, whether it was exceeded since then, and how often it has grown. The
    first time is when it grew last, or could have.

    >>> count, record = GrowingCount(1, 1, 2.0, 100, 10.0, 10.0, 7), (0, 0.0, 0.0)
    >>> for now in (0.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0):
    ...     record, blocked = count.spend_growing(record, now)
    ...     print(now, blocked)
    0.0 False
    10.0 False
    11.0 False
    12.0 True
    20.0 False
    21.0 False
    22.0 True
    """

    amount: int
    limit: int
    factor: float
    most: int
    period: float
    every: float
    steps: int

    def spend_growing(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether more than the limit would be taken; then nothing is."""
        count, first, _ = record
        here, begin = in_microseconds(now), in_microseconds(first)
        used, rest = count & MAX_GROWN, count >> USED_BITS
        number, rest = rest & MAX_PERIODS, rest >> PERIOD_BITS
        exceeded, step = rest & 1, rest >> 1
        if not count:
            begin = here
        every = int(self.every * MICROSECONDS)
        passed = max(0, here - begin) // every
        if passed:
            grown = min(self.steps, step + 1 - exceeded)
            # A client that was not seen for a further time loses a step for it.
            step = max(0, grown - (passed - 1))
            begin += passed * every
            used = number = exceeded = 0
        current = min(MAX_PERIODS, max(0, here - begin) // int(self.period * MICROSECONDS))
        if current != number:
            used, number = 0, current
        allowed = int(min(self.most, self.limit * self.factor**step))
        blocked = used + self.amount > allowed
        if blocked:
            exceeded = 1
        else:
            used += self.amount
        count = ((step << 1 | exceeded) << PERIOD_BITS | number) << USED_BITS | used
        return (count, begin / MICROSECONDS, now), blocked


class RefusalCount(NamedTuple):
    """Recipients to count, and whether too many of an owner were refused in a period.

    The period begins with the first recipient that is counted. The count of the record has all recipients in
    its lower bits, and above them those that were refused.

    >>> record = (0, 0.0, 0.0)
    >>> for refused in (0, 1, 0, 1, 0):
    ...     record, blocked = RefusalCount(1 - refused, refused, 2, 0.5, 60.0).weigh_refusals(record, 1.0)
    >>> blocked
    True
    """

    recipients: int
    refused: int
    limit: int
    share: float
    """Of the recipients, more than this has to be refused."""
    period: float

    def weigh_refusals(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether too many were refused before; then nothing is counted."""
        count, first, _ = record
        if now - first >= self.period:
            count = 0
        if not count:
            first = now
        recipients, refused = count & MAX_REFUSED, count >> REFUSED_BITS
        if not self.refused and refused >= self.limit and refused > self.share * recipients:
            return (count, first, now), True
        recipients = min(MAX_REFUSED, recipients + self.recipients)
        refused = min(MAX_REFUSED, refused + self.refused)
        return (refused << REFUSED_BITS | recipients, first, now), False


class RefusalLimit(NamedTuple):
    """Blocks an owner of whose recipients too many were refused by other rules.

    >>> from blackhole.rules.attempt_store import NULL_STORE
    >>> RefusalLimit(10, 3600, ("client",)).blocks("example", RuleContext(), NULL_STORE)
    False
    """

    limit: int
    period: float
    by: Owners
    share: float = 0.0

    def _weigh(
        self, rule_key: str, context: RuleContext, store: AttemptStore, recipients: int, refused: int
    ) -> bool | PendingAnswer | None:
        change = RefusalCount(recipients, refused, self.limit, self.share, self.period)
        quota = f"refused {self.period} {','.join(self.by)} {rule_key}".encode()
        return store.update(
            b"\0".join((quota, owner_key(self.by, context))), context.elapsed, change.weigh_refusals
        )

    def blocks(self, rule_key: str, context: RuleContext, store: AttemptStore) -> bool | PendingAnswer | None:
        """Return whether the rule with this key matches, and count the recipient; see AttemptStore."""
        return self._weigh(rule_key, context, store, int(context.phase == "RCPT"), 0)

    def count_refused(
        self, rule_key: str, context: RuleContext, store: AttemptStore
    ) -> bool | PendingAnswer | None:
        """Count a recipient that was refused. The answer means nothing; see AttemptStore for others."""
        return self._weigh(rule_key, context, store, 0, 1)

    def would_block(self, context: RuleContext) -> bool:
        """Return whether the attempt is blocked if each one before was a refused recipient."""
        return context.attempt > self.limit

    @property
    def summary(self) -> str:
        """The limit as figures show it."""
        share = f", over {100 * self.share:g} % of all" if self.share else ""
        return f"{self.limit} refused in {self.period:g} s by {', '.join(self.by)}{share}"

    def __str__(self) -> str:
        return f"throttle allows {self.limit} refused recipients"
