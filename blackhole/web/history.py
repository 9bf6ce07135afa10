"""What the dashboard remembers: the last hour, the last day, and runs.

It is kept in a map made before the fork, as the counters are, because a reload puts another
process in the dashboard's place and a crash may: who comes next reads on where the last one
wrote. While both live they write the same figures into the same places.
"""

from __future__ import annotations

import mmap
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from blackhole.metrics.layout import ROW_CELLS

SECOND: Final = 1_000_000
"""Microseconds; all moments in here are such, of the monotonic clock."""

HOUR: Final = 3600
"""Samples kept, one a second."""

DAY: Final = 1440
"""Samples kept, one a minute."""

MAX_GAP: Final = 10
"""Steps: a gap that is passed over, as the change to another process leaves one."""

RUNS: Final = 32
"""Runs that are kept. One more, and the oldest that has ended is forgotten."""

NAME: Final = 64
"""Characters of a run's name."""


class Sample(NamedTuple):
    """The counters at one time, those that are shown over time."""

    at: int
    messages: int
    connections: int
    received_bytes: int
    open: int


class RingBuffer:
    """The last `slots` steps, a moment each; of a step that had several, the latest one."""

    def __init__(self, cells: memoryview, slots: int, step: int) -> None:
        self._cells, self.slots, self.step = cells, slots, step

    @staticmethod
    def size(slots: int) -> int:
        """Cells that it needs."""
        return slots * len(Sample._fields)

    def put(self, moment: Sample) -> None:
        """Note a moment. In a step that has one already, the most that was open stays."""
        tick = moment.at // self.step
        before = self.get(tick)
        if before is not None:
            moment = moment._replace(open=max(moment.open, before.open))
        width = len(moment)
        base = tick % self.slots * width
        self._cells[base] = 0  # who reads now finds a gap, not half of each
        for number in range(1, width):
            self._cells[base + number] = moment[number]
        self._cells[base] = moment.at

    def get(self, tick: int) -> Sample | None:
        """The moment of that step, if there was one and it is not forgotten."""
        width = len(Sample._fields)
        base = tick % self.slots * width
        moment = Sample(*self._cells[base : base + width])
        return moment if moment.at and moment.at // self.step == tick else None

    def near(self, tick: int) -> Sample | None:
        """The last moment that is known up to that step, if there was one not long before; else the next."""
        ticks = (*range(tick, tick - MAX_GAP, -1), *range(tick + 1, tick + self.slots))
        return next((moment for one in ticks if (moment := self.get(one))), None)

    def steps(self, until: int) -> Iterator[tuple[Sample | None, Sample | None]]:
        """Every step up to that of the moment `until`, the oldest first: the last moment known before
        it, and its own. The oldest of all is only there to be before others."""
        last = until // self.step
        before = self.get(last - self.slots + 1)
        for tick in range(last - self.slots + 2, last + 1):
            moment = self.get(tick)
            yield before, moment
            before = moment or before


def rate(before: Sample, after: Sample, name: str = "messages") -> float:
    """How much was added in a second, between two moments."""
    elapsed = after.at - before.at
    return (getattr(after, name) - getattr(before, name)) / elapsed * SECOND if elapsed > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A named measurement."""

    name: str
    began: int
    ended: int
    """0 while it goes on."""
    at: int
    """Microseconds since 1970 when it began."""
    peak: int
    """Messages of its busiest second."""
    crowd: int
    """The most connections that were open at once, looked at once a second."""
    waited: int
    """Microseconds that all connections together were open: its mean concurrency times its length."""
    first: Sequence[int]
    last: Sequence[int]
    """The counters when it began, and when it ended."""


def _cells(values: Iterable[int]) -> memoryview:
    """As the map has them. Sums of what is no counter, as of titles, may be more than a cell holds."""
    return memoryview(array("Q", (value & (1 << 64) - 1 for value in values)))


class History:
    """The map."""

    HEAD: Final = ("began", "ended", "at", "peak", "crowd", "waited")

    def __init__(self) -> None:
        self._slot: Final = len(self.HEAD) + NAME // 8 + 2 * ROW_CELLS
        hour, day = RingBuffer.size(HOUR), RingBuffer.size(DAY)
        top = 2
        self._map: Final = mmap.mmap(-1, (top + hour + day + RUNS * self._slot) * 8)
        cells = memoryview(self._map).cast("Q")
        self._top: Final = cells[:top]
        self.hour: Final = RingBuffer(cells[top : top + hour], HOUR, SECOND)
        self.day: Final = RingBuffer(cells[top + hour : top + hour + day], DAY, 60 * SECOND)
        self._runs: Final = cells[top + hour + day :]

    # What was.

    @property
    def peak(self) -> int:
        """Messages of the busiest second so far."""
        return self._top[0]

    @property
    def crowd(self) -> int:
        """The most connections that were open at once, looked at once a second."""
        return self._top[1]

    def note(self, moment: Sample) -> None:
        """Once a second."""
        self.hour.put(moment)
        self.day.put(moment)
        self._top[1] = max(self._top[1], moment.open)
        last = self.hour.near(moment.at // SECOND - 1) or moment
        pace = round(rate(last, moment))
        self._top[0] = max(self._top[0], pace)
        for slot in self._slots():
            began, ended, _, peak, crowd, waited = slot[: len(self.HEAD)]
            if 0 < began <= moment.at and not ended:
                slot[3] = max(peak, pace) if last.at >= began else peak
                slot[4] = max(crowd, moment.open)
                slot[5] = waited + moment.open * (moment.at - max(last.at, began))

    def pace(self, moment: Sample, seconds: int, name: str = "messages") -> float:
        """How much was added in a second, over so many seconds up to the moment or as many as there were."""
        return rate(self.hour.near(moment.at // SECOND - seconds) or moment, moment, name)

    # Runs.

    def runs(self) -> list[Run]:
        """All that are kept, the oldest first."""
        return sorted((self._read(slot) for slot in self._slots() if slot[0]), key=lambda run: run.began)

    def run(self, name: str) -> Run | None:
        """The run of that name."""
        return next((run for run in self.runs() if run.name == name), None)

    def start(self, name: str, counters: Iterable[int], opened: int) -> bool:
        """Begin a run; False: as many are under way as can be kept. The name is ASCII, and no other run's."""
        slots = sorted((slot for slot in self._slots() if not slot[0] or slot[1]), key=lambda slot: slot[0])
        if not slots:
            return False
        slot, head, text = slots[0], len(self.HEAD), NAME // 8
        slot[0] = 0
        slot[head + text : head + text + ROW_CELLS] = _cells(counters)
        label = memoryview(name.encode("ascii").ljust(NAME, b"\0")).cast("Q")
        slot[head : head + text] = label
        slot[1:head] = memoryview(bytes((head - 1) * 8)).cast("Q")
        slot[2] = time.time_ns() // 1000
        slot[4] = opened
        slot[0] = time.monotonic_ns() // 1000
        return True

    def stop(self, name: str, counters: Iterable[int]) -> None:
        """End a run; one that has ended stays as it is."""
        for slot in self._slots():
            if slot[0] and not slot[1] and self._read(slot).name == name:
                base = len(self.HEAD) + NAME // 8 + ROW_CELLS
                slot[base : base + ROW_CELLS] = _cells(counters)
                slot[1] = time.monotonic_ns() // 1000

    def _slots(self) -> Iterator[memoryview]:
        for number in range(RUNS):
            yield self._runs[number * self._slot : (number + 1) * self._slot]

    def _read(self, slot: memoryview) -> Run:
        head, text = len(self.HEAD), NAME // 8
        name = slot[head : head + text].tobytes().rstrip(b"\0").decode("ascii")
        began, ended, at, peak, crowd, waited = slot[:head]
        counters = slot[head + text :]
        return Run(name, began, ended, at, peak, crowd, waited, counters[:ROW_CELLS], counters[ROW_CELLS:])
