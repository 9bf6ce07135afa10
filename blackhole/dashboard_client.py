"""A client of the dashboard of a server on this machine, whose facts say where it is and what to trust."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

LOCAL_ADDRESSES: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Address that stands for all of the machine -> where to connect to it."""

MAX_RESPONSE: Final = 1 << 24
"""Octets of the body of a response: a fleet of ten thousand machines."""


class Response(NamedTuple):
    """A response of the dashboard."""

    status: int
    reason: str
    body: bytes


class DashboardClient:
    """Sends requests to the dashboard at `url`, the first one of a server's facts.

    Under TLS it trusts this certificate and no other, whatever it is for: the facts of a server can be
    written by that server alone. No authority has to be known, and no name has to lead here.
    """

    def __init__(self, facts: Mapping[str, Any], timeout: float) -> None:
        """Raises ValueError for a server without a dashboard. `timeout` is in seconds."""
        self.url: Final = str(facts.get("dashboard") or "").split(" and ")[0]
        if not self.url:
            raise ValueError("the server has no dashboard")
        self._certificate: Final = str(facts.get("dashboard_certificate", ""))
        self._timeout: Final = timeout

    def request(self, method: str, path: str, body: bytes = b"", token: str = "") -> Response:
        """Send a request and return the response. Raises OSError and http.client.HTTPException.

        The path begins with a slash; what all paths of the dashboard begin with is put before it.
        """
        connection = self._connection()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            connection.request(method, urlsplit(self.url).path.rstrip("/") + path, body or None, headers)
            answer = connection.getresponse()
            return Response(answer.status, answer.reason, answer.read(MAX_RESPONSE))
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        host = LOCAL_ADDRESSES.get(address.hostname or "", address.hostname or "")
        if address.scheme != "https":
            return http.client.HTTPConnection(host, address.port, timeout=self._timeout)
        import ssl  # takes long to import, and most dashboards have no TLS

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self._certificate)
        return http.client.HTTPSConnection(host, address.port, timeout=self._timeout, context=context)
