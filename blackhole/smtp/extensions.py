"""The SMTP extensions: one row for each EHLO keyword, with its parameters of MAIL and RCPT.

Sources: RFC 1870 (SIZE), RFC 2034 (ENHANCEDSTATUSCODES), RFC 2920 (PIPELINING),
RFC 3030 (CHUNKING, BINARYMIME), RFC 3207 (STARTTLS), RFC 3461 (DSN), RFC 4954 (AUTH), RFC 5321 (HELP, VRFY),
RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.smtp.auth import MECHANISMS
from blackhole.smtp.offer import Offer
from blackhole.smtp.paths import ATEXT
from blackhole.smtp.state import Checks, ListenerConfig

PRINTABLE_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~]|\+(?:09|[2-6][0-9A-F]|7[0-9A-E]))++")
"""RFC 3461 4: printable ASCII without "+" and "=", or "+" and two upper-case hexadecimal digits. What these
stand for is printable or blank too, as 4.2 and 4.4 ask for."""

LENIENT_XTEXT: Final = re.compile(rb"(?:[!-*,-~\x80-\xff]|\+[0-9A-Fa-f]{2})*+")
"""What Postfix and Exim take as well: lower-case digits, "=", and octets that should be encoded."""

UNITEXT: Final = re.compile(
    rb"(?:[!-*,-<>-\[\]-~\x80-\xff]|\+(?:09|[2-6][0-9A-F]|7[0-9A-E])"
    rb"|\\x\{(?!D[89A-F][0-9A-F]{2}\})(?:0[1-9]|[1-9A-F][0-9A-F]{1,4}|10[0-9A-F]{4})\})++"
)
"""RFC 6533 3: an address of the type utf-8, in UTF-8 or with the numbers of characters as \\x{...}.

A server that offers SMTPUTF8 takes both, whether or not MAIL has SMTPUTF8."""

UTF8_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~\x80-\xff]|\+[0-9A-F]{2})++")
"""The same of any octets, with an address in UTF-8 as it is where MAIL has SMTPUTF8 (RFC 6531 3.2, 3.3)."""

ATOM: Final = re.compile(rb"[" + ATEXT + rb"]++")

DIGITS: Final = re.compile(rb"[0-9]{1,20}")
"""RFC 1870 3. int() alone would accept blanks, underscores and Arabic digits."""

REASONS: Final = frozenset((b"SUCCESS", b"FAILURE", b"DELAY"))


def check_size(value: bytes, lenient: bool) -> bool:
    """RFC 1870 3."""
    return DIGITS.fullmatch(value) is not None


def check_body(value: bytes, lenient: bool) -> bool:
    """RFC 6152 3: BODY."""
    return value.upper() in (b"7BIT", b"8BITMIME")


def check_binary_body(value: bytes, lenient: bool) -> bool:
    """RFC 3030 3: BODY, with one more value than RFC 6152 3 has."""
    return value.upper() == b"BINARYMIME" or check_body(value, lenient)


def check_no_value(value: bytes, lenient: bool) -> bool:
    """A parameter without a value."""
    return not value


def check_ret(value: bytes, lenient: bool) -> bool:
    """RFC 3461 4.3: RET."""
    return value.upper() in (b"FULL", b"HDRS")


def check_envid(value: bytes, lenient: bool) -> bool:
    """RFC 3461 4.4: ENVID, printable once it is decoded."""
    text = value.upper().replace(b"=", b"+3D") if lenient else value
    return len(value) <= 100 and PRINTABLE_XTEXT.fullmatch(text) is not None


def check_notify(value: bytes, lenient: bool) -> bool:
    """RFC 3461 4.1: NOTIFY."""
    reasons = value.upper().split(b",")
    if lenient:
        reasons = [reason for reason in reasons if reason]
    return reasons == [b"NEVER"] or (bool(reasons) and REASONS.issuperset(reasons))


def check_orcpt(value: bytes, lenient: bool) -> bool:
    """RFC 3461 4.2: ORCPT, a type and an address; RFC 6533 3: the type utf-8."""
    kind, semicolon, address = value.partition(b";")
    if not (kind and semicolon and len(value) <= 500):
        return False
    if lenient:
        return LENIENT_XTEXT.fullmatch(address) is not None
    syntax = UNITEXT if kind.upper() == b"UTF-8" else PRINTABLE_XTEXT
    return ATOM.fullmatch(kind) is not None and syntax.fullmatch(address) is not None


def check_auth(value: bytes, lenient: bool) -> bool:
    """RFC 4954 5: AUTH, an address or "<>" as xtext."""
    syntax = LENIENT_XTEXT if lenient else UTF8_XTEXT
    return len(value) > 0 and syntax.fullmatch(value) is not None


NO_PARAMETERS: Final[Checks] = MappingProxyType({})


class Extension(NamedTuple):
    """A row. `mail` and `rcpt` have the names of parameters, and the checks of their values."""

    keyword: str
    rfc: int
    argument: Callable[[ListenerConfig], str] = lambda config: ""
    offered: Callable[[ListenerConfig, bool], bool] = lambda config, secure: True
    mail: Checks = NO_PARAMETERS
    rcpt: Checks = NO_PARAMETERS
    by_default: bool = True
    """Offered unless the listener says which extensions are; what most servers on the Internet offer."""
    needs: str = ""
    """The keyword of an extension that has to be offered too."""

    def is_offered(self, config: ListenerConfig, secure: bool) -> bool:
        """Return whether a listener offers the extension to a client, under TLS or not."""
        chosen = self.by_default if config.extensions is None else self.keyword in config.extensions
        return chosen and self.offered(config, secure)


EXTENSIONS: Final = (
    Extension("PIPELINING", 2920),
    Extension(
        "SIZE", 1870, argument=lambda config: str(config.message_size_limit), mail={b"SIZE": check_size}
    ),
    Extension("8BITMIME", 6152, mail={b"BODY": check_body}),
    Extension("SMTPUTF8", 6531, mail={b"SMTPUTF8": check_no_value}, needs="8BITMIME"),
    Extension("ENHANCEDSTATUSCODES", 2034),
    Extension(
        "DSN",
        3461,
        mail={b"RET": check_ret, b"ENVID": check_envid},
        rcpt={b"NOTIFY": check_notify, b"ORCPT": check_orcpt},
    ),
    Extension("CHUNKING", 3030),
    Extension("BINARYMIME", 3030, mail={b"BODY": check_binary_body}, by_default=False, needs="CHUNKING"),
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


def keywords(config: ListenerConfig, secure: bool) -> list[str]:
    """Return the lines of the reply to EHLO behind its first: the extensions that are offered now."""
    return [
        f"{row.keyword} {row.argument(config)}".rstrip()
        for row in EXTENSIONS
        if row.is_offered(config, secure)
    ]


DEFAULTS: Final = frozenset(row.keyword for row in EXTENSIONS if row.by_default)

GROUPS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "default": DEFAULTS,
        "all": frozenset(row.keyword for row in EXTENSIONS),
        "none": frozenset(),
    }
)
"""Words that stand for several extensions."""


def choose(words: Iterable[str]) -> frozenset[str]:
    """Return the keywords of a list: keywords, words of GROUPS, and -KEYWORD to leave one out.

    Raises ValueError for an unknown one, and for one that needs another that is not in the list.

    >>> sorted(choose(["none", "CHUNKING", "vrfy", "-VRFY"]))
    ['CHUNKING']
    """
    chosen: frozenset[str] = frozenset()
    for word in words:
        keyword = word.removeprefix("-").upper()
        if word.lower() in GROUPS:
            chosen |= GROUPS[word.lower()]
        elif keyword not in GROUPS["all"]:
            known = ", ".join(row.keyword for row in EXTENSIONS)
            raise ValueError(f"unknown keyword {keyword}; the keywords are {known}")
        elif word.startswith("-"):
            chosen -= {keyword}
        else:
            chosen |= {keyword}
    for row in EXTENSIONS:
        if row.keyword in chosen and row.needs and row.needs not in chosen:
            raise ValueError(f"{row.keyword} needs {row.needs}, which is not in the list")
    return chosen
