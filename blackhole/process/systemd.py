"""Activation: listening sockets that systemd opened, and hands over to us (sd_listen_fds(3)).

So mail can come in on port 25 though nobody here was ever root, and a client that comes while we
restart waits in the queue of a socket that stays open.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from blackhole.settings import DashboardAddress, Listener, OperatorError

FIRST: Final = 3
"""Descriptor of the first of them."""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)

EVERYWHERE: Final = frozenset(("", "0.0.0.0", "::"))


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Take them, if they are for us; and what says so, which is not for our children.

    Raises OperatorError (EX_CONFIG) for what is no such socket.
    """
    pid, count, _ = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_taken(descriptor) for descriptor in range(FIRST, FIRST + int(count))]


def _taken(descriptor: int) -> socket.socket:
    with suppress(OSError):
        found = socket.socket(fileno=descriptor)
        if found.family in FAMILIES and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(descriptor, False)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as server.bind does
            return found
        found.close()
    raise OperatorError(f"descriptor {descriptor} of systemd is no TCP socket that listens", os.EX_CONFIG)


def take(sockets: list[socket.socket], asked: Listener | DashboardAddress) -> list[socket.socket]:
    """Take out those for an address: just that one, or all addresses where these are asked for."""
    names = [(found, *found.getsockname()[:2]) for found in sockets]
    mine = [found for found, host, port in names if (host, port) == (asked.host, asked.port)] or [
        found
        for found, host, port in names
        if port == asked.port and host in EVERYWHERE and asked.host in EVERYWHERE
    ]
    for found in mine:
        sockets.remove(found)
    return mine


def reject_unclaimed(sockets: list[socket.socket]) -> None:
    """Raise OperatorError if any is left that nobody asked for: its clients would wait for ever."""
    if sockets:
        host, port = sockets[0].getsockname()[:2]
        raise OperatorError(
            f"systemd hands over {host} port {port}, but there is no listener for it", os.EX_CONFIG
        )
