"""The client that another server names: the attributes behind XCLIENT and XFORWARD.

Sources: XCLIENT_README and XFORWARD_README of Postfix. An attribute is NAME=value, and the value is xtext
(RFC 3461 4), or stands in brackets where the server does not know it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.addresses import canonical, to_bytes

UNKNOWN_VALUE: Final = b"[UNAVAILABLE]"
UNKNOWN_FOR_NOW: Final = b"[TEMPUNAVAIL]"

IPV6: Final = b"IPV6:"

MAX_ATTRIBUTE: Final = 255
"""Octets of a value, once it is decoded."""

ENCODED_VALUE: Final = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})++")
"""RFC 3461 4."""

UNENCODED_VALUE: Final = re.compile(rb"[!-~\x80-\xff]++")
"""What Postfix takes as well, because its versions before 2.3 did not encode values."""

ENCODED_OCTET: Final = re.compile(rb"\+([0-9A-Fa-f]{2})")

HOST_NAME: Final = re.compile(rb"[0-9A-Za-z_](?:[0-9A-Za-z_.:-]*[0-9A-Za-z_.])?")

PRINTABLE: Final = re.compile(rb"[ -~]++")
PRINTABLE_OR_EIGHT_BIT: Final = re.compile(rb"[ -~\x80-\xff]++")

MAX_PORT: Final = 65535

AttributeCheck = Callable[[bytes, bool], bool]
"""Takes a value that is not in brackets, and whether to overlook what Postfix overlooks."""


def is_name(value: bytes, lenient: bool) -> bool:
    """Return whether a value is a host name, or may be one to a resolver."""
    return HOST_NAME.fullmatch(value) is not None


def is_address(value: bytes, lenient: bool) -> bool:
    """Return whether a value is an IPv4 address, or an IPv6 address behind its prefix."""
    has_prefix = value[: len(IPV6)].upper() == IPV6
    address = value[len(IPV6) :] if has_prefix else value
    if b"%" in address or not to_bytes(address.decode("latin-1")):
        return False
    return has_prefix is (b":" in address) or (lenient and not has_prefix)


def is_port(value: bytes, lenient: bool) -> bool:
    """Return whether a value is the number of a port."""
    return value.isdigit() and len(value) <= len(str(MAX_PORT)) and int(value) <= MAX_PORT


def is_text(value: bytes, lenient: bool) -> bool:
    """Return whether a value has no control characters."""
    return (PRINTABLE_OR_EIGHT_BIT if lenient else PRINTABLE).fullmatch(value) is not None


def one_of(*words: bytes) -> AttributeCheck:
    """Return the check of a value that is one of these words, in upper or lower case."""
    return lambda value, lenient: value.upper() in words


CLIENT_ATTRIBUTES: Final[Mapping[bytes, AttributeCheck]] = MappingProxyType(
    {
        b"NAME": is_name,
        b"ADDR": is_address,
        b"PORT": is_port,
        b"PROTO": one_of(b"SMTP", b"ESMTP"),
        b"HELO": is_text,
        b"LOGIN": is_text,
        b"DESTADDR": is_address,
        b"DESTPORT": is_port,
    }
)
"""The attributes of XCLIENT."""

FORWARDED_ATTRIBUTES: Final[Mapping[bytes, AttributeCheck]] = MappingProxyType(
    {
        b"NAME": is_name,
        b"ADDR": is_address,
        b"PORT": is_port,
        b"PROTO": is_text,
        b"HELO": is_text,
        b"IDENT": is_text,
        b"SOURCE": one_of(b"LOCAL", b"REMOTE"),
    }
)
"""The attributes of XFORWARD."""


class NamedClient(NamedTuple):
    """What another server has said about a client. None: nothing; an empty value: it does not know."""

    address: str | None = None
    helo: bytes | None = None
    login: bytes | None = None
    local_address: str | None = None
    """The address that the client connected to."""
    local_port: str | None = None

    def updated(self, values: Mapping[bytes, bytes]) -> NamedClient:
        """Return what is known after a further command with these attributes."""
        found: dict[str, str | bytes] = {}
        for name, value in values.items():
            if name in FIELD_OF_ATTRIBUTE:
                field, convert = FIELD_OF_ATTRIBUTE[name]
                found[field] = convert(value)
        return self._replace(**found)  # type: ignore[arg-type]


NO_NAMED_CLIENT: Final = NamedClient()


def address_text(value: bytes) -> str:
    """Return the address that a value of ADDR stands for, as it is known everywhere.

    >>> address_text(b"IPV6:2001:db8::1"), address_text(b"IPV6:::ffff:192.0.2.1"), address_text(b"192.0.2.1")
    ('2001:db8::1', '192.0.2.1', '192.0.2.1')
    """
    text = value[len(IPV6) :] if value[: len(IPV6)].upper() == IPV6 else value
    return canonical(text.decode("latin-1").lower())


def unchanged(value: bytes) -> bytes:
    """Return a value as it is."""
    return value


FIELD_OF_ATTRIBUTE: Final[Mapping[bytes, tuple[str, Callable[[bytes], str | bytes]]]] = MappingProxyType(
    {
        b"ADDR": ("address", address_text),
        b"HELO": ("helo", unchanged),
        b"LOGIN": ("login", unchanged),
        b"DESTADDR": ("local_address", address_text),
        b"DESTPORT": ("local_port", bytes.decode),
    }
)
"""The attributes that have an effect: the field of a `NamedClient`, and what makes its value."""


def read_attributes(
    argument: bytes, known: Mapping[bytes, AttributeCheck], lenient: bool
) -> dict[bytes, bytes] | None:
    """Return the attributes behind XCLIENT or XFORWARD by their names in upper case, None if one is wrong.

    The value of one that the server does not know is empty.

    >>> read_attributes(b"ADDR=192.0.2.1 helo=[unavailable]", CLIENT_ATTRIBUTES, False)
    {b'ADDR': b'192.0.2.1', b'HELO': b''}
    """
    found: dict[bytes, bytes] = {}
    for word in argument.split():
        name, _, text = word.partition(b"=")
        name = name.upper()
        if name not in known:
            return None
        if text.upper() == UNKNOWN_VALUE or (name == b"NAME" and text.upper() == UNKNOWN_FOR_NOW):
            found[name] = b""
            continue
        if (UNENCODED_VALUE if lenient else ENCODED_VALUE).fullmatch(text) is None:
            return None
        value = ENCODED_OCTET.sub(lambda digits: bytes((int(digits[1], 16),)), text)
        if len(value) > MAX_ATTRIBUTE or not known[name](value, lenient):
            return None
        found[name] = value
    return found or None
