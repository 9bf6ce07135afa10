"""The web application: the table of routes, and an HTTP server with limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from blackhole.web.base_handler import BaseHandler, NotFoundHandler
from blackhole.web.control_handlers import NextRulesHandler, ScenarioHandler
from blackhole.web.events import EventsHandler
from blackhole.web.handlers import (
    RUN_NAME,
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
from blackhole.web.static_files import StaticHandler

log = logging.getLogger(__name__)

# Limits. A Prometheus server and a few open pages stay far below them.

MAX_CONNECTIONS: Final = 256
MAX_REQUEST_HEADER: Final = 8192
"""Octets of a request line and header fields."""

MAX_REQUEST_BODY: Final = 4096
"""Octets of the body of a request, /scenario aside."""

REQUEST_TIMEOUT: Final = 10
"""Seconds for a request to arrive."""


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
    Route("/stats.json", StatsHandler, ("stats",)),
    Route("/metrics", MetricsHandler, ("stats",)),
    Route("/healthz", HealthHandler),
    Route("/readyz", ReadyHandler, ("stats",)),
    Route("/wait", WaitHandler, ("stats", "waiting")),
    Route("/runs", RunsHandler, ("stats",)),
    Route(f"/runs/({RUN_NAME})", RunHandler, ("stats",)),
    Route(f"/runs/({RUN_NAME})/stop", StopRunHandler, ("stats",)),
    Route("/scenario", ScenarioHandler, ("control",)),
    Route("/next", NextRulesHandler, ("control",)),
    Route("/report", ReportHandler, ("stats",)),
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
        cross_origin_protection=True,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Log a request, with --debug."""
    log.debug("%d %s %a", handler.get_status(), handler.request.method, handler.request.uri)


class DashboardServer(HTTPServer):
    """An HTTP server that closes connections beyond MAX_CONNECTIONS."""

    connections = 0

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if self.connections >= MAX_CONNECTIONS:
            stream.close()
            return
        self.connections += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.connections -= 1
        super().on_close(server_conn)


def make_server(services: Mapping[str, object]) -> DashboardServer:
    """Return a server of the application, with its limits."""
    return DashboardServer(
        make_application(services),
        idle_connection_timeout=REQUEST_TIMEOUT,
        body_timeout=REQUEST_TIMEOUT,
        max_header_size=MAX_REQUEST_HEADER,
        max_body_size=MAX_REQUEST_BODY,
        max_buffer_size=MAX_REQUEST_HEADER + MAX_REQUEST_BODY,
    )
