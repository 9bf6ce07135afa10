"""Checks of the values of ESMTP parameters, each by the grammar of its RFC.

A check takes the value, and whether to overlook what other servers overlook.
"""

from __future__ import annotations

import re
from typing import Final

from blackhole.smtp.paths import ATEXT, is_mailbox
from blackhole.smtp.state import ValueCheck

PRINTABLE_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~]|\+(?:09|[2-6][0-9A-F]|7[0-9A-E]))++")
"""RFC 3461 4: printable ASCII without "+" and "=", or "+" and two upper-case hexadecimal digits. What these
stand for is printable or blank too, as 4.2 and 4.4 ask for."""

LENIENT_XTEXT: Final = re.compile(rb"(?:[!-*,-~\x80-\xff]|\+[0-9A-Fa-f]{2})*+")
"""What Postfix and Exim take as well: lower-case digits, "=", and octets that should be encoded."""

UNITEXT: Final = re.compile(
    rb"(?:[!-*,-<>-\[\]-~\x80-\xff]|\+(?:09|[2-6][0-9A-F]|7[0-9A-E])"
    rb"|\\x\{(?!D[89A-F][0-9A-F]{2}\})(?:0[1-9A-F]|1[0-9A-F]|20|2B|3D|5C|7F|[89A-F][0-9A-F]|[1-9A-F][0-9A-F]{2,4}|10[0-9A-F]{4})\})++"
)
"""RFC 6533 3: an address of the type utf-8, in UTF-8 or with the numbers of characters as \\x{...}. Of
printable ASCII, only "+", "=" and the backslash have such a number; the others stand for themselves.

A server that offers SMTPUTF8 takes both, whether or not MAIL has SMTPUTF8."""

UTF8_XTEXT: Final = re.compile(rb"(?:[!-*,-<>-~\x80-\xff]|\+[0-9A-F]{2})++")
"""The same of any octets, with an address in UTF-8 as it is where MAIL has SMTPUTF8 (RFC 6531 3.2, 3.3)."""

ENCODED: Final = re.compile(rb"\+([0-9A-F]{2})")
"""An octet as two digits (RFC 3461 4)."""

ATOM: Final = re.compile(rb"[" + ATEXT + rb"]++")

DIGITS: Final = re.compile(rb"[0-9]{1,20}")
"""RFC 1870 3. int() alone would accept blanks, underscores and Arabic digits."""

REASONS: Final = frozenset((b"SUCCESS", b"FAILURE", b"DELAY"))


def check_size(value: bytes, lenient: bool) -> bool:
    """Check SIZE (RFC 1870 3)."""
    return DIGITS.fullmatch(value) is not None


def check_body(value: bytes, lenient: bool) -> bool:
    """Check BODY (RFC 6152 3)."""
    return value.upper() in (b"7BIT", b"8BITMIME")


def check_binary_body(value: bytes, lenient: bool) -> bool:
    """Check BODY with BINARYMIME as another value (RFC 3030 3)."""
    return value.upper() == b"BINARYMIME" or check_body(value, lenient)


def check_no_value(value: bytes, lenient: bool) -> bool:
    """Check a parameter without a value."""
    return not value


def check_ret(value: bytes, lenient: bool) -> bool:
    """Check RET (RFC 3461 4.3)."""
    return value.upper() in (b"FULL", b"HDRS")


def check_envid(value: bytes, lenient: bool) -> bool:
    """Check ENVID, which is printable once it is decoded (RFC 3461 4.4)."""
    text = value.upper().replace(b"=", b"+3D") if lenient else value
    return len(value) <= 100 and PRINTABLE_XTEXT.fullmatch(text) is not None


def check_notify(value: bytes, lenient: bool) -> bool:
    """Check NOTIFY (RFC 3461 4.1)."""
    reasons = value.upper().split(b",")
    if lenient:
        reasons = [reason for reason in reasons if reason]
    return reasons == [b"NEVER"] or (bool(reasons) and REASONS.issuperset(reasons))


def check_orcpt(value: bytes, lenient: bool) -> bool:
    """Check ORCPT: a type and an address (RFC 3461 4.2), or the type utf-8 (RFC 6533 3)."""
    kind, semicolon, address = value.partition(b";")
    if not (kind and semicolon and len(value) <= 500):
        return False
    if lenient:
        return LENIENT_XTEXT.fullmatch(address) is not None
    syntax = UNITEXT if kind.upper() == b"UTF-8" else PRINTABLE_XTEXT
    return ATOM.fullmatch(kind) is not None and syntax.fullmatch(address) is not None


def check_auth(value: bytes, lenient: bool) -> bool:
    """Check AUTH: an address or "<>" as xtext (RFC 4954 5)."""
    if lenient:
        return len(value) > 0 and LENIENT_XTEXT.fullmatch(value) is not None
    address = ENCODED.sub(lambda digits: bytes((int(digits[1], 16),)), value)
    return UTF8_XTEXT.fullmatch(value) is not None and (address == b"<>" or is_mailbox(address))


def matching(pattern: bytes) -> ValueCheck:
    """Return the check of values that match a pattern as a whole, in upper or lower case."""
    match = re.compile(pattern, re.IGNORECASE).fullmatch
    return lambda value, lenient: match(value) is not None


BY_VALUE: Final = rb"(?:\+?0*+[1-9][0-9]{0,8};R|[-+]?[0-9]{1,9};N)T?"
"""RFC 2852 4: seconds, and whether to return the message or to notify its sender; a message that is to be
returned needs more than no time."""

MAX_HOLD: Final = 30 * 86400
"""Seconds for which a client may ask a message to be held (RFC 4865 3)."""

DATE_TIME: Final = (
    rb"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    rb"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?Z"
)
"""RFC 3339 5.6, in UTC as RFC 4865 4 asks for."""


def check_hold_for(value: bytes, lenient: bool) -> bool:
    """Check HOLDFOR: seconds up to the interval that was announced (RFC 4865 4)."""
    return re.fullmatch(rb"[1-9][0-9]{0,8}", value) is not None and int(value) <= MAX_HOLD
