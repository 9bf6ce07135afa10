"""Idle clients: many connections that are silent after EHLO."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.failure import Failure

SOURCE_ADDRESSES = 8
"""Number of loopback addresses to connect from: each has its own ports."""
TIMEOUT = 20.0


def connect_from(port: int, number: int) -> socket.socket:
    """Return a new connection, from an address that depends on its number."""
    client = socket.create_connection(
        ("127.0.0.1", port), timeout=TIMEOUT, source_address=(f"127.0.0.{2 + number % SOURCE_ADDRESSES}", 0)
    )
    client.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )  # close with a reset, which leaves no TIME_WAIT
    return client


def send_ehlo(client: socket.socket) -> None:
    """Read the greeting and send EHLO, as a real client does before it is idle."""
    if not client.recv(512).startswith(b"220"):
        raise Failure("no 220 greeting")
    client.sendall(b"EHLO client.test\r\n")


def read_ehlo_reply(client: socket.socket) -> None:
    """Read the whole reply to EHLO."""
    reply = b"\n"
    while b"\n250 " not in reply:
        if not (piece := client.recv(4096)):
            raise Failure(f"connection closed in the reply to EHLO, after {reply!r}")
        reply += piece


@contextmanager
def idle_connections(port: int, size: int, wave: int = 200) -> Iterator[list[socket.socket]]:
    """Hold `size` connections for the duration of the block.

    They are opened in waves of `wave`; each wave is greeted before the next one connects. Raises Failure if
    any of them is closed before the end of the block.
    """
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        try:
            for begin in range(0, size, wave):
                for number in range(begin, min(size, begin + wave)):
                    clients.append(stack.enter_context(connect_from(port, number)))
                for serve in (send_ehlo, read_ehlo_reply):
                    for client in clients[begin:]:
                        serve(client)
        except OSError as error:
            raise Failure(f"connection {len(clients)} of {size}: {error}") from None
        yield clients
        gone = select.poll()
        for client in clients:
            gone.register(client, select.POLLIN)
        if left := gone.poll(0):
            raise Failure(f"{len(left)} of {size} connections were closed, or received data")
