"""The stream: an IOStream that resumes its connection's coroutine straight from the read event.

What a read costs decides what a message costs. Tornado's `read_until` on asyncio
takes about 12 microseconds for each command beyond the system calls: a future, a
trip through the loop, a second `recv` that finds nothing, two buffers. Here a
read event is one `read`, the chunk is answered at once, and the answer is written.

Three parts work together. `Selector` is the loop's own epoll; it hands events
of streams to them at once, and only others to asyncio. `DirectStream` reads and writes
its descriptor. `Stream.run` drives a coroutine that waits for what the client says,
for another event of the stream (a handshake, a socket that is full) or for any asyncio
future (a delay). As long as there is nothing but question and answer the coroutine
is not even resumed: it has yielded a plain function, which answers. Nothing else needs
a task.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import selectors
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from fcntl import ioctl
from os import read, write
from termios import FIONREAD
from time import monotonic, monotonic_ns
from types import coroutine
from typing import Any, Final, Protocol

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

log = logging.getLogger(__name__)

CHUNK: Final = 32768
"""Octets read at once. Twice as many take a quarter off a body of a megabyte; but what a read did not
fill fragments the heap, and a worker grows by 10 MiB in 10 GiB, instead of by 0.2 to 1.6."""

SMALL_READ: Final = 512 - 33
"""Octets read at once from a client that never sent as many. With what Python puts around them they fit into
its pools of small blocks; for more it asks malloc, which takes three times as long."""

Socket = socket.socket

Answer = Callable[[bytes, int], bytes | None]
"""What a coroutine yields to its driver when it waits for its stream's bytes. It is told what the client says
(nothing: it has left), and how many octets that is, and gives what to say to that; or None, where the
coroutine is to deal with it."""


def none(said: bytes, size: int) -> None:
    """The Answer of a coroutine that deals with everything itself."""


BYTES: Final = object()
"""What it waits for then."""

EVENT: Final = object()
"""What it waits for when it has something else to do with its stream's socket than to read from it."""

TURN: Final = object()
"""What it waits for when it has only let others have their turn (`await asyncio.sleep(0)`)."""

EPOLLIN: Final = select.EPOLLIN
EPOLLOUT: Final = select.EPOLLOUT
GONE: Final = select.EPOLLHUP | select.EPOLLERR


AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER for no time at all: close() sends RST (socket(7))."""


PROBES: Final = 100
"""Events a second that are timed, at most. It takes 5 microseconds each."""

MAX_EVENTS: Final = 42
"""Events that are heard of at once. For more of them Python asks malloc each time, as with MODEST."""

ROUNDS: Final = 8
"""Polls to one look at the clock, and at whether a probe is due, where there is much to do. Each may wait for
an eighth of the time there is, so that no timer is late by more than what epoll rounds up to milliseconds."""

RARELY: Final = 1 << 29
"""Looks until the next probe, when there were enough of them in this second."""

NOTHING: Final = bytes(4)

HANDSHAKE: Final = b"\x16"
"""What a record of a TLS handshake begins with."""

HEAD: Final = 5
"""Octets before what is in a TLS record: what it is, the version twice, the length (RFC 8446 5.1)."""

LARGEST: Final = HEAD + 16384
"""Octets of a record that is not encrypted."""


def record(said: bytes) -> int:
    """How long the record is that a handshake begins with, as far as can be told; 0 where it is none."""
    if said[:1] != HANDSHAKE:
        return 0
    return HEAD if len(said) < HEAD else HEAD + int.from_bytes(said[3:HEAD])


class Ready(Protocol):
    """What can be attached to a `Selector`."""

    def ready(self, events: int) -> None:
        """Something happened: `events` are epoll's."""


Meter = Callable[[int, int], None]
"""Told nanoseconds: how long a client was waited for, and how long what it then said took to be answered."""


class LatencySample:
    """Stands in the place of a stream for its next event, and takes the time.

    A clock for every event would cost more than all other counting; with probes here and there, the
    events between do not even have to ask whether they are timed.
    """

    __slots__ = ("_fd", "_planted", "_selector", "_stream")

    def __init__(self, selector: Selector, fd: int, stream: DirectStream) -> None:
        self._selector = selector
        self._fd = fd
        self._stream = stream
        self._planted = monotonic_ns()

    def ready(self, events: int) -> None:
        """The client has spoken."""
        selector, stream = self._selector, self._stream
        selector.uproot(self._fd, stream)
        stream.ready(events)
        if stream.answered:
            woke = selector.woke
            selector.meter(max(0, woke - self._planted), monotonic_ns() - woke)


class Selector(selectors.EpollSelector):
    """asyncio's selector, with a short way for those who asked for it.

    asyncio spends about 1.5 microseconds and 600 bytes on each reader: a key, a
    handle, a context, a place in the queue. What is attached here is called from
    within `select` instead. `meter` hears how long things take, now and then.
    """

    def __init__(self, meter: Meter = lambda waited, served: None) -> None:
        super().__init__()
        self.meter: Final = meter
        self.woke = 0
        """Nanoseconds of the monotonic clock when these events were heard of; kept while there are probes."""
        self._probes = 0
        self._gap = 0
        """Polls between two probes: one less than a power of two."""
        self._rounds = 0
        """Polls between two looks."""
        self._due = 0
        """Looks until the next probe."""
        self._planted = 0
        """Probes since the pace was set."""
        # Private, but the same since Python 3.4, in PyPy too; typeshed does not tell of them.
        self._epoll: Final[select.epoll] = self._selector  # type: ignore[attr-defined]
        self._attached: Final[dict[int, Ready]] = {}
        self._loop: Any = None

    def loop(self) -> asyncio.SelectorEventLoop:
        """The loop that this is to be the selector of."""
        self._loop = asyncio.SelectorEventLoop(self)
        return self._loop  # type: ignore[no-any-return]

    def attach(self, fd: int, ready: Ready, events: int) -> None:
        """Call `ready.ready` when something happens to `fd`."""
        self._epoll.register(fd, events)
        self._attached[fd] = ready

    def modify_attached(self, fd: int, events: int) -> None:
        """Wait for other events."""
        self._epoll.modify(fd, events)

    def detach(self, fd: int) -> None:
        """Give `fd` back."""
        ready = self._attached.pop(fd, None)
        if ready is not None:
            self._epoll.unregister(fd)
            self._probes -= ready.__class__ is LatencySample

    def forget(self, fd: int) -> None:
        """`fd` is about to be closed, which takes it out of epoll without a system call of its own."""
        if self._attached.pop(fd, None).__class__ is LatencySample:
            self._probes -= 1

    def _plant(self, fd: int) -> None:
        """Take the time of the client who was served last, when it speaks again."""
        stream = self._attached.get(fd)
        if isinstance(stream, DirectStream) and stream.answered:
            self._planted += 1
            self._due = self._gap // ROUNDS if self._planted < PROBES else RARELY
            self._probes += 1
            self._attached[fd] = LatencySample(self, fd, stream)

    def pace(self) -> None:
        """Once a second: take the time of PROBES events in the next one, spread over it if that can be."""
        if self._planted >= PROBES:
            self._gap = 2 * self._gap + 1
        elif self._planted < PROBES // 2:
            self._gap //= 2
        self._planted = 0
        self._rounds = min(self._gap, ROUNDS - 1)
        self._due = min(self._due, self._gap // ROUNDS)

    def uproot(self, fd: int, stream: DirectStream) -> None:
        """Put a stream back where its probe stood."""
        self._probes -= 1
        self._attached[fd] = stream

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What happened to asyncio's own files. Meanwhile the streams' events are dealt with.

        A turn of asyncio's loop takes 450 bytecodes, as many as two commands; so it is not asked in between
        as long as nothing has been left for it.
        """
        loop, attached, poll = self._loop, self._attached, self._epoll.poll
        ready, scheduled, timers = loop._ready, loop._scheduled, len(loop._scheduled)
        found: list[tuple[selectors.SelectorKey, int]] = []
        rounds = 0
        wait = -1.0 if timeout is None else max(timeout, 0.0)
        timed = wait > 0
        end = monotonic() + wait
        while True:
            heard = poll(wait, MAX_EVENTS)
            if self._probes:
                self.woke = monotonic_ns()
            for fd, events in heard:
                try:
                    waiting = attached[fd]
                except KeyError:
                    self._find(fd, events, found)
                else:
                    waiting.ready(events)
            if not heard:
                return found
            if rounds:
                rounds -= 1
            else:
                rounds = self._rounds
                self._due -= 1
                if self._due < 0:
                    self._plant(fd)
                if timed:
                    wait = (end - monotonic()) / (rounds + 1)
                    if wait <= 0.0:
                        return found
            if found or ready or len(scheduled) != timers:
                return found

    def _find(self, fd: int, events: int, found: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Something happened to a file of asyncio's; or to one that is gone by now."""
        key = self._fd_to_key.get(fd)  # type: ignore[attr-defined]
        if key is not None:
            mask = 0
            if events & ~EPOLLIN:
                mask |= selectors.EVENT_WRITE
            if events & ~EPOLLOUT:
                mask |= selectors.EVENT_READ
            found.append((key, mask & key.events))


class DirectStream(IOStream):
    """An IOStream whose reads and writes go straight to its socket.

    IOStream's own constructor makes 28 attributes and two deques, 2 KiB that an idle
    connection would keep for nothing. Here they are the class's until somebody
    needs one of their own; a test compares them with the real ones.
    """

    max_buffer_size = CHUNK * 2
    read_chunk_size = CHUNK
    max_write_buffer_size = None
    error: BaseException | None = None
    _read_buffer: Any = b""
    _read_buffer_size = 0
    _user_read_buffer = False
    _after_user_read_buffer = None
    _write_buffer: Any = b""
    _total_write_index = 0
    _total_write_done_index = 0
    _read_delimiter = None
    _read_regex = None
    _read_max_bytes = None
    _read_bytes = None
    _read_partial = False
    _read_until_close = False
    _read_future = None
    _write_futures: Any = ()
    _close_callback = None
    _connect_future = None
    _ssl_connect_future = None
    _connecting = False
    _state = None
    _closed = False

    _coroutine: Any = None
    _wanted: object = TURN
    """What the coroutine waits for, or waited for last: BYTES, EVENT, TURN or a future."""
    _aside = False
    """`receive` may find something without waiting: one of the three below."""
    ahead = b""
    """What came while the coroutine waited for something else."""
    _ended = False
    """The client has closed its side."""
    secured = False
    """Under TLS."""
    _events = EPOLLIN

    _socket: Any = None
    """Made when first asked for: an object that most connections do not need, and a system call, are two
    microseconds."""

    def __init__(self, fd: int, selector: Selector, io_loop: IOLoop) -> None:
        self._fd = fd
        self._most = SMALL_READ
        # What every turn asks for: a class's attribute is found six times slower than an object's own.
        self.secured = self._aside = False
        self._answer: Answer = none
        self.io_loop = io_loop
        self._selector = selector
        os.set_blocking(fd, False)

    @property
    def socket(self) -> Any:  # type: ignore[override]  # nobody but us sets it
        """The socket as an object; it is the stream that closes it."""
        if self._socket is None:
            self._socket = Socket(fileno=self._fd)
            # It takes itself for one that blocks, and what TLS makes of it would do so.
            self._socket.setblocking(False)
        return self._socket

    # The coroutine.

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Drive `work` until it ends; then the stream is closed, however it ended."""
        self._coroutine = work
        self._selector.attach(self._fd, self, EPOLLIN)
        self._step(None)

    @coroutine
    def receive(self) -> Generator[object, bytes, bytes]:
        """The next bytes, at most CHUNK of them; none at all when the client has closed its side.

        A coroutine that yields an Answer instead has it told what the client says, and what it gives is said,
        again and again; then come the bytes that it had no answer to. None comes when not all of an
        answer has left: `await drain()`. When the connection is broken, StreamClosedError is raised there.
        """
        return (yield none)

    async def peek(self, most: int) -> bytes:
        """What is there, without taking it; waits until there is something. Nothing: the client has left."""
        await self._event()
        return self.socket.recv(most, socket.MSG_PEEK)  # type: ignore[no-any-return]

    def take(self, count: int) -> bytes:
        """Take that much of what `peek` saw."""
        return read(self._fd, count)

    def ready(self, events: int) -> None:
        """An event of the socket: called by the Selector. A whole turn of the client is here."""
        if self._wanted is not BYTES:
            self._meanwhile(events)
            return
        while True:
            try:
                data = self._hear() if self._aside else read(self._fd, self._most)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError:
                data = b""
            size = len(data)
            if size == SMALL_READ:
                self._most = CHUNK
            try:
                said = self._answer(data, size)
            except Exception as error:
                self._step(error)
                return
            if said is None:
                self._step(data)
                return
            if said:
                # What `send` does, without two calls of which each takes a fiftieth of a turn.
                try:
                    sent = self._socket.send(said) if self.secured else write(self._fd, said)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    sent = 0
                except OSError as error:
                    self._step(StreamClosedError(error))
                    return
                if sent != len(said):
                    self._write_buffer = memoryview(said)[sent:]
                    self._step(None)
                    return
            if not (self._aside and self._at_hand()):
                return

    @property
    def answered(self) -> bool:
        """It is the client's turn, or all is over."""
        return self._wanted is BYTES or self._closed

    @property
    def resumed(self) -> bool:
        """Under TLS that goes on with what an earlier connection agreed on."""
        return bool(self.socket.session_reused)

    def early(self) -> bool:
        """Whether the client talks though it was told nothing yet. Half a microsecond."""
        return ioctl(self._fd, FIONREAD, NOTHING) != NOTHING

    def _step(self, given: bytes | Exception | None) -> None:
        """Let the coroutine run until it waits again."""
        while True:
            try:
                if isinstance(given, Exception):
                    wanted = self._coroutine.throw(given)
                else:
                    wanted = self._coroutine.send(given)
            except StopIteration:
                self.close()
                return
            except BaseException:
                # The connection answers for its own faults; this is the last net, for the loop's sake.
                log.exception("a connection's coroutine failed")
                self.close()
                return
            if not callable(wanted):
                self._answer = none
                self._wanted = wanted
                if wanted is not EVENT:
                    self._await(wanted)
                return
            self._answer = wanted
            self._wanted = BYTES
            if not (self._aside and self._at_hand()):
                return
            if wanted is not none:
                self.ready(EPOLLIN)
                return
            try:
                given = self._hear()
            except OSError:
                given = b""

    def _at_hand(self) -> bool:
        """Whether there is something to hear without waiting."""
        # The last: OpenSSL has read a record that epoll knows nothing of.
        return bool(self.ahead or self._ended or (self.secured and self._socket.pending()))

    def _hear(self) -> bytes:
        """What there is to hear, or came before. Raises OSError."""
        if self.ahead or self._ended:
            data = self.ahead
            self.ahead = b""
            if not self._ended:
                self._watch(EPOLLIN)
            return data
        return self._socket.recv(CHUNK) if self.secured else read(self._fd, self._most)

    def _await(self, wanted: Any) -> None:
        """The coroutine waits for something else than bytes: be called when it is there."""
        if wanted is None:
            self._wanted = TURN
            asyncio.get_running_loop().call_soon(self._wake, TURN)
        else:
            # The protocol between a future and who waits for it: see asyncio.Future.__await__.
            wanted._asyncio_future_blocking = False
            wanted.add_done_callback(self._wake)

    def _wake(self, wanted: object) -> None:
        if self._wanted is wanted and self._coroutine is not None:
            self._step(None)

    def _meanwhile(self, events: int) -> None:
        """An event while the coroutine waits for something else.

        It may wait for just that. Otherwise the client talks, and one chunk of that is kept; or it has
        left, and the coroutine with it.
        """
        if self._wanted is EVENT:
            self._step(None)
            return
        if events & GONE:
            self.close()
            return
        try:
            data = self._socket.recv(CHUNK) if self.secured else read(self._fd, CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            self.close()
            return
        self._ended = not data
        self.ahead = data
        self._aside = True
        self._watch(0)

    @coroutine
    def _event(self) -> Generator[object, None, None]:
        """The next event that the stream watches for."""
        yield EVENT

    def pause_reading(self, whether: bool) -> None:
        """Take in what the client says, as at other times, or leave it where it is."""
        self._watch(EPOLLIN if whether else 0)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._selector.modify_attached(self._fd, events)

    # Writing.

    def send(self, data: bytes) -> bool:
        """Send; true when all of it has left, else `await drain()`. Raises StreamClosedError."""
        try:
            sent = self._socket.send(data) if self.secured else write(self._fd, data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError as error:
            raise StreamClosedError(error) from None
        if sent == len(data):
            return True
        self._write_buffer = memoryview(data)[sent:]
        return False

    async def drain(self) -> None:
        """Wait until all that `send` left behind has been taken. Raises StreamClosedError."""
        before = self._events
        while self._write_buffer:
            self._watch(EPOLLOUT)
            await self._event()
            if self.send(self._write_buffer):
                self._write_buffer = b""
        self._watch(before)

    # TLS.

    async def handshake(self, context: ssl.SSLContext) -> None:
        """Become a TLS stream, as the server. Raises OSError when the handshake fails.

        Whatever came before it was in the clear, and must not be taken for what came after.
        """
        if self.ahead:
            raise OSError("the client talked before the handshake")
        await self._hello()
        # A client that has reset by now fails here, where the socket is still ours to close:
        # ssl.SSLSocket drops it when it finds out.
        self.socket.getpeername()
        # The descriptor is the same, and epoll knows it.
        wrapped = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._socket = wrapped
        while True:
            try:
                wrapped.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._watch(EPOLLIN)
            except ssl.SSLWantWriteError:
                self._watch(EPOLLOUT)
            await self._event()
        self._watch(EPOLLIN)
        self.secured = self._aside = True

    async def _hello(self) -> None:
        """Wait until the first record of a handshake is there, and leave it there.

        From the moment it begins OpenSSL takes 40 KiB. Who never says a whole ClientHello costs no more
        than who never says a command.
        """
        self._watch(EPOLLIN)
        least = 1
        while True:
            said = await self.peek(LARGEST)
            size = record(said)
            if len(said) >= size or not least < size <= LARGEST:
                break
            # Not to be woken by every octet, but only by the last one, or by the client's leaving.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            least = size
        if least > 1:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    # The end.

    def shutdown_write(self) -> None:
        """Say that nothing more will be sent; the client may still talk.

        Closing a socket with unread bytes in it resets the connection, and a reset can
        overtake the last reply (RFC 1122 4.2.2.13).
        """
        if not self._closed:
            with suppress(OSError, ValueError):
                self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close as a crash or a firewall does: with a reset, and nothing said under TLS."""
        if not self._closed:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self.secured = False
            self.close()

    def closed(self) -> bool:
        return self._closed

    def close(self, exc_info: Any = False) -> None:
        """Close, at once, and end the coroutine."""
        if self._closed:
            return
        self._closed = True
        self._selector.forget(self._fd)
        if self._socket is None:
            os.close(self._fd)
        else:
            if self.secured:
                with suppress(OSError, ValueError):
                    self._socket.unwrap()  # sends close_notify, waits for nothing
            self._socket.close()
            self._socket = None
        # Whoever still wants to read or write does it here, and not to the next who gets the descriptor.
        self._fd, self.secured = -1, False
        self.ahead = b""
        self._answer = none
        work, self._coroutine = self._coroutine, None
        if work is not None and not work.cr_running:
            work.close()
