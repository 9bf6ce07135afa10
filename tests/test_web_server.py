"""The HTTP server in this process: whom it takes for a client that is gone."""

from __future__ import annotations

import asyncio
import socket

from tornado.web import Application, RequestHandler

from blackhole.web.server import make_server

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_client_that_is_answered_between_two_sweeps_is_not_gone() -> None:
    class SweptHandler(RequestHandler):
        def get(self) -> None:
            server.sweep()
            self.write("swept\n")

    async def serve(client: socket.socket) -> bytes:
        server.add_sockets([listening])
        responses = await asyncio.to_thread(received, client)
        server.stop()
        await server.close_all_connections()
        return responses

    def received(client: socket.socket) -> bytes:
        return b"".join(iter(lambda: client.recv(65536), b""))

    server = make_server(Application([("/", SweptHandler)]))
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    with socket.create_connection(listening.getsockname(), timeout=20) as client:
        client.sendall(REQUEST * 10)
        client.shutdown(socket.SHUT_WR)
        assert asyncio.run(serve(client)).count(b"swept\n") == 10
