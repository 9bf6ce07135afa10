"""Listening sockets: bind them, and accept connections for a server."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any, Final

from tornado.netutil import bind_sockets

from blackhole.net.poller import Poller
from blackhole.net.stdlib_internals import accept_function
from blackhole.settings import DashboardAddress, Listener, OperatorError

ACCEPT_BATCH: Final = 16
"""Connections accepted in one turn by a worker that has no others beside it."""

EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""Errors of accept() for a lack of descriptors or memory."""

EPOLLEXCLUSIVE: Final = 1 << 28
"""Of linux/eventpoll.h; PyPy's `select` does not have it."""

NO_SUCH_ADDRESS: Final = frozenset((errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENODEV))
"""Errors of bind() for an address that this machine does not have."""

ACCEPT_EVENTS: Final = select.EPOLLIN | EPOLLEXCLUSIVE
"""A new connection wakes one idle worker, not all of them."""

YIELD_ACCEPT: Final = 0.001
"""Seconds for which a worker that is far ahead of the others leaves new connections to them."""

PAUSE: Final = 0.1
"""Seconds without accepting when descriptors have run out. To try again at once would take the whole
processor."""


Address = Listener | DashboardAddress


class AddressInUseError(OperatorError):
    """Another process listens on an address."""


def bind(address: Address, backlog: int, others: Iterable[Address] = ()) -> list[socket.socket]:
    """Return the listening sockets of an address, with the options that connections inherit from them.

    `others` are the addresses that this program listens on already.

    Raises OperatorError: EX_NOPERM for a port that needs a privilege, EX_OSERR for one that
    is in use (AddressInUseError if by another process), EX_CONFIG for an address that this machine does not
    have.
    """
    try:
        sockets = bind_sockets(address.port, address.host or None, backlog=backlog)
    except PermissionError:
        raise OperatorError(
            f"no permission to listen on {address}: choose a port above 1023 with {options_for(address)},"
            " or start as root, by systemd with AmbientCapabilities=CAP_NET_BIND_SERVICE, or by authbind",
            os.EX_NOPERM,
        ) from None
    except socket.gaierror as error:
        raise OperatorError(f"cannot listen on {address}: {error.strerror}", os.EX_CONFIG) from None
    except OSError as error:
        message = f"cannot listen on {address}: {bind_problem(address, error, others)}"
        if error.errno == errno.EADDRINUSE and not any(other.port == address.port for other in others):
            raise AddressInUseError(message, os.EX_OSERR) from None
        code = os.EX_CONFIG if error.errno in NO_SUCH_ADDRESS else os.EX_OSERR
        raise OperatorError(message, code) from None
    for bound in sockets:
        # Inherited by every accepted socket, which saves a system call for each. Without it a
        # reply behind a TLS handshake waits 40 ms for the client's acknowledgement.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def options_for(address: Address) -> str:
    """Return the options that may have given an address."""
    if isinstance(address, DashboardAddress):
        return "--dashboard"
    return "--ssl-port or --listen" if address.tls else "--port or --listen"


def bind_problem(address: Address, error: OSError, others: Iterable[Address]) -> str:
    """Return what an error of bind(2) means, and what to do."""
    if error.errno == errno.EADDRINUSE:
        same = next((other for other in others if other.port == address.port), None)
        if same is None:
            return "something else does; see `ss -ltnp`"
        return (
            f"Blackhole itself does, for {options_for(same)}; choose another port with {options_for(address)}"
        )
    if error.errno == errno.EINVAL and is_link_local(address.host):
        return f"a link-local address needs its interface: {address.host}%eth0"
    return os.strerror(error.errno or 0)


def is_link_local(host: str) -> bool:
    """Return whether a host is a link-local IPv6 address (RFC 4291 2.5.6) without its scope."""
    try:
        return "%" not in host and IPv6Address(host).is_link_local
    except ValueError:
        return False


OpenConnections = Callable[[], tuple[int, int]]
"""Returns how many connections are open in this worker, and in the one that has the fewest."""


def is_ahead(own: int, least: int) -> bool:
    """Return whether a worker has clearly more connections than the one that has the fewest.

    >>> is_ahead(26, 24), is_ahead(28, 24)
    (False, True)
    """
    return own > least + 2 + least // 16


def is_far_ahead(own: int, least: int) -> bool:
    """Return whether a worker has so many more that new ones had better wait for others.

    >>> is_far_ahead(38, 24), is_far_ahead(39, 24)
    (False, True)
    """
    return own > least + 8 + least // 4


class ReservedDescriptor:
    """A descriptor kept open to be given up, so that one more connection can be accepted and refused."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self.acquire()

    def acquire(self) -> None:
        """Open it, unless it is open or there is none to be had."""
        if self._fd is None:
            with suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def release(self) -> bool:
        """Close it. Return false if it was not open."""
        if self._fd is None:
            return False
        os.close(self._fd)
        self._fd = None
        return True


class Acceptor:
    """Accepts the connections of one listening socket, which other workers may listen on too.

    `on_connection` gets the descriptor and the address of each. `on_exhausted` gets the error
    when descriptors have run out, and returns whether it dealt with one connection all the same.

    EPOLLEXCLUSIVE has the kernel wake one worker for a connection: the one that has listened
    longest, of those that wait. So a worker that is ahead of another, by the numbers of
    `open_connections`, begins to listen anew, which puts it at the end of the queue. Of a burst it
    sees more than the others, and stops listening for a moment where it is far ahead; what it
    alone was woken for then waits as long. Of 200 connections over four workers each gets 50,
    give or take 6; without this, one gets all when they come one by one.
    """

    def __init__(
        self,
        listening: socket.socket,
        poller: Poller,
        on_connection: Callable[[int, Any], None],
        on_exhausted: Callable[[socket.socket, OSError], bool],
        open_connections: OpenConnections | None = None,
    ) -> None:
        self._socket: Final = listening
        self._poller: Final = poller
        self._on_connection: Final = on_connection
        self._on_exhausted: Final = on_exhausted
        self._open_connections: Final = open_connections
        self._accept: Final = accept_function(listening)
        self._loop: Final = asyncio.get_running_loop()
        self._open = True
        listening.setblocking(False)
        self._attach()

    def handle_events(self, events: int) -> None:
        """Accept what there is."""
        for _ in range(1 if self._open_connections else ACCEPT_BATCH):
            try:
                fd, address = self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    if not self._on_exhausted(self._socket, error):
                        self._pause(PAUSE)
                    return
                # ECONNABORTED, or a network error that accept(2) hands up: that client is gone.
                continue
            self._on_connection(fd, address)
        if self._open_connections is not None and self._open:
            self._let_others_accept(*self._open_connections())

    def _let_others_accept(self, own: int, least: int) -> None:
        """Let other workers accept what comes next, if this one has more connections than `least`."""
        if is_far_ahead(own, least):
            self._pause(YIELD_ACCEPT)
        elif is_ahead(own, least):
            self._poller.detach(self._socket.fileno())
            self._attach()

    def close(self) -> None:
        """Close the socket, in this process."""
        if self._open:
            self._open = False
            self._poller.detach(self._socket.fileno())
            self._socket.close()

    def _attach(self) -> None:
        if self._open:
            self._poller.attach(self._socket.fileno(), self, ACCEPT_EVENTS)

    def _pause(self, seconds: float) -> None:
        self._poller.detach(self._socket.fileno())
        self._loop.call_later(seconds, self._attach)
