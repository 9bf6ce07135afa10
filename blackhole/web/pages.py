"""What all pages of the dashboard have in common: whom they answer, how, and how they refuse."""

from __future__ import annotations

import ipaddress
import json
import logging
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from tornado.httputil import split_host_and_port
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

if TYPE_CHECKING:
    from blackhole.web.dashboard import Dashboard

log = logging.getLogger(__name__)

SAFE: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""With every answer."""


class APIError(HTTPError):
    """Why a request is not answered, for whoever sent it."""

    def __init__(self, code: HTTPStatus, why: str) -> None:
        super().__init__(code)
        self.why: Final = why


class BaseHandler(RequestHandler):
    """What all answers have in common."""

    dashboard: Dashboard
    gone = False
    """Nobody waits for the answer any more."""

    def initialize(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.gone = True

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in SAFE.items():
            self.set_header(name, value)
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        # A stranger's page may have its name resolve to our address, and is then of one origin
        # with us (DNS rebinding); but the name is in the request. An address has none.
        name = split_host_and_port(self.request.host)[0].strip("[]").lower().rstrip(".")
        if not (name in self.dashboard.names or is_address(name)):
            raise APIError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This is not that host. If it is: --dashboard {self.dashboard.address},name=NAME",
            )

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        why = error.why if isinstance(error, APIError) else HTTPStatus(status_code).phrase
        self.set_header("Cache-Control", "no-store")
        self.say({"error": why})

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        if not isinstance(value, HTTPError | StreamClosedError):
            log.error("fault in the answer to %s", self.request.path, exc_info=value)

    def compute_etag(self) -> None:
        return None

    def told(self, body: bytes) -> dict[str, Any]:
        """The JSON object of a request."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise APIError(HTTPStatus.BAD_REQUEST, "The body is to be a JSON object.")
        return found

    def say(self, what: object) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(what, indent=1) + "\n")

    def number(self, name: str, least: float, most: float, default: str) -> float:
        """A number from the query."""
        text = self.get_query_argument(name, default)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise APIError(HTTPStatus.BAD_REQUEST, f"{name} is to be a number from {least:g} to {most:g}")
        return number


def is_address(name: str) -> bool:
    """Whether a host is given by its IP address."""
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
