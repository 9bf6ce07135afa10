"""The dispatch table: a row for each verb, and for CONNECT (the greeting) and "." (the end of a message).

A row says when the command may be used (enforced with --strict only), how its argument is read, what it does,
and how HELP explains it. Reading is apart from doing so that a policy can decide in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from blackhole.smtp import actions, replies
from blackhole.smtp.actions import Action, always, by_request
from blackhole.smtp.arguments import (
    ArgumentReader,
    any_argument,
    attributes_of_client,
    chunk,
    credentials,
    helo_name,
    mailbox,
    no_argument,
    string,
)
from blackhole.smtp.named_client import CLIENT_ATTRIBUTES, FORWARDED_ATTRIBUTES
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import BINARY_BODY, CHUNKED, GREETED, LMTP, MAIL, RCPT, SMTP

SAME_COLUMNS: Final[Mapping[str, Any]] = MappingProxyType({})


class Command(NamedTuple):
    """A row of the dispatch table."""

    verb: str
    read: ArgumentReader
    do: Action
    syntax: str = ""
    about: str = ""
    """The explanation that HELP gives. HELP does not list a verb without one."""
    needs: int = 0
    """What must have been accepted before, where order is enforced (RFC 5321 4.1.4): stages as bits."""
    bars: int = 0
    """What must not have been accepted before."""
    always_bars: int = 0
    """What must not have been accepted before even where the order is not enforced otherwise."""
    needs_auth: bool = False
    """Is refused before AUTH has succeeded, where that is required (RFC 4954 6)."""
    last: bool = False
    """Must be the last command of a pipelined group (RFC 2920 3.1)."""
    service: str = ""
    """SMTP or LMTP; empty: both have the command."""
    phase: str = ""
    """The phase that the command belongs to, where that is not its verb."""
    always_needs: int = 0
    """What must have been accepted before even where the order is not enforced otherwise."""
    in_lmtp: Mapping[str, Any] = SAME_COLUMNS
    """Columns of the row that have another value in LMTP."""

    def of_service(self, service: str) -> Command:
        """Return the row as a service has it."""
        return self._replace(**self.in_lmtp) if service == LMTP and self.in_lmtp else self

    def allowed(self, stage: int) -> bool:
        """Return whether RFC 5321 4.1.4 allows the command at this stage."""
        return stage & self.needs == self.needs and not stage & (self.bars | self.always_bars)

    def always_refused(self, stage: int) -> bool:
        """Return whether the command is refused at this stage even where the order is not enforced."""
        return stage & self.always_needs != self.always_needs or stage & self.always_bars > 0


NEEDS_RECIPIENT: Final[Mapping[str, Any]] = MappingProxyType({"always_needs": RCPT})
"""In LMTP there would be no reply to a message without a recipient (RFC 2033 4.2)."""

COMMANDS: Final = (
    Command("CONNECT", any_argument, actions.connect),
    Command(
        "HELO",
        helo_name,
        actions.helo,
        "HELO hostname",
        "begin a session without extensions",
        last=True,
        service=SMTP,
    ),
    Command(
        "EHLO",
        helo_name,
        actions.ehlo,
        "EHLO hostname",
        "begin a session and list the extensions",
        last=True,
        service=SMTP,
    ),
    Command(
        "LHLO",
        helo_name,
        actions.ehlo,
        "LHLO hostname",
        "begin a session of LMTP and list the extensions",
        last=True,
        service=LMTP,
        phase="EHLO",
    ),
    Command("STARTTLS", no_argument, actions.starttls, "STARTTLS", "start TLS", last=True),
    Command(
        "AUTH",
        credentials,
        actions.auth,
        "AUTH mechanism [initial-response]",
        "authenticate, if the reply to EHLO offers it",
        needs=GREETED,
        bars=MAIL,
        last=True,
    ),
    Command(
        "MAIL",
        mailbox(b"FROM", local_names=(b"",)),
        actions.mail,
        "MAIL FROM:<address> [SIZE=n] [BODY=7BIT|8BITMIME] [SMTPUTF8] [RET=FULL|HDRS] [ENVID=id]",
        "begin a transaction with its sender; <> is the null sender",
        needs=GREETED,
        bars=MAIL,
        needs_auth=True,
    ),
    Command(
        "RCPT",
        mailbox(b"TO", local_names=(b"postmaster",)),
        actions.rcpt,
        "RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;address]",
        "add a recipient",
        needs=MAIL,
        bars=CHUNKED,
        needs_auth=True,
        in_lmtp=MappingProxyType({"do": actions.add_recipient}),
    ),
    Command(
        "DATA",
        no_argument,
        actions.data,
        "DATA",
        "send the message, which ends with a line of a single dot",
        needs=RCPT,
        bars=BINARY_BODY,
        always_bars=CHUNKED,
        needs_auth=True,
        last=True,
        in_lmtp=NEEDS_RECIPIENT,
    ),
    Command(
        "BDAT",
        chunk,
        actions.bdat,
        "BDAT octets [LAST]",
        "send a piece of the message, or the last one; the octets follow",
        needs=RCPT,
        needs_auth=True,
        in_lmtp=NEEDS_RECIPIENT,
    ),
    Command(".", any_argument, actions.end),
    Command("RSET", no_argument, actions.rset, "RSET", "abandon the transaction"),
    Command("NOOP", any_argument, always(replies.OK), "NOOP [anything]", "do nothing", last=True),
    Command(
        "VRFY",
        string,
        by_request(replies.CODES[252], replies.VERIFIED, replies.NOT_VERIFIED),
        "VRFY address",
        "verify an address",
        needs_auth=True,
        last=True,
    ),
    Command(
        "EXPN",
        string,
        by_request(replies.CANNOT_EXPAND, replies.EXPANDED, replies.NOT_EXPANDED),
        "EXPN list",
        "list the members of a mailing list",
        needs_auth=True,
        last=True,
    ),
    Command("HELP", any_argument, actions.help_, "HELP [verb]", "explain a command, or list all of them"),
    Command(
        "XCLIENT",
        attributes_of_client(CLIENT_ATTRIBUTES),
        actions.xclient,
        "XCLIENT attribute=value ...",
        "name the client to begin a new session with, if the reply to EHLO offers it",
    ),
    Command(
        "XFORWARD",
        attributes_of_client(FORWARDED_ATTRIBUTES),
        actions.xforward,
        "XFORWARD attribute=value ...",
        "name the client of the next message, if the reply to EHLO offers it",
    ),
    Command("QUIT", no_argument, actions.quit_, "QUIT", "end the session", last=True),
)

UNOFFERED_VERBS: Final = ("ATRN", "BURL", "ETRN", "SAML", "SEND", "SOML", "TURN")
"""Registered verbs without a phase of their own: 502, as RFC 5321 4.2.4 asks for known commands."""

HTTP_VERBS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
"""Verbs of HTTP. They close the connection, so that a browser that was made to send a request to a mail port
cannot have commands run that stand in the body of the request (cross-protocol scripting; ALPACA, USENIX
Security 2021)."""

OTHER: Final = (
    Command("other", any_argument, always(replies.UNKNOWN)),
    *(Command(verb, any_argument, always(replies.NOT_OFFERED)) for verb in UNOFFERED_VERBS),
    *(Command(verb, any_argument, always(replies.NOT_SMTP)) for verb in HTTP_VERBS),
    *(
        Command(verb, any_argument, always(replies.NEEDS_LHLO), service=LMTP, phase="other")
        for verb in ("HELO", "EHLO")
    ),
    Command("LHLO", any_argument, always(replies.NEEDS_EHLO), service=SMTP, phase="other"),
)
"""The rows of the phase "other". The first answers verbs that are in no table; the last three are for clients
that speak SMTP where LMTP is spoken, and the other way round (RFC 2033 4.1)."""


def commands_of(service: str, rows: Iterable[Command]) -> Iterator[Command]:
    """Yield the rows of a service, SMTP or LMTP."""
    return (row.of_service(service) for row in rows if row.service in ("", service))


def syntax_error(row: Command) -> Reply:
    """Return the reply to an argument that its reader does not understand."""
    return Reply(501, "5.5.4", f"Syntax: {row.syntax}")


def explanations(service: str = SMTP) -> dict[bytes, Reply]:
    """Return the replies to HELP by verb; the list of verbs has the empty one."""
    offered = [row for row in commands_of(service, COMMANDS) if row.about]
    pages = {row.verb.encode(): Reply(214, "2.0.0", row.syntax, row.about) for row in offered}
    pages[b""] = Reply(
        214,
        "2.0.0",
        "Blackhole accepts any mail and discards it. HELP followed by a verb explains one of:",
        *(" ".join(row.verb for row in offered[start : start + 7]) for start in range(0, len(offered), 7)),
    )
    return pages
