"""The stream of a connection: Tornado's IOStream, and what a mail server needs beside it.

The functions work with any IOStream. `ClientStream` is the one that the server makes of an
accepted socket; `blackhole.net.direct` has a faster one.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD, TIOCOUTQ
from typing import Any, Final

from tornado.iostream import IOStream, SSLIOStream

from blackhole.net.handshake import HandshakeFault, handshake, wait_for_client_hello

CHUNK: Final = 32768
"""Octets read at once. Twice as many take a quarter off a body of a megabyte; but the part of a read that
stays empty fragments the heap, and a worker grows by 10 MiB in 10 GiB, instead of by 0.2 to 1.6."""

NO_OCTETS: Final = bytes(4)
"""What FIONREAD answers where there is nothing to read, and TIOCOUTQ where nothing is unacknowledged."""

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of 0: close() sends RST (socket(7))."""


def descriptor(stream: IOStream) -> int:
    """Return the descriptor of an open stream. Tornado's own `fileno` returns the socket."""
    file = stream.fileno()
    return file if isinstance(file, int) else file.fileno()


def has_unread_input(stream: IOStream) -> bool:
    """Return whether the client sent something that `stream` has not returned from a read."""
    if stream._read_buffer_size or stream.closed():
        return stream._read_buffer_size > 0
    return ioctl(stream.fileno(), FIONREAD, NO_OCTETS) != NO_OCTETS


def has_unacknowledged_output(stream: IOStream) -> bool:
    """Return whether the client's system has not acknowledged everything that `stream` has sent (tcp(7))."""
    return not stream.closed() and ioctl(stream.fileno(), TIOCOUTQ, NO_OCTETS) != NO_OCTETS


def has_ended(stream: IOStream) -> bool:
    """Return whether the client has closed its side, though what it sent before may be unread."""
    if stream.closed():
        return True
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))


def send_close_notify(stream: IOStream) -> None:
    """Tell a client under TLS that nothing more will be sent, without waiting until it says so too."""
    if isinstance(stream, SSLIOStream) and getattr(stream, "sends_close_notify", True):
        with suppress(OSError, ValueError):
            stream.socket.unwrap()


def shutdown_write(stream: IOStream) -> None:
    """Tell the client that nothing more will be sent, under TLS with close_notify, and go on reading.

    Closing a socket with unread octets in it resets the connection, and the reset can overtake
    the last reply (RFC 1122 4.2.2.13).
    """
    if not stream.closed():
        send_close_notify(stream)
        with suppress(OSError):
            # SSLSocket's own method would go on reading without TLS.
            socket.socket.shutdown(stream.socket, socket.SHUT_WR)


def close(stream: IOStream) -> None:
    """Close the connection at once; under TLS, send close_notify before."""
    if stream.closed() or stream.fileno() is None:
        return  # the second: a failed `start_tls` has taken its socket and closed it
    send_close_notify(stream)
    stream.close()


def abort(stream: IOStream) -> None:
    """Close the connection as a crash does: with RST, and without close_notify."""
    if not stream.closed():
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        stream.close()


class ClientStream(IOStream):
    """An IOStream on which the server may still reply when the client has closed its side.

    Tornado closes a stream when it reads the end of the client's data, even where nobody waits
    for data: a client that half-closes and waits for delayed replies would not get them. Here
    only a read that finds the end closes the stream.
    """

    _task: asyncio.Future[None] | None = None
    sends_close_notify = True
    """Whether it says under TLS that nothing more will be sent (RFC 8446 6.1)."""

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine that serves this stream."""
        self._task = asyncio.ensure_future(work)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read as IOStream does, but say that there is nothing where there is an end that no read awaits."""
        count = super().read_from_fd(buf)
        if count == 0 and not self.reading() and self._state is not None:
            # The end stays readable, so the loop must not watch for it. The next read tries the
            # socket first, and finds it.
            self.io_loop.update_handler(self.fileno(), self._state & ~self.io_loop.READ)
            return None
        return count

    def start_tls(
        self,
        server_side: bool,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        choose_context: Callable[[bytes], ssl.SSLContext] | None = None,
    ) -> asyncio.Future[SSLIOStream]:
        """Return a future of the stream under TLS, as IOStream does.

        As a server with an SSLContext, begin only when the client's first record is there as a
        whole; `choose_context` takes it, and returns the context to use instead. If that raises
        HandshakeFault, so does the future, and the stream stays open in the clear.
        Raises ValueError when the stream is not idle: what came before the handshake was
        in the clear, and must not be taken for what comes under TLS.
        """
        if not server_side or not isinstance(ssl_options, ssl.SSLContext):
            return super().start_tls(server_side, ssl_options, server_hostname)
        if self.closed() or self.reading() or self.writing() or self._read_buffer_size:
            raise ValueError("the stream is not idle: the client sent data before the TLS handshake")
        self._stop_watching()
        return asyncio.ensure_future(self._accept_tls(ssl_options, choose_context))

    def _stop_watching(self) -> None:
        """Leave what the client sends in the socket."""
        self.io_loop.remove_handler(self.fileno())
        self._state = None

    async def _accept_tls(
        self, context: ssl.SSLContext, choose_context: Callable[[bytes], ssl.SSLContext] | None
    ) -> SSLIOStream:
        try:
            client_hello = await wait_for_client_hello(self.socket)
            if choose_context is not None:
                context = choose_context(client_hello)
            # A client that has reset by now fails here, while this stream still owns the socket:
            # SSLSocket drops it when it finds out.
            self.socket.getpeername()
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            await handshake(self.socket)
        except HandshakeFault:
            raise
        except BaseException:
            self.close()
            raise
        return await self._to_tls_stream(context)

    async def _to_tls_stream(self, context: ssl.SSLContext) -> SSLIOStream:
        """Hand the socket to a stream that reads and writes under TLS."""
        secure, self.socket = self.socket, None  # type: ignore[assignment]
        stream = TLSClientStream(
            secure,
            ssl_options=context,
            max_buffer_size=self.max_buffer_size,
            read_chunk_size=self.read_chunk_size,
        )
        if stream._state is None:
            # The client has reset the connection. Tornado then waits for no event, and for ever.
            stream.close()
            raise ConnectionResetError("the client reset the connection in the TLS handshake")
        return await stream.wait_for_handshake()


class TLSClientStream(ClientStream, SSLIOStream):
    """A `ClientStream` under TLS."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read as a ClientStream, and answer close_notify with close_notify (RFC 8446 6.1)."""
        count = super().read_from_fd(buf)
        if count == 0:
            send_close_notify(self)
        return count
