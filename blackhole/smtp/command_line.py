"""A command line: how long it may be, and what it must not consist of."""

from __future__ import annotations

import re
from typing import Final

from blackhole.smtp import replies
from blackhole.smtp.replies import Reply

MAX_COMMAND_LINE: Final = 2048
"""Octets of a command line with its line end. RFC 5321 4.5.3.1.4 asks for 512, extensions for more; Postfix
takes 2048 too."""

MAX_AUTH_LINE: Final = 12288
"""Octets of AUTH and of the responses behind it (RFC 4954 4), with the line end, where it is offered."""

MAX_DISCARDED: Final = 65536
"""Octets of an over-long line with its line end that are discarded before the session is closed."""

STANDARD_LINE: Final = 510
"""Octets of a command line without its end that every server takes (RFC 5321 4.5.3.1.4)."""

PARAMETER_ROOM: Final = 1100
"""What extensions add to that for MAIL and RCPT: some 600 for RFC 3461, 500 for RFC 4954."""

BINARY: Final = re.compile(rb"[^\t-\r -~]")
"""The first octet of a line that is no text: its end may never come."""

OTHER_PROTOCOL: Final = re.compile(rb"[^A-Za-z\s]|[^\s:]*:")
"""The beginning of a line that is no command: a field of a header section, or something else entirely."""

TLS_HANDSHAKE: Final = b"\x16"
"""The first octet of a TLS ClientHello (RFC 8446 5.1)."""

BEHIND_BLANKS: Final = re.compile(rb"([ \t]*+)([^ \t]++)(?:[ \t]++(.*))?", re.DOTALL)
"""Blanks, a verb, and an argument that may be separated from it by tabs."""

PRIVATE_VERB: Final = (b"X", b"x")
"""The first letter of verbs that client and server may agree on between them (RFC 5321 4.1.5)."""


def is_binary(line: bytes) -> bool:
    """Return whether a line begins with an octet that no text has."""
    return BINARY.match(line) is not None


def exceeds_standard(line: bytes) -> bool:
    """Return whether a line is longer than RFC 5321 allows to a client that knows the extensions."""
    return len(line) > STANDARD_LINE + (PARAMETER_ROOM if b"> " in line else 0)


def reject_line(line: bytes, is_unknown: bool) -> tuple[str, Reply] | None:
    """Return the violation, if any, and the reply to a line that cannot be a command; None if it can.

    `is_unknown`: its verb is unknown, so that the client may speak another protocol.
    """
    if is_unknown and OTHER_PROTOCOL.match(line):
        return "", replies.TLS_ON_PLAIN_PORT if line.startswith(TLS_HANDSHAKE) else replies.NOT_SMTP
    if b"\0" in line:
        return "nul", replies.CONTROL_CHARACTER
    if b"\r" in line:
        return "bare-cr", replies.CONTROL_CHARACTER
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError:
            return "utf8-undeclared", replies.NOT_TEXT
    return None
