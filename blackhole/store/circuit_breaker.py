"""The circuit breaker of a store: whether it is asked, and how often it did not answer.

While the circuit is open, nothing is asked, so no mail waits. A late answer opens it, until that answer is
there. After several late answers in a row, or an error, it stays open until a probe was answered in time. A
probe is a request that no mail waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAX_LATE: Final = 2
"""Late answers in a row after which only a probe closes the circuit: a message waits for no more of them."""

MAX_WAITS: Final = 10_000
"""Times that are kept until they are read; a worker reads them once a second."""

PROBE_INTERVAL: Final = 1.0
"""Seconds until a probe, and between two of them."""


class CircuitBreaker:
    """The state of one connection to a store, and the figures of all.

    >>> circuit = CircuitBreaker()
    >>> circuit.close()
    >>> circuit.open()
    >>> circuit.answered(in_time=False), circuit.closed
    (True, True)
    """

    __slots__ = ("_late", "closed", "openings", "questions", "unanswered", "waits")

    def __init__(self) -> None:
        self.closed = False
        """Whether the store is asked."""
        self.questions = 0
        """Questions that some mail had, asked or not."""
        self.unanswered = 0
        """Those that were not answered in time, or not asked."""
        self.openings = 0
        """How often the circuit was opened."""
        self.waits: list[int] = []
        """Microseconds that each question waited; whoever reads them clears them."""
        self._late = 0
        """Late answers in a row."""

    def close(self) -> None:
        """Ask the store from now on: a probe was answered in time."""
        self._late = 0
        self.closed = True

    def open(self) -> None:
        """Ask the store no more: an answer is late, or there is an error."""
        self.openings += self.closed
        self.closed = False

    def answered(self, in_time: bool) -> bool:
        """Take in that an answer has come; return whether the store is asked from now on."""
        if in_time:
            self.close()
        else:
            self._late += 1
            self.closed = self._late < MAX_LATE
        return self.closed

    def settled(self, seconds: float, is_answered: bool) -> None:
        """Count a question that was asked so many seconds ago, and is answered now or never."""
        self.unanswered += not is_answered
        if len(self.waits) < MAX_WAITS:
            self.waits.append(int(seconds * 1e6))

    def figures(self) -> Mapping[str, int]:
        """Return the figures, by the names of their counters."""
        return {
            "store_questions": self.questions,
            "store_unanswered": self.unanswered,
            "store_openings": self.openings,
        }
