"""The PROXY protocol: how a load balancer says, before all else, for whom it speaks.

Both versions of https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt are
read by the package `proxy-protocol`, which is asked for only where a listener
wants it. What it reads is not trusted to be short: it is read octet for octet as
far as the header goes, for what follows may be a TLS handshake, which
has to find its first octet in the socket.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Final, Protocol

from blackhole.net.readiness import wait_readable
from blackhole.settings import OperatorError

V1: Final = 107
"""Octets of the longest header of version 1, its line end among them."""

V2: Final = 16 + 2048
"""Octets of a header of version 2: the protocol would allow 64 KiB, for extensions nobody sends."""


class ProxiedSource(Protocol):
    """Where a header comes from: a stream."""

    async def peek(self, most: int) -> bytes:
        """What is there, without taking it; waits until there is something. Nothing: it has ended."""

    def take(self, count: int) -> bytes:
        """Take that much of what was seen."""


class SocketSource:
    """A `ProxiedSource` of a non-blocking socket."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain

    async def peek(self, most: int) -> bytes:
        await wait_readable(self._socket.fileno())
        return self._socket.recv(most, socket.MSG_PEEK)

    def take(self, count: int) -> bytes:
        return self._socket.recv(count)


def parser() -> Any:
    """What takes headers apart. Raises OperatorError (EX_CONFIG) where the package is missing."""
    try:
        from proxyprotocol.detect import ProxyProtocolDetect
    except ImportError:
        raise OperatorError(
            "a listener with proxy needs the package proxy-protocol: pip install 'blackhole[proxy]'",
            os.EX_CONFIG,
        ) from None
    return ProxyProtocolDetect()


async def read(source: ProxiedSource, parser: Any) -> str:
    """Take the header; the client's address, or nothing where the proxy speaks for itself.

    Raises ValueError for what is no header.
    """
    header = b""
    while (wanted := _wanted(parser, header)) is not None:
        seen = await source.peek(V2)
        if not seen:
            raise ValueError("it ended before its header did")
        size = min(wanted, len(seen)) if wanted else seen.find(b"\n") + 1 or len(seen)
        if len(header) + max(size, wanted) > (V1 if header.startswith(b"PROXY ") else V2):
            raise ValueError("the header is too long")
        header += source.take(size)
    return _address(parser, header)


def _wanted(parser: Any, header: bytes) -> int | None:
    """How many octets are missing; 0: the rest of a line; None: nothing. Raises ValueError."""
    from proxyprotocol import ProxyProtocolIncompleteError

    try:
        parser.unpack(header)
    except ProxyProtocolIncompleteError as error:
        return error.want_read.want_bytes or 0
    except (struct.error, IndexError) as error:  # of addresses shorter than their family has them
        raise ValueError(error) from None
    return None


def _address(parser: Any, header: bytes) -> str:
    from proxyprotocol.result import is_ipv4, is_ipv6

    result = parser.unpack(header)
    return str(result.source[0]) if is_ipv4(result) or is_ipv6(result) else ""
