"""Quotas: an amount to take from a limit, in a window that is fixed or slides, or from a bucket of tokens.

Each is an update of a record. `blackhole.store.redis_quotas` does the same in Redis, so times are compared in
whole microseconds, and numbers that are no integers are computed in the same sequence.
"""

from __future__ import annotations

from math import ceil
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import Record

MICROSECONDS: Final = 1_000_000
"""In a second."""

TOKEN_PARTS: Final = 1_000_000
"""What a token counts in the level of a bucket."""

MAX_BURST: Final = 2**32 - 1
"""Tokens of a bucket: with them its level has 53 bits, as many as a number of Redis."""

RECORD_BITS: Final = 64
"""Bits of the count of a record."""

COUNTER_BITS: Final = (4, 8, 16, 32)
"""Bits of a counter of a sliding window: as few as the limit needs, so that there are many."""

MAX_SLIDING: Final = 2 ** COUNTER_BITS[-1] - 1
"""The largest limit of a sliding window."""


def in_microseconds(seconds: float) -> int:
    """Return a time in whole microseconds."""
    return round(seconds * MICROSECONDS)


class WindowCount(NamedTuple):
    """An amount to take from a quota of `limit` in `period` seconds, from the first that is taken on."""

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


class SlidingCount(NamedTuple):
    """An amount to take from a quota of `limit` in the last `period` seconds.

    The period has equal parts, each with a counter. The oldest part, which is leaving the period, counts
    with the share of it that is still inside, so that a sender at the rate of the limit is never blocked. The
    count of the record is all counters, the newest in its lowest bits, and its first time is the beginning of
    the newest part.

    >>> record, now = (0, 0.0, 0.0), 0.0
    >>> record, blocked = SlidingCount(1, 1, 60.0).spend_sliding(record, 59.0)
    >>> blocked, SlidingCount(1, 1, 60.0).spend_sliding(record, 61.0)[1]
    (False, True)
    """

    amount: int
    limit: int
    period: float

    @property
    def bits(self) -> int:
        """The bits of a counter."""
        return next(bits for bits in COUNTER_BITS if self.limit < 1 << bits)

    def spend_sliding(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether more than the limit would be taken; then nothing is."""
        counters, first, _ = record
        bits, here = self.bits, in_microseconds(now)
        parts = RECORD_BITS // bits - 1
        length = max(1, int(self.period * MICROSECONDS) // parts)
        begin = in_microseconds(first)
        steps = max(0, here - begin) // length
        if not counters or steps > parts:
            counters, begin = 0, here
        else:
            counters = counters << bits * steps & (1 << RECORD_BITS) - 1
            begin += steps * length
        rest, mask, taken = counters, (1 << bits) - 1, 0
        for _ in range(parts):
            taken += rest & mask
            rest >>= bits
        if rest:
            taken += int((rest - 1) * ((length - (here - begin)) / length))
        if taken + self.amount > self.limit:
            return (record[0], first, now), True
        return (counters + self.amount, begin / MICROSECONDS, now), False


class TokenCount(NamedTuple):
    """Tokens to take from a bucket of `burst`, into which come `limit` in `period` seconds.

    The count of the record is how far the bucket is from full, in parts of a token, at the last time.

    >>> bucket, record = TokenCount(1, 2, 60, 60.0), (0, 0.0, 0.0)
    >>> for now in (0.0, 0.1, 0.2, 1.0):
    ...     record, blocked = bucket.spend_tokens(record, now)
    ...     print(now, blocked)
    0.0 False
    0.1 False
    0.2 True
    1.0 False
    """

    amount: int
    burst: int
    limit: int
    period: float

    def spend_tokens(self, record: Record, now: float) -> tuple[Record, bool]:
        """Return the new record, and whether the bucket has too few tokens; then none is taken."""
        amount, burst, limit, period = self
        missing, _, last = record
        passed = max(0, in_microseconds(now) - in_microseconds(last))
        missing = max(0, missing - ceil(passed * limit / period)) + amount * TOKEN_PARTS
        # What comes in a microsecond makes no difference: times are no more exact.
        if missing > burst * TOKEN_PARTS + ceil(limit / period):
            return record, True
        return (missing, now, now), False
