"""A listener at work: its sockets, its engine, and the connections that are open on it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

from blackhole.connection import RECEIVED, Connection
from blackhole.scenario import NONE, Scenario
from blackhole.settings import Http, Listener, OperatorError, Settings
from blackhole.smtp import Config, Engine
from blackhole.smtp.session import Outside, Trace
from blackhole.stats import AT, CONNECTIONS
from blackhole.stream import Selector, Stream

log = logging.getLogger(__name__)

ACCEPTS: Final = 16
"""Connections taken in one turn by a worker that has no others beside it."""

EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""What accept() says when descriptors or memory have run out."""

KNOCK: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE

OPEN: Final = AT["open"]

NAP: Final = 0.001
"""Seconds for which a worker that has more connections than the others leaves the next one to them."""

PAUSE: Final = 0.1
"""Seconds without accepting after that. Trying at once again would take the whole processor."""


def bind(listener: Listener | Http, backlog: int) -> list[socket.socket]:
    """The listening sockets of an address, with the options that connections inherit from them.

    Raises OperatorError: EX_NOPERM for a port that is not ours to take, EX_OSERR for
    one that is taken, EX_CONFIG for an address that is none of this machine's.
    """
    try:
        sockets = bind_sockets(listener.port, listener.host or None, backlog=backlog)
    except PermissionError:
        raise OperatorError(
            f"no permission to listen on {listener}: run as root, or choose a port above 1023 with --port,"
            " or grant it: setcap cap_net_bind_service=+ep $(readlink -f $(which python3))",
            os.EX_NOPERM,
        ) from None
    except socket.gaierror as error:
        raise OperatorError(f"cannot listen on {listener}: {error.strerror}", os.EX_CONFIG) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OperatorError(
                f"cannot listen on {listener}: something else does; see `ss -ltnp`", os.EX_OSERR
            ) from None
        code = os.EX_CONFIG if error.errno == errno.EADDRNOTAVAIL else os.EX_OSERR
        raise OperatorError(f"cannot listen on {listener}: {os.strerror(error.errno or 0)}", code) from None
    for bound in sockets:
        # Inherited by every accepted socket: a system call less for each. Without it a reply
        # behind a TLS handshake waits 40 ms for the client's acknowledgement.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def address(listener: Listener, sockets: Sequence[socket.socket]) -> str:
    """Where a listener is to be found, its port known even if any was good enough."""
    return str(replace(listener, port=sockets[0].getsockname()[1]))


def config(settings: Settings, listener: Listener, scenario: Scenario = NONE) -> Config:
    """What the engine needs to know of the settings."""
    return Config(
        hostname=settings.hostname,
        message_size_limit=settings.message_size_limit,
        strict=settings.strict,
        mode=listener.mode,
        delay=listener.delay,
        starttls=bool(settings.ssl_cert) and not listener.tls,
        listener=str(listener),
        rules=scenario.rules,
    )


class Server(TCPServer):
    """One listener in one worker.

    `counters` is the worker's row of the stats, `tls` the context where there is a
    certificate. `crowded` tells whether other workers have fewer connections; None
    where there are no others. `number` is the counter of this listener's connections.
    """

    def __init__(
        self,
        listener: Listener,
        settings: Settings,
        counters: memoryview,
        tls: ssl.SSLContext | None,
        trace: Trace | None,
        crowded: Callable[[], bool] | None = None,
        scenario: Scenario = NONE,
        number: int = CONNECTIONS,
    ) -> None:
        super().__init__()
        self.listener: Final = listener
        outside = Outside(clock=lambda: time.monotonic() - scenario.began)
        self.engine: Final = Engine(config(settings, listener, scenario), Random(), trace, outside)
        self.counters: Final = counters
        self.tls: Final = tls
        self.crowded: Final = crowded
        self.number: Final = number
        self.timeout: Final = settings.timeout
        self.connections: Final[set[Connection]] = set()
        self._loop: Final = IOLoop.current()
        self._doors: Final[list[Door]] = []

    def open(self, sockets: Sequence[socket.socket], selector: Selector) -> None:
        """Start to accept."""
        for listening in sockets:
            self._doors.append(Door(self, listening, selector))

    def take(self, connection: socket.socket, address: tuple[object, ...], selector: Selector) -> None:
        """A client is here."""
        stream = Stream(connection, selector, self._loop)
        self.handle_stream(stream, address)

    def handle_stream(self, stream: Stream, address: tuple[object, ...]) -> None:  # type: ignore[override]
        """Hand a stream to the coroutine that holds the conversation."""
        client = Connection(self, stream, str(address[0]) if address else "")
        self.connections.add(client)
        self.counters[self.number] += 1
        self.counters[OPEN] += 1
        stream.run(client.converse())

    def gone(self, client: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(client)
        self.counters[OPEN] -= 1
        self.counters[RECEIVED] += client.heard

    def sweep(self) -> None:
        """Once a second: look for clients that take too long."""
        for client in list(self.connections):
            client.sweep()

    def shut(self) -> None:
        """Accept no more; close the sockets, in this process."""
        for door in self._doors:
            door.shut()

    def drain(self) -> None:
        """Send away whom nothing keeps here: who has no message under way."""
        for client in list(self.connections):
            client.leave()


class Door:
    """One listening socket, which other workers may listen on too: accepts for its server.

    EPOLLEXCLUSIVE has the kernel wake one worker for a client and not all of them:
    the one that has listened longest. So one that has more clients than another
    stops to listen for a moment, which also puts it at the end of the queue. Of 200
    connections over four workers each gets 50, give or take 4; without this, one
    gets all when they come one by one.
    """

    def __init__(self, server: Server, listening: socket.socket, selector: Selector) -> None:
        self._server: Final = server
        self._socket: Final = listening
        self._family: Final = listening.family
        self._selector: Final = selector
        self._loop: Final = asyncio.get_running_loop()
        self._open = True
        listening.setblocking(False)
        self._attach()

    def _attach(self) -> None:
        if self._open:
            # Exclusive: a client wakes one idle worker, not all of them.
            self._selector.attach(self._socket.fileno(), self, KNOCK)

    def ready(self, events: int) -> None:
        """Somebody knocks."""
        crowded = self._server.crowded
        for _ in range(1 if crowded else ACCEPTS):
            try:
                # socket.accept() would ask two enumerations for the family and the type of each
                # connection, which takes a seventh of all the time a connection costs in here.
                fd, address = self._socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._rest(error)
                    return
                # ECONNABORTED and whatever a network hands up through accept(2): that client is gone.
                continue
            connection = socket.socket(self._family, socket.SOCK_STREAM, 0, fd)
            self._server.take(connection, address, self._selector)
        if crowded is not None and self._open and crowded():
            self._selector.detach(self._socket.fileno())
            self._loop.call_later(NAP, self._attach)

    def _rest(self, error: OSError) -> None:
        """Out of descriptors or memory: let go for a moment."""
        log.warning("cannot accept connections on %s: %s", self._server.listener, error.strerror)
        self._selector.detach(self._socket.fileno())
        self._loop.call_later(PAUSE, self._attach)

    def shut(self) -> None:
        """Let nobody in any more."""
        if self._open:
            self._open = False
            self._selector.detach(self._socket.fileno())
            self._socket.close()
