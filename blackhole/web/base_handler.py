"""The base of all HTTP handlers: which requests are answered, security headers, JSON, errors."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import math
import socket
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest, split_host_and_port
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from blackhole.settings import Settings
from blackhole.web.operations import Parameter

log = logging.getLogger(__name__)

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response."""


class APIError(HTTPError):
    """An error response, whose text says what is wrong with the request, and `line` where in its body."""

    def __init__(self, status: HTTPStatus, text: str, line: int | None = None) -> None:
        super().__init__(status)
        self.text: Final = text
        self.line: Final = line


class AllowedHosts:
    """The host names that requests may use: localhost, any IP address, the names of this host.

    Without this check, a page of another site could read the responses, by letting its own name resolve
    to this address (DNS rebinding). A request by address cannot come from such a page.
    """

    def __init__(self, settings: Settings) -> None:
        address = settings.dashboard
        self._address: Final = replace(address, names=())
        own = {"localhost", settings.hostname, socket.gethostname(), address.host}
        self._names: Final = own.union(address.names)
        self._token: Final = address.token.encode()

    def check(self, host: str) -> None:
        """Raise APIError unless the Host header of a request is allowed."""
        name = split_host_and_port(host)[0].strip("[]").lower().rstrip(".")
        if not (name in self._names or is_address(name)):
            raise APIError(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This host name is not allowed. To allow it, start Blackhole with "
                f"--dashboard {self._address},name=NAME.",
            )

    @property
    def needs_token(self) -> bool:
        """Whether requests need a token."""
        return bool(self._token)

    def check_token(self, authorization: str) -> None:
        """Raise APIError unless the field Authorization of a request has the token, if there is one.

        A browser asks its user for a name, which may be anything, and a password, which is the token.
        """
        scheme, _, value = authorization.partition(" ")
        given = value.strip().encode()
        if scheme.lower() == "basic":
            with suppress(ValueError):
                given = base64.b64decode(given).partition(b":")[2]
        if self._token and not hmac.compare_digest(given, self._token):
            raise APIError(HTTPStatus.UNAUTHORIZED, "This needs the token of the dashboard.")


def is_address(name: str) -> bool:
    """Return whether a host is given by its IP address."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def is_cross_origin(request: HTTPServerRequest) -> bool:
    """Return whether a browser sends the request for a page of another origin."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")  # of a browser that does not send Sec-Fetch-Site
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != request.host.lower()
    except ValueError:
        return True


def is_navigation(request: HTTPServerRequest) -> bool:
    """Return whether the user followed a link: no other page can read the response, or frame it."""
    fetch = [request.headers.get(f"Sec-Fetch-{name}") for name in ("Mode", "Dest")]
    return request.method == "GET" and fetch == ["navigate", "document"]


class BaseHandler(RequestHandler):
    """A handler that is given the services which its route names, each as an attribute."""

    hosts: AllowedHosts
    is_public = False
    """Needs no token: it tells nothing but whether the server is alive."""
    is_page = False
    """A link on a page of another site may lead here."""
    disconnected = False
    """The client closed the connection before the response was complete."""

    def initialize(self, **services: object) -> None:
        for name, service in services.items():
            setattr(self, name, service)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.disconnected = True

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        self.hosts.check(self.request.host)
        if is_cross_origin(self.request) and not (self.is_page and is_navigation(self.request)):
            raise APIError(HTTPStatus.FORBIDDEN, "Pages of other sites cannot use the dashboard.")
        if not self.is_public:
            self.hosts.check_token(self.request.headers.get("Authorization", ""))

    @classmethod
    def allowed_methods(cls) -> list[str]:
        """Return the methods that the handler has."""
        missing = RequestHandler.get
        return [one for one in cls.SUPPORTED_METHODS if getattr(cls, one.lower()) is not missing]

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        self.set_header("Cache-Control", "no-store")
        if status_code == HTTPStatus.UNAUTHORIZED:
            for scheme in ("Bearer", "Basic"):
                self.add_header("WWW-Authenticate", f'{scheme} realm="Blackhole"')
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self.allowed_methods()))  # RFC 9110 section 15.5.6
        if isinstance(error, APIError):
            self.write_json({"error": error.text} | ({"line": error.line} if error.line else {}))
        else:
            self.write_json({"error": HTTPStatus(status_code).phrase})

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if not isinstance(value, HTTPError | StreamClosedError):
            log.error("error in the response to %s", self.request.path, exc_info=value)

    def compute_etag(self) -> None:
        """Compute none: a response is different each time, and a static file has its own."""

    def json_body(self, body: bytes) -> dict[str, Any] | None:
        """Return the JSON object in the body of a request; None for anything else."""
        try:
            # UTF-8 is the only encoding of JSON (RFC 8259 8.1). `json` would try to load others.
            found = json.loads(body.decode().removeprefix("\N{BYTE ORDER MARK}"))
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def json_object(self, body: bytes) -> dict[str, Any]:
        """Return the JSON object in the body of a request. Raises APIError for anything else."""
        found = self.json_body(body)
        if found is None:
            raise APIError(HTTPStatus.BAD_REQUEST, "Expected a JSON object in the body.")
        return found

    def write_json(self, value: object, key: str = "", text: str = "") -> None:
        """Write the response as JSON; with a key, an object with that key, whose value is JSON already."""
        written = json.dumps(value, indent=1)
        if key:
            written = f'{written.removesuffix("}").rstrip()},\n "{key}": {text}\n}}'
        self.set_header("Content-Type", "application/json")
        self.write(f"{written}\n")

    def number_argument(self, parameter: Parameter) -> float:
        """Return a number from the query. Raises APIError if it is outside the limits."""
        name, schema = parameter.name, parameter.schema
        least, most = schema["minimum"], schema["maximum"]
        try:
            number = float(self.get_query_argument(name, str(schema["default"])))
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise APIError(HTTPStatus.BAD_REQUEST, f"{name}: expected a number from {least:g} to {most:g}.")
        return number

    def choice_argument(self, parameter: Parameter) -> str:
        """Return a choice from the query, or the default, which may be "". Raises APIError for others."""
        name, schema = parameter.name, parameter.schema
        default = schema.get("default", "")
        chosen = self.get_query_argument(name, default)
        if chosen != default and chosen not in schema["enum"]:
            raise APIError(HTTPStatus.BAD_REQUEST, f"{name}: expected one of {', '.join(schema['enum'])}.")
        return chosen


class NotFoundHandler(BaseHandler):
    """Every path without a route."""

    def prepare(self) -> None:
        super().prepare()
        raise APIError(HTTPStatus.NOT_FOUND, "There is no such page.")


class MissingSlashHandler(BaseHandler):
    """The base path without the slash at its end, from which the links of the page would lead elsewhere."""

    is_page = True

    def get(self) -> None:
        # Relative (RFC 9110 10.2.2): a proxy may have another scheme, host and path.
        name = self.request.path.rpartition("/")[2]
        self.set_status(HTTPStatus.PERMANENT_REDIRECT)
        self.set_header("Location", f"{name}/")

    head = get
