"""The SMTP extensions: one row for each EHLO keyword, with its parameters of MAIL and RCPT.

Each row names the RFC that it comes from. A new extension is a new row: `parameter_checks.matching` makes a
check of a pattern, and what offers, parses and documents the extension reads the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.smtp.auth import offered_mechanisms
from blackhole.smtp.choices import choose_keywords
from blackhole.smtp.named_client import CLIENT_ATTRIBUTES, FORWARDED_ATTRIBUTES
from blackhole.smtp.offer import Offer
from blackhole.smtp.parameter_checks import (
    BY_VALUE,
    DATE_TIME,
    MAX_HOLD,
    check_auth,
    check_binary_body,
    check_body,
    check_envid,
    check_hold_for,
    check_no_value,
    check_notify,
    check_orcpt,
    check_ret,
    check_size,
    matching,
)
from blackhole.smtp.state import Checks, ListenerConfig

NO_PARAMETERS: Final[Checks] = MappingProxyType({})


def limits_in_force(config: ListenerConfig) -> str:
    """Return the limits on messages of a session and recipients of a message (RFC 9422 3); empty for none."""
    limits = config.limits
    if limits is None:
        return ""
    known = (("MAILMAX", limits.messages), ("RCPTMAX", limits.recipients))
    return " ".join(f"{name}={limit}" for name, limit in known if limit)


def mechanisms_in_force(config: ListenerConfig) -> str:
    """Return the names of the mechanisms of AUTH (RFC 4954 3)."""
    return " ".join(row.name for row in offered_mechanisms(config.auth_mechanisms, config.passwords).values())


class Extension(NamedTuple):
    """A row. `mail` and `rcpt` have the names of parameters, and the checks of their values."""

    keyword: str
    rfc: int
    about: str
    """What becomes of it, and of its parameters."""
    argument: Callable[[ListenerConfig], str] = lambda config: ""
    offered: Callable[[ListenerConfig, bool], bool] = lambda config, secure: True
    """Whether it can be offered at all, without TLS or under it."""
    mail: Checks = NO_PARAMETERS
    rcpt: Checks = NO_PARAMETERS
    by_default: bool = True
    """Offered unless the listener says which extensions are; what most servers on the Internet offer."""
    needs: str = ""
    """The keyword of an extension that has to be offered too."""
    only_one: frozenset[bytes] = frozenset()
    """Parameters of which a command may have one."""
    page: str = ""
    """The address of its specification, where that is no RFC."""
    names_clients: bool = False
    """Offered only to servers that may name the clients that they act for."""

    def is_offered(self, config: ListenerConfig, secure: bool, names_clients: bool = False) -> bool:
        """Return whether a listener offers the extension to a client, under TLS or not."""
        chosen = self.by_default if config.extensions is None else self.keyword in config.extensions
        return chosen and names_clients >= self.names_clients and self.offered(config, secure)


EXTENSIONS: Final = (
    Extension("PIPELINING", 2920, "commands may be sent before the replies to those before them"),
    Extension(
        "SIZE",
        1870,
        "refused with 552 above message_size_limit, and compared with the message",
        argument=lambda config: str(config.message_size_limit),
        mail={b"SIZE": check_size},
    ),
    Extension(
        "8BITMIME",
        6152,
        "octets above 127 are a violation without it",
        mail={b"BODY": check_body},
    ),
    Extension(
        "SMTPUTF8",
        6531,
        "addresses outside ASCII are refused with 553 without it",
        mail={b"SMTPUTF8": check_no_value},
        needs="8BITMIME",
    ),
    Extension("ENHANCEDSTATUSCODES", 2034, "all replies have such codes, but those that must not"),
    Extension(
        "DSN",
        3461,
        "checked, and ignored: no notification is sent",
        mail={b"RET": check_ret, b"ENVID": check_envid},
        rcpt={b"NOTIFY": check_notify, b"ORCPT": check_orcpt},
    ),
    Extension("CHUNKING", 3030, "BDAT works, and is refused with 502 without it"),
    Extension(
        "BINARYMIME",
        3030,
        "such a message is not inspected, and has to come by BDAT",
        mail={b"BODY": check_binary_body},
        by_default=False,
        needs="CHUNKING",
    ),
    Extension(
        "LIMITS",
        9422,
        "announces max_messages and max_recipients to the clients that they hold for",
        argument=limits_in_force,
        offered=lambda config, secure: bool(limits_in_force(config)),
        by_default=False,
    ),
    Extension(
        "REQUIRETLS",
        8689,
        "offered under TLS, and ignored: no message is passed on",
        offered=lambda config, secure: secure,
        mail={b"REQUIRETLS": check_no_value},
        by_default=False,
    ),
    Extension(
        "DELIVERBY",
        2852,
        "checked, and ignored: every message is delivered in time, to nowhere",
        mail={b"BY": matching(BY_VALUE)},
        by_default=False,
    ),
    Extension(
        "FUTURERELEASE",
        4865,
        "checked, and ignored: no message is released",
        argument=lambda config: f"{MAX_HOLD} 9999-12-31T23:59:59Z",
        mail={b"HOLDFOR": check_hold_for, b"HOLDUNTIL": matching(DATE_TIME)},
        by_default=False,
        only_one=frozenset((b"HOLDFOR", b"HOLDUNTIL")),
    ),
    Extension(
        "MT-PRIORITY",
        6710,
        "checked, and ignored: no message has to wait for another",
        mail={b"MT-PRIORITY": matching(rb"-?[1-9]|0")},
        by_default=False,
    ),
    Extension("VRFY", 5321, "VRFY works with or without it"),
    Extension(
        "STARTTLS",
        3207,
        "offered with a certificate, before TLS",
        offered=lambda config, secure: config.starttls and not secure,
    ),
    Extension(
        "AUTH",
        4954,
        "offered with auth, under TLS or with auth_plaintext; AUTH= of MAIL is checked, and ignored",
        argument=mechanisms_in_force,
        offered=lambda config, secure: config.auth and (secure or config.auth_plaintext),
        mail={b"AUTH": check_auth},
    ),
    Extension(
        "XCLIENT",
        0,
        "offered to the servers in xclient_from, and begins a session with the client that it names",
        argument=lambda config: b" ".join(CLIENT_ATTRIBUTES).decode(),
        page="https://www.postfix.org/XCLIENT_README.html",
        names_clients=True,
    ),
    Extension(
        "XFORWARD",
        0,
        "offered to the servers in xclient_from, and names the client that is shown with the next message",
        argument=lambda config: b" ".join(FORWARDED_ATTRIBUTES).decode(),
        page="https://www.postfix.org/XFORWARD_README.html",
        names_clients=True,
    ),
    Extension("HELP", 5321, "HELP works with or without it"),
)

ONLY_ONE: Final = tuple(row.only_one for row in EXTENSIONS if row.only_one)
"""Sets of parameters of which a command may have one."""


def parameters(config: ListenerConfig, secure: bool) -> dict[bytes, Checks]:
    """Return the parameters that are offered now, by the word before the address: FROM or TO."""
    rows = [row for row in EXTENSIONS if row.is_offered(config, secure)]
    return _parameters(rows)


def added_parameters(offer: Offer) -> Mapping[bytes, Checks]:
    """Return the parameters of all extensions in an offer, whoever has put them there, as `parameters`."""
    return _parameters([row for row in EXTENSIONS if offer.has_keyword(row.keyword)])


def _parameters(rows: Iterable[Extension]) -> dict[bytes, Checks]:
    return {
        b"FROM": {name: check for row in rows for name, check in row.mail.items()},
        b"TO": {name: check for row in rows for name, check in row.rcpt.items()},
    }


def keywords(config: ListenerConfig, secure: bool, names_clients: bool = False) -> list[str]:
    """Return the lines of the reply to EHLO behind its first: the extensions that are offered now."""
    return [
        f"{row.keyword} {row.argument(config)}".rstrip()
        for row in EXTENSIONS
        if row.is_offered(config, secure, names_clients)
    ]


DEFAULTS: Final = frozenset(row.keyword for row in EXTENSIONS if row.by_default)


def choose(words: Iterable[str]) -> frozenset[str]:
    """Return the keywords of the extensions that a list names, as `choose_keywords`.

    Raises ValueError for an unknown one, and for one that needs another that is not in the list.
    """
    chosen = choose_keywords(words, [row.keyword for row in EXTENSIONS], DEFAULTS)
    for row in EXTENSIONS:
        if row.keyword in chosen and row.needs and row.needs not in chosen:
            raise ValueError(f"{row.keyword} needs {row.needs}, which is not in the list")
    return chosen
