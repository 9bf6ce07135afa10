"""Network addresses as octets, and sets of networks to look them up in."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

MAPPED: Final = b"\0" * 10 + b"\xff" * 2
"""Prefix of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""


def to_bytes(address: str) -> bytes:
    """Return the 4 or 16 octets of an address; none for anything else, such as a Unix socket.

    >>> to_bytes("::ffff:192.0.2.1") == to_bytes("192.0.2.1")
    True
    """
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        octets = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return b""
    return octets.removeprefix(MAPPED)


class NetworkSet:
    """An immutable set of networks, usually empty, that is asked for addresses.

    >>> to_bytes("192.0.2.7") in NetworkSet(["192.0.2.0/24"])
    True
    """

    def __init__(self, texts: Iterable[str]) -> None:
        prefixes: dict[tuple[int, int], set[int]] = {}
        for network in map(ip_network, texts):
            kind = network.max_prefixlen // 8, int(network.netmask)
            prefixes.setdefault(kind, set()).add(int(network.network_address))
        self._rows: Final = [(length, mask, numbers) for (length, mask), numbers in prefixes.items()]
        """The length of addresses in octets, a mask, and the networks that have it."""

    def __contains__(self, octets: bytes) -> bool:
        number, size = int.from_bytes(octets), len(octets)
        for length, mask, numbers in self._rows:  # noqa: SIM110 - any() takes twice as long
            if number & mask in numbers and size == length:
                return True
        return False
