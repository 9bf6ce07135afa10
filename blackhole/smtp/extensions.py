"""The SMTP extensions: one row for each EHLO keyword, with its parameters of MAIL and RCPT.

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
"""RFC 3461 4: printable ASCII without "+" and "=", or "+" and two upper-case hexadecimal digits."""

DIGITS: Final = re.compile(rb"[0-9]{1,20}")
"""RFC 1870 3. int() alone would accept blanks, underscores and Arabic digits."""

REASONS: Final = frozenset((b"SUCCESS", b"FAILURE", b"DELAY"))


def check_size(value: bytes) -> bool:
    """RFC 1870 3."""
    return DIGITS.fullmatch(value) is not None


def check_body(value: bytes) -> bool:
    """RFC 6152 3: BODY."""
    return value.upper() in (b"7BIT", b"8BITMIME")


def check_no_value(value: bytes) -> bool:
    """A parameter without a value."""
    return not value


def check_ret(value: bytes) -> bool:
    """RFC 3461 4.3: RET."""
    return value.upper() in (b"FULL", b"HDRS")


def check_envid(value: bytes) -> bool:
    """RFC 3461 4.4: ENVID."""
    return 0 < len(value) <= 100 and XTEXT.fullmatch(value) is not None


def check_notify(value: bytes) -> bool:
    """RFC 3461 4.1: NOTIFY."""
    reasons = value.upper().split(b",")
    return reasons == [b"NEVER"] or REASONS.issuperset(reasons)


def check_orcpt(value: bytes) -> bool:
    """RFC 3461 4.2: ORCPT."""
    kind, semicolon, address = value.partition(b";")
    return bool(kind and semicolon and address) and len(value) <= 500 and XTEXT.fullmatch(address) is not None


def check_auth(value: bytes) -> bool:
    """RFC 4954 5: AUTH, an address or "<>" as xtext."""
    return len(value) > 0 and XTEXT.fullmatch(value) is not None


NO_PARAMETERS: Final[Checks] = MappingProxyType({})


class Extension(NamedTuple):
    """A row. `mail` and `rcpt` have the names of parameters, and the checks of their values."""

    keyword: str
    rfc: int
    argument: Callable[[ListenerConfig], str] = lambda config: ""
    offered: Callable[[ListenerConfig, bool], bool] = lambda config, secure: True
    mail: Checks = NO_PARAMETERS
    rcpt: Checks = NO_PARAMETERS


EXTENSIONS: Final = (
    Extension("PIPELINING", 2920),
    Extension(
        "SIZE", 1870, argument=lambda config: str(config.message_size_limit), mail={b"SIZE": check_size}
    ),
    Extension("8BITMIME", 6152, mail={b"BODY": check_body}),
    Extension("SMTPUTF8", 6531, mail={b"SMTPUTF8": check_no_value}),
    Extension("ENHANCEDSTATUSCODES", 2034),
    Extension(
        "DSN",
        3461,
        mail={b"RET": check_ret, b"ENVID": check_envid},
        rcpt={b"NOTIFY": check_notify, b"ORCPT": check_orcpt},
    ),
    Extension("VRFY", 5321),
    Extension("STARTTLS", 3207, offered=lambda config, secure: config.starttls and not secure),
    Extension(
        "AUTH",
        4954,
        argument=lambda config: " ".join(row.name for row in MECHANISMS),
        offered=lambda config, secure: config.auth and (secure or config.auth_plaintext),
        mail={b"AUTH": check_auth},
    ),
    Extension("HELP", 5321),
)


def parameters(config: ListenerConfig, secure: bool) -> dict[bytes, Checks]:
    """Return the parameters that are offered now, by the word before the address: FROM or TO."""
    rows = [row for row in EXTENSIONS if row.offered(config, secure)]
    return {
        b"FROM": {name: check for row in rows for name, check in row.mail.items()},
        b"TO": {name: check for row in rows for name, check in row.rcpt.items()},
    }


def keywords(config: ListenerConfig, secure: bool) -> list[str]:
    """Return the lines of the reply to EHLO behind its first: the extensions that are offered now."""
    return [
        f"{row.keyword} {row.argument(config)}".rstrip() for row in EXTENSIONS if row.offered(config, secure)
    ]
