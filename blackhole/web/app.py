"""The web application: the table of routes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from tornado.web import Application, RequestHandler

from blackhole.web.base_handler import BaseHandler, NotFoundHandler
from blackhole.web.control_handlers import CheckScenarioHandler, NextRulesHandler, ScenarioHandler
from blackhole.web.events import EventsHandler
from blackhole.web.handlers import (
    RUN_NAME,
    FleetHandler,
    HealthHandler,
    MetricsHandler,
    ReadyHandler,
    ReportHandler,
    RunHandler,
    RunsHandler,
    StatsHandler,
    StopRunHandler,
    WaitHandler,
)
from blackhole.web.recent_handlers import RecentHandler
from blackhole.web.static_files import StaticHandler

log = logging.getLogger(__name__)


class Route(NamedTuple):
    """A path, and who handles it with which services."""

    path: str
    """A regular expression."""
    handler: type[BaseHandler]
    services: tuple[str, ...] = ()
    """Names of the services that become attributes of the handler; all have `hosts`."""


ROUTES: Final = (
    Route("/", StaticHandler, ("files",)),
    Route("/static/([A-Za-z.]+)", StaticHandler, ("files",)),
    Route("/events", EventsHandler, ("events",)),
    Route("/stats.json", StatsHandler, ("stats", "fleet")),
    Route("/fleet", FleetHandler, ("stats", "fleet")),
    Route("/metrics", MetricsHandler, ("stats", "fleet")),
    Route("/healthz", HealthHandler),
    Route("/readyz", ReadyHandler, ("stats",)),
    Route("/wait", WaitHandler, ("stats", "waiting", "fleet")),
    Route("/recent", RecentHandler, ("recent", "followers")),
    Route("/runs", RunsHandler, ("stats",)),
    Route(f"/runs/({RUN_NAME})", RunHandler, ("stats",)),
    Route(f"/runs/({RUN_NAME})/stop", StopRunHandler, ("stats",)),
    Route("/scenario", ScenarioHandler, ("control",)),
    Route("/scenario/check", CheckScenarioHandler, ("control",)),
    Route("/next", NextRulesHandler, ("control",)),
    Route("/report", ReportHandler, ("stats", "fleet")),
    Route(f"/runs/({RUN_NAME})/report", ReportHandler, ("stats",)),
)
"""Every path there is."""


def make_application(services: Mapping[str, object]) -> Application:
    """Return the application; `services` has a value for each name in ROUTES, and `hosts`."""
    hosts = {"hosts": services["hosts"]}
    return Application(
        [
            (route.path, route.handler, hosts | {name: services[name] for name in route.services})
            for route in ROUTES
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=hosts,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Log a request, with --debug."""
    log.debug("%d %s %a", handler.get_status(), handler.request.method, handler.request.uri)
