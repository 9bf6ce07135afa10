"""Tornado's own tests of IOStream, run against the streams of Blackhole.

Not run are the tests that are not about a stream which a server accepted: `TestPipeIOStream` (pipes),
`WaitForHandshakeTest` (Tornado's own accept with `ssl_options`), `TestIOStreamCheckHostname` (a client's
certificate check) and `TestStreamBuffer` (a private class of Tornado's).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import ssl_options_to_context
from tornado.test import iostream_test
from tornado.testing import AsyncHTTPTestCase, AsyncTestCase, gen_test

from blackhole.net.direct import DirectStream, DirectTLSStream
from blackhole.net.direct_state import SMALL_READ
from blackhole.net.selector import Selector
from blackhole.net.stream import CHUNK, ClientStream


@pytest.fixture(autouse=True)
def selector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a loop that uses the Selector, and have the tests make direct streams."""
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: Selector().loop())
    monkeypatch.setattr(iostream_test, "IOStream", DirectStream)
    monkeypatch.setattr(logging.getLogger("tornado.access"), "disabled", True)


class HalfClose:
    """The test that does not apply: it wants an idle stream closed when the client has closed its side.

    A server that holds replies back still sends them then. The close callback is called when the
    connection is broken: see `test_a_closed_stream_says_so`.
    """

    test_future_close_callback = None


class TestDirectStream(HalfClose, iostream_test.TestIOStreamMixin):  # type: ignore[misc]
    def _make_server_iostream(self, connection: socket.socket, **kwargs: Any) -> IOStream:
        return DirectStream(connection, **kwargs)

    def _make_client_iostream(self, connection: socket.socket, **kwargs: Any) -> IOStream:
        return DirectStream(connection, **kwargs)


class TestClientStream(HalfClose, iostream_test.TestIOStreamMixin):  # type: ignore[misc]
    def _make_server_iostream(self, connection: socket.socket, **kwargs: Any) -> IOStream:
        return ClientStream(connection, **kwargs)

    def _make_client_iostream(self, connection: socket.socket, **kwargs: Any) -> IOStream:
        return ClientStream(connection, **kwargs)


class TestDirectTLSStream(HalfClose, iostream_test.TestReadWriteMixin):  # type: ignore[misc]
    """A direct stream that has done STARTTLS reads and writes as any other."""

    stream_class: type[ClientStream] = DirectStream

    async def make_iostream_pair(self, **kwargs: Any) -> tuple[IOStream, IOStream]:
        ours, theirs = socket.socketpair()
        context = ssl_options_to_context(iostream_test._server_ssl_options(), server_side=True)
        server, client = await asyncio.gather(
            self.stream_class(ours, **kwargs).start_tls(True, context),
            IOStream(theirs, **kwargs).start_tls(False, {"cert_reqs": ssl.CERT_NONE}),
        )
        assert isinstance(server, DirectTLSStream) is (self.stream_class is DirectStream)
        return server, client


class TestTLSClientStream(TestDirectTLSStream):
    stream_class = ClientStream


class TestStartTLS(iostream_test.TestIOStreamStartTLS):
    """Tornado's own, between two direct streams."""


class TestWeb(AsyncHTTPTestCase, iostream_test.TestIOStreamWebMixin):  # type: ignore[misc]
    def _make_client_iostream(self) -> IOStream:
        return DirectStream(socket.socket())

    def get_app(self) -> Any:
        return self.mixin_get_app()


class TestWhatIsDirect(AsyncTestCase):
    """What Tornado's tests do not ask for: reads and writes that need none of Tornado's machinery."""

    def setUp(self) -> None:
        super().setUp()
        ours, self.client = socket.socketpair()
        self.client.settimeout(5)
        self.stream = self.io_loop.run_sync(self.make(ours))

    def make(self, ours: socket.socket) -> Any:
        async def make() -> DirectStream:
            return DirectStream(ours)

        return make

    def tearDown(self) -> None:
        self.stream.close()
        self.client.close()
        super().tearDown()

    @gen_test
    async def test_partial_reads_and_writes_leave_it_direct(self) -> None:
        self.client.send(b"hello")
        assert await self.stream.read_bytes(3, partial=True) == b"hel"
        assert await self.stream.read_bytes(CHUNK, partial=True) == b"lo"
        await self.stream.write(b"welcome")
        assert self.client.recv(100) == b"welcome"
        assert not (self.stream.reading() or self.stream.writing() or self.stream.closed())
        self.stream.set_nodelay(False)
        assert self.stream._direct

    @gen_test
    async def test_a_read_that_waits_goes_on_when_the_stream_becomes_ordinary(self) -> None:
        waiting = self.stream.read_bytes(CHUNK, partial=True)
        assert self.stream.reading()
        assert self.stream.max_buffer_size == 104857600
        assert not self.stream._direct
        self.client.send(b"hello")
        assert await waiting == b"hello"
        assert isinstance(self.stream, IOStream)

    @gen_test
    async def test_a_second_read_is_an_error(self) -> None:
        waiting = self.stream.read_bytes(CHUNK, partial=True)
        with pytest.raises(AssertionError, match="Already reading"):
            await self.stream.read_bytes(CHUNK, partial=True)
        self.stream.close()
        with pytest.raises(StreamClosedError):
            await waiting

    @gen_test
    async def test_the_coroutine_that_it_runs_is_resumed_from_within_the_read_event(self) -> None:
        seen: list[object] = []

        async def echo() -> None:
            while True:
                data = await self.stream.read_bytes(CHUNK, partial=True)
                seen.append(asyncio.current_task())
                await self.stream.write(data)
                await asyncio.sleep(0)

        self.stream.run(echo())
        for word in (b"one", b"two"):
            self.client.send(word)
            await asyncio.sleep(0.01)
            assert self.client.recv(100) == word
        assert seen == [None, None]
        assert self.stream._direct

    @gen_test
    async def test_the_coroutine_goes_on_when_the_stream_becomes_ordinary(self) -> None:
        seen: list[bytes] = []

        async def collect() -> None:
            try:
                while True:
                    seen.append(await self.stream.read_bytes(CHUNK, partial=True))
            except StreamClosedError:
                seen.append(b"closed")

        self.stream.run(collect())
        assert self.stream.read_chunk_size
        for word in (b"one", b"two"):
            self.client.send(word)
            await asyncio.sleep(0.01)
        self.client.close()
        await asyncio.sleep(0.01)
        assert seen == [b"one", b"two", b"closed"]

    @gen_test
    async def test_another_task_may_await_what_the_coroutine_asked_for(self) -> None:
        async def delegate() -> None:
            async def read() -> None:
                self.data = await self.stream.read_bytes(CHUNK, partial=True)

            await asyncio.ensure_future(read())

        self.stream.run(delegate())
        await asyncio.sleep(0)
        self.client.send(b"hello")
        await asyncio.sleep(0.01)
        assert self.data == b"hello"

    @gen_test
    async def test_a_reply_that_the_socket_does_not_take_whole_is_written_in_the_end(self) -> None:
        reply = b"x" * (1 << 22)
        written = self.stream.write(reply)
        assert self.stream.writing()
        self.client.setblocking(False)
        heard = 0
        while heard < len(reply):
            await asyncio.sleep(0)
            try:
                heard += len(self.client.recv(1 << 20))
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await written
        assert not self.stream.writing()

    @gen_test
    async def test_a_closed_stream_says_so(self) -> None:
        closed = asyncio.Event()
        self.stream.set_close_callback(closed.set)
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.client.close()
        with pytest.raises(StreamClosedError):
            await self.stream.read_bytes(CHUNK, partial=True)
        await closed.wait()
        assert self.stream.closed()
        with pytest.raises(StreamClosedError):
            await self.stream.write(b"too late")
        with pytest.raises(StreamClosedError):
            await self.stream.read_until(b"\n")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the server's and the client's end of a TCP connection, with room for two chunks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK)
        client = socket.create_connection(listening.getsockname(), timeout=10)
        return listening.accept()[0], client


def send_all_and_close(client: socket.socket) -> bytes:
    client.sendall(b"a" * 100)
    client.close()
    return b"a" * 100


def send_and_end_input(client: socket.socket) -> bytes:
    client.sendall(b"b" * SMALL_READ)
    client.shutdown(socket.SHUT_WR)
    return b"b" * SMALL_READ


def send_octets(count: int, client: socket.socket) -> bytes:
    sent = bytes(index % 251 for index in range(count))
    client.sendall(sent)
    return sent


def send_urgent_data_between(client: socket.socket) -> bytes:
    """Send one octet out of band, at which a read stops (RFC 6093 3.1)."""
    client.sendall(b"before")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"after")
    return b"beforeafter"


@pytest.mark.parametrize(
    "send",
    [
        send_all_and_close,
        send_and_end_input,
        send_urgent_data_between,
        *(
            partial(send_octets, count)
            for size in (SMALL_READ, CHUNK, 2 * CHUNK)
            for count in (size - 1, size, size + 1)
        ),
    ],
)
@pytest.mark.parametrize("is_busy", [False, True])
def test_input_that_is_reported_once_is_read_to_its_end(
    send: Callable[[socket.socket], bytes], is_busy: bool
) -> None:
    """All of it is there before the first read. A busy coroutine awaits something else when it comes."""
    received: list[bytes] = []

    async def serve() -> None:
        ours, client = tcp_pair()
        stream, ended = DirectStream(ours), asyncio.Event()

        async def collect() -> None:
            with suppress(StreamClosedError):
                received.append(await stream.read_bytes(CHUNK, partial=True))
                if is_busy:
                    await asyncio.sleep(0.01)
                while True:
                    received.append(await stream.read_bytes(CHUNK, partial=True))
            ended.set()

        async with asyncio.timeout(20):
            with client:
                expected = b""
                if is_busy:
                    stream.run(collect())
                    expected = b"x" * SMALL_READ
                    client.sendall(expected)
                    await asyncio.sleep(0.001)
                expected += send(client)
                if not is_busy:
                    stream.run(collect())
                while b"".join(received) != expected:
                    await asyncio.sleep(0.001)
            await ended.wait()

    with asyncio.Runner(loop_factory=Selector().loop) as runner:
        runner.run(serve())


def test_in_another_loop_a_direct_stream_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    async def echo() -> bytes:
        ours, client = socket.socketpair()
        with client:
            stream = DirectStream(ours)
            client.send(b"hello")
            data = await stream.read_bytes(CHUNK, partial=True)
            stream.close()
            return data

    assert asyncio.run(echo()) == b"hello"
