"""The program, with a record of how long mail waited for the store, and what the worker did meanwhile.

    python -m tests.store_waits FILE OPTIONS...

A wait ends with a timer of the worker's event loop. If the kernel does not let the worker run, or the worker
is busy, the timer is late. So FILE gets, for each wait that is longer than REPORTED and for each that is the
longest of its process so far, a line with the pid and three times in seconds: the wait, how long of it the
kernel let the worker wait for a processor, and how long the worker ran.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from blackhole.__main__ import main
from blackhole.store.redis_requests import Key, RedisQuery

REPORTED: Final = 0.1
"""Seconds."""


class StoreWait(NamedTuple):
    """A wait for the store, in seconds."""

    pid: int
    seconds: float
    not_scheduled: float
    """While the worker could run, and had no processor: `run_delay` of sched(7)."""
    ran: float

    @property
    def own(self) -> float:
        """Without the time in which the kernel did not let the worker run."""
        return self.seconds - self.not_scheduled


def read_waits(path: Path) -> list[StoreWait]:
    """Return what was recorded."""
    lines = map(str.split, path.read_text().splitlines())
    return [StoreWait(int(pid), *map(float, seconds)) for pid, *seconds in lines]


class StoreWaitRecorder:
    """The record of this process and its children."""

    def __init__(self, path: str) -> None:
        self._file: Final = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = self._times = 0
        self._longest = self._longest_own = 0.0

    def times(self) -> tuple[float, float]:
        """Return the seconds that this process has run, and those in which it waited for a processor."""
        if self._pid != os.getpid():  # a new child
            self._pid = os.getpid()
            self._times = os.open("/proc/self/schedstat", os.O_RDONLY)
            self._longest = self._longest_own = 0.0
        ran, not_scheduled, _ = os.pread(self._times, 100, 0).split()
        return int(ran) / 1e9, int(not_scheduled) / 1e9

    def record(self, seconds: float, before: tuple[float, float]) -> None:
        """Record a wait that ends now; `before` are the times at its begin."""
        ran, not_scheduled = (now - then for now, then in zip(self.times(), before, strict=True))
        wait = StoreWait(self._pid, seconds, not_scheduled, ran)
        if seconds > min(self._longest, REPORTED) or wait.own > self._longest_own:
            self._longest = max(self._longest, seconds)
            self._longest_own = max(self._longest_own, wait.own)
            os.write(self._file, " ".join(map(str, wait)).encode() + b"\n")


def record_waits(path: str) -> None:
    """Let each question to the store be recorded from now on."""
    recorder, make = StoreWaitRecorder(path), RedisQuery.__init__

    def make_recorded(
        query: RedisQuery, key: Key, words: str, timeout: float, on_settled: Callable[[float, bool], None]
    ) -> None:
        before = recorder.times()

        def settled(seconds: float, is_answered: bool) -> None:
            recorder.record(seconds, before)
            on_settled(seconds, is_answered)

        make(query, key, words, timeout, settled)

    RedisQuery.__init__ = make_recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    record_waits(sys.argv.pop(1))
    raise SystemExit(main())
