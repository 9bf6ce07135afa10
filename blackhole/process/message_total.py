"""The total of messages over all workers, for `stop_after`: exact, and only kept where that is set.

A map made before the fork has a cell for each process, which only its owner writes to. A worker counts a
message when its reply is about to leave, and adds up the cells; so each worker notices with its next message
that there are enough. It also counts the message beside its heartbeat: the master adds those up, since
no other worker could have changed them, and notices within `COMPLETION_POLL`. In a fleet, the dashboard's
process adds the messages of the other machines, in a cell behind those of the processes.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

from blackhole.process.heartbeat import Heartbeat

COMPLETION_POLL: Final = 0.05
"""Seconds between two checks by the master."""


class MessageTotal:
    """The cells. `rows` is the largest number of processes that live at once.

    >>> messages = MessageTotal(rows=2)
    >>> sizes = messages.counted_sizes(1, Heartbeat(), wanted=2, reached=lambda: print("enough"))
    >>> sizes.append(512)
    >>> sizes.append(20)
    enough
    >>> messages.total(), sizes
    (2, [512, 20])
    """

    def __init__(self, rows: int) -> None:
        self._map: Final = mmap.mmap(-1, (rows + 1) * 8)
        self._cells: Final = memoryview(self._map).cast("Q")

    def total(self) -> int:
        """Return the number of messages that were answered since the start, on other machines too."""
        return sum(self._cells.tolist())

    @property
    def elsewhere(self) -> int:
        """The number of messages that the other machines of a fleet have answered."""
        return self._cells[-1]

    def set_elsewhere(self, messages: int) -> None:
        """Set the number of messages that the other machines of a fleet have answered."""
        self._cells[-1] = messages

    def count(self, row: int) -> int:
        """Count a message of the owner of a row; return the total."""
        self._cells[row] += 1
        return self.total()

    def counted_sizes(
        self, row: int, heartbeat: Heartbeat, wanted: int, reached: Callable[[], None]
    ) -> CountedSizes:
        """Return the list in which the engines of a worker collect the sizes of messages.

        `reached` is called with each message from the one on that makes the total `wanted`.
        """
        return CountedSizes(self, row, heartbeat, wanted, reached)


class CountedSizes(list[int]):
    """The sizes of messages, as an engine collects them. To append one counts a message."""

    def __init__(
        self,
        messages: MessageTotal,
        row: int,
        heartbeat: Heartbeat,
        wanted: int,
        reached: Callable[[], None],
    ) -> None:
        super().__init__()
        self._messages: Final = messages
        self._row: Final = row
        self._heartbeat: Final = heartbeat
        self._wanted: Final = wanted
        self._reached: Final = reached

    def append(self, octets: int) -> None:
        super().append(octets)
        self._heartbeat.count_message()
        if self._messages.count(self._row) >= self._wanted:
            self._reached()
