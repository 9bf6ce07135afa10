"""The replies of the server: a code, an enhanced status code, a text, and what the connection does next.

`CODES` has one reply for each code that rules and modes may use (RFC 5321 4.2, RFC 3463, RFC 5248, RFC 7504);
the names below it stand for occasions.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class NextAction(Enum):
    """What the connection does once the replies that it was given have left."""

    READ = "read on"
    READ_BODY = "read a message body"
    END_MESSAGE = "answer the message whose last chunk was accepted"
    LIMIT_INPUT = "make the receive window small, then go on"
    READ_SLOWLY = "read on, and as slowly as the fault says"
    SLEEP = "wait, then resume"
    LOOKUP = "wait for an answer, then resume with it"
    START_TLS = "do the TLS handshake"
    CHANGE_CLIENT = "begin a session with the client that XCLIENT has named"
    CLOSE = "close"
    ABORT = "reset the connection"
    HANG = "send nothing more, and stay open"


class Reply:
    """A reply, ready to be sent. It never changes.

    >>> Reply(250, "2.1.0", "Sender OK").wire
    b'250 2.1.0 Sender OK\\r\\n'
    """

    __slots__ = ("code", "enhanced", "lines", "next_action", "wire")

    def __init__(
        self, code: int, enhanced: str, *lines: str, next_action: NextAction = NextAction.READ, times: int = 1
    ) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.lines: Final = lines
        self.next_action: Final = next_action
        prefix = f"{enhanced} " if enhanced else ""
        last = len(lines) - 1
        self.wire: Final = times * b"".join(
            f"{code}{' ' if number == last else '-'}{prefix}{line}\r\n".encode()
            for number, line in enumerate(lines)
        )

    def repeated(self, times: int) -> Reply:
        """Return this reply, sent so many times at once."""
        return Reply(self.code, self.enhanced, *self.lines, next_action=self.next_action, times=times)

    def going_on(self) -> Reply:
        """Return the same reply, after which the session goes on."""
        return Reply(self.code, self.enhanced, *self.lines)

    def __repr__(self) -> str:
        return f"<Reply {self.wire.decode()!r}>"


class Row(NamedTuple):
    """A row of the table of codes."""

    code: int
    enhanced: str
    text: str
    next_action: NextAction = NextAction.READ


CODES: Final = {
    row.code: Reply(row.code, row.enhanced, row.text, next_action=row.next_action)
    for row in (
        Row(220, "2.0.0", "Ready"),
        Row(221, "2.0.0", "Goodbye", NextAction.CLOSE),
        Row(250, "2.0.0", "OK"),
        Row(251, "2.1.5", "User not local, will forward"),
        Row(252, "2.0.0", "Cannot verify, but will take mail for it"),
        Row(354, "", "Start mail input; end with <CRLF>.<CRLF>", NextAction.READ_BODY),
        Row(421, "4.3.2", "Service not available, closing transmission channel", NextAction.CLOSE),
        Row(431, "4.3.1", "Not enough memory or disk space"),
        Row(450, "4.2.0", "Mailbox unavailable, try again"),
        Row(451, "4.3.0", "Local error in processing"),
        Row(452, "4.3.1", "Insufficient system storage"),
        Row(454, "4.7.0", "TLS not available for now"),
        Row(458, "4.3.0", "Unable to queue message"),
        Row(459, "4.7.1", "Not allowed for now"),
        Row(500, "5.5.1", "Command not recognized"),
        Row(501, "5.5.4", "Syntax error in parameters or arguments"),
        Row(502, "5.5.1", "Command not implemented"),
        Row(503, "5.5.1", "Bad sequence of commands"),
        Row(504, "5.5.4", "Command parameter not implemented"),
        Row(521, "5.3.2", "Host does not accept mail"),
        Row(530, "5.7.0", "Must issue a STARTTLS command first"),
        Row(534, "5.7.9", "Authentication mechanism is too weak"),
        Row(538, "5.7.11", "Encryption required for this authentication mechanism"),
        Row(550, "5.2.0", "Mailbox unavailable"),
        Row(551, "5.1.6", "User not local"),
        Row(552, "5.2.2", "Exceeded storage allocation"),
        Row(553, "5.1.3", "Mailbox name not allowed"),
        Row(554, "5.0.0", "Transaction failed"),
        Row(571, "5.7.1", "Blocked"),
    )
}
"""Every code of Blackhole 1.x, with the 431 that it could choose and had no text for."""

BOUNCES: Final = tuple(
    CODES[code] for code in (421, 431, 450, 451, 452, 454, 458, 459, 521, 534, 550, 551, 552, 553, 554, 571)
)
"""The replies that `--mode bounce` draws from at the end of a message."""

OK: Final = CODES[250]
SENDER_OK: Final = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK: Final = Reply(250, "2.1.5", "Recipient OK")
START_INPUT: Final = CODES[354]
RESET: Final = Reply(250, "2.0.0", "Reset")
VERIFIED: Final = Reply(250, "2.0.0", "<pass@example.com> OK")
NOT_VERIFIED: Final = Reply(550, "5.1.1", "No such user")
"""The address is not repeated: no reply contains what a client sent."""
EXPANDED: Final = Reply(250, "2.0.0", "<ann@example.com>", "<bob@example.com>", "<eve@example.com>")
NOT_EXPANDED: Final = Reply(550, "5.1.1", "No such list")
CANNOT_EXPAND: Final = Reply(252, "2.0.0", "Cannot expand, but will take mail for it")
START_TLS: Final = Reply(220, "2.0.0", "Ready to start TLS", next_action=NextAction.START_TLS)
GOODBYE: Final = CODES[221]
NO_REPLY: Final = CODES[421]
"""Stands for a reply that is neither sent nor counted, as a fault takes its place."""
PENDING: Final = Reply(421, "", "", next_action=NextAction.LOOKUP)
"""Stands for a reply that depends on an answer that is still to come."""
CLIENT_NAMED: Final = Reply(220, "", next_action=NextAction.CHANGE_CLIENT)
"""Stands for the reply to XCLIENT, which is the greeting of the client that it names."""
NOT_AUTHORIZED: Final = Reply(550, "5.7.0", "Not authorized to name clients")
NOT_SMTP: Final = Reply(221, "2.7.0", "This is an SMTP server. Goodbye", next_action=NextAction.CLOSE)
TLS_ON_PLAIN_PORT: Final = Reply(
    501, "5.5.1", "TLS does not start here without STARTTLS", next_action=NextAction.CLOSE
)
INTERNAL_ERROR: Final = Reply(
    421, "4.3.0", "Internal error, closing transmission channel", next_action=NextAction.CLOSE
)
SERVER_STOPPING: Final = Reply(
    421, "4.3.2", "Server is stopping, try again later", next_action=NextAction.CLOSE
)
TOO_MANY_CONNECTIONS: Final = Reply(
    421, "4.3.2", "Too many connections, try again later", next_action=NextAction.CLOSE
)
TOO_MANY_CLIENT_CONNECTIONS: Final = Reply(
    421, "4.7.0", "Too many connections from your network", next_action=NextAction.CLOSE
)
TOO_MANY_NEW_CONNECTIONS: Final = Reply(
    421, "4.7.0", "Too many new connections from your network", next_action=NextAction.CLOSE
)
TOO_MANY_ERRORS: Final = Reply(421, "4.7.0", "Too many errors, closing", next_action=NextAction.CLOSE)
TOO_MANY_MESSAGES: Final = Reply(
    421, "4.7.0", "Too many messages in a session, closing", next_action=NextAction.CLOSE
)
TOO_MANY_CLIENT_MESSAGES: Final = Reply(450, "4.7.1", "Too many messages from your network, try again later")
TOO_MANY_CLIENT_RECIPIENTS: Final = Reply(
    450, "4.7.1", "Too many recipients from your network, try again later"
)
TOO_MANY_RECIPIENTS: Final = Reply(452, "4.5.3", "Too many recipients in a message")
TOO_MANY_TLS_HANDSHAKES: Final = Reply(
    454, "4.7.0", "Too many TLS handshakes from your network, try again later"
)
TOO_MANY_CLIENT_OCTETS: Final = Reply(
    421, "4.7.0", "Too many octets from your network, try again later", next_action=NextAction.CLOSE
)
SESSION_TIMEOUT: Final = Reply(
    421, "4.4.2", "The session has lasted too long, closing", next_action=NextAction.CLOSE
)
TIMEOUT: Final = Reply(421, "4.4.2", "Timeout waiting for the client", next_action=NextAction.CLOSE)
UNKNOWN: Final = CODES[500]
NEEDS_LHLO: Final = Reply(500, "5.5.1", "This is LMTP: begin with LHLO")
NEEDS_EHLO: Final = Reply(500, "5.5.1", "This is SMTP: begin with EHLO")
TOO_LONG: Final = Reply(500, "5.5.2", "Line too long")
FAR_TOO_LONG: Final = Reply(500, "5.5.2", "Line far too long, closing", next_action=NextAction.CLOSE)
NOT_TEXT: Final = Reply(500, "5.5.2", "Not ASCII and not UTF-8")
LONG_SENDER: Final = Reply(501, "5.1.7", "Address too long")
LONG_RECIPIENT: Final = Reply(501, "5.1.3", "Address too long")
CONTROL_CHARACTER: Final = Reply(501, "5.5.2", "NUL or bare CR in a command")
NOT_OFFERED: Final = CODES[502]
BAD_SEQUENCE: Final = CODES[503]
ALREADY_SECURE: Final = Reply(503, "5.5.1", "TLS is on already")
NO_RECIPIENT: Final = Reply(503, "5.5.1", "No recipient was accepted")
IMPROPER_PIPELINING: Final = Reply(
    554, "5.5.0", "Talked before its turn, closing", next_action=NextAction.CLOSE
)
TOO_LARGE: Final = Reply(552, "5.3.4", "Message is larger than this server takes")
FAR_TOO_LARGE: Final = Reply(
    552, "5.3.4", "Message is far larger than this server takes, closing", next_action=NextAction.CLOSE
)
BARE_NEWLINE: Final = Reply(550, "5.5.2", "Bare <LF> received, closing", next_action=NextAction.CLOSE)
NEEDS_SMTPUTF8: Final = Reply(553, "5.6.7", "Address is not ASCII and SMTPUTF8 was not asked for")
UNKNOWN_PARAMETER: Final = Reply(555, "5.5.4", "Parameter not recognized")
BAD_PARAMETER: Final = Reply(501, "5.5.4", "Parameter has a bad value, or stands twice")
AUTH_REQUIRED: Final = Reply(530, "5.7.0", "Authentication required")
AUTHENTICATED: Final = Reply(235, "2.7.0", "Authentication successful")
AUTHENTICATION_FAILED: Final = Reply(535, "5.7.8", "Authentication credentials invalid")
ALREADY_AUTHENTICATED: Final = Reply(503, "5.5.1", "Authenticated already")
NEEDS_TLS: Final = CODES[538]
NO_MECHANISM: Final = Reply(504, "5.5.4", "Authentication mechanism not offered")
NO_EARLY_RESPONSE: Final = Reply(501, "5.7.0", "This mechanism takes no initial response")
BAD_AUTH_RESPONSE: Final = Reply(501, "5.5.2", "Not base64, or not what the mechanism asks for")
CANCELLED: Final = Reply(501, "5.7.0", "Authentication cancelled")
RESPONSE_TOO_LONG: Final = Reply(500, "5.5.6", "Authentication exchange line is too long")
QUEUED: Final = Reply(250, "2.0.0", "OK: queued as %010X")
"""The reply to an accepted message. The session inserts its id."""
BDAT_NOT_OFFERED: Final = Reply(
    502, "5.5.1", "CHUNKING is not offered, closing", next_action=NextAction.CLOSE
)
"""The connection closes because BDAT is followed by a body, which would be read as commands."""
BAD_CHUNK_SIZE: Final = Reply(
    501, "5.5.4", "Syntax: BDAT octets [LAST], closing", next_action=NextAction.CLOSE
)
"""Where the chunk ends is unknown, and so is where the next command begins."""
CHUNK_OK: Final = Reply(250, "2.0.0", "Chunk OK")
LAST_CHUNK: Final = Reply(250, "", next_action=NextAction.END_MESSAGE)
"""Stands for the reply to the last chunk, which is the reply to the message."""
CHUNK_FOLLOWS: Final = Reply(250, "")
"""Stands for a reply that follows the octets of the chunk (RFC 3030 2)."""
ALREADY_ANSWERED: Final = Reply(250, "")
"""Stands for the reply to a message, or a chunk, that was answered before it came to its end."""
CHUNK_DISCARDED: Final = Reply(503, "5.5.1", "Chunk discarded after an earlier error; send RSET")
