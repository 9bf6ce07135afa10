"""The web application: the table of routes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from tornado.web import Application, RequestHandler

from blackhole.web import openapi
from blackhole.web.base_handler import BaseHandler, MissingSlashHandler, NotFoundHandler
from blackhole.web.control_handlers import CheckScenarioHandler, NextRulesHandler, ScenarioHandler
from blackhole.web.events import EventsHandler
from blackhole.web.handlers import (
    AUTHORITY_TYPE,
    FORMAT_PARAMETER,
    HISTORY_PARAMETER,
    MESSAGES_PARAMETER,
    METRICS_CONTENT,
    REPORT_TYPES,
    RUN_PARAMETER,
    TIMEOUT_PARAMETER,
    AuthorityHandler,
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
from blackhole.web.namespace_handlers import (
    NAMESPACE_PARAMETER,
    NAMESPACE_SCOPE_PARAMETER,
    NamespaceFiguresHandler,
    NamespaceHandler,
    NamespaceNextRulesHandler,
    NamespaceRecentHandler,
    NamespaceReportHandler,
    NamespaceRunHandler,
    NamespaceRunsHandler,
    NamespaceScenarioHandler,
    NamespacesHandler,
    NamespaceStopRunHandler,
    NamespaceWaitHandler,
)
from blackhole.web.openapi import OpenAPIHandler
from blackhole.web.operations import (
    ALIVE_CONTENT,
    COUNT_SCHEMA,
    NAMESPACE_SCHEMA,
    NEXT_RULES_SCHEMA,
    OBJECT_SCHEMA,
    ONE_SHOT_RULE_SCHEMA,
    RUN_SCHEMA,
    SCENARIO_SCHEMA,
    TEXT_SCHEMA,
    TOML_CONTENT,
    TRANSACTIONS_CONTENT,
    VARIABLES_PARAMETER,
    WAITED_CONTENT,
    WORKERS_CONTENT,
    Operation,
    Parameter,
    array,
    errors,
    json_content,
    record,
)
from blackhole.web.recent_handlers import RECENT_PARAMETERS, RecentHandler
from blackhole.web.scope import SCOPE_PARAMETER
from blackhole.web.static_files import StaticHandler

log = logging.getLogger(__name__)


PATH_PARAMETERS: Final = {
    "run": RUN_PARAMETER,
    "namespace": NAMESPACE_PARAMETER,
    "file": Parameter("file", "name of a file", {"type": "string", "pattern": "^[A-Za-z.]+$"}),
}
"""What stands in braces in the paths of routes."""


class Route(NamedTuple):
    """A path, and who handles it with which services."""

    path: str
    """With names of PATH_PARAMETERS in braces."""
    handler: type[BaseHandler]
    services: tuple[str, ...] = ()
    """Names of the services that become attributes of the handler; all have `hosts`."""
    operations: tuple[Operation, ...] = ()
    """What the HTTP API has here; none for the page, its files and its events."""

    @property
    def pattern(self) -> str:
        """The path as a regular expression."""
        return re.sub(
            r"\{(\w+)\}", lambda name: f"({PATH_PARAMETERS[name[1]].schema['pattern'][1:-1]})", self.path
        )


OF_FLEET: Final = errors(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
"""Errors of a request with `scope`."""

OF_ORDER: Final = errors(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""Errors of a request that changes how the server behaves."""

NAME_CONTENT: Final = json_content(record(name=TEXT_SCHEMA))
RUN_CONTENT: Final = json_content(RUN_SCHEMA)
SCENARIO_CONTENT: Final = json_content(SCENARIO_SCHEMA)
BODY_TOO_LARGE: Final = errors(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
REPORT_CONTENT: Final = {
    kind.partition(";")[0]: OBJECT_SCHEMA if name == "json" else TEXT_SCHEMA
    for name, kind in REPORT_TYPES.items()
}

SERVER_ROUTES: Final = (
    Route("/", StaticHandler, ("files",)),
    Route("/static/{file}", StaticHandler, ("files",)),
    Route("/events", EventsHandler, ("events",)),
    Route("/openapi.json", OpenAPIHandler, ("description",), (openapi.DESCRIBE,)),
    Route(
        "/stats.json",
        StatsHandler,
        ("stats", "fleet"),
        (
            Operation(
                "GET",
                "All figures",
                {200: json_content(OBJECT_SCHEMA), **OF_FLEET},
                (SCOPE_PARAMETER, HISTORY_PARAMETER),
            ),
        ),
    ),
    Route(
        "/fleet",
        FleetHandler,
        ("stats", "fleet"),
        (
            Operation(
                "GET", "The counters of the fleet, by name", {200: json_content(OBJECT_SCHEMA), **OF_FLEET}
            ),
        ),
    ),
    Route(
        "/metrics",
        MetricsHandler,
        ("stats", "fleet"),
        (Operation("GET", "Metrics for Prometheus", {200: METRICS_CONTENT, **OF_FLEET}, (SCOPE_PARAMETER,)),),
    ),
    Route(
        "/authority.pem",
        AuthorityHandler,
        ("tls",),
        (
            Operation(
                "GET",
                "The authority of the certificates that the server has issued",
                {200: {AUTHORITY_TYPE: TEXT_SCHEMA}, **errors(HTTPStatus.NOT_FOUND)},
            ),
        ),
    ),
    Route(
        "/healthz",
        HealthHandler,
        (),
        (Operation("GET", "Whether the dashboard is alive", {200: ALIVE_CONTENT}),),
    ),
    Route(
        "/readyz",
        ReadyHandler,
        ("stats",),
        (
            Operation(
                "GET",
                "Whether a worker accepts connections",
                {200: WORKERS_CONTENT, 503: WORKERS_CONTENT},
            ),
        ),
    ),
    Route(
        "/wait",
        WaitHandler,
        ("stats", "waiting", "fleet"),
        (
            Operation(
                "GET",
                "Wait until messages have arrived",
                {200: WAITED_CONTENT, 504: WAITED_CONTENT, **errors(HTTPStatus.CONFLICT), **OF_FLEET},
                (MESSAGES_PARAMETER, TIMEOUT_PARAMETER, RUN_PARAMETER, SCOPE_PARAMETER),
            ),
        ),
    ),
    Route(
        "/recent",
        RecentHandler,
        ("recent", "followers"),
        (
            Operation(
                "GET", "The last transactions", {200: TRANSACTIONS_CONTENT, **OF_FLEET}, RECENT_PARAMETERS
            ),
        ),
    ),
    Route(
        "/runs",
        RunsHandler,
        ("stats", "fleet"),
        (
            Operation(
                "GET",
                "A summary of all runs",
                {200: json_content(array(RUN_SCHEMA)), **OF_FLEET},
                (SCOPE_PARAMETER,),
            ),
            Operation(
                "POST",
                "Start a run",
                {201: RUN_CONTENT, **errors(HTTPStatus.CONFLICT), **OF_FLEET},
                (SCOPE_PARAMETER,),
                body=json_content(record(name=RUN_PARAMETER.schema)),
            ),
        ),
    ),
    Route(
        "/runs/{run}",
        RunHandler,
        ("stats", "fleet"),
        (Operation("GET", "The figures of a run", {200: RUN_CONTENT, **OF_FLEET}, (SCOPE_PARAMETER,)),),
    ),
    Route(
        "/runs/{run}/stop",
        StopRunHandler,
        ("stats", "fleet"),
        (
            Operation(
                "POST",
                "Stop a run, and return its figures",
                {200: RUN_CONTENT, **OF_FLEET},
                (SCOPE_PARAMETER,),
            ),
        ),
    ),
    Route(
        "/scenario",
        ScenarioHandler,
        ("control", "orders"),
        (
            Operation("GET", "The scenario in force", {200: {**SCENARIO_CONTENT, **TOML_CONTENT}}),
            Operation(
                "PUT",
                "Put a scenario in force; an empty body restores the configured one",
                {200: SCENARIO_CONTENT, **OF_ORDER, **BODY_TOO_LARGE},
                (VARIABLES_PARAMETER,),
                body=TOML_CONTENT,
                is_body_required=False,
            ),
            Operation(
                "POST",
                "Switch to a scenario by its name",
                {200: SCENARIO_CONTENT, **OF_ORDER},
                (VARIABLES_PARAMETER,),
                body=NAME_CONTENT,
            ),
            Operation("DELETE", "Restore the configured scenario", {200: SCENARIO_CONTENT, **OF_ORDER}),
        ),
    ),
    Route(
        "/scenario/check",
        CheckScenarioHandler,
        ("control", "orders"),
        (
            Operation(
                "POST",
                "Check a scenario, and put nothing in force",
                {200: json_content(record(rules=COUNT_SCHEMA)), **OF_ORDER, **BODY_TOO_LARGE},
                (VARIABLES_PARAMETER,),
                body=TOML_CONTENT,
            ),
        ),
    ),
    Route(
        "/next",
        NextRulesHandler,
        ("control", "orders"),
        (
            Operation("GET", "The one-shot rules that are waiting", {200: json_content(NEXT_RULES_SCHEMA)}),
            Operation(
                "POST",
                "Add a one-shot rule",
                {200: SCENARIO_CONTENT, **OF_ORDER},
                body=json_content(ONE_SHOT_RULE_SCHEMA),
            ),
            Operation("DELETE", "Remove all one-shot rules", {200: SCENARIO_CONTENT, **OF_ORDER}),
        ),
    ),
    Route(
        "/report",
        ReportHandler,
        ("stats", "fleet"),
        (
            Operation(
                "GET",
                "What senders did wrong since the start",
                {200: REPORT_CONTENT, **OF_FLEET},
                (FORMAT_PARAMETER, SCOPE_PARAMETER),
            ),
        ),
    ),
    Route(
        "/runs/{run}/report",
        ReportHandler,
        ("stats", "fleet"),
        (
            Operation(
                "GET",
                "What senders did wrong in a run",
                {200: REPORT_CONTENT, **OF_FLEET},
                (FORMAT_PARAMETER, SCOPE_PARAMETER),
            ),
        ),
    ),
)
"""Every path but those of namespaces."""

NAMESPACED_HANDLERS: Final[Mapping[str, type[BaseHandler]]] = {
    "/stats.json": NamespaceFiguresHandler,
    "/wait": NamespaceWaitHandler,
    "/recent": NamespaceRecentHandler,
    "/runs": NamespaceRunsHandler,
    "/runs/{run}": NamespaceRunHandler,
    "/runs/{run}/stop": NamespaceStopRunHandler,
    "/scenario": NamespaceScenarioHandler,
    "/next": NamespaceNextRulesHandler,
    "/report": NamespaceReportHandler,
    "/runs/{run}/report": NamespaceReportHandler,
}
"""Paths that each namespace has too, and who handles them there."""

OF_NAMESPACE: Final = errors(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE)
"""Further errors of a request about a namespace."""


def namespaced(route: Route) -> Route:
    """Return the route of a path in each namespace."""
    operations = tuple(
        operation._replace(
            about=f"{operation.about}, in a namespace",
            responses={**OF_NAMESPACE, **operation.responses},
            parameters=tuple(
                NAMESPACE_SCOPE_PARAMETER if one is SCOPE_PARAMETER else one
                for one in operation.parameters
                if one is not HISTORY_PARAMETER
            ),
        )
        for operation in route.operations
    )
    services = (*(name for name in route.services if name != "fleet"), "namespaces")
    path = f"/namespaces/{{namespace}}{route.path}"
    return Route(path, NAMESPACED_HANDLERS[route.path], services, operations)


NAMESPACE_CONTENT: Final = json_content(NAMESPACE_SCHEMA)

ROUTES: Final = (
    *SERVER_ROUTES,
    Route(
        "/namespaces",
        NamespacesHandler,
        ("namespaces",),
        (
            Operation(
                "GET",
                "All namespaces",
                {
                    200: json_content(array(NAMESPACE_SCHEMA)),
                    **errors(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
                },
            ),
        ),
    ),
    Route(
        "/namespaces/{namespace}",
        NamespaceHandler,
        ("namespaces", "control", "orders"),
        (
            Operation("GET", "A namespace", {200: NAMESPACE_CONTENT, **OF_NAMESPACE}),
            Operation(
                "PUT",
                "Make a namespace, if there is none of that name",
                {200: NAMESPACE_CONTENT, 201: NAMESPACE_CONTENT, **OF_ORDER, **OF_NAMESPACE},
            ),
            Operation(
                "DELETE",
                "Remove a namespace, with its orders and figures",
                {200: NAME_CONTENT, **OF_ORDER, **OF_NAMESPACE},
            ),
        ),
    ),
    *(namespaced(route) for route in SERVER_ROUTES if route.path in NAMESPACED_HANDLERS),
)
"""Every path there is."""


def description(needs_token: bool = False, base_path: str = "") -> dict[str, Any]:
    """Return the description of the HTTP API, all paths of which begin with `base_path`."""
    paths = {route.path: route.operations for route in ROUTES}
    public = {route.path for route in ROUTES if route.handler.is_public}
    return openapi.describe(paths, PATH_PARAMETERS, {*paths} - public if needs_token else (), base_path)


def make_application(services: Mapping[str, Any], base_path: str = "") -> Application:
    """Return the application; `services` has a value for each name in ROUTES, and `hosts`.

    All paths begin with `base_path`, which has no slash at its end.
    """
    hosts = {"hosts": services["hosts"]}
    services = {**services, "description": description(services["hosts"].needs_token, base_path)}
    begin = re.escape(base_path)
    routes: list[tuple[str, type[BaseHandler], dict[str, Any]]] = [
        (begin + route.pattern, route.handler, hosts | {name: services[name] for name in route.services})
        for route in ROUTES
    ]
    if base_path:
        routes.append((begin, MissingSlashHandler, hosts))
    return Application(
        routes,
        default_handler_class=NotFoundHandler,
        default_handler_args=hosts,
        log_function=log_request,
    )


def log_request(handler: RequestHandler) -> None:
    """Log a request, with --debug."""
    log.debug("%d %s %a", handler.get_status(), handler.request.method, handler.request.uri)
