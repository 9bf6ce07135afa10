"""The figures of a fleet for the command line, which asks the dashboard of a running server."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from blackhole.dashboard_client import DashboardClient
from blackhole.fleet.machine import FleetView, Machine, make_view, printable
from blackhole.fleet.store import Total
from blackhole.metrics.findings import plural
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.status import duration, figure_lines
from blackhole.settings import OperatorError

DASHBOARD_TIMEOUT: Final = 10.0
"""Seconds for the dashboard to answer."""

MAX_SHOWN: Final = 8
"""Machines in a line of rates."""


def as_dict(view: FleetView) -> dict[str, Any]:
    """Return a fleet as `read` takes it, for JSON."""
    return {
        "name": view.name,
        "began": view.total.began,
        "now": view.now,
        "fields": view.total.fields,
        "machines": [machine._asdict() for machine in view.machines],
    }


def read(facts: Mapping[str, Any], token: str = "") -> FleetView:
    """Return the fleet that a running server belongs to, given its facts.

    `token` is what the dashboard asks for. Raises OperatorError.
    """
    try:
        client = DashboardClient(facts, DASHBOARD_TIMEOUT)
    except ValueError:
        raise OperatorError("the server has no dashboard to ask for its fleet", os.EX_UNAVAILABLE) from None
    try:
        response = client.request("GET", "/fleet", token=token)
        found = json.loads(response.body)
        if response.status != http.HTTPStatus.OK:
            raise OperatorError(str(found["error"]), os.EX_UNAVAILABLE)
        machines = tuple(Machine(**machine) for machine in found["machines"])
        return make_view(str(found["name"]), Total(found["fields"], found["began"]), found["now"], machines)
    except (OSError, http.client.HTTPException) as error:
        problem = f"the dashboard at {client.url} does not answer: {error}"
        raise OperatorError(problem, os.EX_UNAVAILABLE) from None
    except (ValueError, TypeError, KeyError):
        problem = f"the dashboard at {client.url} is of another version"
        raise OperatorError(problem, os.EX_UNAVAILABLE) from None


class FleetReader:
    """Reads the fleet of a running server again and again.

    `facts` returns those of the server: a reload may change where its dashboard is, and its certificate.
    """

    def __init__(self, facts: Callable[[], Mapping[str, Any]], token: str = "") -> None:
        self._facts, self._token = facts, token
        self._view: FleetView | None = None

    def snapshot(self) -> Snapshot:
        """Return the counters of the fleet. Raises OperatorError."""
        self._view = read(self._facts(), self._token)
        return self._view.snapshot

    def machine_rates(self) -> str:
        """Return the rates of all machines, as `snapshot` has read them last."""
        return "" if self._view is None else rate_text(self._view)


def status_text(view: FleetView) -> str:
    """Return the status of a fleet for people."""
    gone = len(view.machines) - view.alive
    return "\n".join(
        (
            f"The fleet {view.name} counts since {duration(view.snapshot.seconds)}:"
            f" {plural(view.alive, 'machine')} alive, {gone} gone,"
            f" {plural(view.snapshot.open, 'connection')} open",
            *figure_lines(view.snapshot),
            *machine_lines(view.machines),
            "",
        )
    )


def machine_lines(machines: tuple[Machine, ...]) -> Iterator[str]:
    """Yield a line for each machine."""
    for machine in machines:
        state = f"{machine.silence} since {duration(machine.age)}, " if machine.silence else ""
        yield (
            f"{printable(machine.name)}: {state}version {printable(machine.version)}, scenario"
            f" {printable(machine.scenario)}, {plural(machine.messages, 'message')}, {machine.rate:,.0f}/s,"
            f" {machine.open:,} open, load {machine.load:.0%}"
        )


def rate_text(view: FleetView) -> str:
    """Return the rates of all machines, for the end of a line."""
    shown = [
        f"{printable(one.name)} {one.rate:,.0f}/s"
        + (f", {one.silence} since {duration(one.age)}" if one.silence else "")
        for one in view.machines
        if one.alive
    ]
    more = f"; {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    return f" | {plural(len(shown), 'machine')}: {'; '.join(shown[:MAX_SHOWN])}{more}"
