"""The HTTP handlers that read the figures: statistics, metrics, health, runs, reports, waiting."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, Final

from blackhole.fleet import remote, runs
from blackhole.fleet.replies import FleetRun
from blackhole.fleet.runs import FleetRuns, RunConflict
from blackhole.metrics import report
from blackhole.metrics.snapshot import Snapshot
from blackhole.web import prometheus
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.history import Run
from blackhole.web.operations import TEXT_SCHEMA, Content, Parameter
from blackhole.web.scope import ScopedHandler, fleet_figures, store_errors_as_responses
from blackhole.web.tls_orders import TLSOrders

MAX_WAITING: Final = 64
"""Requests to /wait at the same time."""

MAX_WAIT_SECONDS: Final = 3600
"""Seconds that /wait may wait."""

WAIT_INTERVAL: Final = 0.02
"""Seconds after which /wait reads the counters again."""

FLEET_WAIT_INTERVAL: Final = 0.25
"""The same for the figures of a fleet, which the machines write once a second."""

RUN_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""The name of a run."""

RUN_PARAMETER: Final = Parameter("run", "name of a run", {"type": "string", "pattern": f"^{RUN_NAME}$"})

MESSAGES_PARAMETER: Final = Parameter(
    "messages",
    "how many messages to wait for",
    {"type": "number", "minimum": 1, "maximum": 1e15, "default": 1},
)

TIMEOUT_PARAMETER: Final = Parameter(
    "timeout",
    "seconds after which the response comes anyway",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 60},
)

HISTORY_PARAMETER: Final = Parameter(
    "history", "whether to tell the last hour and day too", {"type": "string"}
)

METRICS_CONTENT: Final[Content] = {"text/plain": TEXT_SCHEMA, "application/openmetrics-text": TEXT_SCHEMA}
"""The formats of /metrics."""

REPORT_TYPES: Final = {
    "text": "text/plain; charset=utf-8",
    "json": "application/json",
    "junit": "application/xml; charset=utf-8",
}
"""Format of a report -> its content type."""

FORMAT_PARAMETER: Final = Parameter(
    "format", "format of the report", {"type": "string", "enum": [*REPORT_TYPES], "default": "text"}
)


AUTHORITY_TYPE: Final = "application/x-pem-file"


class AuthorityHandler(BaseHandler):
    """GET /authority.pem: the authority of the certificates that the server has issued."""

    tls: TLSOrders

    def get(self) -> None:
        if not self.tls.authority:
            raise APIError(HTTPStatus.NOT_FOUND, "The server has issued no certificates.")
        self.set_header("Content-Type", AUTHORITY_TYPE)
        self.write(self.tls.authority)


class HealthHandler(BaseHandler):
    """GET /healthz: whether the dashboard is alive."""

    is_public = True

    def get(self) -> None:
        self.write_json({"alive": True})

    head = get


class StatsBaseHandler(ScopedHandler):
    """The base of the handlers that use the figures and the runs."""

    async def find_fleet_run(self, name: str) -> FleetRun:
        """Return the run of the fleet. Raises APIError if there is none."""
        with store_errors_as_responses():
            run = await FleetRuns(self.member).find(name)
        if run is None:
            raise APIError(HTTPStatus.NOT_FOUND, f"The fleet has no run {name}.")
        return run

    def find_run(self, name: str) -> Run:
        """Return the run of that name. Raises APIError if there is none."""
        run = self.stats.history.run(name)
        if run is None:
            raise APIError(HTTPStatus.NOT_FOUND, f"There is no run {name}.")
        return run


class ReadyHandler(StatsBaseHandler):
    """GET /readyz: whether a worker accepts connections."""

    is_public = True

    def get(self) -> None:
        workers = self.stats.accepting_workers()
        if not workers:
            self.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
        self.write_json({"workers": workers})

    head = get


class StatsHandler(StatsBaseHandler):
    """GET /stats.json, with ?history=1 also the past."""

    async def get(self) -> None:
        if self.is_of_fleet:
            self.write_json(await self.fleet_stats())
            return
        stats = self.stats
        figures = stats.current(stats.snapshot()) | {"rules": stats.violation_rules()}
        if self.get_query_argument("history", "0") in ("0", "no", "false", ""):
            self.write_json(figures)
        else:
            self.write_json(figures, "history", stats.past_json())

    async def fleet_stats(self) -> dict[str, Any]:
        """Return all figures of the fleet."""
        view = await self.fleet_view()
        return fleet_figures(view) | {"runs": [runs.summary(run, view) for run in view.runs.values()]}


class FleetHandler(StatsBaseHandler):
    """GET /fleet: the counters of the fleet by name, as the command line reads them."""

    async def get(self) -> None:
        self.write_json(remote.as_dict(await self.fleet_view()))


class MetricsHandler(StatsBaseHandler):
    """GET /metrics, for Prometheus."""

    async def get(self) -> None:
        accept = self.request.headers.get("Accept", "")
        cpu = {} if self.is_of_fleet else self.stats.cpu_seconds()
        ages = {one.name: one.age for one in (await self.fleet_view()).machines} if self.is_of_fleet else {}
        content_type, text = prometheus.text(await self.scoped_snapshot(), cpu, accept, ages)
        self.set_header("Content-Type", content_type)
        self.write(text)


class WaitHandler(StatsBaseHandler):
    """GET /wait: respond once so many messages have arrived, since the request or since a run began."""

    waiting: set[WaitHandler]

    async def get(self) -> None:
        wanted = self.number_argument(MESSAGES_PARAMETER)
        timeout = self.number_argument(TIMEOUT_PARAMETER)
        first = await self.scoped_snapshot()
        name = self.get_query_argument("run", "")
        start = await self._messages_before(name) if name else self._messages_at_request(first)
        if len(self.waiting) >= MAX_WAITING:
            raise APIError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MAX_WAITING} requests are waiting already; try later.",
            )
        self.waiting.add(self)
        try:
            while True:
                last = await self.scoped_snapshot() if self.is_of_fleet else self.stats.recent()
                messages = sum(last.messages.values()) - start
                seconds = max(0.0, last.seconds - first.seconds)
                if messages >= wanted or seconds >= timeout or self.disconnected:
                    break
                await asyncio.sleep(FLEET_WAIT_INTERVAL if self.is_of_fleet else WAIT_INTERVAL)
        finally:
            self.waiting.discard(self)
        if messages < wanted:
            self.set_status(HTTPStatus.GATEWAY_TIMEOUT)
        self.write_json({"messages": messages, "seconds": seconds})

    def _messages_at_request(self, first: Snapshot) -> int:
        """Return the number of messages before those that are waited for, where no run is given."""
        return sum(first.messages.values())

    async def _messages_before(self, name: str) -> int:
        """Return the number of messages before a run began."""
        if self.is_of_fleet:
            fleet_run = await self.find_fleet_run(name)
            ended, messages = fleet_run.ended, runs.messages_before(fleet_run)
        else:
            run = self.find_run(name)
            ended, messages = run.ended, sum(self.stats.at_start(run).messages.values())
        if ended:
            raise APIError(HTTPStatus.CONFLICT, f"The run {name} has ended.")
        return messages


class RunsHandler(StatsBaseHandler):
    """GET /runs: all runs. POST /runs: start one."""

    async def get(self) -> None:
        if self.is_of_fleet:
            view = await self.fleet_view()
            with store_errors_as_responses():
                all_runs = await FleetRuns(self.member).all()
            self.write_json([runs.summary(run, view) for run in all_runs.values()])
            return
        now = self.stats.snapshot()
        self.write_json([self.stats.run_summary(run, now) for run in self.stats.history.runs()])

    async def post(self) -> None:
        name = self._name()
        if self.is_of_fleet:
            await self._start_of_fleet(name)
            return
        history = self.stats.history
        if history.run(name):
            raise APIError(HTTPStatus.CONFLICT, f"There is a run {name} already; choose another name.")
        now = self.stats.snapshot()
        if not history.start(name, now.cells, now.open):
            raise APIError(HTTPStatus.CONFLICT, f"{history.max_runs} runs are running already; stop one.")
        self.set_status(HTTPStatus.CREATED)
        self.set_header("Location", f"{self.request.path}/{name}")
        self.write_json(self.stats.run_report(self.find_run(name)))

    async def _start_of_fleet(self, name: str) -> None:
        """Start a run of the fleet, once all machines have written what came before it."""
        try:
            with store_errors_as_responses():
                await FleetRuns(self.member).start(name)
        except RunConflict as conflict:
            raise APIError(HTTPStatus.CONFLICT, str(conflict)) from None
        self.set_status(HTTPStatus.CREATED)
        self.set_header("Location", f"{self.request.path}/{name}?scope=fleet")
        self.write_json(runs.report(await self.find_fleet_run(name), await self.fleet_view()))

    def _name(self) -> str:
        name = (self.json_body(self.request.body) or {}).get("name")
        if not isinstance(name, str) or not re.fullmatch(RUN_NAME, name):
            raise APIError(
                HTTPStatus.BAD_REQUEST,
                'Expected {"name": NAME} in the body. '
                "NAME has up to 64 letters, digits, dots, hyphens and underscores.",
            )
        return name


class RunHandler(StatsBaseHandler):
    """GET /runs/NAME: what happened in a run until its end, or until now."""

    async def get(self, name: str) -> None:
        if self.is_of_fleet:
            self.write_json(runs.report(await self.find_fleet_run(name), await self.fleet_view()))
        else:
            self.write_json(self.stats.run_report(self.find_run(name)))


class StopRunHandler(StatsBaseHandler):
    """POST /runs/NAME/stop."""

    async def post(self, name: str) -> None:
        if self.is_of_fleet:
            run = await self.find_fleet_run(name)
            with store_errors_as_responses():
                await FleetRuns(self.member).stop(run)
            self.write_json(runs.report(await self.find_fleet_run(name), await self.fleet_view()))
            return
        self.find_run(name)
        self.stats.history.stop(name, self.stats.snapshot().cells)
        self.write_json(self.stats.run_report(self.find_run(name)))


class ReportHandler(StatsBaseHandler):
    """GET /report and GET /runs/NAME/report: what senders did wrong, since the start or in a run."""

    async def get(self, name: str = "") -> None:
        wanted = self.choice_argument(FORMAT_PARAMETER)
        if name and self.is_of_fleet:
            snapshot = runs.snapshot(await self.find_fleet_run(name), await self.fleet_view())
        else:
            now = await self.scoped_snapshot()
            snapshot = self.stats.between(self.find_run(name), now) if name else now
        self.set_header("Content-Type", REPORT_TYPES[wanted])
        self.write(report.FORMATS[wanted](snapshot))
