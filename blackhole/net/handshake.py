"""The server's side of a TLS handshake on a non-blocking socket.

OpenSSL takes 40 KiB from the moment it begins. So nothing begins before the first record of the
handshake is there as a whole: a client that never completes its ClientHello costs no more than
one that never sends a command.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from blackhole.net.client_hello import RECORD_HEADER
from blackhole.net.readiness import wait_readable, wait_writable
from blackhole.smtp.replies import NextAction

HANDSHAKE_RECORD: Final = b"\x16"
"""The first octet of a TLS record of a handshake (RFC 8446 5.1)."""

LARGEST_RECORD: Final = RECORD_HEADER + 16384
"""Octets of a record that is not encrypted."""


class HandshakeFault(Exception):
    """The handshake is to end when the ClientHello has come: a fault of a rule. The stream stays open."""

    def __init__(self, next_action: NextAction) -> None:
        super().__init__(next_action.value)
        self.next_action: Final = next_action


class ClosedWithoutHello(ConnectionError):
    """The client has closed the connection before it sent anything, as health checks do."""


async def wait_for_client_hello(plain: socket.socket) -> bytes:
    """Wait until the first record is there, or something that cannot become one; leave it in the socket.

    Return what is there. Raises ClosedWithoutHello.
    """
    wanted = 1
    while True:
        await wait_readable(plain.fileno())
        try:
            seen = plain.recv(LARGEST_RECORD, socket.MSG_PEEK)
        except ConnectionResetError:
            if wanted > 1:
                raise
            seen = b""
        if not seen:
            raise ClosedWithoutHello("the client closed the connection without a ClientHello")
        size = record_size(seen)
        if len(seen) >= size or not wanted < size <= LARGEST_RECORD:
            break
        # The kernel wakes this process for the last octet of the record, or for the client's
        # leaving, and not for each octet.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        wanted = size
    if wanted > 1:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return seen


def record_size(seen: bytes) -> int:
    """Return the octets of the record that begins like this, as far as they are known; 0 for no handshake.

    >>> record_size(b"\\x16\\x03\\x01\\x00\\x20")
    37
    >>> record_size(b"EHLO client.test")
    0
    """
    if seen[:1] != HANDSHAKE_RECORD:
        return 0
    if len(seen) < RECORD_HEADER:
        return RECORD_HEADER
    return RECORD_HEADER + int.from_bytes(seen[3:RECORD_HEADER])


async def handshake(secure: ssl.SSLSocket) -> None:
    """Complete the handshake. Raises OSError, of which ssl.SSLError is one kind, when it fails."""
    while True:
        try:
            secure.do_handshake()
            return
        except ssl.SSLWantReadError:
            await wait_readable(secure.fileno())
        except ssl.SSLWantWriteError:
            await wait_writable(secure.fileno())
