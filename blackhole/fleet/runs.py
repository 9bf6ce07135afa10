"""Runs of a fleet: measurements that begin and end on any machine, and count on all of them."""

from __future__ import annotations

from typing import Any, Final, Protocol

from blackhole.fleet import fields
from blackhole.fleet.machine import FleetView
from blackhole.fleet.replies import FleetRun
from blackhole.fleet.store import FleetStore
from blackhole.metrics.snapshot import Snapshot

TAKEN, TOO_MANY = 0, 1
"""Answers of `FleetStore.start_run`."""


class RunConflict(Exception):
    """A run cannot be started; the text says why."""


class FleetFigures(Protocol):
    """A member of a fleet, or what it tells of one namespace: see `FleetMember`."""

    max_runs: int
    """Runs that there can be. The next one takes the place of the oldest that has ended."""

    @property
    def store(self) -> FleetStore:
        """The keys of the fleet, or of the namespace."""

    async def settle(self) -> tuple[str, ...]:
        """Wait until all machines have written; return the names of those that have not in time."""

    async def view(self) -> FleetView:
        """Return the figures."""


class FleetRuns:
    """The runs of the fleet of a member, or of a namespace. All methods raise StoreError.

    A run begins and ends when all machines that are alive have written what they had counted by then, so its
    figures are exact: those of `FleetRun.late` excepted.
    """

    def __init__(self, member: FleetFigures) -> None:
        self._member: Final = member

    async def all(self) -> dict[str, FleetRun]:
        """Return all runs by name, the oldest first."""
        return await self._member.store.runs()

    async def find(self, name: str) -> FleetRun | None:
        """Return the run of that name, if there is one."""
        return (await self.all()).get(name)

    async def start(self, name: str) -> None:
        """Start a run. Raises RunConflict."""
        store, runs = self._member.store, await self.all()
        self._check(name, name in runs)
        late = await self._member.settle()
        total = await store.total()
        run = FleetRun(name, await store.now(), 0, total.fields, {}, late)
        ended = [one.name for one in runs.values() if one.ended]
        dropped = ended[0] if ended and len(runs) >= self._member.max_runs else ""
        answer = await store.start_run(run, dropped, self._member.max_runs)
        self._check(name, answer == TAKEN)
        if answer == TOO_MANY:
            raise RunConflict(f"{self._member.max_runs} runs are running already; stop one.")

    @staticmethod
    def _check(name: str, is_taken: bool) -> None:
        if is_taken:
            raise RunConflict(f"There is a run {name} already; choose another name.")

    async def stop(self, run: FleetRun) -> None:
        """Stop a run; nothing happens if it has ended."""
        if run.ended:
            return
        late = await self._member.settle()
        store = self._member.store
        total = await store.total()
        late = tuple(dict.fromkeys((*run.late, *late)))
        await store.stop_run(run._replace(ended=await store.now(), last=total.fields, late=late))


def snapshot(run: FleetRun, view: FleetView) -> Snapshot:
    """Return what happened in a run until its end, or until now."""
    last = run.last if run.ended else view.total.fields
    counts = {name: max(0, count - run.first.get(name, 0)) for name, count in last.items()}
    now = view.snapshot
    seconds = max(0.0, (run.ended or view.now) - run.started)
    return fields.snapshot(counts, seconds, run.started, now.processes, view.workers, now.notes)


def messages_before(run: FleetRun) -> int:
    """Return the number of messages before a run began."""
    return sum(fields.snapshot(run.first, 0, 0, (), 0).messages.values())


def summary(run: FleetRun, view: FleetView) -> dict[str, Any]:
    """Return the main figures of a run, for JSON."""
    during = snapshot(run, view)
    messages, seconds = sum(during.messages.values()), during.seconds
    return {
        "name": run.name,
        "running": not run.ended,
        "started": run.started,
        "seconds": seconds,
        "total": messages,
        "rate": {"mean": messages / seconds if seconds else 0.0, "peak": None},
        "cpu_share": during.cpu / seconds / (view.workers or 1) if seconds else 0.0,
        "late": [*run.late],
    }


def report(run: FleetRun, view: FleetView) -> dict[str, Any]:
    """Return all figures of a run, for JSON."""
    short = summary(run, view)
    machines = [machine._asdict() for machine in view.machines]
    return short | snapshot(run, view).as_dict() | {"started": run.started, "machines": machines}
