"""The places of connections to the dashboard, and the order in which requests are answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from blackhole.web import server as http_server
from blackhole.web.places import DISPENSABLE_AFTER, RESPONSE_TIMEOUT, ConnectionPlaces
from blackhole.web.server import DashboardServer, make_server

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAITING_REQUEST = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMIT = 8
SHARE = LIMIT // 2


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class LocalDashboard:
    """A server in this process, with the clients that a test opens."""

    def __init__(self, stack: ExitStack) -> None:
        self.begun: list[str] = []
        """The clients and paths of requests, in the order in which they began."""
        self._stack = stack
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        self.listening.setblocking(False)
        self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)

    def client(self, request: bytes, address: str = "127.0.0.1") -> socket.socket:
        """Connect from an address, and send as much of some requests as is taken."""
        client = self._stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.bind((address, 0))
        client.connect(self.listening.getsockname())
        client.setblocking(False)
        with suppress(OSError):
            client.send(request)
        return client

    def run(self, play: Callable[[DashboardServer], Awaitable[None]]) -> None:
        """Serve while a coroutine runs."""
        dashboard = self

        class LongHandler(RequestHandler):
            def get(self) -> None:
                dashboard.begun.append(f"{self.request.remote_ip}{self.request.path}")
                self.write("x" * 20000)

        class WaitHandler(RequestHandler):
            async def get(self) -> None:
                dashboard.begun.append(f"{self.request.remote_ip}{self.request.path}")
                await asyncio.sleep(60)

        async def serve() -> None:
            server = make_server(Application([("/wait", WaitHandler), ("/.*", LongHandler)]))
            server.add_sockets([self.listening.dup()])
            try:
                await asyncio.wait_for(play(server), 30)
            finally:
                server.stop()
                await server.close_all_connections()

        asyncio.run(serve())


@pytest.fixture
def dashboard(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> LocalDashboard:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", LIMIT)
    return LocalDashboard(stack)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def is_answered(client: socket.socket) -> bool:
    """Return whether a response comes, and not the end of the connection."""
    with suppress(ConnectionError):
        return (await asyncio.get_running_loop().sock_recv(client, 15)).startswith(b"HTTP/1.1 200 ")
    return False


def test_a_client_whose_connections_pipeline_and_never_read_is_answered_on_its_next_one(
    dashboard: LocalDashboard,
) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: len(dashboard.begun) >= SHARE)
        for _ in range(10):
            with dashboard.client(REQUEST) as client:
                assert await is_answered(client)

    for _ in range(SHARE):
        dashboard.client(REQUEST * 500)
    dashboard.run(play)


def test_requests_that_were_read_before_a_connection_is_closed_are_not_answered(
    dashboard: LocalDashboard,
) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: len(dashboard.begun) >= 2)
        (place,) = server.places
        server.places.close(place)
        before = len(dashboard.begun)
        assert not [*server.places]
        await until(lambda: not server._connections)
        assert len(dashboard.begun) <= before + 1  # one had begun

    dashboard.client(REQUEST * 500)
    dashboard.run(play)


def test_clients_take_turns_whatever_their_number_of_connections(dashboard: LocalDashboard) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: "127.0.0.2/" in dashboard.begun)

    for _ in range(SHARE):
        dashboard.client(REQUEST * 500)
    dashboard.client(REQUEST, "127.0.0.2")
    dashboard.run(play)
    assert dashboard.begun.index("127.0.0.2/") <= 2


def test_single_requests_of_a_client_begin_before_its_pipelined_ones(dashboard: LocalDashboard) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: "127.0.0.1/single" in dashboard.begun)

    for _ in range(SHARE - 1):
        dashboard.client(REQUEST * 500)
    dashboard.client(REQUEST.replace(b"/", b"/single", 1))
    dashboard.run(play)
    assert dashboard.begun.index("127.0.0.1/single") <= 1


def test_a_new_client_gets_a_place_of_the_one_with_most_though_all_wait(dashboard: LocalDashboard) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: len(dashboard.begun) == LIMIT)
        assert await is_answered(dashboard.client(REQUEST, "127.0.0.3"))
        assert len([*server.places]) == LIMIT

    for number in range(LIMIT):
        dashboard.client(WAITING_REQUEST, f"127.0.0.{1 + number // SHARE}")
    dashboard.run(play)


def test_a_client_whose_connections_all_wait_for_responses_gets_no_further_one(
    dashboard: LocalDashboard,
) -> None:
    async def play(server: DashboardServer) -> None:
        await until(lambda: len(dashboard.begun) == SHARE)
        assert not await is_answered(dashboard.client(REQUEST))
        assert await is_answered(dashboard.client(REQUEST, "127.0.0.2"))

    for _ in range(SHARE):
        dashboard.client(WAITING_REQUEST)
    dashboard.run(play)


class StreamPlaces:
    """Places of a dashboard, and streams that take them."""

    def __init__(self, stack: ExitStack, limit: int = LIMIT) -> None:
        self._stack = stack
        self.places = ConnectionPlaces(limit)

    def take(self, client: bytes, now: float) -> IOStream | None:
        """Take a place; return its stream."""
        near, far = socket.socketpair()
        self._stack.enter_context(far)
        stream = IOStream(near)
        self._stack.callback(stream.close)
        return stream if self.places.take(stream, client, now) else None

    def fill(self, client: bytes, count: int = SHARE) -> list[IOStream]:
        """Take places at the times 0, 0.01 and so on."""
        taken = [self.take(client, number / 100) for number in range(count)]
        assert None not in taken
        return [stream for stream in taken if stream is not None]


def in_loop(test: Callable[[], Any]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


def test_the_connection_that_is_idle_for_longest_makes_room_for_another_of_its_client(
    stack: ExitStack,
) -> None:
    def play() -> None:
        streams = StreamPlaces(stack)
        idle = streams.fill(b"a")
        assert streams.take(b"a", DISPENSABLE_AFTER - 0.1) is None
        assert streams.take(b"a", DISPENSABLE_AFTER + 0.005)
        assert [stream.closed() for stream in idle] == [True, False, False, False]

    in_loop(play)


def test_a_connection_with_an_unread_response_makes_room_before_an_idle_one(stack: ExitStack) -> None:
    def play() -> None:
        streams = StreamPlaces(stack)
        taken = streams.fill(b"a")
        taken[2].write(b"x" * 1_000_000)
        streams.places.sweep(1.0)
        assert streams.take(b"a", 1.0 + DISPENSABLE_AFTER)
        assert [stream.closed() for stream in taken] == [False, False, True, False]

    in_loop(play)


def test_a_response_has_a_few_seconds_to_be_read(stack: ExitStack) -> None:
    def play() -> None:
        streams = StreamPlaces(stack)
        stream, *others = streams.fill(b"a")
        stream.write(b"x" * 1_000_000)
        streams.places.sweep(1.0)
        streams.places.sweep(0.9 + RESPONSE_TIMEOUT)
        assert not stream.closed()
        streams.places.sweep(1.0 + RESPONSE_TIMEOUT)
        assert stream.closed()
        assert not any(other.closed() for other in others)

    in_loop(play)


def test_clients_with_as_many_connections_as_any_other_take_no_places_from_them(stack: ExitStack) -> None:
    def play() -> None:
        streams = StreamPlaces(stack, limit=4)
        first, second = streams.fill(b"a", 2), streams.fill(b"b", 2)
        for place in streams.places:
            place.idle_since = None
        assert streams.take(b"a", 0.1) is None
        assert streams.take(b"c", 0.1)  # the newest of a
        assert streams.take(b"d", 0.1)  # the newest of b
        assert streams.take(b"e", 0.1) is None
        assert [stream.closed() for stream in (*first, *second)] == [False, True, False, True]

    in_loop(play)
