"""The namespaces of the server as the HTTP API shows and changes them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from blackhole import __version__
from blackhole.fleet.namespace_figures import NamespaceFigures
from blackhole.metrics.counters import Counters
from blackhole.metrics.findings import findings
from blackhole.metrics.layout import ROW_CELLS
from blackhole.metrics.namespace_counters import NamespaceState
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import OperatorError, Settings
from blackhole.store.control import NamespaceEntry
from blackhole.store.namespaces import MAX_NAMESPACE_RUNS, NamespaceOrders
from blackhole.web.base_handler import APIError
from blackhole.web.control import ScenarioControl
from blackhole.web.history import History, Run
from blackhole.web.stats_view import StatsView

log = logging.getLogger(__name__)


class NamespaceHistory(History):
    """The runs of a namespace, kept with its orders. There is no history of its rates."""

    max_runs = MAX_NAMESPACE_RUNS

    def __init__(self, orders: NamespaceOrders, entry: NamespaceEntry) -> None:
        self._orders, self._entry = orders, entry

    def runs(self) -> list[Run]:
        """Return all runs, the oldest first."""
        try:
            found = json.loads(self._orders.notes(self._entry) or b"[]")
            runs = [
                Run(name, began, ended, started, 0, 0, 0, _all_cells(first), _all_cells(last))
                for name, began, ended, started, first, last in found
            ]
        except (ValueError, TypeError, AttributeError):  # another process has written there
            return []
        return runs

    def start(self, name: str, counters: Iterable[int], open_connections: int) -> bool:
        """Start a run; return False if too many are running."""
        runs = self.runs()
        if len(runs) >= MAX_NAMESPACE_RUNS:
            ended = next((run for run in runs if run.ended), None)
            if ended is None:
                return False
            runs.remove(ended)
        began, started = time.monotonic_ns() // 1000, time.time_ns() // 1000
        self._write([*runs, Run(name, began, 0, started, 0, 0, 0, [*counters], ())])
        return True

    def stop(self, name: str, counters: Iterable[int]) -> None:
        """Stop a run; nothing happens if it has ended."""
        ended, last = time.monotonic_ns() // 1000, [*counters]
        self._write(
            [
                replace(run, ended=ended, last=last) if run.name == name and not run.ended else run
                for run in self.runs()
            ]
        )

    def _write(self, runs: Iterable[Run]) -> None:
        rows = [
            (run.name, run.began, run.ended, run.started, _counted(run.first), _counted(run.last))
            for run in runs
        ]
        self._orders.write_notes(self._entry, json.dumps(rows).encode())


def _counted(cells: Sequence[int]) -> dict[int, int]:
    """Return the cells that are not 0, by their index."""
    return {cell: value for cell, value in enumerate(cells) if value}


def _all_cells(counted: Mapping[str, int]) -> list[int]:
    """Return all cells. Raises ValueError and TypeError for what are none."""
    cells = [0] * ROW_CELLS
    for cell, value in counted.items():
        if not 0 <= int(cell) < ROW_CELLS:
            raise ValueError(cell)
        cells[int(cell)] = int(value)
    return cells


class NamespaceStats(StatsView):
    """A view of the counters of one namespace. `read` returns them."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        history: NamespaceHistory,
        scenario: Callable[[], dict[str, Any]],
        read: Callable[[], Snapshot],
    ) -> None:
        self._read = read
        super().__init__(settings, counters, history, scenario)

    def snapshot(self) -> Snapshot:
        """Return the counters of the namespace."""
        return self._read()

    def current(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return all figures. There are no rates, and nothing of the workers, whom all namespaces share."""
        return {
            "version": __version__,
            "time": time.time(),
            **snapshot.as_dict(),
            "findings": [finding.as_dict() for finding in findings(snapshot)],
            "runs": [self.run_summary(run, snapshot) for run in self.history.runs()],
            "scenario": self.scenario(),
        }


class Namespaces:
    """The namespaces of a server. Each method raises APIError for one that there is not."""

    def __init__(
        self, state: NamespaceState, settings: Settings, control: ScenarioControl, counters: Counters
    ) -> None:
        self.directory: Final = state.directory
        self._state, self._settings, self._control, self._counters = state, settings, control, counters

    def find(self, name: str) -> NamespaceEntry:
        """Return a namespace, which is used by that."""
        entry = self.directory.find(name)
        if entry is None:
            raise APIError(
                HTTPStatus.NOT_FOUND, f"There is no namespace {name}. PUT /namespaces/{name} makes it."
            )
        self.directory.orders.touch(entry.place)
        return entry

    def control(self, name: str) -> ScenarioControl:
        """Return the control of a namespace, whose first order makes it."""
        return self._control.of_channel(self.directory.channel(name))

    def snapshot(self, entry: NamespaceEntry) -> Snapshot:
        """Return the counters of a namespace."""
        return self._state.counters.snapshot(entry, self._counters.snapshot())

    def stats(self, entry: NamespaceEntry) -> NamespaceStats:
        """Return the view of the counters of a namespace, and of its runs."""
        history = NamespaceHistory(self.directory.orders, entry)
        scenario = self.control(entry.name).state
        return NamespaceStats(self._settings, self._counters, history, scenario, lambda: self.snapshot(entry))

    async def remove(self, name: str) -> int:
        """Remove a namespace, with all its orders and figures; return the number of the order.

        Raises OperatorError.
        """
        return self.directory.remove(name)

    def is_of_fleet(self, scope: str) -> bool:
        """Return whether figures are those of a fleet, given the scope of a request; empty for none."""
        return scope == "fleet"

    def figures(self, entry: NamespaceEntry) -> NamespaceFigures:
        """Return the figures of a namespace over the fleet."""
        raise APIError(
            HTTPStatus.NOT_FOUND,
            "These namespaces are this machine's own; start all machines with --fleet and --fleet-control.",
        )

    async def summaries(self, entries: Iterable[NamespaceEntry]) -> list[dict[str, Any]]:
        """Return what there is to say of namespaces, for JSON."""
        server = self._counters.snapshot()
        return [self.summary(entry, server) for entry in entries]

    def local_summaries(self, server: Snapshot) -> list[dict[str, Any]]:
        """Return what this machine knows of all namespaces. `server` are the counters of all mail."""
        return [self.summary(entry, server) for entry in self.directory.entries()]

    def summary(self, entry: NamespaceEntry, server: Snapshot) -> dict[str, Any]:
        """Return what there is to say of a namespace, for JSON. `server` are the counters of all mail."""
        order = self.directory.orders.read(entry)
        budgets = self.directory.orders.budgets(entry.place)
        found = self._state.counters.snapshot(entry, server)
        return {
            "name": entry.name,
            "made": entry.at,
            "unused": self.directory.orders.unused(entry),
            "scenario": order.name if order is not None and order.name else "loaded",
            "waiting": 0 if order is None else sum(map(budgets.remaining, order.one_shot_rules)),
            "messages": sum(found.messages.values()),
        }

    def remove_unused(self) -> None:
        """Remove the namespaces that nobody has used for long; to be called once a second."""
        try:
            names = self.directory.remove_unused()
        except OperatorError as error:
            log.warning("namespaces that are not used stay: %s", error)
        else:
            if names:
                log.info("namespaces are gone, as nobody used them: %s", ", ".join(names))
