"""The dispatch table: a row for each verb, and for CONNECT (the greeting) and "." (the end of a message).

A row says when the command may be used (enforced with --strict only), how its argument is read, what it does,
and how HELP explains it. Reading is apart from doing so that a policy can decide in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.arguments import (
    ArgumentReader,
    Mailbox,
    any_argument,
    attributes_of_client,
    chunk,
    credentials,
    helo_name,
    mailbox,
    no_argument,
    string,
)
from blackhole.smtp.auth import (
    FAIL,
    PASS,
    Credentials,
    authenticate,
    challenge,
    failure_challenge,
    offered_mechanisms,
)
from blackhole.smtp.chunking import Chunk
from blackhole.smtp.events import EventNumbers, LimitEvents, sampled_violation_events, violation_events
from blackhole.smtp.extensions import keywords, parameters
from blackhole.smtp.named_client import CLIENT_ATTRIBUTES, FORWARDED_ATTRIBUTES
from blackhole.smtp.offer import NO_OFFER, Offer
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import (
    BINARY_BODY,
    CHUNKED,
    GREETED,
    LMTP,
    MAIL,
    RCPT,
    SMTP,
    UNDECLARED,
    ListenerConfig,
    ListenerConstants,
    SessionState,
)
from blackhole.smtp.violations import IN_MESSAGES, OF_CONTENT

Action = Callable[[SessionState, Any], Reply]
"""Carries a command out: changes the state and returns the reply."""


def connect(state: SessionState, argument: bytes) -> Reply:
    """Greet the client (RFC 5321 3.1)."""
    return state.listener.greeting


def helo(state: SessionState, argument: bytes) -> Reply:
    """Begin a session without extensions (RFC 5321 4.1.1.1)."""
    state.reset()
    state.stage |= GREETED
    state.offered = NO_OFFER
    return state.listener.helo


def ehlo(state: SessionState, argument: bytes) -> Reply:
    """Begin a session, and offer the extensions (RFC 5321 4.1.1.1)."""
    state.reset()
    state.stage |= GREETED
    listener, number = state.listener, state.offer_number
    state.offered = listener.offers[number]
    return listener.ehlo[number]


def mail(state: SessionState, sender: Mailbox) -> Reply:
    """Begin a transaction, in place of one that is open (RFC 5321 4.1.1.2)."""
    if state.stage > GREETED:
        state.reset()
    if sender.parameters:
        size = int(sender.parameters.get(b"SIZE", UNDECLARED))
        limit = state.listener.config.message_size_limit
        if limit and size > limit:
            return replies.TOO_LARGE
        state.size = size
        state.smtputf8 = b"SMTPUTF8" in sender.parameters
        body = sender.parameters.get(b"BODY", b"").upper()
        state.eightbit = state.smtputf8 or body in (b"8BITMIME", b"BINARYMIME")
        if body == b"BINARYMIME":
            state.stage |= BINARY_BODY
    state.stage |= MAIL
    state.refused = 0
    return replies.SENDER_OK


def rcpt(state: SessionState, recipient: Mailbox) -> Reply:
    """Add a recipient (RFC 5321 4.1.1.3)."""
    state.stage |= RCPT
    state.recipients += 1
    return replies.RECIPIENT_OK


def add_recipient(state: SessionState, recipient: Mailbox) -> Reply:
    """Add a recipient of LMTP, to which the message will be answered on its own (RFC 2033 4.2)."""
    if not state.recipients:
        state.forward_paths = []
        state.forward_path_octets = 0
    octets = state.forward_path_octets + len(recipient.address)
    if len(state.forward_paths) == MAX_LMTP_RECIPIENTS or octets > MAX_LMTP_OCTETS:
        return replies.TOO_MANY_RECIPIENTS
    state.forward_paths.append(recipient.address)
    state.forward_path_octets = octets
    return rcpt(state, recipient)


def data(state: SessionState, argument: bytes) -> Reply:
    """Ask for the message (RFC 5321 4.1.1.4)."""
    return replies.START_INPUT


def bdat(state: SessionState, piece: Chunk) -> Reply:
    """Accept a chunk of the message, unless the message is too large by now (RFC 3030 2)."""
    if not piece.is_last and 0 < state.listener.config.message_size_limit < state.octets:
        return replies.TOO_LARGE
    state.stage |= CHUNKED
    return replies.LAST_CHUNK if piece.is_last else replies.CHUNK_OK


def end(state: SessionState, argument: bytes) -> Reply:
    """Accept a message, unless it is larger than the limit (RFC 1870 6.3)."""
    limit = state.listener.config.message_size_limit
    if 0 < limit < state.octets:
        return replies.TOO_LARGE if state.octets <= 2 * limit else replies.FAR_TOO_LARGE
    return replies.QUEUED


def rset(state: SessionState, argument: bytes) -> Reply:
    """Forget the transaction (RFC 5321 4.1.1.5)."""
    state.reset()
    return replies.RESET


def starttls(state: SessionState, argument: bytes) -> Reply:
    """Agree to a TLS handshake (RFC 3207 4)."""
    if state.secure:
        return replies.ALREADY_SECURE
    return replies.START_TLS if state.listener.config.starttls else replies.NOT_OFFERED


def auth(state: SessionState, found: Credentials | bytes) -> Reply:
    """Verify the credentials of an AUTH exchange that has ended (RFC 4954 4)."""
    if not isinstance(found, Credentials):
        return replies.NOT_OFFERED
    if authenticate(state.listener.config.passwords, found):
        state.authenticated, state.must_authenticate = True, False
        return replies.AUTHENTICATED
    return refuse_credentials(state, found, replies.AUTHENTICATION_FAILED)


def refuse_credentials(state: SessionState, found: Credentials | bytes, refusal: Reply) -> Reply:
    """Return the reply to credentials that are refused: with a token, a challenge that says why comes first,
    and the refusal follows the client's answer to it (RFC 7628 3.2.3)."""
    if not isinstance(found, Credentials) or not found.failure_challenge or refusal.code < 500:
        return refusal
    state.auth_exchange = failure_challenge(refusal)
    next(state.auth_exchange)
    return challenge(found.failure_challenge)


def xclient(state: SessionState, attributes: Mapping[bytes, bytes]) -> Reply:
    """Learn who the client is from another server, and begin anew (Postfix XCLIENT_README)."""
    state.named_client = state.named_client.updated(attributes)
    return replies.CLIENT_NAMED


def xforward(state: SessionState, attributes: Mapping[bytes, bytes]) -> Reply:
    """Learn whose message comes next, which is only shown (Postfix XFORWARD_README)."""
    state.forwarded_client = state.forwarded_client.updated(attributes)
    return replies.OK


def help_(state: SessionState, argument: bytes) -> Reply:
    """Explain a verb, or list all of them (RFC 5321 4.1.1.8)."""
    return state.listener.help.get(argument.strip().upper(), state.listener.help[b""])


def quit_(state: SessionState, argument: bytes) -> Reply:
    """Say goodbye (RFC 5321 4.1.1.10)."""
    state.quit_received = True
    return replies.GOODBYE


def always(reply: Reply) -> Action:
    """Return an action that does nothing but answer."""
    return lambda state, argument: reply


def by_request(otherwise: Reply, passed: Reply, failed: Reply) -> Action:
    """Return an action whose reply the client chooses with "pass=" or "fail=" anywhere in the argument."""

    def answer(state: SessionState, argument: bytes) -> Reply:
        text = argument.lower()
        if FAIL in text:
            return failed
        return passed if PASS in text else otherwise

    return answer


MAX_LMTP_RECIPIENTS: Final = 1000
MAX_LMTP_OCTETS: Final = 1 << 15
"""Recipients of a message in LMTP, whose addresses are kept until it is answered, and octets of all of them:
enough for 100 of the longest (RFC 5321 4.5.3.1.8). Further ones get 452, and belong in another message."""

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
    Command("CONNECT", any_argument, connect),
    Command(
        "HELO",
        helo_name,
        helo,
        "HELO hostname",
        "begin a session without extensions",
        last=True,
        service=SMTP,
    ),
    Command(
        "EHLO",
        helo_name,
        ehlo,
        "EHLO hostname",
        "begin a session and list the extensions",
        last=True,
        service=SMTP,
    ),
    Command(
        "LHLO",
        helo_name,
        ehlo,
        "LHLO hostname",
        "begin a session of LMTP and list the extensions",
        last=True,
        service=LMTP,
        phase="EHLO",
    ),
    Command("STARTTLS", no_argument, starttls, "STARTTLS", "start TLS", last=True),
    Command(
        "AUTH",
        credentials,
        auth,
        "AUTH mechanism [initial-response]",
        "authenticate, if the reply to EHLO offers it",
        needs=GREETED,
        bars=MAIL,
        last=True,
    ),
    Command(
        "MAIL",
        mailbox(b"FROM", local_names=(b"",)),
        mail,
        "MAIL FROM:<address> [SIZE=n] [BODY=7BIT|8BITMIME] [SMTPUTF8] [RET=FULL|HDRS] [ENVID=id]",
        "begin a transaction with its sender; <> is the null sender",
        needs=GREETED,
        bars=MAIL,
        needs_auth=True,
    ),
    Command(
        "RCPT",
        mailbox(b"TO", local_names=(b"postmaster",)),
        rcpt,
        "RCPT TO:<address> [NOTIFY=NEVER|SUCCESS,FAILURE,DELAY] [ORCPT=type;address]",
        "add a recipient",
        needs=MAIL,
        bars=CHUNKED,
        needs_auth=True,
        in_lmtp=MappingProxyType({"do": add_recipient}),
    ),
    Command(
        "DATA",
        no_argument,
        data,
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
        bdat,
        "BDAT octets [LAST]",
        "send a piece of the message, or the last one; the octets follow",
        needs=RCPT,
        needs_auth=True,
        in_lmtp=NEEDS_RECIPIENT,
    ),
    Command(".", any_argument, end),
    Command("RSET", no_argument, rset, "RSET", "abandon the transaction"),
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
    Command("HELP", any_argument, help_, "HELP [verb]", "explain a command, or list all of them"),
    Command(
        "XCLIENT",
        attributes_of_client(CLIENT_ATTRIBUTES),
        xclient,
        "XCLIENT attribute=value ...",
        "name the client to begin a new session with, if the reply to EHLO offers it",
    ),
    Command(
        "XFORWARD",
        attributes_of_client(FORWARDED_ATTRIBUTES),
        xforward,
        "XFORWARD attribute=value ...",
        "name the client of the next message, if the reply to EHLO offers it",
    ),
    Command("QUIT", no_argument, quit_, "QUIT", "end the session", last=True),
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


GREETING_WORDS: Final = {SMTP: "ESMTP", LMTP: "LMTP"}
"""The name of the protocol in the greeting, by service."""


def listener_constants(config: ListenerConfig, numbers: EventNumbers) -> ListenerConstants:
    """Make what a listener with this configuration repeats in every session."""
    name = config.hostname
    offers = [
        keywords(config, secure, names_clients) for names_clients in (False, True) for secure in (False, True)
    ]
    return ListenerConstants(
        config=config,
        greeting=Reply(220, "", f"{name} {GREETING_WORDS[config.service]} Blackhole"),
        helo=Reply(250, "", name),
        ehlo=tuple(Reply(250, "", name, *lines) for lines in offers),
        offers=tuple(map(Offer, offers)),
        help=explanations(config.service),
        mechanisms=offered_mechanisms(config.auth_mechanisms, config.passwords),
        parameters=(parameters(config, False), parameters(config, True)),
        violation_events=violation_events(numbers),
        limit_events=LimitEvents(numbers),
        sampled_violation_events=sampled_violation_events(numbers),
        inspected_message=numbers.inspection(IN_MESSAGES),
        content_inspections={what: numbers.inspection(what) for what in OF_CONTENT},
    )
