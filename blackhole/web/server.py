"""The HTTP server: limits on requests and connections, so that no client can hold the dashboard."""

from __future__ import annotations

import resource
import select
import time
from collections import Counter
from collections.abc import Awaitable, Iterable
from typing import Any, Final

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
from tornado.web import Application

from blackhole.addresses import to_bytes

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
        self._gone: set[IOStream] = set()
        """Connections that the last sweep found closed by their clients, without a request since."""

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
        self._gone.discard(server_conn.stream)  # type: ignore[attr-defined]
        return RequestGuard(super().start_request(server_conn, request_conn))

    def on_close(self, server_conn: object) -> None:
        stream = server_conn.stream  # type: ignore[attr-defined]
        client = self._clients.pop(stream)
        self._unread_since.pop(stream, None)
        self._gone.discard(stream)
        self._client_connections[client] -= 1
        if not self._client_connections[client]:
            del self._client_connections[client]
        super().on_close(server_conn)

    def sweep(self) -> None:
        """Close the connections of clients that do not read or are gone; to be called once a second."""
        now = time.monotonic()
        since = {stream: self._unread_since.get(stream, now) for stream in self._clients if stream.writing()}
        unread = {stream for stream, began in since.items() if now - began >= RESPONSE_TIMEOUT}
        gone = closed_by_peer(stream for stream in self._clients if stream not in since)
        before, self._unread_since, self._gone = self._gone, since, gone
        # A client that has closed its side may have sent many requests before: what is answered between two
        # sweeps is no sign that it is gone, though nothing is being written at the time of either.
        for stream in unread | (gone & before):
            stream.close()


def closed_by_peer(streams: Iterable[IOStream]) -> set[IOStream]:
    """Return those streams whose peers have closed them.

    Tornado does not notice that while a request waits for its response, if octets came behind the request.
    """
    descriptors = {stream.socket.fileno(): stream for stream in streams if not stream.closed()}
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLRDHUP)
    return {descriptors[descriptor] for descriptor, _ in poll.poll(0)}


def make_server(application: Application) -> DashboardServer:
    """Return a server of the application, with its limits."""
    return DashboardServer(
        application,
        idle_connection_timeout=REQUEST_TIMEOUT,
        body_timeout=REQUEST_TIMEOUT,
        max_header_size=MAX_REQUEST_HEADER,
        max_body_size=MAX_REQUEST_BODY,
        max_buffer_size=MAX_REQUEST_HEADER + MAX_REQUEST_BODY,
    )
