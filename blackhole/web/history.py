"""The history of the counters: samples of the last hour and day, peaks, and runs.

It is kept in shared memory made before the fork, as the counters are, because another process takes
the dashboard's place at a reload or after a crash. The next one continues where the last one stopped.
While both live, they write the same values into the same places.
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
"""Microseconds: the unit of all times in this module, which are of the monotonic clock."""

HOUR: Final = 3600
"""Samples kept, one for each second."""

DAY: Final = 1440
"""Samples kept, one for each minute."""

MAX_GAP: Final = 10
"""Steps without a sample that are passed over; another process that takes over leaves such a gap."""

MAX_RUNS: Final = 32
"""Runs kept. The next one takes the place of the oldest that has ended."""

MAX_RUN_NAME: Final = 64
"""Characters of a run's name."""


class Sample(NamedTuple):
    """The counters of which a history is kept, at one time."""

    at: int
    accepted: int
    deferred: int
    rejected: int
    connections: int
    received_bytes: int
    open: int

    @property
    def messages(self) -> int:
        """The messages of all outcomes."""
        return self.accepted + self.deferred + self.rejected


LARGEST: Final = 2**64 - 1
"""The largest value of a cell. The sum of counters that were overwritten may be larger."""


class RingBuffer:
    """The last `slots` steps of `step` microseconds, with one sample each."""

    def __init__(self, cells: memoryview, slots: int, step: int) -> None:
        self._cells, self.slots, self.step = cells, slots, step

    @staticmethod
    def size(slots: int) -> int:
        """Return the number of cells that so many slots need."""
        return slots * len(Sample._fields)

    def put(self, sample: Sample) -> None:
        """Store a sample. It replaces an earlier one of its step, but for the largest `open`."""
        number = sample.at // self.step
        before = self.get(number)
        if before is not None:
            sample = sample._replace(open=max(sample.open, before.open))
        width = len(sample)
        base = number % self.slots * width
        self._cells[base] = 0  # a concurrent reader finds no sample instead of half of each
        for field in range(1, width):
            self._cells[base + field] = sample[field]
        self._cells[base] = sample.at

    def get(self, number: int) -> Sample | None:
        """Return the sample of a step; None if there was none, or if it is overwritten."""
        width = len(Sample._fields)
        base = number % self.slots * width
        sample = Sample(*self._cells[base : base + width])
        return sample if sample.at and sample.at // self.step == number else None

    def latest_before(self, number: int) -> Sample | None:
        """Return the latest sample up to a step, if it is at most MAX_GAP steps old, else the next one."""
        numbers = (*range(number, number - MAX_GAP, -1), *range(number + 1, number + self.slots))
        return next((sample for one in numbers if (sample := self.get(one))), None)

    def steps(self, until: int) -> Iterator[tuple[Sample | None, Sample | None]]:
        """Yield, for every step up to that of the time `until`, the sample before it and its own.

        The oldest step is left out, because nothing is known before it.
        """
        last = until // self.step
        before = self.get(last - self.slots + 1)
        for number in range(last - self.slots + 2, last + 1):
            sample = self.get(number)
            yield before, sample
            before = sample or before


def rate(before: Sample, after: Sample, name: str = "messages") -> float:
    """Return the average increase per second of a counter between two samples."""
    elapsed = after.at - before.at
    return (getattr(after, name) - getattr(before, name)) / elapsed * SECOND if elapsed > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A named measurement."""

    name: str
    began: int
    ended: int
    """0 while it is running."""
    started: int
    """When it began, in microseconds since 1970."""
    peak: int
    """Messages of its busiest second."""
    peak_connections: int
    """The most open connections, sampled once a second."""
    connection_time: int
    """The sum over all connections of the time they were open in the run."""
    first: Sequence[int]
    last: Sequence[int]
    """The counters when it began and when it ended."""


def _cells(values: Iterable[int]) -> memoryview:
    """Return values as cells. A sum over cells that are no counters may need more than 64 bits."""
    return memoryview(array("Q", (value & (1 << 64) - 1 for value in values)))


class History:
    """The history in shared memory.

    >>> history = History()
    >>> history.start("nightly", [0] * ROW_CELLS, open_connections=0)
    True
    >>> history.run("nightly").peak
    0
    """

    max_runs = MAX_RUNS
    """Runs that can be running at a time."""

    RUN_HEADER: Final = ("began", "ended", "started", "peak", "peak_connections", "connection_time")
    """Cells of a run before its name and its counters."""

    def __init__(self) -> None:
        self._run_cells: Final = len(self.RUN_HEADER) + MAX_RUN_NAME // 8 + 2 * ROW_CELLS
        hour, day = RingBuffer.size(HOUR), RingBuffer.size(DAY)
        peaks = 2
        self._map: Final = mmap.mmap(-1, (peaks + hour + day + MAX_RUNS * self._run_cells) * 8)
        cells = memoryview(self._map).cast("Q")
        self._peaks: Final = cells[:peaks]
        self.hour: Final = RingBuffer(cells[peaks : peaks + hour], HOUR, SECOND)
        self.day: Final = RingBuffer(cells[peaks + hour : peaks + hour + day], DAY, 60 * SECOND)
        self._runs: Final = cells[peaks + hour + day :]

    # Samples

    @property
    def peak(self) -> int:
        """The messages of the busiest second since the start."""
        return self._peaks[0]

    @property
    def peak_connections(self) -> int:
        """The most open connections since the start, sampled once a second."""
        return self._peaks[1]

    def add(self, sample: Sample) -> None:
        """Add a sample; to be called once a second."""
        sample = Sample(*(min(value, LARGEST) for value in sample))
        self.hour.put(sample)
        self.day.put(sample)
        self._peaks[1] = max(self._peaks[1], sample.open)
        last = self.hour.latest_before(sample.at // SECOND - 1) or sample
        messages = min(max(0, round(rate(last, sample))), LARGEST)
        self._peaks[0] = max(self._peaks[0], messages)
        for slot in self._slots():
            began, ended, _, peak, peak_connections, connection_time = slot[: len(self.RUN_HEADER)]
            if 0 < began <= sample.at and not ended:
                slot[3] = max(peak, messages) if last.at >= began else peak
                slot[4] = max(peak_connections, sample.open)
                time = connection_time + sample.open * (sample.at - max(last.at, began))
                slot[5] = min(time, LARGEST)

    def rate(self, sample: Sample, seconds: int, name: str = "messages") -> float:
        """Return the average increase per second of a counter in the seconds before a sample."""
        return rate(self.hour.latest_before(sample.at // SECOND - seconds) or sample, sample, name)

    # Runs

    def runs(self) -> list[Run]:
        """Return all runs, the oldest first."""
        return sorted((self._read(slot) for slot in self._slots() if slot[0]), key=lambda run: run.began)

    def run(self, name: str) -> Run | None:
        """Return the run of that name, if there is one."""
        return next((run for run in self.runs() if run.name == name), None)

    def start(self, name: str, counters: Iterable[int], open_connections: int) -> bool:
        """Start a run; return False if MAX_RUNS are running. The name has to be ASCII, and not in use."""
        slots = sorted((slot for slot in self._slots() if not slot[0] or slot[1]), key=lambda slot: slot[0])
        if not slots:
            return False
        slot, header, text = slots[0], len(self.RUN_HEADER), MAX_RUN_NAME // 8
        slot[0] = 0
        slot[header + text : header + text + ROW_CELLS] = _cells(counters)
        label = memoryview(name.encode("ascii").ljust(MAX_RUN_NAME, b"\0")).cast("Q")
        slot[header : header + text] = label
        slot[1:header] = memoryview(bytes((header - 1) * 8)).cast("Q")
        slot[2] = time.time_ns() // 1000
        slot[4] = open_connections
        slot[0] = time.monotonic_ns() // 1000
        return True

    def stop(self, name: str, counters: Iterable[int]) -> None:
        """Stop a run; nothing happens if it has ended."""
        for slot in self._slots():
            if slot[0] and not slot[1] and self._read(slot).name == name:
                base = len(self.RUN_HEADER) + MAX_RUN_NAME // 8 + ROW_CELLS
                slot[base : base + ROW_CELLS] = _cells(counters)
                slot[1] = time.monotonic_ns() // 1000

    def _slots(self) -> Iterator[memoryview]:
        for number in range(MAX_RUNS):
            yield self._runs[number * self._run_cells : (number + 1) * self._run_cells]

    def _read(self, slot: memoryview) -> Run:
        header, text = len(self.RUN_HEADER), MAX_RUN_NAME // 8
        name = slot[header : header + text].tobytes().rstrip(b"\0").decode("ascii")
        counters = slot[header + text :]
        began, ended, started, peak, peak_connections, connection_time = slot[:header]
        return Run(
            name,
            began,
            ended,
            started,
            peak,
            peak_connections,
            connection_time,
            first=counters[:ROW_CELLS],
            last=counters[ROW_CELLS:],
        )
