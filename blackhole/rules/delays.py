"""A shape: how long delays are, and how they are spread. Drawing takes two even draws from [0, 1)."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

MAX_DELAY: Final = 3600.0
"""Seconds. A tail of a distribution is cut here."""


class DelayDistribution(Protocol):
    """A spread of delays."""

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it."""

    def draw(self, first: float, second: float) -> float:
        """Seconds."""


class Uniform(NamedTuple):
    """Any time from `least` to `most`, all alike; where they are the same, always that."""

    least: float
    most: float

    @property
    def is_random(self) -> bool:
        return self.least != self.most

    def draw(self, first: float, second: float) -> float:
        return self.least + (self.most - self.least) * first


class Lognormal(NamedTuple):
    """Half of them below `median`, one in a hundred above `p99`: as the delays of busy servers are."""

    median: float
    p99: float

    @property
    def is_random(self) -> bool:
        return True

    def draw(self, first: float, second: float) -> float:
        # Box and Muller's way from two even draws to a normal one; 1 - first is never 0.
        normal = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
        sigma = math.log(self.p99 / self.median) / NORMAL_P99
        return min(self.median * math.exp(sigma * normal), MAX_DELAY)


NORMAL_P99: Final = 2.3263478740408408
"""How many standard deviations 99 % of a normal distribution lie below."""


class Percentiles(NamedTuple):
    """As many of them below each point as it says, and evenly spread between two; the last is the longest."""

    points: tuple[tuple[float, float], ...]
    """(share from 0 to 1, seconds), both rising."""

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
