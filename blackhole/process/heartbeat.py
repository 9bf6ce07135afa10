"""The heartbeat and the message count of a child, in memory that only the child and the master have.

The counters have them too, for all to read. Each worker may write there, and could make the master kill
another one, keep one that hangs, or never stop after `stop_after` messages.
"""

from __future__ import annotations

import mmap
import time
from contextlib import suppress
from typing import Final


class Heartbeat:
    """The time of the last heartbeat, made by the master before it forks the child.

    >>> heartbeat = Heartbeat()
    >>> heartbeat.last
    0.0
    >>> heartbeat.beat()
    >>> 0 < heartbeat.last <= time.monotonic()
    True
    """

    def __init__(self) -> None:
        self._map: Final = mmap.mmap(-1, mmap.PAGESIZE)
        self._cells: Final = memoryview(self._map).cast("Q")

    def hide(self) -> None:
        """Leave the memory out of children that are forked from now on."""
        with suppress(OSError, AttributeError):  # a kernel or a Python without it
            self._map.madvise(mmap.MADV_DONTFORK)

    def count_message(self) -> None:
        """Count a message that the child has answered."""
        self._cells[1] += 1

    @property
    def messages(self) -> int:
        """The messages that the child has counted."""
        return self._cells[1]

    def beat(self) -> None:
        """Record that the child is alive now."""
        self._cells[0] = time.monotonic_ns() // 1000

    @property
    def last(self) -> float:
        """The monotonic time of the last heartbeat in seconds; 0.0 before the first. It is never in the
        future, whatever the child wrote."""
        return min(self._cells[0] / 1e6, time.monotonic())
