"""systemd: listening sockets that it passes (sd_listen_fds(3)), and readiness (sd_notify(3)).

With an inherited socket a server takes mail on port 25 without ever being root, and clients that
connect during a restart wait in the queue of a socket that stays open.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from blackhole.addresses import socket_host
from blackhole.settings import DashboardAddress, Listener, OperatorError

LISTEN_FDS_START: Final = 3
"""The descriptor of the first socket (SD_LISTEN_FDS_START of sd-daemon.h)."""

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

WILDCARD_HOSTS: Final = frozenset(("", "0.0.0.0", "::"))


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets passed to this process, and remove their variables from the environment.

    Raises OperatorError (EX_CONFIG) for a descriptor that is not a listening TCP or UNIX socket.
    """
    pid, count, _ = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    first = LISTEN_FDS_START
    return [_listening_socket(descriptor) for descriptor in range(first, first + int(count))]


def _listening_socket(descriptor: int) -> socket.socket:
    with suppress(OSError):
        found = socket.socket(fileno=descriptor)
        is_stream = found.family in FAMILIES and found.type == socket.SOCK_STREAM
        if is_stream and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.set_inheritable(descriptor, False)
            found.setblocking(False)
            if found.family != socket.AF_UNIX:
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as for sockets bound here
            return found
        found.close()
    raise OperatorError(
        f"descriptor {descriptor}, passed by systemd, is not a listening TCP or UNIX socket", os.EX_CONFIG
    )


def take(sockets: list[socket.socket], asked: Listener | DashboardAddress) -> list[socket.socket]:
    """Remove the sockets of an address from `sockets` and return them.

    A wildcard host takes a socket bound to any wildcard host; other hosts must be equal.
    """
    if isinstance(asked, Listener) and asked.path:
        taken = [found for found in sockets if found.getsockname() == asked.path]
        for found in taken:
            sockets.remove(found)
        return taken
    of_tcp = [found for found in sockets if found.family != socket.AF_UNIX]
    names = [(found, socket_host(found.getsockname()), found.getsockname()[1]) for found in of_tcp]
    taken = [found for found, host, port in names if (host, port) == (asked.host, asked.port)] or [
        found
        for found, host, port in names
        if port == asked.port and host in WILDCARD_HOSTS and asked.host in WILDCARD_HOSTS
    ]
    for found in taken:
        sockets.remove(found)
    return taken


def reject_unclaimed(sockets: list[socket.socket]) -> None:
    """Raise OperatorError (EX_CONFIG) if a socket is left: its clients would wait for ever."""
    if sockets:
        name = sockets[0].getsockname()
        where = f"{socket_host(name)} port {name[1]}" if isinstance(name, tuple) else f"unix:{name}"
        raise OperatorError(
            f"systemd passed a socket for {where}, but there is no listener for it", os.EX_CONFIG
        )


def notify(state: str) -> None:
    """Send `state` to systemd, if it started this process and waits for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
            manager.connect("\0" + address[1:] if address[0] == "@" else address)
            manager.sendall(state.encode())
