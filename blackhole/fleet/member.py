"""A machine of a fleet: writes its figures once a second, and reads those of the fleet when it is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from blackhole import __version__
from blackhole.fleet import fields
from blackhole.fleet.replies import MAX_STORED_NUMBER, StoreError
from blackhole.fleet.script import LIVE_SECONDS
from blackhole.fleet.store import FleetStore, Total, Written
from blackhole.metrics.snapshot import ProcessStatus, Snapshot
from blackhole.process.processes import Process
from blackhole.store.redis_attempts import WARNING_INTERVAL

log = logging.getLogger(__name__)

RETRY_DELAYS: Final = (1.0, 2.0, 4.0, 5.0)
"""Seconds to the next write, by the number of writes that failed."""

MAX_COPIES: Final = 1000
"""Machines that are gone and of which a copy of their counters is kept."""

READ_AGE: Final = 0.5
"""Seconds for which the figures of the fleet are read once for all who ask."""

MAX_SUMMARY: Final = 2048
"""Octets of what is shown of a machine."""


MAX_TEXT: Final = 100
"""Characters of each text in it."""

LAST_WRITE_TIMEOUT: Final = 5.0
"""Seconds for which a machine that leaves tries its last write: nobody else has these figures."""

LAST_WRITE_INTERVAL: Final = 0.5
"""Seconds between two tries."""

LEAVE_INTERVAL: Final = 0.1
"""Seconds after which a machine that leaves looks again whether its workers have ended."""


class Machine(NamedTuple):
    """A machine of the fleet, as it last wrote of itself."""

    id: str
    name: str
    version: str
    scenario: str
    age: float
    """Seconds since its last write."""
    alive: bool
    up: float
    """Seconds since it was started."""
    messages: int
    rate: float
    """Messages per second."""
    open: int
    load: float
    """The share of one processor that its busiest worker used."""
    workers: int
    order: int
    """The number of the order that it obeys; -1 if it obeys none."""


class FleetView(NamedTuple):
    """The fleet at one moment."""

    snapshot: Snapshot
    """The sum of all counters. Its processes are the machines that are alive."""
    machines: tuple[Machine, ...]
    name: str
    """That of the fleet."""
    total: Total
    now: float
    """The store's clock, in seconds since 1970."""

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        machines = [machine._asdict() for machine in self.machines]
        return {"fleet": self.name, **self.snapshot.as_dict(), "machines": machines}


class FleetMember:
    """This machine. `figures` returns its counters, and `summary` what is shown of it beside them."""

    def __init__(
        self,
        store: FleetStore,
        machine: str,
        figures: Callable[[], Snapshot],
        summary: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.store: Final = store
        self.machine: Final = machine
        self._figures, self._summary = figures, summary
        self._epoch = ""
        self._written: dict[str, int] = {}
        """The counters that the store is known to have."""
        self._alive = 0
        """The number of machines that are alive."""
        self._failures = 0
        """Writes that failed since the last that did not."""
        self._warned = float("-inf")
        self._copies: Final[dict[str, Mapping[str, int]]] = {}
        """Counters of machines that are gone: Redis may lose them, and they will not write again."""
        self.order = 0
        """The number of the order in force, as the store has told with the last write."""
        self.obeyed = -1
        """The number of the order that this machine obeys; -1 if it obeys none."""
        self.order_changed: Final = asyncio.Event()
        """Set when `order` changes, and when the store has lost its data."""
        self._writing: Final = asyncio.Lock()
        """One write after the other: an earlier one that arrives later would take back what it says."""
        self._reading: Final = asyncio.Lock()
        self._view: tuple[float, FleetView] | None = None
        """When it was read, and the fleet as it was then."""
        self._known_versions: Final[set[str]] = {__version__}

    @property
    def available(self) -> bool:
        """Whether the store took the last write."""
        return bool(self._epoch) and not self._failures

    async def run(self) -> None:
        """Write once a second, for ever."""
        while True:
            alive = self._alive
            if await self.write() and self._alive < alive:
                await self._copy_ended_machines()
            await asyncio.sleep(self._delay() if self._failures else 1 - time.time() % 1)

    def _delay(self) -> float:
        return RETRY_DELAYS[min(self._failures, len(RETRY_DELAYS)) - 1]

    async def write(self, age: float = 0) -> bool:
        """Write what has changed; return whether the store has taken it.

        `age` is the time in seconds since this machine was alive.
        """
        async with self._writing:
            return await self._write_changes(age)

    async def _write_changes(self, age: float) -> bool:
        current = fields.fields(self._figures())
        changed = {name: count for name, count in current.items() if self._written.get(name) != count}
        try:
            written = await self._write(changed, age)
            if self._epoch not in ("", written.epoch):
                # The store is another one, or has lost what it had.
                await self._write(current, age)
                for machine, counters in self._copies.items():
                    await self.store.write(machine, counters, "")
        except StoreError as error:
            self._failures += 1
            self._warn(error)
            return False
        if self._failures:
            log.info("fleet: %s answers again", self.store.settings)
        if written.order != self.order or self._epoch not in ("", written.epoch):
            self.order = written.order
            self.order_changed.set()
        self._epoch, self._alive = written.epoch, written.alive
        self._written, self._failures = current, 0
        return True

    async def _write(self, changed: Mapping[str, int], age: float) -> Written:
        summary = json.dumps({**self._summary(), "order": self.obeyed}, separators=(",", ":"))
        return await self.store.write(self.machine, changed, summary, age)

    def _warn(self, error: Exception) -> None:
        """Log that the store does not answer, at most once a minute."""
        if time.monotonic() - self._warned >= WARNING_INTERVAL:
            self._warned = time.monotonic()
            log.warning(
                "fleet: %s: %.200a; figures are written again when it answers",
                self.store.settings,
                str(error),
            )

    async def _copy_ended_machines(self) -> None:
        """Keep the counters of machines that no longer write, in case the store loses them."""
        try:
            for machine, (age, _) in (await self.store.machines()).items():
                if age < LIVE_SECONDS:
                    self._copies.pop(machine, None)
                elif machine not in self._copies and len(self._copies) < MAX_COPIES:
                    self._copies[machine] = await self.store.figures(machine)
        except StoreError:
            pass  # the next write says so

    async def leave(self, timeout: float) -> None:
        """Write the figures once all workers have ended, or after `timeout` seconds."""
        until = time.monotonic() + timeout
        while self._has_workers() and time.monotonic() < until:
            await asyncio.sleep(LEAVE_INTERVAL)
        until = time.monotonic() + LAST_WRITE_TIMEOUT
        while not await self.write(LIVE_SECONDS) and time.monotonic() < until:
            await asyncio.sleep(LAST_WRITE_INTERVAL)
        await self.store.close()

    def _has_workers(self) -> bool:
        """Return whether a process of the server is left that counts."""
        return any(
            process.pid != os.getpid() and Process.of(process.pid) for process in self._figures().processes
        )

    async def machines(self) -> list[Machine]:
        """Return the machines that were seen in the last hour. Raises StoreError."""
        machines = await self.store.machines()
        found = (parse_machine(name, age, text) for name, (age, text) in machines.items())
        return [machine for machine in found if machine is not None]

    async def view(self) -> FleetView:
        """Return the fleet as it was at most READ_AGE ago. Raises StoreError."""
        async with self._reading:
            if self._view is None or time.monotonic() - self._view[0] >= READ_AGE:
                total = await self.store.total()
                machines = await self.machines()
                view = make_view(self.store.name, total, await self.store.now(), machines)
                self._log_other_versions(view.machines)
                self._view = time.monotonic(), view
            return self._view[1]

    def _log_other_versions(self, machines: tuple[Machine, ...]) -> None:
        for machine in machines:
            if machine.alive and machine.version not in self._known_versions:
                self._known_versions.add(machine.version)
                log.warning("fleet: %s runs version %s, and this machine %s", *machine[1:3], __version__)


def make_view(name: str, total: Total, now: float, machines: Iterable[Machine]) -> FleetView:
    """Return what is known of a fleet at a time by the store's clock."""
    ordered = tuple(sorted(machines, key=lambda machine: (machine.name, machine.id)))
    processes = tuple(
        ProcessStatus(machine.name, 0, machine.age, machine.open, machine.load)
        for machine in ordered
        if machine.alive
    )
    workers = sum(machine.workers for machine in ordered if machine.alive)
    counters = fields.snapshot(total.fields, max(0.0, now - total.began), total.began, processes, workers)
    return FleetView(counters, ordered, name, total, now)


def parse_machine(machine: str, age: float, text: bytes) -> Machine | None:
    """Return a machine as it wrote of itself; None for anything else: what is stored is input like any."""
    try:
        found = json.loads(text[:MAX_SUMMARY])
        return Machine(
            machine,
            str(found["name"])[:MAX_TEXT],
            str(found["version"])[:MAX_TEXT],
            str(found["scenario"])[:MAX_TEXT],
            max(0.0, age),
            age < LIVE_SECONDS,
            float(_number(found["up"])),
            int(_number(found["messages"])),
            float(_number(found["rate"])),
            int(_number(found["open"])),
            float(_number(found["load"])),
            int(_number(found["workers"])),
            int(_number(found["order"])),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _number(number: object) -> float | int:
    """Return a number that JSON and 64 bits can hold. Raises ValueError for anything else."""
    if not (isinstance(number, int | float) and abs(number) < MAX_STORED_NUMBER):
        raise ValueError
    return number
