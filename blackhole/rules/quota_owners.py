"""The owners of quotas: what a limit is counted for, such as each client or each sender's domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from blackhole.rules.context import RuleContext
from blackhole.rules.letters import fold_octets


@lru_cache(maxsize=1024)
def client_network(client: str) -> bytes:
    """Return the network that a client may come back from: its /24, or with IPv6 its /64.

    >>> client_network("::ffff:192.0.2.7")
    b'192.0.2'
    """
    address = client.rpartition(":")[2] if "." in client else client
    if ":" in address:
        try:
            whole = int(ip_address(address.partition("%")[0]))
            return b"%x" % (whole >> 64)
        except ValueError:
            return address.encode()
    return address.rpartition(".")[0].encode()


def domain(address: bytes) -> bytes:
    """Return the domain of an address; empty for the null sender."""
    return fold_octets(address[address.rfind(b"@") + 1 :])


QUOTA_OWNERS: Final[Mapping[str, Callable[[RuleContext], bytes]]] = MappingProxyType(
    {
        "client": lambda context: context.client.encode(),
        "network": lambda context: client_network(context.client),
        "helo": lambda context: fold_octets(context.helo),
        "user": lambda context: fold_octets(context.user),
        "sender": lambda context: fold_octets(context.sender),
        "sender-domain": lambda context: domain(context.sender),
        "recipient": lambda context: fold_octets(context.recipient),
        "recipient-domain": lambda context: domain(context.recipient),
        "pair": lambda context: fold_octets(b"%b\0%b" % (context.sender, context.recipient)),
        "listener": lambda context: context.listener.encode(),
        "all": lambda context: b"",
    }
)
"""A value of `by` -> what a quota is counted for."""

CONNECTION_OWNERS: Final = frozenset(("client", "network", "listener", "all"))
"""Those that stay the same for the time of a connection, and are known from its beginning."""

Owners = tuple[str, ...]
"""Keys of QUOTA_OWNERS: a quota for each combination of them."""


def owner_key(owners: Owners, context: RuleContext) -> bytes:
    """Return what a context is counted for.

    >>> owner_key(("client", "recipient-domain"), RuleContext(client="192.0.2.1"))
    b'192.0.2.1\\x00'
    """
    return b"\0".join([QUOTA_OWNERS[name](context) for name in owners])


def varies(owners: Iterable[str]) -> bool:
    """Return whether a connection may be counted for several."""
    return not CONNECTION_OWNERS.issuperset(owners)
