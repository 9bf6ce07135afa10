"""Dice: what is left to chance is thrown with them. The engine is handed some, and makes none."""

from __future__ import annotations

from typing import Protocol


class RandomSource(Protocol):
    """What the engine throws; `random.Random` has all of it. With the same seed a run repeats itself."""

    def random(self) -> float:
        """Of [0, 1), evenly."""

    def uniform(self, least: float, most: float, /) -> float:
        """Of [least, most], evenly."""

    def getrandbits(self, count: int, /) -> int:
        """So many bits."""
