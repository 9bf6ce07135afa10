"""Counts in a sample, and the estimate of the whole with its confidence interval."""

from __future__ import annotations

from math import sqrt
from typing import Any, Final, NamedTuple

CONFIDENCE: Final = 95
"""Per cent of all samples whose interval contains the true number."""

QUANTILE: Final = 1.959964
"""The quantile of the standard normal distribution that belongs to it."""


def wilson_interval(found: int, inspected: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share, from how many were found among those inspected.

    Unlike the interval of the normal approximation it also holds for few, for none and for all. Source: E. B.
    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).

    >>> [round(limit, 3) for limit in wilson_interval(19, 20)]
    [0.764, 0.991]
    """
    if not inspected:
        return 0.0, 1.0
    share, square = found / inspected, QUANTILE * QUANTILE
    scale = 1 + square / inspected
    middle = share + square / (2 * inspected)
    half = QUANTILE * sqrt(share * (1 - share) / inspected + square / (4 * inspected * inspected))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


class SampledCount(NamedTuple):
    """How often something was found in a sample of sessions or messages.

    >>> count = SampledCount(found=19, inspected=20, of=64, what="sessions")
    >>> count.estimate, count.interval
    (61, (49, 63))
    """

    found: int
    inspected: int
    of: int
    """How many there are. Never less than were inspected."""
    what: str
    """One of `violations.INSPECTED`."""

    def with_found(self, found: int) -> SampledCount:
        """Return the count with so many found: they were inspected, even if that is not counted yet."""
        inspected = max(self.inspected, found)
        return SampledCount(found, inspected, max(self.of, inspected), self.what)

    @property
    def is_complete(self) -> bool:
        """Whether everything was inspected, so that the count is exact."""
        return self.inspected >= self.of

    @property
    def estimate(self) -> int:
        """The number that is expected among all, rounded."""
        return round(self.found / self.inspected * self.of) if self.inspected else 0

    @property
    def interval(self) -> tuple[int, int]:
        """The least and the largest number that can be expected among all.

        It does not contradict what was seen: no less than were found, and none of those that were right.
        """
        low, high = wilson_interval(self.found, self.inspected)
        right = self.inspected - self.found
        return max(self.found, round(low * self.of)), min(self.of - right, round(high * self.of))

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        return {
            "found": self.found,
            "inspected": self.inspected,
            "of": self.of,
            "what": self.what,
            "estimate": self.estimate,
            "interval": list(self.interval),
        }
