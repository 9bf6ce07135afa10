"""The syntax of the values of header fields: dates, mailboxes, identifiers, lists (RFC 5322 3.2 to 3.6).

Forms that RFC 5322 section 4 calls obsolete count as wrong, since no sender may write them.
"""

from __future__ import annotations

import re
from typing import Final

MAX_JUDGED_OCTETS: Final = 4096
"""Octets of a value that is judged. A longer one, which would take milliseconds, counts as right."""

_ATOM: Final = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]++"
_DOT_ATOM: Final = _ATOM + rb"(?:\." + _ATOM + rb")*+"
_QUOTED: Final = rb'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\x20-\x7e\x80-\xff\t])*+"'
_BLANKS: Final = rb"[ \t]*+"
_WORDS: Final = rb"(?:" + _BLANKS + rb"(?:" + _ATOM + rb"|" + _QUOTED + rb"))++"
_ADDRESS: Final = (
    _BLANKS
    + rb"(?:"
    + _DOT_ATOM
    + rb"|"
    + _QUOTED
    + rb")"
    + _BLANKS
    + rb"@"
    + _BLANKS
    + rb"("
    + _DOT_ATOM
    + rb"|\[[!-Z^-~]*+\])"
    + _BLANKS
)

MAILBOX_SYNTAX: Final = re.compile(
    rb"(?:" + _WORDS + rb")?" + _BLANKS + rb"<" + _ADDRESS + rb">" + _BLANKS + rb"|" + _ADDRESS
).match

GROUP: Final = re.compile(_WORDS + _BLANKS + rb":(.*);" + _BLANKS, re.DOTALL).fullmatch

MESSAGE_ID: Final = re.compile(rb"<" + _DOT_ATOM + rb"@(?:" + _DOT_ATOM + rb"|\[[!-Z^-~]*+\])>").fullmatch

COMMENT_TOKENS: Final = re.compile(rb'\\.?|"|\(|\)|[^\\"()]++', re.DOTALL).findall

DAYS: Final = (b"mon", b"tue", b"wed", b"thu", b"fri", b"sat", b"sun")
MONTHS: Final = (
    *(b"jan", b"feb", b"mar", b"apr", b"may", b"jun"),
    *(b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"),
)

INTERNET_DATE: Final = re.compile(
    rb"(?:(" + b"|".join(DAYS) + rb")[ \t]*,)?[ \t]*([0-9]{1,2})[ \t]+(" + b"|".join(MONTHS) + rb")[ \t]+"
    rb"([0-9]{4})[ \t]+([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?[ \t]+[+-][0-9]{2}([0-9]{2})",
    re.IGNORECASE,
).fullmatch


def without_comments(value: bytes) -> bytes | None:
    """Return a value without its comments (RFC 5322 3.2.2); None if a comment or a quotation does not end.

    >>> without_comments(b'"a (b" (c (d)) <e>')
    b'"a (b"  <e>'
    """
    kept: list[bytes] = []
    depth, quoted = 0, False
    for token in COMMENT_TOKENS(value):
        if token == b'"' and not depth:
            quoted = not quoted
        elif token == b"(" and not quoted:
            depth += 1
            continue
        elif token == b")" and not quoted:
            depth -= 1
            if depth < 0:
                return None
            continue
        if not depth:
            kept.append(token)
    return None if depth or quoted else b"".join(kept).strip()


def date_fault(value: bytes) -> str:
    """Return what is wrong with a date (RFC 5322 3.3); an empty text if nothing is.

    >>> date_fault(b"Mon, 29 Nov 2026 06:25:31 +0000")
    'the day of the week is not that of the date'
    """
    if len(value) > MAX_JUDGED_OCTETS:
        return ""
    text = without_comments(value)
    found = INTERNET_DATE(text) if text is not None else None
    if found is None:
        return "it is not in the form of RFC 5322"
    weekday, month = found[1], MONTHS.index(found[3].lower()) + 1
    day, year, hour, minute, zone_minute = map(int, found.group(2, 4, 5, 6, 8))
    is_date = 0 < day <= days_of(month, year)
    if not (is_date and hour < 24 and minute < 60 and int(found[7] or 0) <= 60 and zone_minute < 60):
        return "there is no such date or time"
    if weekday and DAYS[weekday_of(day, month, year)] != weekday.lower():
        return "the day of the week is not that of the date"
    return ""


def days_of(month: int, year: int) -> int:
    """Return the days of a month of the Gregorian calendar."""
    if month == 2:
        return 28 + (not year % 4 and (year % 100 > 0 or not year % 400))
    return 30 + (month + month // 8) % 2


def weekday_of(day: int, month: int, year: int) -> int:
    """Return the day of the week, 0 for Monday, by Zeller's congruence."""
    if month < 3:
        month, year = month + 12, year - 1
    return (day + 13 * (month + 1) // 5 + year + year // 4 - year // 100 + year // 400 + 5) % 7


def mailbox_domains(value: bytes) -> list[bytes] | None:
    """Return the domain of each mailbox in a list (RFC 5322 3.4); None if it is not well formed.

    It may be a group, as RFC 6854 allows, which may be empty. A value that is too long has no domains.

    >>> mailbox_domains(b"Ann <ann@a.test>, bob@b.test")
    [b'a.test', b'b.test']
    """
    if len(value) > MAX_JUDGED_OCTETS:
        return []
    text = without_comments(value)
    if text is None:
        return None
    group = GROUP(text)
    if group is not None:
        return _domains(group[1]) if group[1].strip() else []
    return _domains(text)


def _domains(text: bytes) -> list[bytes] | None:
    domains = []
    position = -1
    while position < len(text):
        found = MAILBOX_SYNTAX(text, position + 1)
        if found is None:
            return None
        domains.append(found[1] or found[2])
        position = found.end()
        if text[position : position + 1] not in (b"", b","):
            return None
    return domains


def is_message_id(value: bytes) -> bool:
    """Return whether a value is one message identifier (RFC 5322 3.6.4)."""
    if len(value) > MAX_JUDGED_OCTETS:
        return True
    text = without_comments(value)
    return text is not None and MESSAGE_ID(text) is not None
