"""Lines of clients as a report shows them: printable, cut, and without addresses and texts."""

from __future__ import annotations

import re
from typing import Final

MAX_SHOWN_CHARACTERS: Final = 80
"""Characters of a line that are shown, at most."""

HIDDEN_OCTET: Final = 0xFF
"""Stands for a hidden octet above 127."""

MASK: Final = bytes(
    HIDDEN_OCTET if octet > 127 else ord("x") if chr(octet).isalnum() else octet for octet in range(256)
)
"""Hides letters and digits, and shows what stands between them: a missing bracket is seen, a name is not."""

ESCAPES: Final = {
    octet: {10: "\\n", 13: "\\r", 9: "\\t", 92: "\\\\"}.get(octet, f"\\x{octet:02x}")
    for octet in (*range(32), 92, *range(127, 256))
}

FIELD_NAME: Final = re.compile(
    rb"(?:Subject|From|To|Cc|Bcc|Date|Message-ID|Received|Sender|Reply-To|References|In-Reply-To|Return-Path"
    rb"|User-Agent|MIME-Version|DKIM-Signature|(?:Content|X|List|Resent|ARC)-[A-Za-z-]{1,40})\s*:",
    re.IGNORECASE,
)
"""The usual names of fields, which are no secret."""

ENVELOPE: Final = re.compile(
    rb"(\s*\w+\s*(?:FROM|TO)?\s*:?\s*)(<(?:\"[^\"]*+\"|[^\">])*+>|\S*)(.*)", re.IGNORECASE | re.DOTALL
)
"""MAIL and RCPT: what stands before the address, the address, and the parameters."""

PARAMETER: Final = re.compile(rb"([^\s=]+)(=?)(\S*)")

OPEN_PARAMETERS: Final = frozenset((b"SIZE", b"BODY", b"RET", b"NOTIFY", b"SMTPUTF8"))
"""Parameters whose values are no addresses."""

ADDRESS_LITERAL: Final = re.compile(
    rb"(\s*\S+\s+\[?(?:IPv6:)?)([0-9.]++|[0-9A-Fa-f.]*+:[0-9A-Fa-f:.]*+)(\]?\s*)", re.IGNORECASE
)
"""HELO or EHLO with the address of a client, with or without its brackets."""

VERB: Final = re.compile(rb"(\s*\S*)(.*)", re.DOTALL)


def mask(phase: str, line: bytes) -> bytes:
    """Return a line of this phase with the letters and digits of its addresses and texts replaced by x.

    >>> mask("MAIL", b"MAIL FROM:<ann..b@example.com> SIZE=100 ENVID=ann")
    b'MAIL FROM:<xxx..x@xxxxxxx.xxx> SIZE=100 ENVID=xxx'
    >>> mask(".", b"Subject: To Ann")
    b'Subject: xx xxx'
    """
    if phase == ".":
        field = FIELD_NAME.match(line)
        shown = field.end() if field else 0
        return line[:shown] + line[shown:].translate(MASK)
    if phase in ("HELO", "EHLO"):
        literal = ADDRESS_LITERAL.fullmatch(line)
        return line if literal is None else literal[1] + literal[2].translate(MASK) + literal[3]
    if phase == "AUTH":
        return line  # the session has hidden what is a secret
    match = ENVELOPE.fullmatch(line) if phase in ("MAIL", "RCPT") else None
    if match is not None:
        return match[1] + match[2].translate(MASK) + PARAMETER.sub(_mask_parameter, match[3])
    match = VERB.fullmatch(line)
    assert match is not None
    return match[1] + match[2].translate(MASK)


def _mask_parameter(match: re.Match[bytes]) -> bytes:
    is_open = match[1].upper() in OPEN_PARAMETERS
    name = match[1] if match[2] or is_open else match[1].translate(MASK)
    return name + match[2] + (match[3] if is_open else match[3].translate(MASK))


def printable(line: bytes, hidden: bool = False) -> str:
    """Return a line without its CR LF as printable ASCII, cut to MAX_SHOWN_CHARACTERS.

    `hidden`: octets above 127 are not shown.

    >>> printable(b"one\\ttwo\\x00\\n")
    'one\\\\ttwo\\\\x00\\\\n'
    """
    line = line.removesuffix(b"\n") if line.endswith(b"\r\n") else line
    line = line.removesuffix(b"\r")
    text = "".join("\\x??" if hidden and octet > 127 else ESCAPES.get(octet) or chr(octet) for octet in line)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 3]}..."
