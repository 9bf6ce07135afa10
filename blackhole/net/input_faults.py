"""Faults in how a connection reads: a small receive window, and slow reading."""

from __future__ import annotations

import socket
from contextlib import suppress
from math import ceil
from typing import Final

from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.stream import CHUNK, has_ended
from blackhole.net.waits import timer

SLOW_READ_INTERVAL: Final = 0.1
"""Seconds between two reads from a client that is read slowly, unless a single octet takes longer."""


def limit_input(connection: ConnectionInterface) -> bytes:
    """Make the receive window as small as the session's fault says. Return what to send: nothing."""
    fault = connection.session.input_fault
    assert fault is not None
    if not connection.stream.closed():
        limit_receive_window(connection.stream.socket, fault.window)
    connection.session.input_limited(fault.window)
    return b""


def limit_receive_window(receiving: socket.socket, octets: int) -> None:
    """Offer the client a receive window of about so many octets from now on (tcp(7)).

    The kernel does not take back what it has offered already, and rounds up to about a KiB.
    """
    # Without a buffer of a fixed size, the kernel lets the window grow again.
    receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
    with suppress(OSError):  # a Unix socket has no window
        receiving.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, octets)


async def read_slowly(connection: ConnectionInterface) -> bytes:
    """Read a little, and wait as long as that takes at the rate of the session's fault.

    Return what to send then.
    """
    session = connection.session
    fault = session.input_fault
    assert fault is not None
    data = await connection.stream.read_bytes(min(ceil(fault.rate * SLOW_READ_INTERVAL), CHUNK), True)
    connection.received += len(data)
    seconds = len(data) / fault.rate
    connection.slow_seconds += seconds
    if not has_ended(connection.stream):  # else nobody is there to be kept waiting
        await connection.wait(timer(seconds))
    return session.receive(data)
