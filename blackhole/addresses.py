"""Networks: a set of addresses, written as an operator writes it and asked by a client's address."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

MAPPED: Final = b"\0" * 10 + b"\xff" * 2
"""What an IPv4 address in IPv6 dress begins with (RFC 4291 2.5.5.2)."""


def to_bytes(address: str) -> bytes:
    """The octets of an address: 4 or 16, and none for what is no address, as a Unix socket's."""
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        octets = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return b""
    return octets.removeprefix(MAPPED)


class NetworkSet:
    """Some networks, of which none is the usual number."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._rows: Final = [
            (network.max_prefixlen // 8, int(network.network_address), int(network.netmask))
            for network in map(ip_network, texts)
        ]

    def __contains__(self, octets: bytes) -> bool:
        number, size = int.from_bytes(octets), len(octets)
        for length, first, mask in self._rows:  # noqa: SIM110 - any() takes twice as long
            if number & mask == first and size == length:
                return True
        return False
