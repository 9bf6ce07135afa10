"""Network addresses as octets, and sets of networks to look them up in."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

MAPPED: Final = b"\0" * 10 + b"\xff" * 2
"""Prefix of an IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2)."""

IPV4_OCTETS: Final = 4

UNIX: Final = "unix"
"""The address of each client of a UNIX socket."""

UNIX_OCTETS: Final = b"unix".ljust(16, b"\0")
"""What it is as octets: an address of IPv6 from a block that is not assigned, so that it fits everywhere."""


def to_bytes(address: str) -> bytes:
    """Return the 4 or 16 octets of an address, also for `UNIX`; none for anything else.

    >>> to_bytes("::ffff:192.0.2.1") == to_bytes("192.0.2.1")
    True
    """
    try:
        if ":" not in address:
            return socket.inet_pton(socket.AF_INET, address)
        octets = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return UNIX_OCTETS if address == UNIX else b""
    return octets.removeprefix(MAPPED)


def address_text(octets: bytes) -> str:
    """Return the address of 16 octets as text, IPv4 as IPv4.

    >>> address_text(MAPPED + bytes((192, 0, 2, 1))), address_text(UNIX_OCTETS)
    ('192.0.2.1', 'unix')
    """
    if octets == UNIX_OCTETS:
        return UNIX
    if octets.startswith(MAPPED):
        return socket.inet_ntop(socket.AF_INET, octets[len(MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, octets)


def canonical(address: str) -> str:
    """Return the address of a client as it is known everywhere: IPv4 as IPv4, also if it is mapped into IPv6.

    >>> canonical("::ffff:192.0.2.1"), canonical("2001:db8::1")
    ('192.0.2.1', '2001:db8::1')
    """
    octets = to_bytes(address) if address.startswith("::ffff:") else b""
    return socket.inet_ntop(socket.AF_INET, octets) if len(octets) == IPV4_OCTETS else address


def socket_host(name: tuple[Any, ...]) -> str:
    """Return the host of what getsockname() returned, a link-local address with its interface."""
    host, scope = str(name[0]), name[3] if len(name) == len(("host", "port", "flow", "scope")) else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:  # the interface is gone
        return f"{host}%{scope}"


def client_address(name: tuple[Any, ...] | str | bytes) -> str:
    """Return the address of a client, from what accept() returned.

    >>> client_address(("::ffff:192.0.2.1", 1024, 0, 0)), client_address("")
    ('192.0.2.1', 'unix')
    """
    if not isinstance(name, tuple):
        return UNIX
    host: str = name[0]
    return host if len(name) == len(("host", "port")) else canonical(socket_host(name))


def local_address(name: tuple[Any, ...] | str) -> str:
    """Return what getsockname() has returned as text: an address and a port, or the path of a Unix socket.

    >>> local_address(("::ffff:192.0.2.1", 25, 0, 0))
    '192.0.2.1 25'
    """
    return name if isinstance(name, str) else f"{canonical(socket_host(name))} {name[1]}"


def is_loopback(host: str) -> bool:
    """Return whether what is sent to a host stays on this machine.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.5", "::1", "0.0.0.0", "sink.example.com")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def network(text: str, strict: bool = True) -> IPv4Network | IPv6Network:
    """Return a network, or an address or `UNIX` as a network of one; mapped IPv4 addresses are IPv4.

    Raises ValueError. With `strict`, also for a bit that is set after the prefix.

    >>> network("::ffff:192.0.2.0/120")
    IPv4Network('192.0.2.0/24')
    """
    found = ip_network(UNIX_OCTETS if text == UNIX else text, strict)
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    prefix = found.prefixlen - len(MAPPED) * 8
    return found if mapped is None or prefix < 0 else IPv4Network((int(mapped), prefix))


class NetworkSet:
    """An immutable set of networks, usually empty, that is asked for addresses.

    >>> to_bytes("192.0.2.7") in NetworkSet(["192.0.2.0/24"])
    True
    """

    def __init__(self, texts: Iterable[str]) -> None:
        prefixes: dict[tuple[int, int], set[int]] = {}
        for found in map(network, texts):
            kind = found.max_prefixlen // 8, int(found.netmask)
            prefixes.setdefault(kind, set()).add(int(found.network_address))
        self._rows: Final = [(length, mask, numbers) for (length, mask), numbers in prefixes.items()]
        """The length of addresses in octets, a mask, and the networks that have it."""

    def __contains__(self, octets: bytes) -> bool:
        number, size = int.from_bytes(octets), len(octets)
        for length, mask, numbers in self._rows:  # noqa: SIM110 - any() takes twice as long
            if number & mask in numbers and size == length:
                return True
        return False
