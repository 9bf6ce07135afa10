"""A machine of a fleet as it last wrote of itself, and all of them together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from blackhole.fleet import fields
from blackhole.fleet.replies import MAX_STORED_NUMBER, FleetRun
from blackhole.fleet.script import LIVE_SECONDS, MEMBER_SECONDS
from blackhole.fleet.store import Total
from blackhole.metrics.findings import plural
from blackhole.metrics.snapshot import ProcessStatus, Snapshot
from blackhole.metrics.status import duration

MAX_SUMMARY: Final = 2048
"""Octets of what is shown of a machine."""

MAX_TEXT: Final = 100
"""Characters of each text in it."""

MAX_CLOCK_DIFFERENCE: Final = 2.0
"""Seconds between the clock of a machine and that of the store which are not worth a word."""

SAME_NAME: Final = "it needs another --hostname, because it has the name of"
"""How a machine is told that its name is not its own."""

MAX_NAMED: Final = 3
"""Machines that are named where there may be many."""

STALE_SECONDS: Final = 3.0
"""Seconds since its last write from which a machine is marked with its age."""

MAX_SILENT: Final = 20
"""Machines that a report names because they are silent."""


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
    mark: int = -1
    """The number of the last request to write, before it read these figures; -1 if it knows of none."""
    layout: int = 0
    """The layout of its counters."""
    digest: str = ""
    """That of its scenario; empty if it has none."""
    namespaces: int = -1
    """The number of the last order to a namespace that it obeys; -1 if it obeys none."""

    @property
    def silence(self) -> str:
        """How a machine is called that no longer writes: `gone` or `silent`; empty for one that does."""
        if not self.alive:
            return "gone"
        return "silent" if self.age >= STALE_SECONDS else ""


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
    runs: Mapping[str, FleetRun] = {}
    """By name, the oldest first."""

    @property
    def alive(self) -> int:
        """The number of machines that are alive."""
        return count_alive(self.machines)

    @property
    def workers(self) -> int:
        """The number of workers of the machines that are alive."""
        return count_workers(self.machines)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        machines = [machine._asdict() for machine in self.machines]
        return {"fleet": self.name, **self.snapshot.as_dict(), "machines": machines}


def count_alive(machines: Iterable[Machine]) -> int:
    """Return how many machines are alive."""
    return sum(machine.alive for machine in machines)


def count_workers(machines: Iterable[Machine]) -> int:
    """Return the number of workers of the machines that are alive."""
    return sum(machine.workers for machine in machines if machine.alive)


def find_differences(own: Machine, others: Iterable[Machine], clock: float) -> Iterator[str]:
    """Yield in what a machine differs from others. `clock` is how far its clock is ahead of the store's."""
    alike: dict[str, list[Machine]] = {}
    for other in others:
        if other.version != own.version:
            alike.setdefault(f"version {own.version}, not {other.version}", []).append(other)
        if other.layout != own.layout:
            alike.setdefault("another layout of the counters", []).append(other)
        if (other.scenario, other.digest) != (own.scenario, own.digest):
            alike.setdefault(f"scenario {_scenario(own)}, not {_scenario(other)}", []).append(other)
        if _namespaces(other) != _namespaces(own):
            differs = f"namespaces {_namespaces(own)}, not {_namespaces(other)}"
            alike.setdefault(differs, []).append(other)
        if _plain_name(other) == _plain_name(own) and other.up >= own.up:
            alike.setdefault(SAME_NAME, []).append(other)
    for what, machines in alike.items():
        names = ", ".join(machine.name for machine in machines[:MAX_NAMED])
        more = f" and {len(machines) - MAX_NAMED} more" if len(machines) > MAX_NAMED else ""
        yield f"{what} {names}{more}" if what == SAME_NAME else f"{what} as on {names}{more}"
    if abs(clock) > MAX_CLOCK_DIFFERENCE:
        side = "ahead of" if clock > 0 else "behind"
        yield f"its clock is {abs(clock):.1f} s {side} that of the store"


def _scenario(machine: Machine) -> str:
    return f"{machine.scenario} ({machine.digest or 'empty'})"


def _namespaces(machine: Machine) -> str:
    return "unshared" if machine.namespaces < 0 else "shared"


def _plain_name(machine: Machine) -> str:
    """Return the name of a machine as it wrote it."""
    return machine.name.removesuffix(f" ({machine.id})")


def parse_machines(found: Mapping[str, tuple[float, bytes]]) -> list[Machine]:
    """Return the machines that were seen in the last hour; those of one name with their ids."""
    machines = [
        machine
        for name, (age, text) in found.items()
        if age < MEMBER_SECONDS and (machine := parse_machine(name, age, text)) is not None
    ]
    names = Counter(machine.name for machine in machines if machine.alive)
    return [
        machine._replace(name=f"{machine.name} ({machine.id})") if names[machine.name] > 1 else machine
        for machine in machines
    ]


def make_view(name: str, total: Total, now: float, machines: Iterable[Machine]) -> FleetView:
    """Return what is known of a fleet at a time by the store's clock."""
    ordered = tuple(sorted(machines, key=lambda machine: (machine.name, machine.id)))
    processes = tuple(
        ProcessStatus(machine.name, 0, machine.age, machine.open, machine.load)
        for machine in ordered
        if machine.alive
    )
    workers, seconds = count_workers(ordered), max(0.0, now - total.began)
    counters = fields.snapshot(total.fields, seconds, total.began, processes, workers, (*notes(ordered),))
    return FleetView(counters, ordered, name, total, now)


def notes(machines: tuple[Machine, ...]) -> Iterator[str]:
    """Yield what a report on a fleet says of its machines, and what it cannot say."""
    yield from silence_notes(machines)
    yield "Evidence and clients are kept by each machine: ask it with --scope machine."


def silence_notes(machines: tuple[Machine, ...]) -> Iterator[str]:
    """Yield what a report says of the machines of a fleet."""
    alive = plural(count_alive(machines), "machine")
    yield f"Counted by {alive} alive now, and by all that were in the fleet before."
    silent = [machine for machine in machines if machine.silence]
    for machine in silent[:MAX_SILENT]:
        name = printable(machine.name)
        yield f"{name}: {machine.silence}, its last figures are {duration(machine.age)} old."
    if len(silent) > MAX_SILENT:
        yield f"{len(silent) - MAX_SILENT} more machines are silent or gone."


def printable(text: str) -> str:
    """Return a text that another machine has written, as a terminal can show it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def parse_machine(machine: str, age: float, text: bytes) -> Machine | None:
    """Return a machine as it wrote of itself; None for anything else: what is stored is input like any."""
    try:
        found = json.loads(text[:MAX_SUMMARY])
        has_left = found.get("left") is True  # its last write made it older, so that it is gone at once
        return Machine(
            machine,
            str(found["name"])[:MAX_TEXT],
            str(found["version"])[:MAX_TEXT],
            str(found["scenario"])[:MAX_TEXT],
            max(0.0, age - LIVE_SECONDS if has_left else age),
            age < LIVE_SECONDS,
            float(_number(found["up"])),
            int(_number(found["messages"])),
            float(_number(found["rate"])),
            int(_number(found["open"])),
            float(_number(found["load"])),
            int(_number(found["workers"])),
            int(_number(found["order"])),
            int(_number(found.get("mark", -1))),
            int(_number(found.get("layout", 0))),
            str(found.get("digest", ""))[:MAX_TEXT],
            int(_number(found.get("namespaces", -1))),
        )
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return None


def _number(number: object) -> float | int:
    """Return a number that JSON and 64 bits can hold. Raises ValueError for anything else."""
    if not (isinstance(number, int | float) and abs(number) < MAX_STORED_NUMBER):
        raise ValueError
    return number
