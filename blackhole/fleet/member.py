"""A machine of a fleet: writes its figures once a second, and reads those of the fleet when it is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from blackhole import __version__
from blackhole.fleet import fields
from blackhole.fleet.copies import StoreCopies
from blackhole.fleet.machine import FleetView, Machine, find_differences, make_view, parse_machines
from blackhole.fleet.replies import StoreError
from blackhole.fleet.script import LIVE_SECONDS
from blackhole.fleet.store import MAX_FLEET_RUNS, FleetStore, Written
from blackhole.fleet.window_clock import WindowClock
from blackhole.metrics.findings import plural
from blackhole.metrics.layout import LAYOUT_CRC
from blackhole.metrics.report import summary_lines
from blackhole.metrics.snapshot import Snapshot
from blackhole.process.processes import Process
from blackhole.store.redis_attempts import WARNING_INTERVAL

log = logging.getLogger(__name__)

RETRY_DELAYS: Final = (1.0, 2.0, 4.0, 5.0)
"""Seconds to the next write, by the number of writes that failed."""

READ_AGE: Final = 0.5
"""Seconds for which the figures of the fleet are read once for all who ask."""

LAST_WRITE_TIMEOUT: Final = 5.0
"""Seconds for which a machine that leaves tries its last write: nobody else has these figures."""

LAST_WRITE_INTERVAL: Final = 0.5
"""Seconds between two tries."""

JOIN_SECONDS: Final = 2.5
"""Seconds after its first write for which a machine waits before it compares itself with the others."""

SETTLE_TIMEOUT: Final = 4.0
"""Seconds for all machines to write what they have counted."""

SETTLE_INTERVAL: Final = 0.1
"""Seconds after which the machines are looked at again."""

LEAVE_INTERVAL: Final = 0.1
"""Seconds after which a machine that leaves looks again whether its workers have ended."""


class FleetMember:
    """This machine. `figures` returns its counters, and `summary` what is shown of it beside them."""

    max_runs = MAX_FLEET_RUNS

    def __init__(
        self,
        store: FleetStore,
        machine: str,
        figures: Callable[[], Snapshot],
        summary: Callable[[], Mapping[str, Any]],
        windows: WindowClock | None = None,
    ) -> None:
        """`windows` is None where the configuration has none."""
        self.store: Final = store
        self._windows: Final = windows
        self.machine: Final = machine
        self._figures, self._summary = figures, summary
        self.counted: Callable[[], None] = lambda: None
        """Called after each write: `elsewhere` may have changed."""
        self.alive = 1
        """The number of machines that are alive, as of the last write."""
        self.elsewhere = 0
        """The messages of all other machines in this generation, as of the last write."""
        self._epoch = ""
        self._written: dict[str, int] = {}
        """The counters that the store is known to have."""
        self._failures = 0
        """Writes that failed since the last that did not."""
        self._warned = float("-inf")
        self._copies: Final = StoreCopies(store)
        self.order = 0
        """The number of the order in force, as the store has told with the last write."""
        self.obeyed = -1
        """The number of the order that this machine obeys; -1 if it obeys none."""
        self.namespaces = 0
        """The number of the last order to a namespace, as the store has told with the last write."""
        self.obeyed_namespaces = -1
        """The number of the last order to a namespace that this machine obeys; -1 if it obeys none."""
        self.namespace_fields: Callable[[Snapshot], Mapping[str, int]] = lambda snapshot: {}
        """Returns the counters of all namespaces by field, given those of this machine."""
        self._known_fields: set[str] = set()
        """Fields of the namespaces that there were at the last write."""
        self._gone: set[str] = set()
        """Fields of namespaces that are gone, which the store may still have."""
        self.order_changed: Final = asyncio.Event()
        """Set when `order` or `namespaces` changes, and when the store has lost its data."""
        self._writing: Final = asyncio.Lock()
        """One write after the other: an earlier one that arrives later would take back what it says."""
        self._reading: Final = asyncio.Lock()
        self._view: tuple[float, FleetView] | None = None
        """When it was read, and the fleet as it was then."""
        self._known_versions: Final[set[str]] = {__version__}
        self.generation = ""
        self._mark = 0
        """The last request to write that this machine knows of."""
        self._written_mark = 0
        """The one that its last write came after."""
        self._joined: float | None = None
        """When this machine first wrote, by the monotonic clock, until it has compared itself with others."""
        self._has_joined = False

    @property
    def epoch(self) -> str:
        """What changes when the store has lost its data; empty before the first write."""
        return self._epoch

    @property
    def available(self) -> bool:
        """Whether the store took the last write."""
        return bool(self._epoch) and not self._failures

    async def run(self) -> None:
        """Write once a second, for ever."""
        while True:
            if await self.write():
                if self._windows is not None:
                    await self._windows.update(self.generation)
                await self._copies.update()
                await self._compare_with_others()
            await asyncio.sleep(self._delay() if self._failures else 1 - time.time() % 1)

    def _delay(self) -> float:
        return RETRY_DELAYS[min(self._failures, len(RETRY_DELAYS)) - 1]

    async def write(self, age: float = 0) -> bool:
        """Write what has changed; return whether the store has taken it.

        `age` is the time in seconds since this machine was alive.
        """
        async with self._writing:
            done = await self._write_changes(age)
            if done and self._mark != self._written_mark:
                done = await self._write_changes(age)  # who has asked waits for it
            return done

    async def _write_changes(self, age: float) -> bool:
        mark, snapshot = self._mark, self._figures()
        current = fields.fields(snapshot)
        messages = sum(snapshot.messages.values())
        if self.generation and messages:
            current[fields.MESSAGES_OF + self.generation] = messages
        try:
            if self.obeyed_namespaces >= 0 and not self._epoch:
                # An earlier dashboard process may have written of namespaces that are gone.
                self._known_fields |= {
                    name
                    for name in await self.store.figures(self.machine)
                    if name.startswith(fields.NAMESPACE)
                }
            current |= self._fields_of_namespaces(snapshot)
            changed: dict[str, int | None] = dict.fromkeys(self._gone)
            changed |= {name: count for name, count in current.items() if self._written.get(name) != count}
            written = await self._write(changed, age)
            is_new = self._epoch not in ("", written.epoch)
            if is_new:
                # The store is another one, or has lost what it had.
                await self._write(current, age)
                await self._copies.restore(written.generation)
        except StoreError as error:
            self._failures += 1
            self._written = {}  # a replica that takes over may not have what its primary had
            self._warn(error)
            return False
        if self._failures:
            log.info("fleet: %s answers again", self.store.settings)
        if (written.order, written.namespaces) != (self.order, self.namespaces) or is_new:
            self.order, self.namespaces = written.order, written.namespaces
            self.order_changed.set()
        self._copies.note(written)
        self.alive = written.alive
        others = max(0, written.messages - current.get(fields.MESSAGES_OF + written.generation, 0))
        # A store that has lost its data gets them back machine by machine.
        self.elsewhere = max(others, self.elsewhere if written.generation == self.generation else 0)
        self._epoch, self.generation = written.epoch, written.generation
        self._mark, self._written_mark = written.mark, mark
        self._written, self._failures = current, 0
        self._gone -= changed.keys()
        self.counted()
        return True

    def _fields_of_namespaces(self, snapshot: Snapshot) -> dict[str, int]:
        """Return the counters of all namespaces by field, and note which fields are gone."""
        found = dict(self.namespace_fields(snapshot))
        self._gone = (self._gone | self._known_fields) - found.keys()
        self._known_fields = {*found}
        return found

    async def _write(self, changed: Mapping[str, int | None], age: float) -> Written:
        more = {"order": self.obeyed, "mark": self._mark, "layout": LAYOUT_CRC, "left": age > 0}
        more["namespaces"] = self.obeyed_namespaces
        summary = json.dumps({**self._summary(), **more}, separators=(",", ":"))
        return await self.store.write(self.machine, changed, summary, age, self.generation)

    def _warn(self, error: Exception) -> None:
        """Log that the store does not answer, at most once a minute."""
        if time.monotonic() - self._warned >= WARNING_INTERVAL:
            self._warned = time.monotonic()
            has_own_clock = self._windows is not None and not self._epoch
            log.warning(
                "fleet: %s: %.200a; figures are written again when it answers%s",
                self.store.settings,
                str(error),
                "; windows run from the start of this machine until then" if has_own_clock else "",
            )

    async def _compare_with_others(self) -> None:
        """Log, once, in what this machine differs from the others, when they have had time to write."""
        if self._has_joined:
            return
        now = time.monotonic()
        self._joined = self._joined or now
        if now - self._joined < JOIN_SECONDS or -1 < self.obeyed < self.order:
            return
        try:
            clock = time.time() - await self.store.now()
            machines = await self.machines()
        except StoreError:
            return  # the next write says so
        self._has_joined = True
        own = next((one for one in machines if one.id == self.machine), None)
        others = [one for one in machines if one.id != self.machine and one.age < now - self._joined]
        self._known_versions.update(one.version for one in others)
        differences = [] if own is None else [*find_differences(own, others, clock)]
        if differences:
            log.warning("fleet %s: this machine differs: %s", self.store.name, "; ".join(differences))
        else:
            log.info("fleet %s: joined, beside %s", self.store.name, plural(len(others), "machine"))

    async def settle(self, timeout: float = SETTLE_TIMEOUT) -> tuple[str, ...]:
        """Wait until all machines that are alive have written what they had counted when this was called.

        Return the names of those that have not in time. Raises StoreError.
        """
        until = time.monotonic() + timeout
        mark = await self.store.mark()
        await self.write()
        while True:
            late = [one.name for one in await self.machines() if one.alive and one.mark < mark]
            if not late or time.monotonic() >= until:
                return tuple(late)
            await asyncio.sleep(SETTLE_INTERVAL)

    async def leave(self, timeout: float) -> None:
        """Write the figures once all workers have ended, or after `timeout` seconds.

        Nothing is written if another dashboard of this machine has taken over.
        """
        until = time.monotonic() + timeout
        while self._has_workers() and time.monotonic() < until and not self._has_successor():
            await asyncio.sleep(LEAVE_INTERVAL)
        if self._has_successor():
            await self.store.close()
            return
        until = time.monotonic() + LAST_WRITE_TIMEOUT
        while not (done := await self.write(LIVE_SECONDS)) and time.monotonic() < until:
            await asyncio.sleep(LAST_WRITE_INTERVAL)
        if done:
            await self._log_end()
        await self.store.close()

    async def _log_end(self) -> None:
        """Log what the fleet has counted so far."""
        try:
            self.forget_view()
            view = await self.view()
        except StoreError:
            return
        first = next(iter(summary_lines(view.snapshot)))
        log.info("fleet %s: %s so far; %s left", view.name, first, plural(view.alive, "machine"))

    def _has_workers(self) -> bool:
        """Return whether a process of the server is left that counts."""
        return any(
            process.pid != os.getpid() and Process.of(process.pid) for process in self._figures().processes
        )

    def _has_successor(self) -> bool:
        """Return whether another process of this server writes in place of this one."""
        processes = self._figures().processes
        titles = {process.title for process in processes if process.pid == os.getpid()}
        return any(
            process.pid != os.getpid() and process.title in titles and Process.of(process.pid)
            for process in processes
        )

    async def machines(self) -> list[Machine]:
        """Return the machines that were seen in the last hour. Raises StoreError."""
        return parse_machines(await self.store.machines())

    def forget_view(self) -> None:
        """Let the next call of `view` read the fleet anew."""
        self._view = None

    async def view(self) -> FleetView:
        """Return the fleet as it was at most READ_AGE ago. Raises StoreError."""
        async with self._reading:
            if self._view is None or time.monotonic() - self._view[0] >= READ_AGE:
                total = await self.store.total()
                machines = await self.machines()
                now, found = await self.store.now(), await self.store.runs()
                view = make_view(self.store.name, total, now, machines)._replace(runs=found)
                self._log_other_versions(view.machines)
                self._view = time.monotonic(), view
            return self._view[1]

    def _log_other_versions(self, machines: tuple[Machine, ...]) -> None:
        for machine in machines:
            if machine.alive and machine.version not in self._known_versions:
                self._known_versions.add(machine.version)
                log.warning("fleet: %s runs version %s, and this machine %s", *machine[1:3], __version__)
