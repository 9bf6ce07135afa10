"""The extensions: one row for each EHLO keyword, when it is offered, and the parameters it brings.

Sources: RFC 1870 (SIZE), RFC 2034 (ENHANCEDSTATUSCODES), RFC 2920 (PIPELINING),
RFC 3207 (STARTTLS), RFC 3461 (DSN), RFC 4954 (AUTH), RFC 5321 (HELP, VRFY), RFC 6152 (8BITMIME),
RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.smtp.auth import MECHANISMS
from blackhole.smtp.state import Checks, ListenerConfig

XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
"""RFC 3461 4: printable ASCII but "+" and "=", or "+" and two upper-case hexadecimal digits."""

DIGITS: Final = re.compile(rb"[0-9]{1,20}")
"""RFC 1870 3. int() alone would take blanks, underscores and Arabic digits."""

REASONS: Final = frozenset((b"SUCCESS", b"FAILURE", b"DELAY"))


def size(value: bytes) -> bool:
    return DIGITS.fullmatch(value) is not None


def body(value: bytes) -> bool:
    return value.upper() in (b"7BIT", b"8BITMIME")


def nothing(value: bytes) -> bool:
    return not value


def returned(value: bytes) -> bool:
    return value.upper() in (b"FULL", b"HDRS")


def envelope_id(value: bytes) -> bool:
    return 0 < len(value) <= 100 and XTEXT.fullmatch(value) is not None


def notify(value: bytes) -> bool:
    reasons = value.upper().split(b",")
    return reasons == [b"NEVER"] or REASONS.issuperset(reasons)


def original(value: bytes) -> bool:
    kind, semicolon, address = value.partition(b";")
    return bool(kind and semicolon and address) and len(value) <= 500 and XTEXT.fullmatch(address) is not None


def mailbox(value: bytes) -> bool:
    return len(value) > 0 and XTEXT.fullmatch(value) is not None


NONE: Final[Checks] = MappingProxyType({})


class Extension(NamedTuple):
    """A row. `mail` and `rcpt` give a parameter's name and what its value must be."""

    keyword: str
    rfc: int
    argument: Callable[[ListenerConfig], str] = lambda config: ""
    offered: Callable[[ListenerConfig, bool], bool] = lambda config, secure: True
    mail: Checks = NONE
    rcpt: Checks = NONE


EXTENSIONS: Final = (
    Extension("PIPELINING", 2920),
    Extension("SIZE", 1870, argument=lambda config: str(config.message_size_limit), mail={b"SIZE": size}),
    Extension("8BITMIME", 6152, mail={b"BODY": body}),
    Extension("SMTPUTF8", 6531, mail={b"SMTPUTF8": nothing}),
    Extension("ENHANCEDSTATUSCODES", 2034),
    Extension(
        "DSN",
        3461,
        mail={b"RET": returned, b"ENVID": envelope_id},
        rcpt={b"NOTIFY": notify, b"ORCPT": original},
    ),
    Extension("VRFY", 5321),
    Extension("STARTTLS", 3207, offered=lambda config, secure: config.starttls and not secure),
    Extension(
        "AUTH",
        4954,
        argument=lambda config: " ".join(row.name for row in MECHANISMS),
        offered=lambda config, secure: config.auth and (secure or config.auth_plaintext),
        mail={b"AUTH": mailbox},
    ),
    Extension("HELP", 5321),
)


def parameters(config: ListenerConfig, secure: bool) -> dict[bytes, Checks]:
    """What works on this connection now, by the word before the address."""
    rows = [row for row in EXTENSIONS if row.offered(config, secure)]
    return {
        b"FROM": {name: check for row in rows for name, check in row.mail.items()},
        b"TO": {name: check for row in rows for name, check in row.rcpt.items()},
    }


def keywords(config: ListenerConfig, secure: bool) -> list[str]:
    """The lines of an EHLO reply behind its first: what works on this connection now."""
    return [
        f"{row.keyword} {row.argument(config)}".rstrip() for row in EXTENSIONS if row.offered(config, secure)
    ]
