"""Latency samples: where the time of every 64th turn of a listener's clients goes.

A turn is what a client sends and the reply to it. Two clocks for each of them would cost more
than all other counting.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Final

SAMPLE_EVERY: Final = 64
"""Turns to a sample."""

clock: Final = monotonic_ns


class LatencySampler:
    """Collects samples in microseconds, until the server adds them to its histograms.

    >>> sampler = LatencySampler()
    >>> sampler.turns_to_sample(), sampler.turns_to_sample()
    (1, 2)
    >>> sampler.add(1000, 251000, 252000)
    63
    >>> sampler.think_times, sampler.service_times
    ([250], [1])
    """

    __slots__ = ("_connections", "service_times", "think_times")

    def __init__(self) -> None:
        self.think_times: Final[list[int]] = []
        """From a reply to the next data of the client."""
        self.service_times: Final[list[int]] = []
        """From that data to the reply."""
        self._connections = 0

    def turns_to_sample(self) -> int:
        """Return the number of the first turn to be sampled of a new connection.

        The numbers differ, so that of connections with few turns one turn in 64 is sampled too.
        """
        self._connections = self._connections % SAMPLE_EVERY + 1
        return self._connections

    def add(self, answered: int, received: int, replied: int) -> int:
        """Add a turn, from three values of `monotonic_ns`; return the turns to the next sample.

        A turn that was not answered at once has `received` 0, and is left out.
        """
        if received:
            self.think_times.append((received - answered) // 1000)
            self.service_times.append((replied - received) // 1000)
        return SAMPLE_EVERY - 1
