"""A crowd: many connections that were greeted and then say nothing."""

from __future__ import annotations

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


def hear(client: socket.socket) -> None:
    """Be greeted, and say EHLO as a real client would before it falls silent."""
    if not client.recv(512).startswith(b"220"):
        raise Failure("no 220 greeting")
    client.sendall(b"EHLO client.test\r\n")
    reply = b""
    while b"\n250 " not in b"\n" + reply:
        if not (piece := client.recv(4096)):
            raise Failure(f"hung up on EHLO after {reply!r}")
        reply += piece


@contextmanager
def crowd(port: int, size: int, at_once: bool = False) -> Iterator[list[socket.socket]]:
    """Hold `size` connections for as long as the block lasts.

    They come one after the other, each when the one before it was heard; `at_once`, all before any is heard.
    """
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        try:
            for number in range(size):
                clients.append(stack.enter_context(arrive(port, number)))
                if not at_once:
                    hear(clients[-1])
            if at_once:
                for client in clients:
                    hear(client)
        except OSError as error:
            raise Failure(f"connection {len(clients)} of {size}: {error}") from None
        yield clients
