"""The PROXY protocol: how a load balancer passes on the address of the client.

Both versions of https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt are parsed by the
package `proxy-protocol`, which is imported only for a listener with `proxy`. The header is read
to its last octet and not beyond: a TLS handshake may follow, whose first octet has to be in the
socket still.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from typing import Any, Final, Protocol

from blackhole.addresses import canonical
from blackhole.net.readiness import wait_readable
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)

MAX_V1: Final = 107
"""Octets of the longest header of version 1, with its line end."""

MAX_V2: Final = 16 + 2048
"""Octets of the longest header of version 2 that is accepted. The protocol allows 64 KiB of extensions."""


ERROR_INTERVAL: Final = 60
"""Seconds between two lines of the log about the headers of one proxy."""

MAX_PROXIES: Final = 1000
"""Proxies that are remembered for this."""


class NoHeader(ValueError):
    """A proxy closed its connection without a word, as it does to check whether the server is there."""


class HeaderErrorLog:
    """Logs at INFO that headers of a proxy cannot be read, but at most once a minute for each proxy."""

    def __init__(self) -> None:
        self._logged: Final[dict[str, float]] = {}
        """When the last line about each proxy was written, in seconds of the monotonic clock."""

    def add(self, proxy: str, error: Exception) -> None:
        """Log the error that `read_header` has raised."""
        now = time.monotonic()
        is_due = now - self._logged.get(proxy, -ERROR_INTERVAL) >= ERROR_INTERVAL
        level = logging.INFO if is_due and not isinstance(error, NoHeader) else logging.DEBUG
        if level == logging.INFO:
            if len(self._logged) >= MAX_PROXIES:
                self._logged.clear()
            self._logged[proxy] = now
        log.log(level, "the PROXY header of %s cannot be read: %s", proxy, error)


class ProxiedSource(Protocol):
    """Octets that can be looked at before they are consumed."""

    async def peek(self, most: int) -> bytes:
        """Wait for octets and return them, at most this many; return nothing at the end of the input."""

    def consume(self, count: int) -> bytes:
        """Return so many of the octets that `peek` returned, and remove them."""


class SocketSource:
    """A `ProxiedSource` of a non-blocking socket."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain

    async def peek(self, most: int) -> bytes:
        await wait_readable(self._socket.fileno())
        return self._socket.recv(most, socket.MSG_PEEK)

    def consume(self, count: int) -> bytes:
        return self._socket.recv(count)


def make_parser() -> Any:
    """Return a parser of headers. Raises OperatorError (EX_CONFIG) if the package is not installed."""
    try:
        from proxyprotocol.detect import ProxyProtocolDetect
    except ImportError:
        raise OperatorError(
            "a listener with proxy needs the package proxy-protocol: pip install 'blackhole-smtp[proxy]'",
            os.EX_CONFIG,
        ) from None
    return ProxyProtocolDetect()


async def read_header(source: ProxiedSource, parser: Any) -> str:
    """Consume a header. Return the client's address, or nothing for the proxy's own connections.

    Raises ValueError for input that is not a header.
    """
    header = b""
    while (wanted := _wanted(parser, header)) is not None:
        seen = await source.peek(MAX_V2)
        if not seen:
            raise (ValueError if header else NoHeader)("it ended before its header did")
        size = min(wanted, len(seen)) if wanted else seen.find(b"\n") + 1 or len(seen)
        if len(header) + max(size, wanted) > (MAX_V1 if header.startswith(b"PROXY ") else MAX_V2):
            raise ValueError("the header is too long")
        header += source.consume(size)
        if header.startswith(b"PROXY ") and header.endswith(b"\n") and not header.endswith(b"\r\n"):
            raise ValueError("its line ends with LF alone")
    return _address(parser, header)


def _wanted(parser: Any, header: bytes) -> int | None:
    """Return the octets that are missing; 0 for the rest of a line, None for nothing. Raises ValueError."""
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
    return canonical(str(result.source[0])) if is_ipv4(result) or is_ipv6(result) else ""
