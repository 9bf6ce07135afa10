"""Copies of what the fleet's store may lose, and no machine would write again by itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from blackhole.fleet.replies import FleetRun, StoreError
from blackhole.fleet.script import LIVE_SECONDS
from blackhole.fleet.store import FORGOTTEN, FleetStore, Written

LEFT: Final = '"left":true'
"""In the summary of a machine that has said that it leaves. Another one may only be cut off."""

MAX_COPIES: Final = 1000
"""Machines that are gone and of which a copy of their counters is kept."""

SAME_WRITE: Final = 0.5
"""Seconds between the times of a write as two looks tell it; a machine writes once a second."""

COPIES_PER_SECOND: Final = 50
"""Machines of a fleet that copy, in a second, the counters of those that are gone."""


class MachineCopy(NamedTuple):
    """A machine that no longer writes."""

    written: float
    """When it did, by the monotonic clock of this machine."""
    summary: str
    counters: Mapping[str, int]


class StoreCopies:
    """The counters of machines that no longer write, and the runs.

    Each machine has copies. What several of them write is counted once: counters are absolute.
    """

    def __init__(self, store: FleetStore) -> None:
        self._store: Final = store
        self._machines: dict[str, MachineCopy] = {}
        """By the id of the machine."""
        self._forgotten: Mapping[str, int] = {}
        """The counters of machines of which no more is known."""
        self._runs: Mapping[str, FleetRun] = {}
        self._last = Written("", 0, 0)
        """The answer to the last write."""
        self._wants_machines = self._wants_runs = False
        self._next = 0.0
        """When machines may be copied again, by the monotonic clock."""

    def note(self, written: Written) -> None:
        """Notice from the answer to a write what has changed."""
        before, self._last = self._last, written
        self._wants_machines |= (
            written.alive < before.alive or written.known < before.known or not before.epoch
        )
        self._wants_runs |= written.runs != before.runs

    async def update(self) -> None:
        """Copy what has changed. A store that does not answer is asked again with the next call."""
        try:
            if self._wants_runs:
                found = await self._store.runs()
                if await self._is_unchanged():
                    self._runs, self._wants_runs = found, False
            if self._wants_machines and time.monotonic() >= self._next:
                self._next = time.monotonic() + self._last.alive / COPIES_PER_SECOND
                await self._copy_machines()
        except StoreError:
            pass  # the next write says so

    async def _is_unchanged(self) -> bool:
        """Return whether the store has not lost its data since the last write. Raises StoreError."""
        return await self._store.epoch() == self._last.epoch

    async def _copy_machines(self) -> None:
        copies: dict[str, MachineCopy] = {}
        for machine, (age, summary) in (await self._store.machines()).items():
            if age < LIVE_SECONDS or len(copies) >= MAX_COPIES:
                continue
            known, written = self._machines.get(machine), time.monotonic() - age
            if known is None or written > known.written + SAME_WRITE:
                counters = await self._store.figures(machine)
                known = MachineCopy(written, summary.decode(errors="replace"), counters)
            copies[machine] = known
        forgotten = await self._store.figures(FORGOTTEN)
        if await self._is_unchanged():
            self._machines, self._forgotten, self._wants_machines = copies, forgotten, False

    async def restore(self, generation: str) -> None:
        """Write everything into a store that has lost it. Raises StoreError."""
        for machine, copy in self._machines.items():
            age = max(LIVE_SECONDS, time.monotonic() - copy.written)
            age = age if LEFT in copy.summary else -age
            await self._store.write(machine, copy.counters, copy.summary, age, generation)
        await self._store.write(FORGOTTEN, self._forgotten, "", 0, generation)
        for run in self._runs.values():
            await self._store.restore_run(run)
