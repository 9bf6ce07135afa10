"""The state of a direct stream, and how it becomes that of an ordinary IOStream.

A direct stream has none of the attributes of IOStream. When one of them is first looked up, or
something is asked of the stream that it does not do directly, the constructor of IOStream is
called, and its machinery goes on with what the stream does.
"""

from __future__ import annotations

import os
import socket
from asyncio import Future
from collections.abc import Callable
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.iostream import BaseIOStream, IOStream

from blackhole.net.direct_loop import DirectLoop
from blackhole.net.stream import CHUNK, ClientStream

SMALL_READ: Final = 512 - 33
"""Octets read at once from a client that never sent as many. With what Python puts around them they fit into
its pools of small blocks; for more it calls malloc, which takes three times as long."""

Socket = socket.socket

UNWATCHED: Final = -1
"""The events of a descriptor that the selector does not watch."""

RUNS: Final = 0
AWAITS_CHUNK: Final = 1
AWAITS_OTHER: Final = 2
"""What the coroutine of a stream does: it runs, waits for the client's data, or for something else."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class OrdinaryAttribute:
    """An attribute of IOStream that a direct stream does not have: to look it up makes the stream ordinary.

    `__getattr__` could do this for all attributes, but would make each look-up of any of them twice
    as slow: 0.6 microseconds a command.
    """

    def __set_name__(self, owner: type[DirectState], name: str) -> None:
        self._name = name

    def __get__(self, stream: DirectState | None, owner: type[DirectState]) -> Any:
        if stream is None:
            return self
        stream._become_ordinary()
        return stream.__dict__[self._name]


class DirectState(ClientStream):
    """What a direct stream has in place of the attributes of IOStream, until it becomes ordinary.

    The constructor takes a socket and IOStream's arguments; or a descriptor, which it owns then,
    and makes a socket object only when it is asked for. The attributes of IOStream, 28 objects
    and two deques of together 2 KiB, are made when one of them is first looked up.
    """

    max_buffer_size: Any = OrdinaryAttribute()
    max_write_buffer_size: Any = OrdinaryAttribute()
    read_chunk_size: Any = OrdinaryAttribute()
    _read_buffer: Any = OrdinaryAttribute()
    _read_future: Any = OrdinaryAttribute()
    _state: Any = OrdinaryAttribute()
    _write_buffer: Any = OrdinaryAttribute()
    _write_futures: Any = OrdinaryAttribute()

    error: BaseException | None = None
    _arguments: Arguments = ((), {})
    _close_callback: Callable[[], None] | None = None
    _closed = False
    _coroutine: Any = None
    _successor: DirectState | None = None
    """The stream under TLS that has taken the place of this one."""
    _socket: Any = None
    _read_buffer_size = 0
    """Octets in `_unread`, while the stream is direct."""
    _unread = b""
    """What the client sent while nobody was reading."""
    _io_loop: IOLoop | None = None
    _events = UNWATCHED
    _pending: Future[bytes] | None = None
    """The read that waits for data, where it is not the coroutine's."""
    _wanted = 0
    """Octets that it may return."""

    def __init__(
        self,
        socket: Socket | int,
        *args: Any,
        direct_loop: DirectLoop | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(socket, int):
            self._fd = socket
            os.set_blocking(socket, False)
        else:
            self._socket = socket
            self._fd = socket.fileno()
            socket.setblocking(False)
        if args or kwargs:
            self._arguments = args, kwargs
        # What every turn asks for: an attribute of the class is found six times slower.
        self._direct = True
        self._tls = False
        self._ready = False
        """Direct, watched for data, and nothing was read ahead: the next data comes by an event."""
        self._coroutine_state = AWAITS_OTHER
        self._size = SMALL_READ
        direct_loop = direct_loop or DirectLoop.current()
        if direct_loop is None:
            self._direct = False
            self._initialize(args, kwargs)
        else:
            self._shared = direct_loop
            self._written = direct_loop.written

    # Becoming an ordinary IOStream.

    def _become_ordinary(self) -> None:
        """Hand what this stream does to the machinery of IOStream."""
        if not self._direct:
            return
        if self._coroutine_state == AWAITS_CHUNK:
            self._coroutine_state = AWAITS_OTHER
            self._pending, self._wanted = Future(loop=self._shared.loop), CHUNK
            self._pending.add_done_callback(self._wake_with_data)
        unread, pending, callback, error = self._unread, self._pending, self._close_callback, self.error
        args, kwargs = self._arguments
        if self._closed:
            BaseIOStream.__init__(self)
            self._closed, self.error, self._write_buffer = True, error, None
        else:
            if self._events != UNWATCHED:
                self._shared.selector.detach(self._fd)
                self._events, self._ready = UNWATCHED, False
            self._initialize(args, kwargs)  # may raise OSError, and leaves the stream direct then
            self._close_callback = callback
        self._direct = False
        self._read_buffer += unread
        self._read_buffer_size = len(unread)
        if pending is not None:
            self._pending = None
            self._read_future, self._read_bytes, self._read_partial = pending, self._wanted, True
            self._add_io_state(self.io_loop.READ)
        else:
            self._maybe_add_error_listener()

    def _resume(self, data: bytes | None = None, error: BaseException | None = None) -> None:
        """Run the coroutine until it waits again."""
        raise NotImplementedError

    def _wake_with_data(self, future: Future[bytes]) -> None:
        """Resume the coroutine, which waits for a chunk, with what the machinery of IOStream read."""
        if error := future.exception():
            self._resume(error=error)
        else:
            self._resume(future.result())

    def _initialize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        IOStream.__init__(self, self.socket, *args, **kwargs)

    @property
    def socket(self) -> Any:
        """The socket as an object, which most connections do not need."""
        if self._socket is None and self._fd >= 0:
            self._socket = Socket(fileno=self._fd)
            # It takes itself for one that blocks, and what TLS makes of it would block too.
            self._socket.setblocking(False)
        return self._socket

    @socket.setter
    def socket(self, value: Any) -> None:
        self._socket = value
        if value is None:
            self._fd = -1

    def fileno(self) -> Any:
        return self._fd

    @property
    def io_loop(self) -> IOLoop:
        return self._io_loop or self._shared.io_loop

    @io_loop.setter
    def io_loop(self, value: IOLoop) -> None:
        self._io_loop = value
