"""Distributions of delays. A delay is made of two uniform draws from [0, 1)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

LONGEST_DELAY: Final = 3600.0
"""Seconds. Distributions are cut off here."""


class DelayDistribution(Protocol):
    """What rules need of a distribution."""

    @property
    def is_random(self) -> bool:
        """Whether delays differ."""

    def draw(self, first: float, second: float) -> float:
        """Return the delay in seconds for two uniform draws."""


class Uniform(NamedTuple):
    """Delays from `least` to `most` seconds.

    >>> Uniform(1, 3).draw(0.5, 0.0)
    2.0
    """

    least: float
    most: float

    @property
    def is_random(self) -> bool:
        return self.least != self.most

    def draw(self, first: float, second: float) -> float:
        return self.least + (self.most - self.least) * first


class Lognormal(NamedTuple):
    """Half of the delays below `median` seconds and 1 % above `p99`, as with busy servers."""

    median: float
    p99: float

    @property
    def is_random(self) -> bool:
        return True

    def draw(self, first: float, second: float) -> float:
        # The Box-Muller transform of two uniform draws into a normal one; 1 - first is never 0.
        normal = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
        sigma = math.log(self.p99 / self.median) / NORMAL_P99
        return min(self.median * math.exp(sigma * normal), LONGEST_DELAY)


NORMAL_P99: Final = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


class Percentiles(NamedTuple):
    """Delays by their percentiles, uniform between two of them; the last is the longest delay."""

    points: tuple[tuple[float, float], ...]
    """(share from 0 to 1, seconds), both ascending."""

    @property
    def is_random(self) -> bool:
        return True

    def draw(self, first: float, second: float) -> float:
        below = (0.0, 0.0)
        for point in self.points:
            if first < point[0]:
                part = (first - below[0]) / (point[0] - below[0])
                return below[1] + (point[1] - below[1]) * part
            below = point
        return below[1]
