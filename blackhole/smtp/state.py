"""What one session remembers of its protocol state, and what its listener says.

Everything that moves a session from one stage to another is here, and a transaction is forgotten in one
place only, `SessionState.reset`, so that no command can forget to (RFC 5321 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.messages.dkim_verification import DKIMKeys, SigningKey
from blackhole.smtp.auth import Exchange, Mechanism
from blackhole.smtp.faults import InputFault
from blackhole.smtp.named_client import NO_NAMED_CLIENT
from blackhole.smtp.offer import NO_OFFER, Offer
from blackhole.smtp.replies import Reply

PHASES: Final = (
    *("CONNECT", "HELO", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", ".", "RSET", "NOOP"),
    *("VRFY", "EXPN", "HELP", "QUIT", "other"),
)
"""The phases of a session. CONNECT is the greeting, "." the end of a message; "other" has all other verbs."""

SMTP: Final = "smtp"
LMTP: Final = "lmtp"
"""The services of a listener: LMTP (RFC 2033) answers a message once for each recipient."""

GREETED: Final = 1
MAIL: Final = 2
RCPT: Final = 4
CHUNKED: Final = 8
"""What has been accepted so far, as bits, so that a command can name what it needs. They are plain integers
because `&` of an enum.Flag takes 0.6 microseconds. CHUNKED: a chunk has come, refused or not."""

BINARY_BODY: Final = 16
"""MAIL announced a message that is not text: BODY=BINARYMIME (RFC 3030 3)."""

STAGE_COUNT: Final = 32
"""All combinations of the bits above are below this number."""

DATA: Final = 32
BODY: Final = 64
"""Further bits of what was refused: DATA, until another command comes, and a body that came in its place."""

NO_PARAMETERS_SENT: Final[Mapping[bytes, bytes]] = MappingProxyType({})
"""Stands for the parameters of MAIL or RCPT where there are none."""

UNDECLARED: Final = -1
"""The size that MAIL declared, where it declared none."""


class ClientLimits(NamedTuple):
    """Limits on one client, as Postfix's smtpd has them. 0: no limit."""

    soft_errors: int = 0
    """Errors after which each reply is delayed."""
    errors: int = 0
    """Errors after which the session is closed."""
    junk: int = 0
    """Commands without mail after which each further one counts as an error."""
    recipients: int = 0
    """Recipients of a message."""
    messages: int = 0
    """Messages of a session."""
    metered: bool = False
    """Messages and recipients are also counted over all connections of the client."""


ValueCheck = Callable[[bytes, bool], bool]
"""Takes the value of an ESMTP parameter, and whether to overlook what other servers overlook."""

Checks = Mapping[bytes, ValueCheck]
"""ESMTP parameters by upper-case name, each with the check of its value."""


@dataclass(frozen=True)
class ListenerConfig:
    """The configuration of one listener, as far as the protocol depends on it."""

    hostname: str = "localhost"
    service: str = SMTP
    """SMTP or LMTP."""
    message_size_limit: int = 0
    """Octets; 0: no limit."""
    strict: bool = False
    """Enforce the order of commands and the syntax of addresses of RFC 5321."""
    delay: tuple[float, float] | None = None
    """Seconds before the reply to each command, drawn evenly from (least, most)."""
    starttls: bool = False
    """Offer STARTTLS: there is a certificate."""
    bare_newline: str = "normalize"
    """How to treat lines that end with LF alone: normalize, count or reject."""
    inspect: str = "sample"
    """Which sessions and messages to inspect more closely than is needed to serve them: all, sample, off."""
    inspect_content: bool = False
    """Inspect the content of messages too: their fields, parts and signatures."""
    dkim_keys: DKIMKeys = field(default_factory=dict[bytes, SigningKey], compare=False)
    """The keys with which signatures are verified."""
    limits: ClientLimits | None = None
    """Limits on each client; None: no limits at all."""
    message_directives: bool = False
    """Obey header fields by which a message asks for a mode or a delay."""
    extensions: frozenset[str] | None = None
    """Keywords of the extensions to offer, where they can be; None: those that are offered by default."""
    auth: bool = False
    """Offer AUTH."""
    auth_plaintext: bool = False
    """Offer AUTH without TLS too."""
    auth_mechanisms: frozenset[str] | None = None
    """Names of the mechanisms of AUTH; None: those that are offered by default."""
    auth_required: bool = False
    """Refuse mail before AUTH has succeeded."""
    passwords: Mapping[bytes, bytes] | None = field(default=None, repr=False)
    """By user; None: every user is let in."""
    xclient_from: NetworkSet | None = None
    """Networks of the servers that may name clients with XCLIENT and XFORWARD; None: there are none."""
    fast_path: bool = True
    """Answer usual commands without parsing them. It makes no difference except to the speed."""


@dataclass(frozen=True)
class ListenerConstants:
    """What a listener repeats in every session, made once."""

    config: ListenerConfig
    greeting: Reply
    helo: Reply
    ehlo: tuple[Reply, ...]
    """Replies to EHLO: without TLS, under it, and both to servers that may name clients."""
    offers: tuple[Offer, ...]
    """What these replies offer."""
    help: Mapping[bytes, Reply]
    """Replies to HELP, by verb."""
    mechanisms: Mapping[bytes, Mechanism]
    """The mechanisms of AUTH, by name."""
    parameters: tuple[Mapping[bytes, Checks], Mapping[bytes, Checks]]
    """Parameters behind FROM and TO: without TLS, and under it."""
    violation_events: Mapping[str, int]
    """The number of the event for each violation that is counted, by its name."""
    sampled_violation_events: Mapping[str, int]
    """The number of the event for each violation that is found in a sample, by its name."""
    inspected_message: int
    """The number of the event for a message that is inspected."""
    content_inspections: Mapping[str, int]
    """The number of the event for each kind of OF_CONTENT that is inspected, by its name."""
    limit_events: Mapping[str, int]
    """The number of the event for each limit on clients, by its name."""


class ViolationContext(NamedTuple):
    """Where a violation was committed."""

    phase: str
    """Empty: that of the line."""
    line: bytes = b""
    """What was sent, or as much of it as is known."""
    detail: str = ""
    """What there is to say in place of a line."""


KEPT_OCTETS: Final = 160
"""Octets of a line that are kept for a violation, at most."""

KEPT_VIOLATION_CONTEXT: Final = ViolationContext("")
"""Stands for the context of a violation whose evidence is kept elsewhere by now."""

NO_VIOLATION_CONTEXTS: Final[dict[str, ViolationContext]] = {}
"""The contexts of a session without violations: shared, and never changed."""


NO_FORWARD_PATHS: Final[list[bytes]] = []
"""The recipients of a session that keeps none: shared, and never changed."""


class SessionState:
    """The protocol state of one session, which commands read and change.

    No address is kept, but for those of recipients in LMTP. `size` is what MAIL declared, or UNDECLARED,
    `octets` what has come of the message so far: without the line with the final dot, and with dots still
    doubled.

    What a sender does wrong is judged by three facts: what the client was offered (`offered`), what it was
    told (`stage` and `refused`), and whether it had to know that when it sent a command (`outstanding`).
    """

    __slots__ = (
        "_connection_id",
        "_id",
        "auth_exchange",
        "authenticated",
        "client_identity",
        "counted_events",
        "eightbit",
        "forward_path_octets",
        "forward_paths",
        "forwarded_client",
        "greeting_omitted",
        "input_fault",
        "lasting_fault",
        "line",
        "listener",
        "messages",
        "must_authenticate",
        "named_client",
        "names_clients",
        "new_id",
        "octets",
        "offered",
        "outstanding",
        "parameters",
        "quit_received",
        "recipients",
        "refused",
        "sampled",
        "sampled_violation_count",
        "secure",
        "size",
        "smtputf8",
        "stage",
        "tls_started",
        "tls_version",
        "traced_id",
        "violation_contexts",
        "violation_count",
    )

    def __init__(
        self, listener: ListenerConstants, new_id: Callable[[], int], secure: bool, client: str
    ) -> None:
        self.listener = listener
        self.new_id = new_id
        self._id = self._connection_id = 0
        self.traced_id = 0
        """The id of the transaction to which the command belongs that was traced last, as does its reply."""
        self.secure = secure
        self.tls_version = ""
        """As "TLSv1.3"; empty without TLS."""
        self.messages = 0
        """Messages that have come to their end."""
        self.parameters = NO_PARAMETERS_SENT
        """The parameters that MAIL or RCPT had last, until rules that look at them have taken them."""
        self.quit_received = False
        self.stage = 0
        self.authenticated = False
        self.must_authenticate = listener.config.auth_required
        """Mail is refused until AUTH has succeeded."""
        self.client_identity = b""
        """The name in the client's certificate, if the TLS handshake has verified one."""
        trusted = listener.config.xclient_from
        self.names_clients = trusted is not None and to_bytes(client) in trusted
        """The client is a server that may name those that it acts for."""
        self.named_client = NO_NAMED_CLIENT
        """What XCLIENT has said about the client."""
        self.forwarded_client = NO_NAMED_CLIENT
        """What XFORWARD has said about the client of the transaction that follows."""
        self.auth_exchange: Exchange | None = None
        """The AUTH exchange under way: the next line is a response, not a command."""
        self.recipients = 0
        self.forward_paths: list[bytes] = NO_FORWARD_PATHS
        """The accepted recipients of the transaction, in LMTP alone. What it has while there are no
        `recipients` is left from the transaction before."""
        self.forward_path_octets = 0
        self.octets = 0
        self.size = UNDECLARED
        self.smtputf8 = False
        self.eightbit = False
        """MAIL announced octets above 127."""
        self.sampled = True
        """Inspect the name in HELO or EHLO, and whether the client talks before the greeting."""
        self.offered = NO_OFFER
        """What the reply to the last EHLO offered, as it was sent; nothing after HELO."""
        self.refused = 0
        """What was refused in this transaction, as bits."""
        self.input_fault: InputFault | None = None
        """What goes wrong with the input in this transaction."""
        self.lasting_fault: InputFault | None = None
        """What goes wrong with it in each transaction."""
        self.outstanding = False
        """The client may have sent what comes now before it saw the last refusal: it may pipeline (RFC 2920
        3.1), and has sent no command since whose reply it had to wait for."""
        self.greeting_omitted = False
        """The client has begun without EHLO or HELO, which has been recorded."""
        self.tls_started = False
        """STARTTLS has ended a session in the clear, and the client has to say EHLO again (RFC 3207 4.2)."""
        self.violation_count = self.sampled_violation_count = 0
        self.line = b""
        """The command line that was read last on the general path, without secrets."""
        self.violation_contexts = NO_VIOLATION_CONTEXTS
        """Where each violation was committed first in this session, by name."""
        self.counted_events: list[int] = []
        """Events that the caller has yet to count: replies, violations, outcomes, and rules that matched."""

    @property
    def offer_number(self) -> int:
        """The position of what EHLO offers to this client now in `offers` and `ehlo` of the listener."""
        return self.secure + 2 * self.names_clients

    @property
    def own_offer(self) -> Offer:
        """What EHLO offers to this client now."""
        return self.listener.offers[self.offer_number]

    @property
    def id(self) -> int:
        """The transaction's id, 40 bits; drawn when it is first asked for."""
        if not self._id:
            self._id = self.new_id()
        return self._id

    @property
    def connection_id(self) -> int:
        """The connection's id, 40 bits; drawn when it is first asked for."""
        if not self._connection_id:
            self._connection_id = self.new_id()
        return self._connection_id

    def reset(self) -> None:
        """Forget the transaction (RFC 5321 4.1.1.5), after RSET, HELO, EHLO, STARTTLS or a message."""
        self._id = 0
        self.stage &= GREETED
        self.refused = 0
        self.recipients = 0
        self.octets = 0
        self.size = UNDECLARED
        self.smtputf8 = False
        self.eightbit = False
        self.forwarded_client = NO_NAMED_CLIENT
        self.input_fault = self.lasting_fault

    def restart_under_tls(self, after_starttls: bool) -> None:
        """Forget everything that was said before the TLS handshake (RFC 3207 4.2)."""
        self.reset()
        self.stage = 0
        self.secure = True
        self.authenticated = self.greeting_omitted = False
        self.must_authenticate = self.listener.config.auth_required
        self.offered = NO_OFFER
        self.tls_started = after_starttls

    def record_violation(self, name: str, violation_context: ViolationContext | None = None) -> None:
        """Record a violation by its name in `VIOLATIONS`, which are all counted.

        `violation_context` is where it was committed, if not in the line that was read last. Raises
        KeyError for another name.
        """
        self.counted_events.append(self.listener.violation_events[name])
        self.violation_count += 1
        self.keep_violation_context(name, violation_context)

    def record_sampled_violation(self, name: str, violation_context: ViolationContext | None = None) -> None:
        """Record a violation that is looked for in a sample. Raises KeyError if it is not."""
        self.counted_events.append(self.listener.sampled_violation_events[name])
        self.sampled_violation_count += 1
        self.keep_violation_context(name, violation_context)

    def keep_violation_context(self, name: str, violation_context: ViolationContext | None) -> None:
        """Take note of where a violation was committed, if it is the first of its kind in this session."""
        if name in self.violation_contexts:
            return
        if not self.violation_contexts:
            self.violation_contexts = {}
        if violation_context is None:
            violation_context = ViolationContext("", self.line)
        self.violation_contexts[name] = violation_context._replace(line=violation_context.line[:KEPT_OCTETS])

    def record_limit(self, name: str) -> None:
        """Record that the client met a limit on clients, by the name of the limit."""
        self.counted_events.append(self.listener.limit_events[name])

    def record_event(self, number: int) -> None:
        """Record an event of the policy; 0 is not counted."""
        if number:
            self.counted_events.append(number)
