"""Paths: the address in the argument of MAIL or RCPT (RFC 5321 4.1.2), as it should be or misspelt.

RFC 6531 3.3 adds all of UTF-8 outside ASCII to local parts and domains.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

ATEXT: Final = rb"-A-Za-z0-9!#$%&'*+/=?^_`{|}~"
"""Octets of an atom (RFC 5322 3.2.3), for a set in a pattern."""

USUAL_ADDRESS: Final = (
    rb"[" + ATEXT + rb"]++(?:\.[" + ATEXT + rb"]++)*+@[A-Za-z0-9]++(?:\.[A-Za-z0-9]++|-++[A-Za-z0-9]++)*+"
)
"""A pattern of the addresses that nearly every client sends: atoms, and a domain, all in ASCII."""

LOCAL_PART: Final = (
    rb"(?:[" + ATEXT + rb"\x80-\xff]++(?:\.[" + ATEXT + rb"\x80-\xff]++)*+"
    rb'|"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*+")'
)

DOMAIN: Final = rb"[A-Za-z0-9\x80-\xff]++(?:\.[A-Za-z0-9\x80-\xff]++|-++[A-Za-z0-9\x80-\xff]++)*+"

DOMAIN_NAME: Final = re.compile(DOMAIN)

LEADING_ZEROS: Final = re.compile(rb"\b0{1,2}(?=[0-9])")
"""In a number of at most three digits, as RFC 5321 4.1.3 writes those of an IPv4 address."""

ROUTE: Final = re.compile(rb"@" + DOMAIN + rb"(?:,@" + DOMAIN + rb")*+:")
"""A source route, which servers accept and ignore (RFC 5321 appendix C)."""

MAILBOX: Final = re.compile(LOCAL_PART + rb"@(?:" + DOMAIN + rb"|(\[[^\[\]]*+\]))")

QUOTED: Final = rb'"(?:[^"\\]|\\.)*+"'
COMMENT: Final = rb"\([^()]*+\)"

CORRECT: Final = re.compile(rb":<((?:[^\s<>\"]|" + QUOTED + rb")*+)>(?: +([^\s(].*))?")

# Blanks and comments anywhere, a name before the brackets, brackets within brackets, no brackets at all;
# even the colon may be missing. Parts next to each other never match the same octet, so that matching takes
# linear time.
LENIENT: Final = re.compile(
    rb"\s*+:?+\s*+(?:"
    rb"(?:(?:[^<>\"()@=]|" + QUOTED + rb"|" + COMMENT + rb")*+<)++"
    rb"((?:[^<>\"]|" + QUOTED + rb")*+|[^<>]*+)>++"
    rb"|((?:[^\s<>\"()]|" + QUOTED + rb"|" + COMMENT + rb")*+|[^\s<>]*+)>*+"
    rb")(?:\s*+" + COMMENT + rb")*+(?:\s++(\S.*))?"
)

COMMENTS: Final = re.compile(QUOTED + rb"|" + COMMENT)


class Path(NamedTuple):
    """An address and what stands behind it."""

    address: bytes
    """Without brackets, comments and source route; empty for the null reverse-path."""
    parameters: bytes
    is_correct: bool
    """RFC 5321 4.1.2 allows it as it stands."""


def read_path(text: bytes, local_names: tuple[bytes, ...]) -> Path | None:
    """Read what follows FROM or TO; return None if there is no address in it.

    Addresses among `local_names` need no "@".

    >>> read_path(b": Bob <bob@example.com> SIZE=9", ())
    Path(address=b'bob@example.com', parameters=b'SIZE=9', is_correct=False)
    """
    match = CORRECT.fullmatch(text)
    if match is not None:
        address, parameters = without_route(match[1]), match[2] or b""
        if address.lower() in local_names or is_mailbox(address):
            return Path(address, parameters, True)
    else:
        match = LENIENT.fullmatch(text)
        if match is None:
            return None
        bracketed, bare, found = match.groups()
        address, parameters = bare if bracketed is None else bracketed, found or b""
    return Path(without_route(without_comments(address)), parameters, False)


def without_route(address: bytes) -> bytes:
    """Return an address without the hosts that its sender would have it pass."""
    route = ROUTE.match(address)
    return address if route is None else address[route.end() :]


def without_comments(address: bytes) -> bytes:
    """Return an address without comments, and without blanks at its ends."""
    if b"(" in address:
        address = COMMENTS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"", address)
    return address.strip()


def is_mailbox(address: bytes) -> bool:
    """Return whether an address is a mailbox (RFC 5321 4.1.2)."""
    match = MAILBOX.fullmatch(address)
    return match is not None and (match[1] is None or is_address_literal(match[1]))


def is_domain(name: bytes) -> bool:
    """Return whether a name is a domain, of one label or more (RFC 5321 4.1.2)."""
    return DOMAIN_NAME.fullmatch(name) is not None


def is_address_literal(text: bytes) -> bool:
    """Return whether a text in brackets is an address literal (RFC 5321 4.1.3).

    >>> is_address_literal(b"[IPv6:2001:db8::1]"), is_address_literal(b"[2001:db8::1]")
    (True, False)
    """
    if not text.endswith(b"]"):
        return False
    try:
        if text[1:6].lower() == b"ipv6:":
            IPv6Address(text[6:-1].decode("latin-1"))
        else:
            IPv4Address(LEADING_ZEROS.sub(b"", text[1:-1]).decode("latin-1"))
    except ValueError:
        return False
    return b"%" not in text
