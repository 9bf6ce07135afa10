"""The source of randomness that an engine is given; it makes none."""

from __future__ import annotations

from typing import Protocol


class RandomSource(Protocol):
    """What an engine draws from; `random.Random` has all of it. With the same seed, a run repeats itself."""

    def random(self) -> float:
        """Return a number that is evenly distributed in [0, 1)."""

    def uniform(self, least: float, most: float, /) -> float:
        """Return a number that is evenly distributed from `least` to `most`."""

    def getrandbits(self, count: int, /) -> int:
        """Return an integer of so many random bits."""
