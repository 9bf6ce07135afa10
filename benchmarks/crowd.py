"""A crowd: many connections that were greeted and then say nothing."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.failure import Failure

SOURCES = 8
"""Loopback addresses to come from: each has its own ports."""
TIMEOUT = 20.0


def arrive(port: int, number: int) -> socket.socket:
    client = socket.create_connection(
        ("127.0.0.1", port), timeout=TIMEOUT, source_address=(f"127.0.0.{2 + number % SOURCES}", 0)
    )
    client.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )  # leave no TIME_WAIT behind
    return client


def greet(client: socket.socket) -> None:
    """Be greeted, and say EHLO as a real client would before it falls silent."""
    if not client.recv(512).startswith(b"220"):
        raise Failure("no 220 greeting")
    client.sendall(b"EHLO client.test\r\n")


def hear(client: socket.socket) -> None:
    """Read the whole reply to EHLO."""
    reply = b"\n"
    while b"\n250 " not in reply:
        if not (piece := client.recv(4096)):
            raise Failure(f"hung up on EHLO after {reply!r}")
        reply += piece


@contextmanager
def crowd(port: int, size: int, wave: int = 200) -> Iterator[list[socket.socket]]:
    """Hold `size` connections for as long as the block lasts.

    They come in waves: so many connect, then all of them are served, then the next. All must still be there
    at the end of the block, or it is a Failure.
    """
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        try:
            for begin in range(0, size, wave):
                for number in range(begin, min(size, begin + wave)):
                    clients.append(stack.enter_context(arrive(port, number)))
                for serve in (greet, hear):
                    for client in clients[begin:]:
                        serve(client)
        except OSError as error:
            raise Failure(f"connection {len(clients)} of {size}: {error}") from None
        yield clients
        gone = select.poll()
        for client in clients:
            gone.register(client, select.POLLIN)
        if left := gone.poll(0):
            raise Failure(f"{len(left)} of {size} connections were not left in peace")
