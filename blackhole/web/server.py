"""The HTTP server: limits on requests and connections, so that no client can hold the dashboard."""

from __future__ import annotations

import resource
import socket
import ssl
import time
from collections.abc import Awaitable
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
from blackhole.web.places import ConnectionPlace, ConnectionPlaces
from blackhole.web.request_queue import RequestQueue
from blackhole.web.tls_stream import TLSStream

# Limits. A Prometheus server and a few open pages stay far below them.

MAX_CONNECTIONS: Final = 256

RESERVED_DESCRIPTORS: Final = 32
"""Descriptors that the dashboard needs for itself."""

MAX_REQUEST_HEADER: Final = 8192
"""Octets of a request line and header fields."""

MAX_REQUEST_BODY: Final = 4096
"""Octets of the body of a request, /scenario aside."""

REQUEST_TIMEOUT: Final = 10
"""Seconds for a request to arrive."""


class RequestGuard(HTTPMessageDelegate):
    """Gives a request to a delegate, when it is its turn; one that cannot be read is answered with 400."""

    def __init__(self, delegate: HTTPMessageDelegate, place: ConnectionPlace, queue: RequestQueue) -> None:
        self._delegate: Final = delegate
        self._place: Final = place
        self._queue: Final = queue
        self.data_received = delegate.data_received  # type: ignore[method-assign]
        self.on_connection_close = delegate.on_connection_close  # type: ignore[method-assign]

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        if self._place.stream.closed():  # Tornado goes on with the requests that it has already read
            raise HTTPInputError("the connection is closed")
        self._place.idle_since = None
        turn = self._queue.enter(self._place)
        return (
            self._begin(start_line, headers) if turn is None else self._begin_after(turn, start_line, headers)
        )

    def finish(self) -> None:
        self._place.answering = True
        self._delegate.finish()

    def _begin(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        try:
            return self._delegate.headers_received(start_line, headers)
        except ValueError as error:  # the port in Host may have thousands of digits
            raise HTTPInputError(str(error)) from None

    async def _begin_after(
        self, turn: Awaitable[None], start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        await turn
        if self._place.stream.closed():
            raise HTTPInputError("the connection is closed")
        going_on = self._begin(start_line, headers)
        if going_on is not None:
            await going_on


class DashboardServer(HTTPServer):
    """An HTTP server with limits on connections, and on the time that a client takes to read."""

    def initialize(self, *args: Any, tls: ssl.SSLContext | None = None, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._tls = tls
        available, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # When descriptors run out, Tornado tries to accept without a pause.
        self.places = ConnectionPlaces(max(2, min(MAX_CONNECTIONS, available - RESERVED_DESCRIPTORS)))
        self._queue = RequestQueue()

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        if self._tls is None:
            super()._handle_connection(connection, address)
            return
        sizes = {"max_buffer_size": self.max_buffer_size, "read_chunk_size": self.read_chunk_size}
        stream = TLSStream.accept(connection, self._tls, **sizes)
        if stream is not None:
            self.handle_stream(stream, address)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Serve a connection; close it if there are too many, at all or of its client."""
        if self.places.take(stream, to_bytes(str(address[0]))[:8], time.monotonic()):
            super().handle_stream(stream, address)
        else:
            stream.close()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        place = self.places.of(server_conn.stream)  # type: ignore[attr-defined]
        place.wait_for_request(time.monotonic())
        return RequestGuard(super().start_request(server_conn, request_conn), place, self._queue)

    def on_close(self, server_conn: object) -> None:
        self.places.release(server_conn.stream)  # type: ignore[attr-defined]
        super().on_close(server_conn)

    def sweep(self) -> None:
        """Close the connections of clients that do not read or are gone; to be called once a second."""
        self.places.sweep(time.monotonic())


def make_server(application: Application, tls: ssl.SSLContext | None = None) -> DashboardServer:
    """Return a server of the application, with its limits; with `tls`, of HTTPS."""
    return DashboardServer(
        application,
        tls=tls,
        idle_connection_timeout=REQUEST_TIMEOUT,
        body_timeout=REQUEST_TIMEOUT,
        max_header_size=MAX_REQUEST_HEADER,
        max_body_size=MAX_REQUEST_BODY,
        max_buffer_size=MAX_REQUEST_HEADER + MAX_REQUEST_BODY,
    )
