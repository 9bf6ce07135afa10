"""The web application: the table of routes, and an HTTP server with limits."""

from __future__ import annotations

import logging
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Mapping
from typing import Any, Final, NamedTuple

from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from blackhole.addresses import to_bytes
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

CLIENT_SHARE: Final = 0.5
"""The share of all connections that one IPv4 address, or one IPv6 network of 64 bits, can have."""

RESERVED_DESCRIPTORS: Final = 32
"""Descriptors that the dashboard needs for itself."""

MAX_REQUEST_HEADER: Final = 8192
"""Octets of a request line and header fields."""

MAX_REQUEST_BODY: Final = 4096
"""Octets of the body of a request, /scenario aside."""

REQUEST_TIMEOUT: Final = 10
"""Seconds for a request to arrive."""

RESPONSE_TIMEOUT: Final = 10
"""Seconds for a client to receive a response."""


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
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Log a request, with --debug."""
    log.debug("%d %s %a", handler.get_status(), handler.request.method, handler.request.uri)


class RequestGuard(HTTPMessageDelegate):
    """Gives a request to a delegate; one that the delegate cannot read is answered with 400."""

    def __init__(self, delegate: HTTPMessageDelegate) -> None:
        self._delegate: Final = delegate
        self.data_received = delegate.data_received  # type: ignore[method-assign]
        self.finish = delegate.finish  # type: ignore[method-assign]
        self.on_connection_close = delegate.on_connection_close  # type: ignore[method-assign]

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        try:
            return self._delegate.headers_received(start_line, headers)
        except ValueError as error:  # the port in Host may have thousands of digits
            raise HTTPInputError(str(error)) from None


class DashboardServer(HTTPServer):
    """An HTTP server with limits on connections, and on the time that a client takes to read."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        available, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(2, min(MAX_CONNECTIONS, available - RESERVED_DESCRIPTORS))
        """The number of connections; when descriptors run out, Tornado tries to accept without a pause."""
        self._clients: dict[IOStream, bytes] = {}
        """The client of each open connection."""
        self._client_connections: Counter[bytes] = Counter()
        """Open connections by client."""
        self._unread_since: dict[IOStream, float] = {}
        """When a connection was first seen with a response that its client does not read."""

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve a connection; close it if there are too many, at all or of its client."""
        client = to_bytes(str(address[0]))[:8]
        if len(self._clients) >= self._most or self._client_connections[client] >= self._most * CLIENT_SHARE:
            stream.close()
            return
        self._clients[stream] = client
        self._client_connections[client] += 1
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        return RequestGuard(super().start_request(server_conn, request_conn))

    def on_close(self, server_conn: object) -> None:
        stream = server_conn.stream  # type: ignore[attr-defined]
        client = self._clients.pop(stream)
        self._unread_since.pop(stream, None)
        self._client_connections[client] -= 1
        if not self._client_connections[client]:
            del self._client_connections[client]
        super().on_close(server_conn)

    def close_unread(self) -> None:
        """Close the connections of clients that do not read; to be called once a second."""
        now = time.monotonic()
        since = {stream: self._unread_since.get(stream, now) for stream in self._clients if stream.writing()}
        self._unread_since = since
        for stream in [stream for stream, began in since.items() if now - began >= RESPONSE_TIMEOUT]:
            stream.close()


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
