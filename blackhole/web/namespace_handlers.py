"""The HTTP handlers of /namespaces: orders and figures of a namespace, as the server has them for all."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from blackhole.fleet.runs import FleetFigures
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.transaction_reader import TransactionFilter
from blackhole.store.control import NamespaceEntry
from blackhole.store.namespaces import NAMESPACE_NAME
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.control_handlers import NextRulesHandler, OrderHandler, ScenarioHandler
from blackhole.web.handlers import (
    ReportHandler,
    RunHandler,
    RunsHandler,
    StatsBaseHandler,
    StatsHandler,
    StopRunHandler,
    WaitHandler,
)
from blackhole.web.namespaces import Namespaces
from blackhole.web.operations import Parameter
from blackhole.web.recent_handlers import RecentHandler
from blackhole.web.scope import SCOPE_PARAMETER

NAMESPACE_PARAMETER: Final = Parameter(
    "namespace", "name of a namespace", {"type": "string", "pattern": f"^{NAMESPACE_NAME}$"}
)

NAMESPACE_SCOPE_PARAMETER: Final = SCOPE_PARAMETER._replace(
    about="whose figures: without it those of the fleet, if its orders reach namespaces, else this machine's",
    schema={"type": "string", "enum": SCOPE_PARAMETER.schema["enum"]},
)

MAKING_METHODS: Final = ("PUT", "POST")
"""Methods that make a namespace, where they give an order."""


class NamespaceBaseHandler(BaseHandler):
    """The base of the handlers of namespaces."""

    namespaces: Namespaces | None
    namespace = ""
    """Its name, in lower case."""

    def prepare(self) -> None:
        super().prepare()
        if self.request.method not in self.allowed_methods():
            raise APIError(HTTPStatus.METHOD_NOT_ALLOWED, "This path has no such method.")
        if self.namespaces is None:
            raise APIError(
                HTTPStatus.NOT_FOUND, "There are no namespaces. Start Blackhole with --namespace-by tag."
            )
        if self.path_args:
            self.namespace = self.path_args.pop(0).lower()

    @property
    def known(self) -> Namespaces:
        """The namespaces of the server."""
        assert self.namespaces is not None
        return self.namespaces

    def find(self) -> NamespaceEntry:
        """Return the namespace of the path. Raises APIError if there is none."""
        return self.known.find(self.namespace)


class NamespaceOrderHandler(NamespaceBaseHandler, OrderHandler):
    """The base of the handlers that publish orders for a namespace."""

    def prepare(self) -> None:
        super().prepare()
        if self.namespace:
            self.control = self.known.control(self.namespace)
            if self.request.method not in MAKING_METHODS:
                self.find()


class NamespacesHandler(NamespaceBaseHandler):
    """GET /namespaces: all namespaces."""

    async def get(self) -> None:
        found = self.known
        self.write_json(await found.summaries(found.directory.entries()))


class NamespaceHandler(NamespaceOrderHandler):
    """/namespaces/NAME: one namespace. PUT makes it, DELETE removes it with all its orders and figures."""

    async def get(self) -> None:
        for summary in await self.known.summaries([self.find()]):
            self.write_json(summary)

    async def put(self) -> None:
        if self.known.directory.find(self.namespace) is None:
            await self.apply(self.control.keep())
            self.set_status(HTTPStatus.CREATED)
        await self.get()

    async def delete(self) -> None:
        await self.apply(self.known.remove(self.namespace))
        self.write_json({"name": self.namespace})


class NamespaceScenarioHandler(NamespaceOrderHandler, ScenarioHandler):
    """/namespaces/NAME/scenario: the scenario in force in a namespace."""


class NamespaceNextRulesHandler(NamespaceOrderHandler, NextRulesHandler):
    """/namespaces/NAME/next: the one-shot rules of a namespace."""


class NamespaceStatsHandler(NamespaceBaseHandler, StatsBaseHandler):
    """The base of the handlers that use the figures of a namespace."""

    def prepare(self) -> None:
        super().prepare()
        self._entry = self.find()
        self.stats = self.known.stats(self._entry)

    @property
    def is_of_fleet(self) -> bool:
        return self.known.is_of_fleet(self.choice_argument(NAMESPACE_SCOPE_PARAMETER))

    @property
    def member(self) -> FleetFigures:
        return self.known.figures(self._entry)


class NamespaceFiguresHandler(NamespaceStatsHandler, StatsHandler):
    """GET /namespaces/NAME/stats.json."""

    async def get(self) -> None:
        if self.is_of_fleet:
            figures = await self.fleet_stats() | {"scenario": self.stats.scenario()}
        else:
            figures = self.stats.current(self.stats.snapshot())
        self.write_json(figures)


class NamespaceWaitHandler(NamespaceStatsHandler, WaitHandler):
    """GET /namespaces/NAME/wait: respond once so many messages have arrived since the namespace was made."""

    def _messages_at_request(self, first: Snapshot) -> int:
        return 0


class NamespaceRunsHandler(NamespaceStatsHandler, RunsHandler):
    """/namespaces/NAME/runs: the runs of a namespace."""


class NamespaceRunHandler(NamespaceStatsHandler, RunHandler):
    """GET /namespaces/NAME/runs/RUN."""


class NamespaceStopRunHandler(NamespaceStatsHandler, StopRunHandler):
    """POST /namespaces/NAME/runs/RUN/stop."""


class NamespaceReportHandler(NamespaceStatsHandler, ReportHandler):
    """GET /namespaces/NAME/report, and that of one of its runs."""


class NamespaceRecentHandler(NamespaceBaseHandler, RecentHandler):
    """GET /namespaces/NAME/recent: the last transactions of a namespace, of this machine alone in a fleet."""

    def prepare(self) -> None:
        super().prepare()
        if self.known.is_of_fleet(""):
            self.more_figures = {"scope": "machine"}

    def _filter(self, since: str) -> TransactionFilter:
        entry = self.find()
        found = super()._filter(since)
        return replace(found, namespace=entry.name, after=max(found.after, entry.at))
